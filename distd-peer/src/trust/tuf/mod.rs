//! What a release is: TUF metadata, verified on the device by the crate `tough`.
//!
//! [`TufClient`] starts from one `root.json`, asks any untrusted source for what is new ([`wire`]) and keeps
//! what it has verified, so that it can never be led back. What it adds to `tough` is stated in docs/trust.md.

mod client;
mod error;
mod memory;
mod store;
pub mod wire;

pub use client::{ChannelDoc, Cost, PatchSetRef, PatchesDoc, Resolved, SIGNED_AT, TufClient};
pub use error::TufError;
pub use memory::{MetadataSource, Offline, SourceError};
