//! Cost of patches that pack or unpack a view: memory and speed, as the index of a set states them.

/// Least memory class, bytes.
const MEMORY_MIN: u64 = 16 << 20;

/// Number of memory classes: 16 MiB to 2 GiB.
pub(super) const MEMORY_CLASSES: u8 = 8;

/// Bytes of content that one core packs in a second, by class. Measured on the reference pairs
/// (docs/benchmarks.md, "Patches"): gzip, LZ4 and zstd's lower levels reach the first, LZMA2 of
/// small dictionaries the third, zstd's highest levels the last. Real machines differ by several
/// times.
const RATES: [u64; 4] = [30_000_000, 10_000_000, 3_000_000, 1_000_000];

/// Number of classes of speed.
pub(super) const RATE_CLASSES: u8 = RATES.len() as u8;

/// Cost of packing or unpacking a view on one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cost {
    /// Classes of memory and speed; `None` for the methods that state none.
    classes: Option<(u8, u8)>,
}

impl Cost {
    /// Cost of the methods that state none: at most 16 MiB, at the highest rate. Their memory is
    /// bounded by their recipes (`patch::view`, "Memory").
    pub const UNSTATED: Self = Self { classes: None };

    /// Memory of the highest class, bytes.
    pub const MEMORY_MAX: u64 = MEMORY_MIN << (MEMORY_CLASSES - 1);

    /// Returns the cost of `memory` bytes, and of `rate` bytes of content packed in a second.
    /// `None` if no class has so much memory.
    pub fn new(memory: u64, rate: u64) -> Option<Self> {
        let memory = (0..MEMORY_CLASSES).find(|class| MEMORY_MIN << class >= memory)?;
        let rate = RATES.iter().position(|class| rate >= *class).unwrap_or(RATES.len() - 1);
        Some(Self { classes: Some((memory, rate as u8)) })
    }

    pub(super) fn of_classes(memory: u8, rate: u8) -> Option<Self> {
        (memory < MEMORY_CLASSES && rate < RATE_CLASSES).then_some(Self { classes: Some((memory, rate)) })
    }

    pub(super) fn classes(self) -> Option<(u8, u8)> {
        self.classes
    }

    /// Memory while the view is packed or unpacked, bytes; an upper bound.
    pub fn memory(self) -> u64 {
        MEMORY_MIN << self.classes.map_or(0, |(memory, _)| memory)
    }

    /// Bytes of content that one core packs in a second, about.
    pub fn rate(self) -> u64 {
        RATES[usize::from(self.classes.map_or(0, |(_, rate)| rate))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_never_below_what_was_measured_unless_the_rate_is_the_lowest() {
        for (memory, rate, class, class_rate) in [
            (0, u64::MAX, 16 << 20, 30_000_000),
            (16 << 20, 30_000_000, 16 << 20, 30_000_000),
            ((16 << 20) + 1, 29_999_999, 32 << 20, 10_000_000),
            (880 << 20, 1_300_000, 1 << 30, 1_000_000),
            (2 << 30, 7, 2 << 30, 1_000_000),
        ] {
            let cost = Cost::new(memory, rate).expect("a class");
            assert_eq!((cost.memory(), cost.rate()), (class, class_rate));
        }
        assert_eq!(Cost::new((2 << 30) + 1, 1), None);
        assert_eq!(Cost::UNSTATED.memory(), 16 << 20);
    }
}
