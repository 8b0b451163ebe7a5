//! The origin of distd: takes in chunks and files, makes signed releases of them, and serves nodes.
//!
//! [`ingest`] receives chunks and files and makes releases of them. Their rows are in [`db`], their
//! bytes in [`store`]. The order is always the same: the pack becomes durable, the rows are
//! committed, and then the release is published.

pub mod config;
pub mod db;
pub mod http;
pub mod ingest;
pub mod init;
pub mod locks;
pub mod offline;
pub mod origin;
pub mod patches;
pub mod publisher;
pub mod realm;
pub mod replica;
pub mod run;
pub mod signer;
pub mod store;
pub mod tuf;
pub mod work;
