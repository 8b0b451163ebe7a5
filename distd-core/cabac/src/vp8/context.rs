//! [`VP8Context`].

/// The numbers of falses and trues coded with one context, which are the odds of its next bit.
///
/// Both start at 1. A number that would pass 255 becomes 129, and the other is halved and rounded
/// up, so that later bits count more. If the other is 1, both stay: the odds are as uneven as they
/// get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VP8Context {
    falses: u8,
    trues: u8,
}

impl Default for VP8Context {
    fn default() -> Self {
        Self { falses: 1, trues: 1 }
    }
}

impl VP8Context {
    /// Returns the probability of a false in 256ths, rounded down: 1 to 255.
    #[inline(always)]
    pub(super) fn probability(self) -> u32 {
        let (falses, trues) = (u32::from(self.falses), u32::from(self.trues));
        (falses << 8) / (falses + trues)
    }

    /// Counts a bit.
    #[inline(always)]
    pub(super) fn count(&mut self, bit: bool) {
        let (same, other) =
            if bit { (&mut self.trues, &mut self.falses) } else { (&mut self.falses, &mut self.trues) };
        if *same < u8::MAX {
            *same += 1;
        } else if *other > 1 {
            *same = 129;
            *other = other.div_ceil(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_of_bits_makes_a_bit_certain() {
        for falses in 1..=u8::MAX {
            for trues in 1..=u8::MAX {
                let context = VP8Context { falses, trues };
                assert!((1..=255).contains(&context.probability()), "{context:?}");
                for bit in [false, true] {
                    let mut next = context;
                    next.count(bit);
                    assert!(next.falses >= 1 && next.trues >= 1, "{context:?} and {bit}: {next:?}");
                }
            }
        }
    }

    #[test]
    fn numbers_stay_in_a_byte() {
        let after = |falses, trues, bit| {
            let mut context = VP8Context { falses, trues };
            context.count(bit);
            (context.falses, context.trues)
        };
        assert_eq!(after(1, 1, false), (2, 1));
        assert_eq!(after(1, 1, true), (1, 2));
        assert_eq!(after(255, 1, false), (255, 1));
        assert_eq!(after(255, 2, false), (129, 1));
        assert_eq!(after(255, 7, false), (129, 4));
        assert_eq!(after(8, 255, true), (4, 129));
        assert_eq!(after(255, 255, true), (128, 129));
        assert_eq!(after(255, 254, true), (255, 255));
    }
}
