//! [`VP8Reader`].

use std::io::{self, Read};

use super::{VP8Context, WIDEST, doublings, split};
use crate::CabacReader;

/// Bytes that are taken from the input at a time: all that fit beside 7 bits of the byte before.
const TAKEN: usize = 7;

/// A decoder of streams of [`super::VP8Writer`].
///
/// It takes up to seven bytes more from the input than it needs. Bytes after the end are zeros, so
/// damaged or shortened data also decodes to bits, without end, each in constant time.
#[derive(Debug)]
pub struct VP8Reader<R> {
    input: R,
    /// Distance of the data from the interval's low end. A unit of the interval is 2^56, so the
    /// upper 8 bits decide the next bit. Data that no writer made can be past the interval; then it
    /// decodes to bits that mean nothing.
    value: u64,
    /// Bits of the input in `value` below the upper 8.
    spare: i32,
    /// Width of the interval, 128 to 255 between bits, whatever the data.
    range: u32,
}

impl<R: Read> VP8Reader<R> {
    /// Starts to decode.
    ///
    /// # Errors
    ///
    /// An error of the input.
    pub fn new(input: R) -> io::Result<Self> {
        let mut reader = Self { input, value: 0, spare: -8, range: WIDEST };
        reader.fill()?;
        reader.get(&mut VP8Context::default())?;
        Ok(reader)
    }

    /// Makes the interval `range` wide, and doubles it until it is 128 wide.
    #[inline(always)]
    fn narrow(&mut self, range: u32) -> io::Result<()> {
        let shift = doublings(range);
        self.range = range << shift;
        self.value <<= shift;
        self.spare -= shift as i32;
        if self.spare < 0 { self.fill() } else { Ok(()) }
    }

    /// Takes bytes from the input, or zeros after its end, into the free bits of `value`.
    #[cold]
    fn fill(&mut self) -> io::Result<()> {
        let mut taken = [0; 1 + TAKEN];
        let mut len = 0;
        while len < TAKEN {
            match self.input.read(&mut taken[1 + len..])? {
                0 => break,
                read => len += read,
            }
        }
        self.value |= u64::from_be_bytes(taken) << -self.spare;
        self.spare += 8 * TAKEN as i32;
        Ok(())
    }
}

impl<R: Read> CabacReader<VP8Context> for VP8Reader<R> {
    #[inline]
    fn get(&mut self, context: &mut VP8Context) -> io::Result<bool> {
        let split = split(self.range, context.probability());
        let edge = u64::from(split) << 56;
        // Each arm does everything, so that the compiler makes a branch: a context's bits are
        // mostly the same, and the processor then need not wait for the comparison.
        if self.value >= edge {
            context.count(true);
            self.value -= edge;
            self.narrow(self.range - split)?;
            Ok(true)
        } else {
            context.count(false);
            self.narrow(split)?;
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte for each read, and then fails.
    struct Dripping(&'static [u8]);

    impl Read for Dripping {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let (first, rest) = self.0.split_first().ok_or_else(|| io::Error::other("no more"))?;
            buffer[0] = *first;
            self.0 = rest;
            Ok(1)
        }
    }

    #[test]
    fn an_error_of_the_input_is_passed_on() {
        assert!(VP8Reader::new(Dripping(b"six by")).is_err());
        let mut reader = VP8Reader::new(Dripping(b"seven b")).expect("seven bytes are there");
        let found = (0..100).find_map(|_| reader.get(&mut VP8Context::default()).err());
        assert_eq!(found.expect("the input fails").to_string(), "no more");
    }
}
