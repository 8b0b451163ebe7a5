//! Binary arithmetic coding with adaptive probabilities.
//!
//! One code path describes a stream in both directions: it hands each bit to a [`Coder`], which
//! writes the bit or returns the one that was written.

/// Adaptive probability of a one: the mean of a quick and a slow estimate of 16 bits each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bit {
    quick: u16,
    slow: u16,
}

impl Default for Bit {
    fn default() -> Self {
        Self { quick: 1 << 15, slow: 1 << 15 }
    }
}

/// Each bit moves the estimates by a sixteenth and by a 128th of the distance.
const QUICK: u32 = 4;
const SLOW: u32 = 7;

impl Bit {
    /// Returns the probability of a one, in 1/65536; neither 0 nor 1.
    fn one(self) -> u32 {
        (u32::from(self.quick) + u32::from(self.slow)).div_ceil(2).clamp(1, 65535)
    }

    fn learn(&mut self, bit: bool) {
        let step = |estimate: &mut u16, shift: u32| {
            if bit {
                *estimate += (u16::MAX - *estimate) >> shift;
            } else {
                *estimate -= *estimate >> shift;
            }
        };
        step(&mut self.quick, QUICK);
        step(&mut self.slow, SLOW);
    }
}

/// Direction of a stream.
pub(super) trait Coder {
    /// Codes a bit that is one with probability `one` / 65536, `1..=65535`. The encoder writes
    /// `bit` and returns it; the decoder ignores `bit` and returns the one that was written.
    fn code(&mut self, bit: bool, one: u32) -> bool;

    /// Codes a bit and lets its probability learn.
    #[inline]
    fn bit(&mut self, bit: bool, model: &mut Bit) -> bool {
        let bit = self.code(bit, model.one());
        model.learn(bit);
        bit
    }
}

/// Returns the last number of the lower part of a range, which stands for a one. The ends of a
/// range differ in their highest byte, so neither part is empty.
#[inline]
fn divide(low: u32, high: u32, one: u32) -> u32 {
    low + ((u64::from(high - low) * u64::from(one)) >> 16) as u32
}

/// Encoder of a stream.
#[derive(Debug)]
pub(super) struct Encoder {
    low: u32,
    high: u32,
    out: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self { low: 0, high: u32::MAX, out: Vec::new() }
    }

    /// Ends the stream with the shortest number inside the range. The decoder reads zeros behind
    /// the end, so zeros at the end are left out; with a byte less, the number is outside.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let short = |bytes: u32| {
            let rest = u32::MAX.checked_shr(8 * bytes).unwrap_or(0);
            self.low.checked_add(rest).map(|number| number & !rest).filter(|number| *number <= self.high)
        };
        let number = (0..=4).find_map(short).unwrap_or(self.high);
        self.out.extend_from_slice(&number.to_be_bytes());
        while self.out.last() == Some(&0) {
            self.out.pop();
        }
        self.out
    }
}

impl Coder for Encoder {
    #[inline]
    fn code(&mut self, bit: bool, one: u32) -> bool {
        let middle = divide(self.low, self.high, one);
        if bit {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 24 == 0 {
            self.out.push((self.high >> 24) as u8);
            self.low <<= 8;
            self.high = self.high << 8 | 0xFF;
        }
        bit
    }
}

/// Decoder of a stream. Behind the end of its bytes it reads zeros.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    low: u32,
    high: u32,
    value: u32,
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { low: 0, high: u32::MAX, value: 0, rest: bytes };
        for _ in 0..4 {
            decoder.shift();
        }
        decoder
    }

    #[inline]
    fn shift(&mut self) {
        let (byte, rest) = self.rest.split_first().map_or((0, self.rest), |(byte, rest)| (*byte, rest));
        self.rest = rest;
        self.value = self.value << 8 | u32::from(byte);
    }
}

impl Coder for Decoder<'_> {
    #[inline]
    fn code(&mut self, _bit: bool, one: u32) -> bool {
        let middle = divide(self.low, self.high, one);
        let bit = self.value <= middle;
        if bit {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 24 == 0 {
            self.low <<= 8;
            self.high = self.high << 8 | 0xFF;
            self.shift();
        }
        bit
    }
}

/// Model of numbers: the length in unary, then the bits below the highest one.
#[derive(Clone, Debug)]
pub(super) struct Number {
    lengths: [Bit; 65],
    /// The three bits below the highest one, by length and the bits before.
    high: [[Bit; 8]; 65],
}

impl Default for Number {
    fn default() -> Self {
        Self { lengths: [Bit::default(); 65], high: [[Bit::default(); 8]; 65] }
    }
}

impl Number {
    pub(super) fn code<C: Coder>(&mut self, coder: &mut C, number: u64) -> u64 {
        let wanted = 64 - number.leading_zeros();
        let mut len = 0;
        while len < 64 && coder.bit(len < wanted, &mut self.lengths[len as usize]) {
            len += 1;
        }
        if len < 2 {
            return u64::from(len);
        }
        let mut value = 1u64;
        for at in (0..len - 1).rev() {
            let bit = number >> at & 1 == 1;
            let bit = if value < 8 {
                coder.bit(bit, &mut self.high[len as usize][value as usize])
            } else {
                coder.code(bit, 1 << 15)
            };
            value = value << 1 | u64::from(bit);
        }
        value
    }

    /// Codes a signed number.
    pub(super) fn signed<C: Coder>(&mut self, coder: &mut C, number: i64) -> i64 {
        let zigzag = self.code(coder, (number << 1 ^ number >> 63) as u64);
        (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_part_of_a_range_has_a_number() {
        for (low, high) in [(0, u32::MAX), (0x00FF_FFFF, 0x0100_0000), (7, 0x0100_0000)] {
            for one in [1, 1 << 15, 65535] {
                let middle = divide(low, high, one);
                assert!(low <= middle && middle < high, "{low:x} {high:x} {one}");
            }
        }
    }

    proptest! {
        #[test]
        fn bits_and_numbers_survive(
            bits in prop::collection::vec((any::<bool>(), 1u32..=65535), 0..2000),
            numbers in prop::collection::vec((any::<u64>(), 0u32..64), 0..100),
        ) {
            let mut encoder = Encoder::new();
            let (mut model, mut adaptive) = (Number::default(), Bit::default());
            for (bit, one) in &bits {
                encoder.code(*bit, *one);
                encoder.bit(*bit, &mut adaptive);
            }
            for (number, shift) in &numbers {
                model.code(&mut encoder, number >> shift);
                model.signed(&mut encoder, *number as i64 >> shift);
            }
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            let (mut model, mut adaptive) = (Number::default(), Bit::default());
            for (bit, one) in &bits {
                prop_assert_eq!(decoder.code(false, *one), *bit);
                prop_assert_eq!(decoder.bit(false, &mut adaptive), *bit);
            }
            for (number, shift) in &numbers {
                prop_assert_eq!(model.code(&mut decoder, 0), number >> shift);
                prop_assert_eq!(model.signed(&mut decoder, 0), *number as i64 >> shift);
            }
        }
    }
}
