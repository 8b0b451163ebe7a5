//! What a release is: TUF metadata, verified on the device; signatures and formats by the crate `tough`.
//!
//! [`TufClient`] starts from one `root.json`, asks any untrusted source for what is new ([`wire`]) and keeps
//! what it has verified, so that it can never be led back. How is stated in docs/trust.md.

mod answer;
pub mod bins;
mod client;
mod error;
mod files_store;
mod memory;
mod store;
mod walk;
pub mod wire;

pub use answer::{AnswerError, Answerer};
pub use client::{ChannelDoc, Cost, PatchSetRef, PatchesDoc, Resolved, SEQUENCE, SIGNED_AT, TufClient};
pub use error::TufError;
pub use files_store::{DirStore, MetadataStore, PRUNING, StoreError, is_served_name};
pub use memory::{MetadataSource, Offline, SourceError};
