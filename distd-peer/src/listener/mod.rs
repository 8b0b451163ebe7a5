//! Connections of an HTTP server: how they are accepted, how many may be open, and how long a
//! caller may leave a response unread. The origin's API, the gateway and apt's proxy use all of it.

mod accept;
mod connections;
mod unstalled;

pub(crate) use accept::stopped;
pub use accept::{ConnectionServer, accept, secured, serve_until};
pub use connections::Authenticated;
use connections::Connections;
pub use unstalled::Unstalled;
