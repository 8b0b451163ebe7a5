//! Answers of the metadata exchange that are packed over files that the asker holds
//! (docs/trust.md, "Metadata exchange").
//!
//! A snapshot lists every role, a bin every release of its share and a product's list every patch
//! set, and a publication changes few lines of each. An answer that is compressed with the held
//! versions as its dictionary therefore costs as much as the lines that changed, however many there
//! are.
//!
//! A packed answer is a zstd skippable frame with the names of the bases, then a zstd frame whose
//! dictionary is the bases in that order, and whose checksum covers the answer: bases of the same
//! name can differ where an origin was restored from a backup, or a cache is damaged.

use bytes::Bytes;

use super::wire::{ANSWER_BYTES_MAX, Answer, LEVEL, WireError, target_hash};

/// Maximum number of bases of an answer.
pub const BASES_MAX: usize = 64;

/// Maximum size of all bases of an answer together, bytes.
pub const BASES_BYTES_MAX: usize = 1 << 20;

/// Maximum size of the encoded names of the bases, bytes: served names and their lengths.
const NAMES_BYTES_MAX: usize = BASES_MAX * 520;

/// Magic number of the skippable frame: one of the sixteen that RFC 8878 reserves, little-endian.
const MAGIC: [u8; 4] = 0x184D_2A5D_u32.to_le_bytes();

/// Bases of one answer, within the bounds above.
#[derive(Debug, Default)]
pub struct Bases {
    names: Vec<String>,
    dictionary: Vec<u8>,
}

impl Bases {
    /// Adds a file. One that exceeds a bound, or is there already, is left out.
    pub fn push(&mut self, name: &str, bytes: &[u8]) {
        let fits = self.names.len() < BASES_MAX && self.dictionary.len() + bytes.len() <= BASES_BYTES_MAX;
        if fits && !self.names.iter().any(|known| known == name) {
            self.names.push(name.to_owned());
            self.dictionary.extend_from_slice(bytes);
        }
    }
}

impl Answer {
    /// Encodes the answer over `bases`, which the asker must hold. Without bases this is
    /// [`Self::encode`].
    pub fn encode_over(&self, bases: &Bases) -> Vec<u8> {
        if bases.names.is_empty() {
            return self.encode();
        }
        let names = rmp_serde::to_vec(&bases.names).expect("strings always encode");
        let Ok(length) = u32::try_from(names.len()) else { return self.encode() };
        let packed =
            zstd::bulk::Compressor::with_dictionary(LEVEL, &bases.dictionary).and_then(|mut compressor| {
                compressor.include_checksum(true)?;
                compressor.compress(&self.raw())
            });
        // zstd refuses bases that begin like one of its own dictionaries. A relay keeps what it has
        // not verified.
        match packed {
            Ok(packed) => [&MAGIC[..], &length.to_le_bytes(), &names, &packed].concat(),
            Err(_) => self.encode(),
        }
    }

    /// Names of the bases over which encoded bytes are packed; empty for an answer of its own.
    ///
    /// # Errors
    /// If the names are malformed or too many.
    pub fn bases_of(bytes: &[u8]) -> Result<Vec<String>, WireError> {
        Ok(split(bytes)?.0)
    }

    /// Decodes bytes from the network. `base` returns a held file by its name.
    ///
    /// # Errors
    /// [`WireError::NoBase`] where a base is not held, [`WireError::Compressed`] also where a base
    /// has other bytes than the sender's.
    pub fn decode_over(bytes: &[u8], mut base: impl FnMut(&str) -> Option<Bytes>) -> Result<Self, WireError> {
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(WireError::TooLarge);
        }
        let (names, frame) = split(bytes)?;
        let mut dictionary = Vec::new();
        for name in names {
            let held = base(&name).ok_or(WireError::NoBase(name))?;
            if dictionary.len() + held.len() > BASES_BYTES_MAX {
                return Err(WireError::TooLarge);
            }
            dictionary.extend_from_slice(&held);
        }
        Self::unpack(frame, &dictionary)
    }
}

/// Whether two names are of the same bytes: equal, or of targets with the same hash. The repository
/// lists a target by each of its names, and an asker may hold it under another one.
pub fn is_same_file(one: &str, other: &str) -> bool {
    one == other || target_hash(one).is_some_and(|hash| target_hash(other) == Some(hash))
}

