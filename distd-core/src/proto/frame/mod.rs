//! The messages of the protocol, one concept a file, and the list of them. A number is the
//! message's type in RFC 7574 §8.2 where the message is in the RFC; private numbers are 128 and up
//! (docs/protocol.md, "Frames").

use super::codec::frames;

mod capability;
mod choke;
mod cost;
mod data;
mod enroll;
mod handshake;
mod metadata;
mod news;
mod nodes;
mod pex;
mod ranges;
mod shun;

pub use capability::CapabilityBody;
pub use choke::Choke;
pub use cost::Cost;
pub use data::{Codec, Data};
pub use enroll::EnrollBody;
pub use handshake::{Handshake, PROTOCOL_VERSION};
pub use metadata::{Metadata, MetadataRequest};
pub use news::{HaltBody, Newer};
pub use nodes::{COMPACT_LEAF, Node, NodeRequest, NodesEnd, ROOT_LEVEL};
pub use pex::{PeerRecord, PeerRecords, RECORD_DOMAIN};
pub use ranges::{DontHave, DontHaveReason, Ranges};
pub use shun::Shun;

frames! {
    /// First frame on every control stream, in each direction.
    0 HANDSHAKE = Handshake(Handshake),
    /// One chunk.
    1 DATA = Data(Data),
    /// Chunks the sender holds and has verified.
    3 HAVE = Have(Ranges),
    /// One manifest node.
    4 INTEGRITY = Integrity(Node),
    /// Request for neighbours, now and as further ones come.
    6 PEX_REQ = PexRequest,
    /// Request for chunks.
    8 REQUEST = Request(Ranges),
    /// Chunks the sender no longer wants.
    9 CANCEL = Cancel(Ranges),
    /// The sender answers no requests for a while.
    10 CHOKE = Choke(Choke),
    /// The sender answers new requests.
    11 UNCHOKE = Unchoke,
    /// Addresses where the sender, or neighbours of the receiver, listen.
    13 PEX_REScert = PeerRecords(PeerRecords),
    /// Requested chunks that will not come.
    128 DONT_HAVE = DontHave(DontHave),
    /// Request for manifest nodes that the sender lacks.
    129 NODE_REQUEST = NodeRequest(NodeRequest),
    /// End of the answer to a NODE_REQUEST.
    130 NODES_END = NodesEnd(NodesEnd),
    /// A question for TUF metadata.
    131 METADATA_REQUEST = MetadataRequest(MetadataRequest),
    /// A piece of the answer to a METADATA_REQUEST.
    132 METADATA = Metadata(Metadata),
    /// Enrolment or renewal request.
    133 ENROLL = Enroll(EnrollBody),
    /// Answer to an ENROLL.
    134 ENROLLED = Enrolled(EnrollBody),
    /// Request for the cost of chunks.
    135 COST_REQUEST = CostRequest(Ranges),
    /// Answer to a COST_REQUEST.
    136 COST = Cost(Cost),
    /// Nodes the sender shuns and asks the receiver not to use.
    137 SHUN = Shun(Shun),
    /// A newer capability of the sender.
    138 CAPABILITY = Capability(CapabilityBody),
    /// A notice that a rollout stands still.
    139 HALT = Halt(HaltBody),
    /// The answerer has newer metadata about channels.
    140 NEWER = Newer(Newer),
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
