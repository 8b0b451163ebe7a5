//! distd's origin.
//!
//! [`ingest`] takes chunks and files in and makes releases of them; their rows live in [`db`], their bytes in
//! [`store`]. The order is always: pack durable, rows committed, release published.

pub mod config;
pub mod db;
pub mod http;
pub mod ingest;
pub mod locks;
pub mod offline;
pub mod origin;
pub mod patches;
pub mod publisher;
pub mod realm;
pub mod run;
pub mod signer;
pub mod store;
pub mod tuf;
