//! distd's origin.
//!
//! [`ingest`] takes chunks and files in and makes releases of them; their rows live in [`db`], their bytes in
//! [`store`]. The order is always: pack durable, rows committed, release published.

pub mod db;
pub mod ingest;
pub mod origin;
pub mod realm;
pub mod store;
pub mod tuf;
