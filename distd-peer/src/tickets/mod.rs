//! Shares: one artifact of a machine, given to whoever holds its ticket (docs/tickets.md).
//!
//! A share is a realm of its own. The sharer is its origin ([`ShareContent`]); a fetcher shows the
//! ticket once, on the stream on which a node enrols ([`admission`]), and gets a certificate. From
//! then on it is a device with one parent: it fetches, exchanges with other fetchers, and renews
//! its capability as in any realm.

pub mod admission;
mod content;
mod message;

pub use content::{Members, ShareContent};
pub use message::{MemberProof, Refusal};

/// Question on a metadata stream by which a fetcher says that it has the whole artifact in place.
/// It is no msgpack map, so it is no question of a realm.
pub const COMPLETED: &[u8] = b"distd-share-completed-v1";
