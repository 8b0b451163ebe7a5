//! Bytes that no prediction gives: a mix of models with contexts of several lengths.
//!
//! Each model has a table of probabilities, which the bytes before and the bits of the byte so far
//! choose from. A mixer adds the models' opinions in the logistic domain, with weights that learn
//! which models are right. All arithmetic is of integers, so that every machine decodes the same.

use super::coder::Coder;

/// Number of models that are mixed.
const MODELS: usize = 6;

/// Classes of literals, with weights of their own.
pub(super) const CLASSES: usize = 3;

/// Surroundings of a byte.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Around {
    /// The eight bytes before, the nearest in the lowest bits.
    pub(super) before: u64,
    /// Byte that was predicted in this place, if any.
    pub(super) predicted: Option<u8>,
    /// Class of literals, below [`CLASSES`].
    pub(super) class: u8,
}

/// Probability of a one, and how often it was used.
#[derive(Clone, Copy)]
struct Slot {
    one: u16,
    uses: u8,
}

/// Uses after which a slot learns at its lowest rate.
const USES_MAX: u8 = 30;

/// Model of bytes.
pub(super) struct Literals {
    tables: Vec<Vec<Slot>>,
    weights: Vec<[i32; MODELS]>,
    stretch: Vec<i16>,
    mask: u32,
    rates: [i32; USES_MAX as usize + 1],
}

/// Weight 1.
const UNIT: i32 = 1 << 16;

/// 4096 / (1 + exp(-x / 256)), at every 128th number.
const LOGISTIC: [i32; 33] = [
    1, 2, 3, 6, 10, 16, 27, 45, 73, 120, 194, 310, 488, 747, 1101, 1546, 2047, 2549, 2994, 3348, 3607, 3785,
    3901, 3975, 4022, 4050, 4068, 4079, 4085, 4089, 4092, 4093, 4094,
];

/// Returns the probability, of 12 bits, for a number of the logistic domain.
fn squash(x: i32) -> i32 {
    let x = x.clamp(-2047, 2047) + 2048;
    let (index, part) = ((x >> 7) as usize, x & 127);
    (LOGISTIC[index] * (128 - part) + LOGISTIC[index + 1] * part + 64) >> 7
}

/// Returns the inverse of [`squash`] for all probabilities.
fn stretch() -> Vec<i16> {
    let mut table = Vec::with_capacity(4096);
    for x in -2047..=2047 {
        let reached = squash(x) as usize + 1;
        if table.len() < reached {
            table.resize(reached, x as i16);
        }
    }
    table.resize(4096, 2047);
    table
}

fn hash(model: u64, context: u64) -> u32 {
    let mixed = context.wrapping_add(model.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    (mixed.wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 32) as u32
}

impl Literals {
    /// Models with `1 << bits` slots each.
    pub(super) fn new(bits: u32) -> Self {
        let mut rates = [0; USES_MAX as usize + 1];
        for (uses, rate) in rates.iter_mut().enumerate() {
            *rate = UNIT / (uses as i32 + 2);
        }
        Self {
            tables: vec![vec![Slot { one: 1 << 15, uses: 0 }; 1 << bits]; MODELS],
            weights: vec![[UNIT * 3 / 10; MODELS]; CLASSES * 256],
            stretch: stretch(),
            mask: (1 << bits) - 1,
            rates,
        }
    }

    pub(super) fn code<C: Coder>(&mut self, coder: &mut C, byte: u8, around: Around) -> u8 {
        let before = around.before;
        let class = u64::from(around.class) << 32;
        let predicted = around.predicted.map_or(0, |byte| u64::from(byte) + 1);
        let contexts = [
            hash(1, before & 0xFF | class),
            hash(2, before & 0xFFFF | predicted << 40),
            hash(3, before & 0xFF_FFFF),
            hash(4, before & 0xFFFF_FFFF),
            hash(5, before & 0xFFFF_FFFF_FFFF),
            hash(6, predicted | (before & 0xFF) << 16 | class),
        ];
        let first_set = usize::from(around.class) % CLASSES * 256;
        let mut node = 1u32;
        let mut halves = [0usize; MODELS];
        for at in (0..8).rev() {
            if at == 7 || at == 3 {
                // The 15 slots of half a byte lie side by side, in one line of a processor's cache.
                for (half, context) in halves.iter_mut().zip(contexts) {
                    let mixed = context.wrapping_add(node.wrapping_mul(0x9E37_79B1));
                    *half = ((mixed ^ mixed >> 15) & self.mask & !0xF) as usize;
                }
            }
            let within = if at > 3 { node } else { node & ((1 << (3 - at)) - 1) | 1 << (3 - at) } as usize;
            let (mut inputs, mut places, mut sum) = ([0i32; MODELS], [0usize; MODELS], 0i64);
            let weights = &mut self.weights[first_set + node as usize];
            for n in 0..MODELS {
                places[n] = halves[n] + within;
                let slot = self.tables[n][places[n]];
                // A slot without use has no opinion.
                inputs[n] = i32::from(self.stretch[usize::from(slot.one >> 4)]);
                sum += i64::from(inputs[n]) * i64::from(weights[n]);
            }
            let mixed = squash((sum >> 16).clamp(-2047, 2047) as i32);
            let bit = coder.code(byte >> at & 1 == 1, (mixed as u32 * 16 + 8).clamp(32, 65_504));
            let error = ((i32::from(bit) << 12) - mixed) * 10;
            for n in 0..MODELS {
                weights[n] = (weights[n] + ((inputs[n] * error + 0x2000) >> 14)).clamp(-16 * UNIT, 16 * UNIT);
                let slot = &mut self.tables[n][places[n]];
                let goal = if bit { i32::from(u16::MAX) } else { 0 };
                let step =
                    i64::from(goal - i32::from(slot.one)) * i64::from(self.rates[usize::from(slot.uses)]);
                slot.one = (i64::from(slot.one) + (step >> 16)) as u16;
                slot.uses = (slot.uses + 1).min(USES_MAX);
            }
            node = node << 1 | u32::from(bit);
        }
        node as u8
    }
}

#[cfg(test)]
mod tests {
    use super::super::coder::{Decoder, Encoder};
    use super::*;

    #[test]
    fn text_is_packed_well_and_survives() {
        let text: Vec<u8> =
            (0..400u32).flat_map(|n| format!("line {} of a text; ", n * n % 97).into_bytes()).collect();
        let around = |at: usize| {
            let tail = &text[at.saturating_sub(8)..at];
            let before = tail.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            Around { before, predicted: at.is_multiple_of(3).then_some(7), class: (at % 3) as u8 }
        };
        let (mut encoder, mut model) = (Encoder::new(), Literals::new(16));
        for (at, byte) in text.iter().enumerate() {
            model.code(&mut encoder, *byte, around(at));
        }
        let packed = encoder.finish();
        assert!(packed.len() < text.len() / 8, "{} of {}", packed.len(), text.len());
        let (mut decoder, mut model) = (Decoder::new(&packed), Literals::new(16));
        for (at, byte) in text.iter().enumerate() {
            assert_eq!(model.code(&mut decoder, 0, around(at)), *byte);
        }
    }

    #[test]
    fn the_logistic_function_and_its_inverse_agree() {
        let table = stretch();
        assert!(table.is_sorted());
        for (one, x) in table.iter().enumerate() {
            assert!((squash(i32::from(*x)) - one as i32).abs() <= 4, "{one}");
        }
    }
}