/// Splits encoded bytes into the names of the bases and the frame.
fn split(bytes: &[u8]) -> Result<(Vec<String>, &[u8]), WireError> {
    let Some(rest) = bytes.strip_prefix(&MAGIC) else { return Ok((Vec::new(), bytes)) };
    let (length, rest) = rest.split_first_chunk().ok_or(WireError::Cut)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (names, frame) = rest.split_at_checked(length).ok_or(WireError::Cut)?;
    if length > NAMES_BYTES_MAX {
        return Err(WireError::TooLarge);
    }
    let names: Vec<String> = rmp_serde::from_slice(names).map_err(WireError::Malformed)?;
    if names.len() > BASES_MAX { Err(WireError::TooLarge) } else { Ok((names, frame)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::token::sha256;

    /// A file of `lines` lines with hashes, of which line `changed` differs.
    fn list(lines: u32, changed: u32) -> Bytes {
        let line = |n: u32| hex::encode(sha256(&[n, u32::from(n == changed)].map(u32::to_be_bytes).concat()));
        (0..lines).map(line).collect::<Vec<_>>().join("\n").into()
    }

    fn bases(files: &[(&str, Bytes)]) -> Bases {
        let mut bases = Bases::default();
        files.iter().for_each(|(name, bytes)| bases.push(name, bytes));
        bases
    }

    #[test]
    fn an_answer_over_a_held_file_costs_what_has_changed() {
        let answer = Answer { files: vec![("2.x.json".into(), list(500, 7))] };
        let old = list(500, 500);
        let packed = answer.encode_over(&bases(&[("1.x.json", old.clone())]));
        assert!(packed.len() < 200, "{} bytes of {}", packed.len(), answer.encode().len());
        assert_eq!(Answer::bases_of(&packed).expect("names"), ["1.x.json"]);
        let held = |name: &str| (name == "1.x.json").then(|| old.clone());
        assert_eq!(Answer::decode_over(&packed, held).expect("decodes"), answer);
        // An answer without bases is one of its own, which every version reads.
        assert_eq!(answer.encode_over(&Bases::default()), answer.encode());
        assert_eq!(Answer::decode_over(&answer.encode(), |_| None).expect("decodes"), answer);
    }

    #[test]
    fn an_answer_over_other_bytes_than_the_senders_is_refused() {
        let answer = Answer { files: vec![("2.x.json".into(), list(50, 7))] };
        let packed = answer.encode_over(&bases(&[("1.x.json", list(50, 50))]));
        assert!(
            matches!(Answer::decode_over(&packed, |_| None), Err(WireError::NoBase(name)) if name == "1.x.json")
        );
        for other in [list(50, 49), list(49, 50), Bytes::from_static(b"x"), Bytes::new()] {
            let refused = Answer::decode_over(&packed, |_| Some(other.clone()));
            assert!(matches!(refused, Err(WireError::Compressed(_))), "{refused:?}");
        }
        for end in 0..packed.len() {
            assert!(Answer::decode_over(&packed[..end], |_| Some(list(50, 50))).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn bases_are_bounded_on_both_sides() {
        let big = Bytes::from(vec![b' '; BASES_BYTES_MAX]);
        let mut many = bases(&[("big", big.clone()), ("more", Bytes::from_static(b"x"))]);
        assert_eq!(many.names, ["big"]);
        for n in 0..2 * BASES_MAX {
            many.push(&n.to_string(), b"");
        }
        assert_eq!(many.names.len(), BASES_MAX);
        let answer = Answer::default();
        // A sender without bounds.
        let greedy = Bases { names: vec!["big".into(); 2], dictionary: big.repeat(2) };
        let refused = Answer::decode_over(&answer.encode_over(&greedy), |_| Some(big.clone()));
        assert!(matches!(refused, Err(WireError::TooLarge)), "{refused:?}");
        for many in [BASES_MAX + 1, NAMES_BYTES_MAX] {
            let greedy = Bases { names: vec![String::new(); many], dictionary: b"x".to_vec() };
            assert!(matches!(Answer::bases_of(&answer.encode_over(&greedy)), Err(WireError::TooLarge)));
        }
        // Bases that zstd takes for a damaged dictionary.
        let odd = bases(&[("1.x.json", Bytes::from_static(b"\x37\xa4\x30\xec rubbish"))]);
        assert_eq!(Answer::decode(&answer.encode_over(&odd)).expect("an answer of its own"), answer);
    }
}
