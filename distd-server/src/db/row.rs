//! Reading columns: integers that must not be negative, hashes that must have their length.

use sqlx::any::AnyRow;
use sqlx::{Error, Row};

/// A stored value outside the bounds of values that distd stores.
#[derive(Debug, thiserror::Error)]
#[error("column {0} holds a value that distd never writes")]
struct Impossible(&'static str);

pub(super) fn impossible(column: &'static str) -> Error {
    Error::Decode(Box::new(Impossible(column)))
}

pub(super) trait Columns {
    fn text(&self, column: &'static str) -> Result<String, Error>;
    fn text_or_none(&self, column: &'static str) -> Result<Option<String>, Error>;
    fn time(&self, column: &'static str) -> Result<i64, Error>;
    fn time_or_none(&self, column: &'static str) -> Result<Option<i64>, Error>;
    fn number(&self, column: &'static str) -> Result<u64, Error>;
    fn number_or_none(&self, column: &'static str) -> Result<Option<u64>, Error>;
    fn number32(&self, column: &'static str) -> Result<u32, Error>;
    fn blob(&self, column: &'static str) -> Result<Vec<u8>, Error>;
    fn hash(&self, column: &'static str) -> Result<[u8; 32], Error>;
    fn hash_or_none(&self, column: &'static str) -> Result<Option<[u8; 32]>, Error>;
    fn parsed<T: std::str::FromStr>(&self, column: &'static str) -> Result<T, Error>;
}

impl Columns for AnyRow {
    fn text(&self, column: &'static str) -> Result<String, Error> {
        self.try_get(column)
    }

    fn text_or_none(&self, column: &'static str) -> Result<Option<String>, Error> {
        self.try_get(column)
    }

    fn time(&self, column: &'static str) -> Result<i64, Error> {
        self.try_get(column)
    }

    fn time_or_none(&self, column: &'static str) -> Result<Option<i64>, Error> {
        self.try_get(column)
    }

    fn number(&self, column: &'static str) -> Result<u64, Error> {
        u64::try_from(self.try_get::<i64, _>(column)?).map_err(|_| impossible(column))
    }

    fn number_or_none(&self, column: &'static str) -> Result<Option<u64>, Error> {
        let number = self.try_get::<Option<i64>, _>(column)?;
        number.map(|number| u64::try_from(number).map_err(|_| impossible(column))).transpose()
    }

    fn number32(&self, column: &'static str) -> Result<u32, Error> {
        u32::try_from(self.try_get::<i64, _>(column)?).map_err(|_| impossible(column))
    }

    fn blob(&self, column: &'static str) -> Result<Vec<u8>, Error> {
        self.try_get(column)
    }

    fn hash(&self, column: &'static str) -> Result<[u8; 32], Error> {
        self.try_get::<&[u8], _>(column)?.try_into().map_err(|_| impossible(column))
    }

    fn hash_or_none(&self, column: &'static str) -> Result<Option<[u8; 32]>, Error> {
        let bytes = self.try_get::<Option<Vec<u8>>, _>(column)?;
        bytes.map(|bytes| bytes.as_slice().try_into().map_err(|_| impossible(column))).transpose()
    }

    fn parsed<T: std::str::FromStr>(&self, column: &'static str) -> Result<T, Error> {
        self.try_get::<&str, _>(column)?.parse().map_err(|_| impossible(column))
    }
}

/// Converts a count for binding: SQL integers are signed, and all counts of distd stay far below
/// their bound.
pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).expect("counts, lengths and ids stay below 2^63")
}

/// Converts a number that a node claims, which may be any, for binding.
pub(super) fn claimed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claimed_counts_never_overflow() {
        assert_eq!((claimed(7), claimed(u64::MAX)), (7, i64::MAX));
    }
}
