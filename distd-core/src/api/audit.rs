//! Audit log of the origin.

use serde::{Deserialize, Serialize};

use crate::fleet::audit::AuditRecord;

/// Most entries in one page of the audit log.
pub const AUDIT_PAGE_MAX: u32 = 1000;

/// Entries in a page of the audit log when the caller does not say.
pub const AUDIT_PAGE: u32 = 100;

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// Number, from 1, without gaps.
    pub number: u64,
    /// Time, unix seconds.
    pub at: i64,
    /// `token ID`, `join token ID`, `operator` for a command on the origin's machine, or `origin`
    /// for what it does by itself.
    pub actor: String,
    /// Label of the token; empty without one.
    pub label: String,
    /// The act, such as `grant.add`.
    pub action: String,
    /// The thing that was acted on.
    pub subject: String,
    /// JSON text, exactly as it was hashed.
    pub details: String,
    /// Hash of this entry and of all before it, 64 hexadecimal digits.
    pub hash: String,
}

impl AuditEntry {
    /// The parts that the hash covers.
    pub fn record(&self) -> AuditRecord<'_> {
        AuditRecord {
            number: self.number,
            at: self.at,
            actor: &self.actor,
            label: &self.label,
            action: &self.action,
            subject: &self.subject,
            details: &self.details,
        }
    }
}

/// Page of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditPage {
    /// Entries: the newest first, or the oldest first when the request has `after`.
    pub entries: Vec<AuditEntry>,
    /// Value of `before` or `after` for the next page; null at the end.
    pub next: Option<u64>,
}
