//! [`VP8Writer`].

use std::io::{self, Write};

use super::{VP8Context, WIDEST, doublings, split};
use crate::CabacWriter;

/// Bits that are moved to the bytes at a time.
const MOVED: u32 = 32;

/// An encoder of bits. The output gets all bytes when [`CabacWriter::finish`] is called.
#[derive(Debug)]
pub struct VP8Writer<W> {
    output: W,
    /// Bytes so far. A carry can still change them.
    bytes: Vec<u8>,
    /// Low end of the interval, as far as it is not in `bytes`: from the top a carry, `pending`
    /// bits, and 8 bits in units of the interval.
    low: u64,
    /// Less than `MOVED` between bits.
    pending: u32,
    /// Width of the interval, 128 to 255 between bits.
    range: u32,
}

impl<W: Write> VP8Writer<W> {
    /// Starts a stream.
    ///
    /// # Errors
    ///
    /// None; `preflate-rs` expects a result.
    pub fn new(output: W) -> io::Result<Self> {
        let mut writer = Self { output, bytes: Vec::new(), low: 0, pending: 0, range: WIDEST };
        writer.put(false, &mut VP8Context::default())?;
        Ok(writer)
    }

    /// Moves the upper `MOVED` pending bits to the bytes.
    #[cold]
    fn drain(&mut self) {
        self.pending -= MOVED;
        let kept = 8 + self.pending;
        let moved = self.low >> kept;
        self.low &= (1 << kept) - 1;
        if moved >> MOVED != 0 {
            self.carry();
        }
        self.bytes.extend_from_slice(&(moved as u32).to_be_bytes());
    }

    /// Adds one to the bytes, as one number. It never overflows: the interval stays in the first
    /// one, which ends below the largest number.
    fn carry(&mut self) {
        for byte in self.bytes.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
    }
}

impl<W: Write> CabacWriter<VP8Context> for VP8Writer<W> {
    #[inline]
    fn put(&mut self, bit: bool, context: &mut VP8Context) -> io::Result<()> {
        let split = split(self.range, context.probability());
        let (below, range) = if bit { (split, self.range - split) } else { (0, split) };
        let shift = doublings(range);
        self.range = range << shift;
        self.low = (self.low + u64::from(below)) << shift;
        self.pending += shift;
        if self.pending >= MOVED {
            self.drain();
        }
        context.count(bit);
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let settled = (self.bytes.len() + self.pending as usize / 8).saturating_sub(2);
        self.low <<= MOVED - self.pending;
        self.pending = MOVED;
        self.drain();
        self.bytes.push(self.low as u8);
        self.low = 0;
        while self.bytes.len() > settled && self.bytes.last() == Some(&0) {
            self.bytes.pop();
        }
        self.output.write_all(&self.bytes)?;
        self.bytes.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_output_is_passed_on() {
        let mut full = [0; 1];
        let mut writer = VP8Writer::new(&mut full[..]).expect("no output yet");
        for n in 0..100 {
            writer.put(n % 3 == 0, &mut VP8Context::default()).expect("no output yet");
        }
        assert_eq!(writer.finish().expect_err("13 bytes").kind(), io::ErrorKind::WriteZero);
    }
}
