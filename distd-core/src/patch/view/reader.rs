//! Reader of the fields of a recipe or an unpack recipe.

use super::error::RecipeError;
use crate::proto::take_varint;

/// Rest of a recipe. Numbers are varints as in RFC 9000 §16.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn expect_byte(&mut self) -> Result<u8, RecipeError> {
        self.byte().ok_or(RecipeError::Damaged("it ends early"))
    }

    pub(super) fn number(&mut self) -> Result<u64, RecipeError> {
        take_varint(&mut self.0).ok_or(RecipeError::Damaged("it ends early"))
    }

    /// Reads a number from 1 to `max`.
    pub(super) fn within(&mut self, max: u64) -> Result<usize, RecipeError> {
        let number = self.number()?;
        if number == 0 || number > max {
            return Err(RecipeError::Damaged("a number is out of bounds"));
        }
        usize::try_from(number).map_err(|_| RecipeError::Damaged("a number is out of bounds"))
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], RecipeError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(RecipeError::Damaged("it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }
}
