//! Answers to metadata questions, kept for when no parent can be reached.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Time within which the same question gets the same answer: a fleet that wakes at once then asks
/// the origin once.
pub(super) const METADATA_FRESH: Duration = Duration::from_secs(1);

/// How long a parent that failed is not asked for metadata while an answer to the question is kept.
pub(super) const PARENT_DOWN: Duration = Duration::from_secs(10);

/// Number of answers kept for when no parent can be reached. TUF's own expiry bounds how stale they
/// can be.
const METADATA_KEPT: usize = 64;

/// Maximum total size of the kept answers, bytes.
const METADATA_KEPT_BYTES: usize = 8 << 20;

/// Answers that parents gave, the newest for each question.
#[derive(Default)]
pub(super) struct MetadataCache {
    /// Time and bytes of each answer, by question.
    pub(super) kept: HashMap<Bytes, (Instant, Bytes)>,
    /// Set when a parent failed: until then kept answers are used without asking it again.
    pub(super) down_until: Option<Instant>,
}

impl MetadataCache {
    /// Keeps an answer, and drops the oldest beyond the bounds.
    pub(super) fn keep(&mut self, query: Bytes, answer: Bytes) {
        self.kept.insert(query, (Instant::now(), answer));
        let bytes =
            |kept: &HashMap<Bytes, (Instant, Bytes)>| kept.values().map(|(_, a)| a.len()).sum::<usize>();
        while self.kept.len() > METADATA_KEPT || bytes(&self.kept) > METADATA_KEPT_BYTES {
            let oldest = self.kept.iter().min_by_key(|(_, (at, _))| *at).map(|(query, _)| query.clone());
            let Some(oldest) = oldest else { break };
            self.kept.remove(&oldest);
        }
    }
}
