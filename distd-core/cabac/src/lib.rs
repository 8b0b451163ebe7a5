//! The binary arithmetic coder of the corrections that `preflate-rs` makes, under distd's licence.
//!
//! The crate takes the place of the crate `cabac` 0.15 of the registry, and has the part of its
//! interface that `preflate-rs` uses. Recipes hold corrections and are read for ever, so the bytes
//! are the same; [`vp8`] describes them. `docs/decisions/0016-own-coder.md` says how this crate was
//! made.

pub mod vp8;

use std::io;

/// Most bits of a value, and most trues before the false that ends a unary number.
///
/// `preflate-rs` writes numbers of bits in unary, and its values are of 32 bits. Damaged data can
/// decode as trues without end, so a reader needs a bound.
pub const BITS_MAX: usize = u64::BITS as usize;

/// A decoder of bits, each with a context that adapts to the bits decoded with it.
pub trait CabacReader<C> {
    /// Decodes a bit.
    ///
    /// # Errors
    ///
    /// An error of the input.
    fn get(&mut self, context: &mut C) -> io::Result<bool>;

    /// Decodes a number written by [`CabacWriter::put_unary_encoded`] with as many contexts.
    ///
    /// # Errors
    ///
    /// `InvalidData` for more than [`BITS_MAX`]; an error of the input.
    #[inline]
    fn get_unary_encoded<const N: usize>(&mut self, contexts: &mut [C; N]) -> io::Result<usize> {
        for value in 0..=BITS_MAX {
            if !self.get(nth(contexts, value))? {
                return Ok(value);
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, TOO_MANY_TRUES))
    }

    /// Decodes a value of `bits` bits written by [`CabacWriter::put_n_bits`] with as many contexts.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `bits` is more than [`BITS_MAX`]; an error of the input.
    #[inline]
    fn get_n_bits<const N: usize>(&mut self, bits: usize, contexts: &mut [C; N]) -> io::Result<u64> {
        check(bits)?;
        let mut value = 0;
        for n in (0..bits).rev() {
            value = value << 1 | u64::from(self.get(nth(contexts, n))?);
        }
        Ok(value)
    }
}

/// An encoder of bits, each with a context that adapts to the bits encoded with it.
pub trait CabacWriter<C> {
    /// Encodes a bit.
    ///
    /// # Errors
    ///
    /// An error of the output.
    fn put(&mut self, bit: bool, context: &mut C) -> io::Result<()>;

    /// Encodes a number as that many trues and a false.
    ///
    /// The first bit has the first context, and so on; all bits from the last context on share it.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `value` is more than [`BITS_MAX`]; an error of the output.
    #[inline]
    fn put_unary_encoded<const N: usize>(&mut self, value: usize, contexts: &mut [C; N]) -> io::Result<()> {
        check(value)?;
        for n in 0..value {
            self.put(true, nth(contexts, n))?;
        }
        self.put(false, nth(contexts, value))
    }

    /// Encodes the lowest `bits` bits of a value, the highest of them first.
    ///
    /// The bit of value 2^n has context n; all bits from the last context on share it.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `bits` is more than [`BITS_MAX`]; an error of the output.
    #[inline]
    fn put_n_bits<const N: usize>(
        &mut self,
        value: u64,
        bits: usize,
        contexts: &mut [C; N],
    ) -> io::Result<()> {
        check(bits)?;
        for n in (0..bits).rev() {
            self.put(value >> n & 1 == 1, nth(contexts, n))?;
        }
        Ok(())
    }

    /// Ends the stream and writes what is left of it. Bits encoded later are lost.
    ///
    /// # Errors
    ///
    /// An error of the output.
    fn finish(&mut self) -> io::Result<()>;
}

/// Returns context `n`, or the last one.
fn nth<C, const N: usize>(contexts: &mut [C; N], n: usize) -> &mut C {
    const { assert!(N > 0, "a number is coded with one context at least") };
    &mut contexts[n.min(N - 1)]
}

fn check(bits: usize) -> io::Result<()> {
    if bits <= BITS_MAX { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, TOO_MANY_BITS)) }
}

const TOO_MANY_TRUES: &str = "a number of more than 64 trues: the data is damaged";
const TOO_MANY_BITS: &str = "a value of more than 64 bits";
