//! TUF metadata that defines the content of a release, verified on the device. The crate `tough`
//! provides formats and signature checks.
//!
//! [`TufClient`] starts from one `root.json`, asks any untrusted source for newer files ([`wire`])
//! and stores what it has verified, so that it cannot be rolled back. docs/trust.md describes the
//! rules.

mod answer;
pub mod bins;
mod channel_files;
mod client;
pub mod differences;
mod error;
mod files_store;
mod memory;
mod store;
mod walk;
pub mod wire;

pub use answer::{AnswerError, Answerer};
pub use channel_files::{ChannelFiles, FileSum};
pub use client::{
    ChannelDoc, Choice, Choose, Chosen, Cost, PatchSetRef, PatchesDoc, Resolved, SEQUENCE, SIGNED_AT,
    TufClient,
};
pub use error::TufError;
pub use files_store::{DirStore, MetadataStore, PRUNING, StoreError, is_served_name};
pub use memory::{MetadataSource, Offline, SourceError};
