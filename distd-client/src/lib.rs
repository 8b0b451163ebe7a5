//! The device as a library: gets releases from parents, neighbours and data that the device already
//! has, and serves its neighbours.
//!
//! [`pull()`](pull::pull) gets one release to one target: it resolves the release by signed
//! metadata, copies the chunks that the device has, fetches the rest, verifies the whole and puts
//! it in place. A pull that is killed anywhere is continued by the next call with the same request.
//! [`share`] is the device's part in its site, [`follow`] its part in rollouts: it keeps a
//! directory on the release of a channel. [`gateway`] gives releases to updaters that speak HTTP,
//! [`apt`] packages to apt. [`tickets`] shares an artifact with machines of no realm. [`cutting`]
//! makes chunks of one.
//! [`cli`] is the command line of all that, [`api`] the client of the origin's HTTP API.
//! [`disk`] has the operations on the device's files and disks, [`failure`] the kinds of failures,
//! [`progress`] the receiver of progress.
//!
//! The program `distd` is a thin command line on this library; `examples/pull.rs` is the smallest
//! program that embeds it. docs/architecture.md places the device among the other parts.

pub mod api;
pub mod apt;
pub mod cli;
pub mod config;
pub mod cutting;
pub mod disk;
pub mod failure;
pub mod follow;
pub mod gateway;
pub mod local;
pub mod progress;
pub mod pull;
pub mod share;
pub mod text;
mod threads;
pub mod tickets;
pub mod tree_source;
mod whole_hash;
