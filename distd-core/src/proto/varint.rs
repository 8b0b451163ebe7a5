//! QUIC variable-length integers (RFC 9000 §16).

use bytes::{Buf, BufMut};

/// Largest value a varint holds.
const MAX: u64 = (1 << 62) - 1;

/// Appends `value` in the fewest bytes.
///
/// # Panics
/// If `value` is above 2^62 - 1. Callers encode lengths and stream ids, which are far below.
pub fn put_varint(out: &mut impl BufMut, value: u64) {
    assert!(value <= MAX, "a varint holds 62 bits");
    match value {
        0..=0x3f => out.put_u8(value as u8),
        0x40..=0x3fff => out.put_u16(value as u16 | 0x4000),
        0x4000..=0x3fff_ffff => out.put_u32(value as u32 | 0x8000_0000),
        _ => out.put_u64(value | 0xc000_0000_0000_0000),
    }
}

/// Takes a varint from the front of `input`; `None`, with nothing taken, if the varint is
/// incomplete.
pub fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let first = *input.first()?;
    let len = 1usize << (first >> 6);
    let (head, rest) = input.split_at_checked(len)?;
    let mut padded = [0; 8];
    padded[8 - len..].copy_from_slice(head);
    let bits = u32::try_from(len).expect("at most 8") * 8 - 2;
    *input = rest;
    Some((&padded[..]).get_u64() & (u64::MAX >> (64 - bits)))
}

/// Maps a signed number to an unsigned one, so that small absolute values stay small.
pub(crate) fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

/// Returns the number that was passed to [`zigzag`].
pub(crate) fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_rfc_9000_appendix_a_read_as_printed() {
        for (bytes, value) in [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ] {
            assert_eq!(take_varint(&mut &bytes[..]), Some(value));
            assert_eq!(take_varint(&mut &bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn every_size_border_survives() {
        for value in [0, 63, 64, 16_383, 16_384, (1 << 30) - 1, 1 << 30, MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut rest = &out[..];
            assert_eq!(take_varint(&mut rest), Some(value));
            assert!(rest.is_empty());
        }
    }
}
