//! The messages of the protocol, one concept a file.

mod choke;
mod cost;
mod data;
mod enroll;
mod handshake;
mod metadata;
mod nodes;
mod pex;
mod ranges;
mod shun;

pub use choke::Choke;
pub use cost::Cost;
pub use data::{Codec, Data};
pub use enroll::EnrollBody;
pub use handshake::{Handshake, PROTOCOL_VERSION};
pub use metadata::{Metadata, MetadataRequest};
pub use nodes::{COMPACT_LEAF, Node, NodeRequest, NodesEnd, ROOT_LEVEL};
pub use pex::{PeerRecord, PeerRecords, RECORD_DOMAIN};
pub use ranges::{DontHave, DontHaveReason, Ranges};
pub use shun::Shun;

#[cfg(test)]
mod golden;
