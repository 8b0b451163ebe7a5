//! Answers to metadata questions, kept for when no parent can be reached.

use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::lru::Lru;

/// Time within which the same question gets the same answer: a fleet that wakes at once then asks
/// the origin once.
const METADATA_FRESH: Duration = Duration::from_secs(1);

/// How long a parent that failed is not asked for metadata while an answer to the question is kept.
pub(super) const PARENT_DOWN: Duration = Duration::from_secs(10);

/// Number of answers kept for when no parent can be reached. TUF's own expiry bounds how stale they
/// can be.
const METADATA_KEPT: u64 = 64;

/// Maximum total size of the kept answers, bytes.
const METADATA_KEPT_BYTES: u64 = 8 << 20;

/// Answers that parents gave, the newest for each question.
pub(super) struct MetadataCache {
    /// Time and bytes of each answer, by question.
    kept: Lru<Bytes, (Instant, Bytes)>,
    /// Set when a parent failed: until then kept answers are used without asking it again.
    pub(super) down_until: Option<Instant>,
}

impl Default for MetadataCache {
    fn default() -> Self {
        Self { kept: Lru::new(METADATA_KEPT_BYTES), down_until: None }
    }
}

impl MetadataCache {
    /// Keeps an answer.
    pub(super) fn keep(&mut self, query: Bytes, answer: Bytes) {
        // A small answer weighs as much as bounds the number of answers.
        let weight = (answer.len() as u64).max(METADATA_KEPT_BYTES / METADATA_KEPT);
        self.kept.put(query, (Instant::now(), answer), weight);
    }

    /// Returns the kept answer to a question.
    pub(super) fn kept(&mut self, query: &Bytes) -> Option<Bytes> {
        self.kept.get(query).map(|(_, answer)| answer.clone())
    }

    /// Returns the answer to a question if it came a moment ago.
    pub(super) fn fresh(&mut self, query: &Bytes) -> Option<Bytes> {
        self.kept.get(query).filter(|(at, _)| at.elapsed() < METADATA_FRESH).map(|(_, answer)| answer.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_and_the_bytes_of_answers_are_bounded() {
        let mut cache = MetadataCache::default();
        let question = |n: u64| Bytes::from(n.to_be_bytes().to_vec());
        for n in 0..=METADATA_KEPT {
            cache.keep(question(n), Bytes::from_static(b"small"));
        }
        assert!(cache.kept(&question(0)).is_none());
        assert_eq!(cache.fresh(&question(1)).as_deref(), Some(&b"small"[..]));
        for n in 0..3 {
            cache.keep(question(n), Bytes::from(vec![0; 3 << 20]));
        }
        assert!(cache.kept(&question(0)).is_none(), "three of them are more than the bytes allow");
        assert!(cache.kept(&question(1)).is_some() && cache.kept(&question(2)).is_some());
    }
}
