//! Pure logic of distd: the decisions of origin, relays and devices, without I/O.
//!
//! ```text
//!  publisher   artifact --cut--> regions --cut--> chunks --packing--> packed chunks --> origin
//!              (tree: a listing, then files)         |            (a patch set is an artifact too)
//!                                                    | one entry each, in artifact order
//!                                                    v
//!  manifest    root node <-- inner nodes <-- leaves: [chunk id, chunk hash, length] ...
//!                 |
//!                 | signed by TUF
//!                 v
//!  device      chunks of the wanted manifest
//!                - chunks in place or in a seed      planner
//!                - chunks that a patch rebuilds      patch
//!                = chunks to fetch                   ranges
//!                 |
//!                 v
//!  swarm       which chunk next, from which peer?    swarm::Fetch
//!                 |
//!                 | REQUEST -->  neighbour, relay or origin:    proto
//!                 | <-- DATA     may the asker have it now?     swarm::Leases, swarm::UploadSlots
//!                 v
//!              unpack, compare the hash              packing
//!                 |
//!                 v
//!              target
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`cut`] | formats and FastCDC: an artifact becomes regions, regions become chunks |
//! | [`tree`] | the listing of a directory artifact, and the paths it may contain |
//! | [`manifest`] | the Merkle tree over an artifact's chunks |
//! | [`patch`] | patches that rebuild chunks from base chunks, patch sets and the choice of both |
//! | [`explain`] | reports on which files cause the difference between two artifacts |
//! | [`planner`] | the chunks a device holds and the chunks it must fetch |
//! | [`swarm`] | state machines of a fetch and of the node that answers it |
//! | [`proto`] | frames of the protocol `distd/1` and the state of its streams |
//! | [`packing`] | one chunk, raw or zstd, and its verification |
//! | [`ranges`] | sets of chunk ids |
//! | [`api`] | bodies, upload records and bounds of the origin's HTTP API |
//! | [`role`] | roles of nodes |
//! | [`fleet`] | labels and groups of nodes, their rights, and the capabilities that prove them |
//! | [`ids`], [`names`] | identifiers; names of products, versions and channels |
//! | [`ticket`] | the right to fetch one shared artifact, as text |
//! | [`file_name`] | names of files under which other update clients know releases |
//! | [`bounds`] | bounds on input from files and peers |
//! | [`mod@error`] | an error and its causes on one line |
//! | [`text`] | foreign text made safe for an operator's terminal |
//! | [`time`] | moments, as callers pass them in |
//!
//! Nothing here opens a file, a socket, a thread or a clock. Callers pass bytes, time and
//! randomness as arguments.

// `proto/frame/golden.rs` is also part of the test binary `fuzz_seeds`, where the crate has this
// name.
#[cfg(test)]
extern crate self as distd_core;

pub mod api;
pub mod bounds;
pub mod cut;
pub mod error;
pub mod explain;
pub mod file_name;
pub mod fleet;
pub mod ids;
pub mod lru;
pub mod manifest;
pub mod names;
pub mod packing;
pub mod patch;
pub mod planner;
pub mod proto;
mod random;
pub mod ranges;
pub mod role;
pub mod swarm;
pub mod text;
pub mod ticket;
pub mod time;
pub mod tree;

pub use ids::{ArtifactHash, ChunkHash, ChunkId, ManifestId, NodeHash, NodeId, Position};
