//! Connections of an HTTP server: how many may be open, and how long a caller may leave a response
//! unread. The origin's API and the gateway use both.

mod connections;
mod unstalled;

pub use connections::{Authenticated, ConnectionSlot, Connections};
pub use unstalled::Unstalled;
