//! VP8's boolean coder (RFC 6386 section 7), with odds that follow the bits.
//!
//! A stream starts with a false, coded with a context of its own; the caller's bits follow. Each
//! bit divides an interval as in the RFC, in the RFC's numbers: the interval is 128 to 255 wide
//! before a bit, and a false has the lower part. [`VP8Context`] gives the probability.
//!
//! The bytes are the interval's low end at the end, so a reader takes bytes after the end as zeros.
//! Zeros at the end are left out, except those that were settled before: a byte is settled once the
//! interval has been doubled 24 times after the byte's first bit, and stays. The RFC leaves the end
//! of the data to the container.

mod context;
mod reader;
mod writer;

pub use context::VP8Context;
pub use reader::VP8Reader;
pub use writer::VP8Writer;

/// Width of the interval before the first bit.
const WIDEST: u32 = 255;

/// Returns the width of the part of an interval that stands for false (RFC 6386 section 7.3).
///
/// `probability` is that of a false, 1 to 255 in 256ths. The part is at least 1 wide and less than
/// `range`, which is 128 to 255.
#[inline(always)]
fn split(range: u32, probability: u32) -> u32 {
    1 + (((range - 1) * probability) >> 8)
}

/// Returns how often an interval has to be doubled to be at least 128 wide again.
///
/// A table is faster than the instructions that count zeros on a processor of which nothing is
/// known (x86-64 without `lzcnt`), and each bit waits for this number of the bit before.
#[inline(always)]
fn doublings(range: u32) -> u32 {
    u32::from(DOUBLINGS[usize::from(range as u8)])
}

const DOUBLINGS: [u8; 256] = {
    let mut table = [0; 256];
    let mut range = 1;
    while range < table.len() {
        table[range] = (range as u8).leading_zeros() as u8;
        range += 1;
    }
    table
};
