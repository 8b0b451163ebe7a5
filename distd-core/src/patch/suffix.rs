//! Codec 2: suffix-array difference, for executables and other binaries with moved parts.
//!
//! The target is a sequence of segments. Each segment is a number of bytes to add to bytes of the
//! base (mostly zeros), then extra bytes.
//!
//! Payload, with every number an LEB128 varint of at most 5 bytes:
//!
//! ```text
//! lane            1 byte: 1, 4 or 8, see below
//! control_len     length of the control stream, unpacked
//! control_packed  length of its zstd frame
//! diff_packed     length of the diff stream's zstd frame
//! control         zstd frame
//! diff            zstd frame: the bytes to add of all segments
//! extra           zstd frame up to the payload's end: the extra bytes of all segments
//! ```
//!
//! Control stream, unpacked: the number of segments; then for each segment the number of bytes to
//! add; then for each the number of extra bytes; then for each the start in the base, relative to
//! the end of the segment before (zigzag; the first from zero). The columns put numbers of one kind
//! together, because they resemble each other. The two lengths of all segments add up to the
//! target; no segment may reach outside the base.
//!
//! The bytes to add are added singly (lane 1), or as little-endian numbers of 4 or 8 bytes. The
//! numbers start at the first byte of the segment's part whose place in the target is a multiple of
//! the lane, and go on while whole numbers fit; the bytes before and behind are added singly.
//! Additions wrap. With lanes, addresses that moved by one distance all have the same difference,
//! whatever carries occur.
//!
//! zstd frames have neither content size nor checksum, as in codec 1.

use super::matches::{Segment, segments};
use super::{PatchError, prefix};

/// Most bytes of control stream accepted: a segment stands for some bytes of target and takes a
/// dozen bytes at worst.
const CONTROL_MAX: usize = 6 << 20;

/// Widths in bytes of the added numbers.
const LANES: [usize; 3] = [1, 4, 8];

/// zstd level used to compare the lanes.
const LANE_LEVEL: i32 = 9;

pub(super) fn encode(base: &[u8], target: &[u8], level: i32) -> Option<Vec<u8>> {
    let segments = segments(base, target);
    let mut extra = Vec::new();
    let mut control = Vec::new();
    put(&mut control, segments.len());
    segments.iter().for_each(|segment| put(&mut control, segment.add));
    segments.iter().for_each(|segment| put(&mut control, segment.extra));
    let (mut at, mut expected) = (0, 0);
    for segment in &segments {
        let seek = segment.base as i64 - expected as i64;
        put(&mut control, ((seek << 1) ^ (seek >> 63)) as usize);
        expected = segment.base + segment.add;
        at += segment.add + segment.extra;
        extra.extend_from_slice(&target[at - segment.extra..at]);
    }
    if control.len() > CONTROL_MAX {
        return None;
    }
    let packed_control = prefix::encode(&[], &control, level)?;
    let (lane, packed_diff) = best_lane(base, target, &segments, level)?;
    let packed_extra = prefix::encode(&[], &extra, level)?;
    let mut payload = Vec::with_capacity(packed_control.len() + packed_diff.len() + packed_extra.len() + 16);
    payload.push(lane as u8);
    put(&mut payload, control.len());
    put(&mut payload, packed_control.len());
    put(&mut payload, packed_diff.len());
    payload.extend_from_slice(&packed_control);
    payload.extend_from_slice(&packed_diff);
    payload.extend_from_slice(&packed_extra);
    Some(payload)
}

/// Returns the lane whose differences pack smallest at a quick level, and the differences packed at
/// `level`.
fn best_lane(base: &[u8], target: &[u8], segments: &[Segment], level: i32) -> Option<(usize, Vec<u8>)> {
    let of_lane = |lane| {
        let (mut diff, mut at) = (Vec::with_capacity(target.len()), 0);
        for segment in segments {
            let from = diff.len();
            diff.extend_from_slice(&target[at..at + segment.add]);
            let old = &base[segment.base..segment.base + segment.add];
            combine(&mut diff[from..], old, at, lane, Direction::Subtract);
            at += segment.add + segment.extra;
        }
        diff
    };
    let quick = |lane| Some((prefix::encode(&[], &of_lane(lane), LANE_LEVEL.min(level))?.len(), lane));
    let (_, lane) = LANES.into_iter().filter_map(quick).min()?;
    Some((lane, prefix::encode(&[], &of_lane(lane), level)?))
}

enum Direction {
    Add,
    Subtract,
}

