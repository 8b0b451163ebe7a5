//! Connections of an HTTP server: how they are accepted, how many may be open, and how long a
//! caller may leave a response unread. The origin's API and the gateway use all of it.

mod accept;
mod connections;
mod unstalled;

pub use accept::{ConnectionServer, accept, secured, stopped};
pub use connections::Authenticated;
use connections::Connections;
pub use unstalled::Unstalled;
