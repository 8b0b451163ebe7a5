//! Codec 3: segments as in codec 2, with references predicted, and coded by adaptive models.
//!
//! When code moves, the references to it change everywhere, though nobody wrote anything new. Base
//! and segments show where the code went: a reference of the base to an address whose bytes are
//! now elsewhere is predicted to lead there. No disassembler is needed. The base alone says where a
//! reference may be, the segments say how addresses moved, and a bit says whether the prediction is
//! right; the bit costs next to nothing where most are.
//!
//! # Payload
//!
//! One arithmetic-coded stream (module `coder`):
//!
//! ```text
//! layouts   of base and target: addresses of the bytes, as the headers of ELF files state them
//! origin    a number, for tables of addresses below an origin (mode 7)
//! segments  their count; for each the bytes that resemble the base, the extra bytes behind them,
//!           and where in the base the segment starts
//! bytes     of each segment, in order
//! ```
//!
//! The bytes of a segment that resemble the base lie in blocks of 512 bytes of the target. At the
//! start of each block, and of each segment, stands the mode of the block: the kind of references
//! that are looked for (module `sites`). Where nothing differed in the last 16 bytes, one bit says
//! that the next 16 or more are as predicted too. Elsewhere there follow, in order,
//!
//! - for each reference of the base: whether the field is as predicted; if not, whether it is as in
//!   the base; if not, its bytes, the highest first. The decoder learns where the reference leads,
//!   and predicts later ones by it;
//! - for each other byte: whether it is as in the base; if not, the byte.
//!
//! Bytes that differ from a prediction, and extra bytes, are coded by a mix of models (module
//! `literal`). Modules `model`, `guide` and `layout` say the rest; all of it is of the format,
//! except for the choice of segments and modes (`align`, `tables`, `lists`, `modes`).

mod align;
mod coder;
mod elf;
mod guide;
mod layout;
mod limits;
mod lists;
mod literal;
mod model;
mod modes;
mod sites;
mod tables;
#[cfg(test)]
mod tests;

use std::io;

pub(super) use elf::{HEAD_BYTES, extents};
pub(super) use layout::{Extent, Layout};

use super::PatchError;
use align::Side;
use coder::{Coder, Decoder, Encoder, Number};
use model::{Stream, StreamError, code_segments, cursors};

/// Returns the memory of a decoder beside base, payload and target, bytes; an upper bound.
pub fn memory(target_len: u64) -> u64 {
    limits::memory(target_len)
}

/// Encodes a target; `None` if it has more segments than a payload may have, or more than
/// `extra_max` bytes that resemble nothing in the base.
pub(super) fn encode(base: &[u8], target: &[u8], layouts: [&Layout; 2], extra_max: usize) -> Option<Vec<u8>> {
    let [old, new] = layouts;
    let origin = old.extents.iter().map(|extent| extent.address).find(|address| address >> 63 == 1);
    let origin = origin.unwrap_or(0);
    let sides = [Side { bytes: base, layout: old }, Side { bytes: target, layout: new }];
    let segments = align::align(sides[0], sides[1], origin);
    let extra: usize = segments.iter().map(|segment| segment.extra).sum();
    if segments.len() > limits::segments_max(target.len()) || extra > extra_max {
        return None;
    }
    let lens = [(old, base.len()), (new, target.len())];
    let guides = || modes::guides(&segments, lens[0], lens[1], origin);
    let modes = modes::choose(sides[0], sides[1], &segments, guides()?);
    let mut coder = Encoder::new();
    head(&mut coder, layouts, [base.len(), target.len()], origin).ok()?;
    code_segments(&mut coder, &segments, base.len(), target.len()).ok()?;
    let mut sink = |_: &[u8]| Ok(());
    let stream = Stream::new(coder, base, (target, &modes), target.len(), guides()?, &mut sink);
    Some(stream.run(&segments, cursors(lens[0], lens[1])).ok()?.finish())
}

/// Codes what stands before the segments.
fn head<C: Coder>(
    coder: &mut C,
    layouts: [&Layout; 2],
    lens: [usize; 2],
    origin: u64,
) -> Result<([Layout; 2], u64), PatchError> {
    let old = layouts[0].code(coder, lens[0])?;
    let new = layouts[1].code(coder, lens[1])?;
    let origin = Number::default().code(coder, origin);
    Ok(([old, new], origin))
}

/// Decodes a target of `target_len` bytes into `sink`, in order.
///
/// # Errors
/// The inner error for a payload that is damaged; the outer one from `sink`.
pub(super) fn decode(
    base: &[u8],
    payload: &[u8],
    target_len: usize,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Result<(), PatchError>> {
    match decoded(base, payload, target_len, sink) {
        Ok(()) => Ok(Ok(())),
        Err(StreamError::Patch(error)) => Ok(Err(error)),
        Err(StreamError::Sink(error)) => Err(error),
    }
}

fn decoded(
    base: &[u8],
    payload: &[u8],
    target_len: usize,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), StreamError> {
    let mut coder = Decoder::new(payload);
    let none = Layout::default();
    let ([old, new], origin) = head(&mut coder, [&none, &none], [base.len(), target_len], 0)?;
    let segments = code_segments(&mut coder, &[], base.len(), target_len)?;
    let lens = [(&old, base.len()), (&new, target_len)];
    let guides = modes::guides(&segments, lens[0], lens[1], origin)
        .ok_or(PatchError::Damaged("the map of addresses has too many parts"))?;
    let stream = Stream::new(coder, base, (&[], &[]), target_len, guides, sink);
    stream.run(&segments, cursors(lens[0], lens[1]))?;
    Ok(())
}
