//! Audit log: a chain of entries in which each hash covers the entry and the hash before it
//! (docs/formats.md, "Audit log"). The origin makes the chain, and a client checks it.

use std::fmt;

/// Domain separation: these bytes come before all others that are hashed.
const DOMAIN: &[u8] = b"distd-audit-v1\0";

/// Hash of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditHash(pub [u8; 32]);

impl AuditHash {
    /// The hash before the first entry.
    pub const START: Self = Self([0; 32]);
}

impl fmt::Display for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for AuditHash {
    type Err = AuditHeadError;

    fn from_str(s: &str) -> Result<Self, AuditHeadError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(s, &mut bytes).map_err(|_| AuditHeadError)?;
        Ok(Self(bytes))
    }
}

/// A text that names no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write NUMBER:HASH with 64 hexadecimal digits, as distd audit verify prints it")]
pub struct AuditHeadError;

/// An entry by its number and hash, such as the last one. As text `NUMBER:HASH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditHead {
    /// Number, from 1; 0 before the first entry.
    pub number: u64,
    /// Hash of the entry.
    pub hash: AuditHash,
}

impl fmt::Display for AuditHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, self.hash)
    }
}

impl std::str::FromStr for AuditHead {
    type Err = AuditHeadError;

    fn from_str(s: &str) -> Result<Self, AuditHeadError> {
        let (number, hash) = s.split_once(':').ok_or(AuditHeadError)?;
        Ok(Self { number: number.parse().map_err(|_| AuditHeadError)?, hash: hash.parse()? })
    }
}

/// The parts of an entry that its hash covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditRecord<'a> {
    /// Number, from 1, without gaps.
    pub number: u64,
    /// Time, unix seconds.
    pub at: i64,
    /// `token ID`, `join token ID`, `operator`, or `origin`.
    pub actor: &'a str,
    /// Label of the token; empty without one.
    pub label: &'a str,
    /// The act, a word such as `grant.add`.
    pub action: &'a str,
    /// The thing that was acted on.
    pub subject: &'a str,
    /// JSON without secrets, as it was written.
    pub details: &'a str,
}

impl AuditRecord<'_> {
    /// Hash of the entry after the entry with the hash `before`.
    pub fn hash(&self, before: &AuditHash) -> AuditHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN).update(&before.0);
        hasher.update(&self.number.to_be_bytes()).update(&self.at.to_be_bytes());
        for text in [self.actor, self.label, self.action, self.subject, self.details] {
            hasher.update(&(text.len() as u64).to_be_bytes()).update(text.as_bytes());
        }
        AuditHash(*hasher.finalize().as_bytes())
    }
}

/// Fault of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditFault {
    /// An entry is missing: another number follows.
    #[error("entry {0} of the audit log is missing")]
    Missing(u64),
    /// An entry or one before it was changed after it was written.
    #[error("entry {0} of the audit log is not what was written")]
    Changed(u64),
    /// The log ends before an entry that there was.
    #[error("the audit log ends before entry {0}, which it had")]
    Truncated(u64),
}

/// Checker of a chain, to which all entries are added in order.
#[derive(Clone, Copy, Debug)]
pub struct AuditChain {
    head: AuditHead,
    expected: Option<AuditHead>,
}

impl AuditChain {
    /// Begins before the first entry. `expected` is an entry that the chain must have.
    pub fn begin(expected: Option<AuditHead>) -> Self {
        Self { head: AuditHead { number: 0, hash: AuditHash::START }, expected }
    }

    /// Checks the next entry, which has the hash `hash`.
    ///
    /// # Errors
    /// [`AuditFault`] with the first wrong number.
    pub fn add(&mut self, record: &AuditRecord<'_>, hash: AuditHash) -> Result<(), AuditFault> {
        let number = self.head.number.saturating_add(1);
        if record.number != number {
            return Err(AuditFault::Missing(number));
        }
        if record.hash(&self.head.hash) != hash {
            return Err(AuditFault::Changed(number));
        }
        self.head = AuditHead { number, hash };
        match self.expected {
            Some(expected) if expected.number == number && expected.hash != hash => {
                Err(AuditFault::Changed(number))
            }
            _ => Ok(()),
        }
    }

    /// The last entry.
    ///
    /// # Errors
    /// [`AuditFault::Truncated`] when the expected entry did not come.
    pub fn end(self) -> Result<AuditHead, AuditFault> {
        match self.expected {
            Some(expected) if expected.number > self.head.number => {
                Err(AuditFault::Truncated(expected.number))
            }
            _ => Ok(self.head),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: AuditRecord<'_> = AuditRecord {
        number: 1,
        at: 1_800_000_000,
        actor: "token 0123456789abcdef",
        label: "ops",
        action: "grant.add",
        subject: "everyone",
        details: r#"{"releases":"os"}"#,
    };

    fn chain() -> Vec<(AuditRecord<'static>, AuditHash)> {
        let mut before = AuditHash::START;
        let record = |number| AuditRecord { number, ..FIRST };
        (1..=4)
            .map(|number| {
                before = record(number).hash(&before);
                (record(number), before)
            })
            .collect()
    }

    fn check(
        chain: &[(AuditRecord<'_>, AuditHash)],
        expected: Option<AuditHead>,
    ) -> Result<AuditHead, AuditFault> {
        let mut checker = AuditChain::begin(expected);
        chain.iter().try_for_each(|(record, hash)| checker.add(record, *hash))?;
        checker.end()
    }

    #[test]
    fn the_bytes_of_an_entry_are_these() {
        // Made by another program: BLAKE3 over the bytes that docs/formats.md lists.
        assert_eq!(FIRST.hash(&AuditHash::START).to_string(), GOLDEN);
    }

    const GOLDEN: &str = "0bdac146bc2e1d9cbd0faf36777a1d4f75df2749c43d5b8c30fec6893e8eab43";

    #[test]
    fn a_changed_a_missing_and_a_cut_off_entry_are_found() {
        let whole = chain();
        let head = check(&whole, None).expect("a whole chain");
        assert_eq!((head.number, head.hash), (4, whole[3].1));
        assert_eq!(head.to_string().parse(), Ok(head));
        for (at, fault) in [(0, AuditFault::Changed(1)), (2, AuditFault::Changed(3))] {
            let mut changed = whole.clone();
            changed[at].0.subject = "nobody";
            assert_eq!(check(&changed, None), Err(fault));
            // Made to fit: the entry behind shows it.
            let before = at.checked_sub(1).map_or(AuditHash::START, |at| changed[at].1);
            changed[at].1 = changed[at].0.hash(&before);
            assert_eq!(check(&changed, None), Err(AuditFault::Changed(at as u64 + 2)));
        }
        let mut missing = whole.clone();
        missing.remove(1);
        assert_eq!(check(&missing, None), Err(AuditFault::Missing(2)));
        // The end alone shows nothing without a head that was noted elsewhere.
        assert!(check(&whole[..2], None).is_ok());
        assert_eq!(check(&whole[..2], Some(head)), Err(AuditFault::Truncated(4)));
        assert_eq!(check(&whole, Some(head)), Ok(head));
        let other = AuditHead { number: 2, hash: AuditHash([9; 32]) };
        assert_eq!(check(&whole, Some(other)), Err(AuditFault::Changed(2)));
        assert_eq!(check(&[], None).map(|head| head.number), Ok(0));
    }

    #[test]
    fn texts_that_move_between_fields_have_other_hashes() {
        let moved = AuditRecord { actor: "token 0123456789abcdefo", label: "ps", ..FIRST };
        assert_ne!(moved.hash(&AuditHash::START), FIRST.hash(&AuditHash::START));
    }
}
