//! Receipts of devices, and the append-only log that has them (docs/receipts.md). A device signs
//! what it runs. The origin keeps the receipts in a Merkle tree with the events of rollouts.
//! Anybody checks it.
//!
//! This module knows the bytes and the tree. The caller checks signatures.

mod check;
mod entry;
mod head;
mod merkle;

pub use check::{Finding, LogCheck};
pub use entry::{
    ENTRY_BYTES_MAX, Entry, EntryError, RECEIPT_BYTES_MAX, Receipt, RestartEvent, SignedReceipt, WaveEvent,
    node_of_key, receipt_message,
};
pub use head::{HeadError, LogHead, LogId, SignedHead, is_head_message};
pub use merkle::{
    Hashes, LOG_SIZE_MAX, PROOF_HASHES_MAX, Subtree, TreeHash, TreeHashError, completed, consistency,
    empty_root, extends, includes, inclusion, leaf_hash, node_hash, root, subtrees_for,
};
