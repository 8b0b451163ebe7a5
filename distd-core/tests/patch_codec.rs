//! Tests of every codec: each target comes back, and no payload does harm.

use distd_core::bounds::{PATCH_BASE_BYTES_MAX, PATCH_PAYLOAD_BYTES_MAX, PATCH_TARGET_BYTES_MAX};
use distd_core::patch::{Effort, PatchError, PatchMethod, decode, encode};
use proptest::prelude::*;

const QUICK: Effort = Effort { level: 3 };

/// Returns bytes that look random and are the same on every machine.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Changes a binary as a new release does: a byte changed here, some inserted there, some removed.
fn revised(old: &[u8], seed: u64) -> Vec<u8> {
    let mut new = Vec::new();
    for (n, piece) in old.chunks(997).enumerate() {
        match (n as u64 + seed) % 7 {
            0 => new.extend_from_slice(&noise(13, n as u64)),
            1 => new.extend(piece.iter().map(|b| b.wrapping_add(u8::from(b % 16 == 0)))),
            2 => new.extend_from_slice(&piece[..piece.len() / 2]),
            _ => new.extend_from_slice(piece),
        }
    }
    new
}

fn back(codec: PatchMethod, base: &[u8], target: &[u8], effort: Effort) -> Vec<u8> {
    let payload = encode(codec, base, target, effort).expect("within the limits");
    assert_eq!(decode(codec, base, &payload, target.len()).as_deref(), Ok(target), "{codec:?}");
    payload
}

#[test]
fn a_revised_target_costs_a_fraction_of_itself_with_every_codec() {
    let old = noise(1 << 20, 1);
    let new = revised(&old, 3);
    for codec in PatchMethod::ALL {
        for level in [1, 3, 12, 19] {
            let payload = back(codec, &old, &new, Effort { level });
            assert!(payload.len() < new.len() / 4, "{codec:?} level {level}: {}", payload.len());
        }
    }
}

#[test]
fn a_base_is_used_wherever_the_target_starts_in_it() {
    let old = noise(PATCH_BASE_BYTES_MAX, 2);
    for start in [0, old.len() / 2, old.len() - 100_000] {
        for codec in PatchMethod::ALL {
            // A copy, because zstd takes a target inside the base's own memory for one that
            // overwrites it.
            let target = old[start..start + 100_000].to_vec();
            let payload = back(codec, &old, &target, QUICK);
            assert!(payload.len() < 1000, "{codec:?} from {start}: {}", payload.len());
        }
    }
}

#[test]
fn an_empty_base_makes_a_solid_segment() {
    let texts = b"a line that many files begin with\n".repeat(100);
    assert!(back(PatchMethod::Zstd, &[], &texts, QUICK).len() < 100);
    assert!(back(PatchMethod::Zstd, &[], &[], QUICK).len() < 20);
}

#[test]
fn nothing_above_the_limits_is_made_or_taken() {
    let long = noise(PATCH_BASE_BYTES_MAX + 1, 4);
    for codec in PatchMethod::ALL {
        let payload = back(codec, b"base", b"target", QUICK);
        assert_eq!(encode(codec, &long, b"target", QUICK), None);
        assert_eq!(encode(codec, b"", &long[..PATCH_TARGET_BYTES_MAX + 1], QUICK), None);
        // The target fits its limit, but its payload is noise, above the limit of a payload.
        assert_eq!(encode(codec, b"", &long[..2 << 20], QUICK), None);
        let refused = |error| matches!(error, Err(PatchError::TooLong { .. }));
        assert!(refused(decode(codec, &long, &payload, 6)));
        assert!(refused(decode(codec, b"base", &payload, PATCH_TARGET_BYTES_MAX + 1)));
        assert!(refused(decode(codec, b"base", &long[..PATCH_PAYLOAD_BYTES_MAX + 1], 6)));
    }
}

#[test]
fn a_bomb_and_lying_lengths_are_errors() {
    let zeros = vec![0; PATCH_TARGET_BYTES_MAX];
    for codec in PatchMethod::ALL {
        let bomb = back(codec, b"base", &zeros, QUICK);
        assert!(bomb.len() < 4096);
        for len in [0, 1, 4095, zeros.len() - 1] {
            assert!(decode(codec, b"base", &bomb, len).is_err(), "{codec:?} as {len}");
        }
        let short = back(codec, b"base", &zeros[..1000], QUICK);
        for len in [999, 1001, PATCH_TARGET_BYTES_MAX] {
            assert!(decode(codec, b"base", &short, len).is_err(), "{codec:?} as {len}");
        }
        assert!(decode(codec, b"base", b"", 0).is_err() || codec == PatchMethod::Zstd);
        assert!(decode(codec, b"base", b"", 1).is_err());
    }
}

#[test]
fn every_truncation_and_every_flip_ends_without_a_panic() {
    let old = noise(5000, 5);
    let new = revised(&old, 0);
    for codec in PatchMethod::ALL {
        let payload = back(codec, &old, &new, QUICK);
        for len in 0..payload.len() {
            assert_ne!(
                decode(codec, &old, &payload[..len], new.len()).as_ref(),
                Ok(&new),
                "{codec:?} cut at {len}"
            );
        }
        for at in 0..payload.len() {
            for bit in 0..8 {
                let mut flipped = payload.clone();
                flipped[at] ^= 1 << bit;
                if let Ok(target) = decode(codec, &old, &flipped, new.len()) {
                    assert_eq!(target.len(), new.len());
                }
            }
        }
        // With a damaged base, or another base, decoding returns bytes or an error and never
        // panics.
        for base in [&old[..100], &[], &noise(5000, 6)] {
            let _ = decode(codec, base, &payload, new.len());
        }
    }
}

#[test]
fn codec_numbers_are_fixed() {
    let numbers: Vec<_> = PatchMethod::ALL.iter().map(|codec| (codec.number(), *codec)).collect();
    assert_eq!(numbers, [(1, PatchMethod::Zstd), (2, PatchMethod::Suffix), (3, PatchMethod::References)]);
    for (number, codec) in numbers {
        assert_eq!(PatchMethod::from_number(number), Some(codec));
    }
    assert_eq!(PatchMethod::from_number(0), None);
    assert_eq!(PatchMethod::from_number(200), None);
}

proptest! {
    #[test]
    fn any_target_comes_back_from_any_base(
        base in prop::collection::vec(any::<u8>(), 0..3000),
        fresh in prop::collection::vec(any::<u8>(), 0..300),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0usize..2000), 0..8),
        level in 1i32..20,
    ) {
        let mut target = fresh;
        for (at, len) in cuts {
            if !base.is_empty() {
                let start = at.index(base.len());
                target.extend_from_slice(&base[start..(start + len).min(base.len())]);
                target.push(len as u8);
            }
        }
        for codec in PatchMethod::ALL {
            back(codec, &base, &target, Effort { level });
        }
    }

    #[test]
    fn random_payloads_never_panic(
        payload in prop::collection::vec(any::<u8>(), 0..600), len in 0usize..100_000,
    ) {
        for codec in PatchMethod::ALL {
            if let Ok(target) = decode(codec, &[7; 999], &payload, len) {
                prop_assert_eq!(target.len(), len);
            }
        }
    }
}
