//! Fuzz bodies of the patch codecs.

use distd_core::bounds::{PATCH_PAYLOAD_BYTES_MAX, PATCH_TARGET_BYTES_MAX};
use distd_core::patch::{Effort, PatchError, PatchMethod, decode, encode, rebuild_large};

use super::input::Input;
use super::memory::within;

/// Longest target asked for, bytes. Zeros of 4 MiB for each input would take most of the time.
const TARGET_MAX: u32 = 256 << 10;

fn codec(byte: u8) -> PatchMethod {
    PatchMethod::ALL[usize::from(byte) % PatchMethod::ALL.len()]
}

/// Any payload gives exactly the wanted length or an error, within `base + target + 16 MiB`.
pub fn patch_decode(data: &[u8]) {
    let mut input = Input(data);
    let codec = codec(input.byte());
    let target_len = (input.number() % TARGET_MAX) as usize;
    let base = input.part();
    match within(target_len * 2 + (16 << 20), || decode(codec, base, input.0, target_len)) {
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

/// Any payload of a large patch gives exactly the wanted length or an error, within the memory that
/// its set states.
pub fn patch_large(data: &[u8]) {
    let mut input = Input(data);
    let memory = 16 << (20 + input.byte() % 3);
    let target_len = (input.number() % TARGET_MAX) as usize;
    let base = input.part();
    let mut out = Vec::with_capacity(target_len);
    let mut sink = |bytes: &[u8]| {
        out.extend_from_slice(bytes);
        Ok(())
    };
    let rebuilt = within(target_len + memory, || {
        rebuild_large(base, input.0, target_len as u64, memory as u64, &mut sink)
    });
    match rebuilt.expect("the sink does not fail") {
        Ok(()) => assert_eq!(out.len(), target_len),
        Err(_) => assert!(out.len() <= target_len),
    }
}