/// Adds the base's bytes to the target bytes that start at `place`, or subtracts them, in numbers
/// of `lane` bytes.
fn combine(bytes: &mut [u8], old: &[u8], place: usize, lane: usize, direction: Direction) {
    let single = |bytes: &mut [u8], old: &[u8]| {
        for (byte, old) in bytes.iter_mut().zip(old) {
            *byte = match direction {
                Direction::Add => byte.wrapping_add(*old),
                Direction::Subtract => byte.wrapping_sub(*old),
            };
        }
    };
    let head = (place.next_multiple_of(lane) - place).min(bytes.len());
    let whole = head + (bytes.len() - head) / lane * lane;
    let (head_bytes, rest) = bytes.split_at_mut(head);
    let (numbers, tail) = rest.split_at_mut(whole - head);
    single(head_bytes, old);
    single(tail, &old[whole..]);
    let old = &old[head..whole];
    match lane {
        4 => {
            for (new, old) in numbers.as_chunks_mut::<4>().0.iter_mut().zip(old.as_chunks::<4>().0) {
                let (a, b) = (u32::from_le_bytes(*new), u32::from_le_bytes(*old));
                *new = match direction {
                    Direction::Add => a.wrapping_add(b),
                    Direction::Subtract => a.wrapping_sub(b),
                }
                .to_le_bytes();
            }
        }
        8 => {
            for (new, old) in numbers.as_chunks_mut::<8>().0.iter_mut().zip(old.as_chunks::<8>().0) {
                let (a, b) = (u64::from_le_bytes(*new), u64::from_le_bytes(*old));
                *new = match direction {
                    Direction::Add => a.wrapping_add(b),
                    Direction::Subtract => a.wrapping_sub(b),
                }
                .to_le_bytes();
            }
        }
        _ => single(numbers, old),
    }
}

pub(super) fn decode(base: &[u8], mut payload: &[u8], target_len: usize) -> Result<Vec<u8>, PatchError> {
    let (lane, behind) = payload.split_first().ok_or(PatchError::Damaged("it ends early"))?;
    let lane = usize::from(*lane);
    if !LANES.contains(&lane) {
        return Err(PatchError::Damaged("unknown lane"));
    }
    payload = behind;
    let control_len = take(&mut payload)?;
    let packed_control = take(&mut payload)?;
    let packed_diff = take(&mut payload)?;
    if control_len > CONTROL_MAX {
        return Err(PatchError::TooLong { what: "control stream", bytes: control_len, max: CONTROL_MAX });
    }
    let short = PatchError::Damaged("it ends early");
    let (packed_control, rest) = payload.split_at_checked(packed_control).ok_or(short.clone())?;
    let (packed_diff, packed_extra) = rest.split_at_checked(packed_diff).ok_or(short)?;

    let control = prefix::decode(&[], packed_control, control_len)?;
    let mut counts = &control[..];
    let count = take(&mut counts)?;
    // Each segment has three numbers of at least a byte each, so the length received bounds the
    // three passes.
    if count > control.len() / 3 {
        return Err(PatchError::Damaged("more segments than the control stream has numbers for"));
    }
    let (mut adds, mut extras, mut seeks) = (counts, counts, counts);
    let diff_len = skip(&mut extras, count)?;
    seeks.clone_from(&extras);
    let extra_len = skip(&mut seeks, count)?;
    if diff_len.checked_add(extra_len) != Some(target_len) {
        return Err(PatchError::Length(target_len));
    }
    let diff = prefix::decode(&[], packed_diff, diff_len)?;
    let extra = prefix::decode(&[], packed_extra, extra_len)?;

    let mut target = Vec::with_capacity(target_len);
    let (mut diff, mut extra, mut at) = (&diff[..], &extra[..], 0i64);
    for _ in 0..count {
        let (add, fresh, seek) = (take(&mut adds)?, take(&mut extras)?, take(&mut seeks)? as i64);
        at += (seek >> 1) ^ -(seek & 1);
        let outside = PatchError::Damaged("a segment lies outside the base");
        let old = usize::try_from(at)
            .ok()
            .and_then(|from| base.get(from..from.checked_add(add)?))
            .ok_or(outside)?;
        at += add as i64;
        let lost = PatchError::Damaged("the lengths of segments do not add up");
        let (added, behind) = diff.split_at_checked(add).ok_or(lost.clone())?;
        let from = target.len();
        target.extend_from_slice(added);
        combine(&mut target[from..], old, from, lane, Direction::Add);
        diff = behind;
        let (bytes, behind) = extra.split_at_checked(fresh).ok_or(lost)?;
        target.extend_from_slice(bytes);
        extra = behind;
    }
    if target.len() == target_len { Ok(target) } else { Err(PatchError::Length(target_len)) }
}

fn put(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Decodes the next number, below 2^35.
fn take(bytes: &mut &[u8]) -> Result<usize, PatchError> {
    let mut number = 0;
    for shift in 0..5 {
        let (byte, rest) = bytes.split_first().ok_or(PatchError::Damaged("it ends early"))?;
        *bytes = rest;
        number |= u64::from(byte & 0x7F) << (7 * shift);
        if byte & 0x80 == 0 {
            return usize::try_from(number).map_err(|_| PatchError::Damaged("a number is too large"));
        }
    }
    Err(PatchError::Damaged("a number is too large"))
}

/// Skips `count` numbers and returns their sum.
fn skip(bytes: &mut &[u8], count: usize) -> Result<usize, PatchError> {
    (0..count).try_fold(0usize, |sum, _| {
        sum.checked_add(take(bytes)?).ok_or(PatchError::Damaged("the lengths of segments do not add up"))
    })
}
