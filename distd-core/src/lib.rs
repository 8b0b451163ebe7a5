//! Pure logic of distd.
//!
//! An artifact is cut into **regions** and those into **chunks** ([`cut`]); the chunks of an artifact,
//! in order, are the leaves of its **manifest** ([`manifest`]), a Merkle tree with content-defined
//! nodes. Comparing what a manifest wants with what is held gives a **plan** ([`planner`]); **frames**
//! ([`proto`]) ask for the rest and carry it. Nothing here opens a file, a socket, a thread or a clock:
//! those are arguments.

pub mod cut;
pub mod explain;
pub mod ids;
pub mod limits;
pub mod manifest;
pub mod names;
pub mod packing;
pub mod patch;
pub mod planner;
pub mod proto;
pub mod ranges;
pub mod swarm;
pub mod text;
pub mod time;
pub mod tree;

pub use ids::{ArtifactHash, ChunkHash, ChunkId, ManifestId, NodeHash, NodeId};
