//! Fuzz bodies of the patch codecs.

use distd_core::bounds::{PATCH_PAYLOAD_BYTES_MAX, PATCH_TARGET_BYTES_MAX};
use distd_core::patch::{Effort, PatchError, PatchMethod, decode, encode};

use super::input::Input;
use super::memory::within;

/// Longest target asked for, bytes. Zeros of 4 MiB for each input would take most of the time.
const TARGET_MAX: u32 = 256 << 10;

fn codec(byte: u8) -> PatchMethod {
    PatchMethod::ALL[usize::from(byte) % PatchMethod::ALL.len()]
}

/// Any payload gives exactly the wanted length or an error, within `base + target + 12 MiB`.
pub fn patch_decode(data: &[u8]) {
    let mut input = Input(data);
    let codec = codec(input.byte());
    let target_len = (input.number() % TARGET_MAX) as usize;
    let base = input.part();
    match within(target_len * 2 + (12 << 20), || decode(codec, base, input.0, target_len)) {
        Ok(target) => assert_eq!(target.len(), target_len),
        Err(PatchError::TooLong { bytes, max, .. }) => assert!(bytes > max),
        Err(PatchError::Damaged(_) | PatchError::Length(_)) => {}
    }
    let too_long = decode(codec, base, input.0, PATCH_TARGET_BYTES_MAX + 1);
    assert!(matches!(too_long, Err(PatchError::TooLong { .. })));
}

/// Encoded targets decode again, and a payload with one changed byte causes no panic.
pub fn patch_encode(data: &[u8]) {
    let mut input = Input(data);
    let codec = codec(input.byte());
    let place = input.number() as usize;
    let (base, target) = (input.part(), input.0);
    let mut payload = encode(codec, base, target, Effort { level: 1 }).expect("far below the limits");
    assert!(payload.len() <= PATCH_PAYLOAD_BYTES_MAX);
    assert_eq!(decode(codec, base, &payload, target.len()).as_deref(), Ok(target));
    let place = place % payload.len().max(1);
    if let Some(byte) = payload.get_mut(place) {
        *byte = byte.wrapping_add(1);
        let _ = decode(codec, base, &payload, target.len());
    }
}
