//! Log of receipts (docs/receipts.md).

use serde::{Deserialize, Serialize};

use crate::fleet::receipts::{LogHead, SignedHead};

/// Most entries in one page of the log. An entry is below 2 kB, so a page is below 5 MB.
pub const RECEIPTS_PAGE_MAX: u32 = 1000;

/// Entries in a page of the log when the caller does not say.
pub const RECEIPTS_PAGE: u32 = 100;

/// Signed head of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReceiptsHead {
    /// Id of the log, 32 hexadecimal digits.
    pub log: String,
    /// Number of entries.
    pub size: u64,
    /// Root of the Merkle tree of these entries, 64 hexadecimal digits.
    pub root: String,
    /// Time at which the origin signed it, unix seconds.
    pub at: u64,
    /// ECDSA P-256 signature by the CA's key, ASN.1, hexadecimal.
    pub signature: String,
}

impl From<&SignedHead> for ReceiptsHead {
    fn from(signed: &SignedHead) -> Self {
        let LogHead { log, size, root, at } = signed.head;
        Self {
            log: log.to_string(),
            size,
            root: root.to_string(),
            at,
            signature: hex::encode(&signed.signature),
        }
    }
}

impl ReceiptsHead {
    /// The head with its signature, which is not checked; `None` for texts that are no head.
    pub fn signed(&self) -> Option<SignedHead> {
        let (log, root) = (self.log.parse().ok()?, self.root.parse().ok()?);
        let signature = hex::decode(&self.signature).ok()?.into();
        let signed = SignedHead { head: LogHead { log, size: self.size, root, at: self.at }, signature };
        // The bounds are those of the bytes.
        SignedHead::decode(&signed.encode()).ok()
    }
}

/// Entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReceiptsEntry {
    /// Number, from 0.
    pub number: u64,
    /// Time at which the origin added it, unix seconds; not covered by the tree.
    pub at: i64,
    /// The bytes, hexadecimal (docs/receipts.md, "Entries").
    pub entry: String,
}

/// Page of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReceiptsPage {
    /// Entries in order.
    pub entries: Vec<ReceiptsEntry>,
    /// Value of `start` for the next page; null at the end.
    pub next: Option<u64>,
}

/// Proof about the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReceiptsProof {
    /// Number of the entry; null for a proof of consistency.
    pub number: Option<u64>,
    /// Hashes as RFC 6962 orders them, 64 hexadecimal digits each.
    pub hashes: Vec<String>,
}

/// A node's view of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeLog {
    /// Number of entries in the newest head that the node has verified.
    pub size: u64,
    /// Time of that head, unix seconds.
    pub head_at: u64,
    /// Fault of the log that the node found, in words; null without one.
    pub fault: Option<String>,
    /// Number of its receipts that the node found missing.
    pub hidden: u64,
    /// Time of the report that says so, unix seconds.
    pub reported: i64,
}
