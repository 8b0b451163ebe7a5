//! Statements over many rows: both engines take thousands of values in one statement, and one
//! statement per row costs a hundred times as much.

use super::Engine;

/// Hashes in one `IN` list. SQLite allows 32 766 parameters; above a few thousand nothing is
/// gained.
pub(super) const LIST_MAX: usize = 4096;

/// Most rows in one `VALUES`.
pub(super) const ROWS_MAX: usize = 1000;

/// Most columns in such a `VALUES`: a chunk has seven.
const COLUMNS_MAX: usize = 7;

/// Most parameters of a statement. SQLite takes 32 766 of them, PostgreSQL 65 535.
const PARAMETERS_MAX: usize = 32_766;

const _: () = assert!(ROWS_MAX * COLUMNS_MAX <= PARAMETERS_MAX && LIST_MAX <= PARAMETERS_MAX);

impl Engine {
    /// Returns `count` placeholders, `$first,$first+1,…`; on SQLite as many `?`. The statement must
    /// have no parameter behind them, and exactly `first - 1` before them.
    ///
    /// For each bound value SQLite looks a `$N` up by name, in a list: seventy thousand rows took
    /// five seconds.
    pub(super) fn list(self, first: usize, count: usize) -> String {
        let mut text = String::with_capacity(count * 6);
        for n in first..first + count {
            if n > first {
                text.push(',');
            }
            match self {
                Self::Sqlite => text.push('?'),
                Self::Postgres => {
                    text.push('$');
                    text.push_str(&n.to_string());
                }
            }
        }
        text
    }

    /// Returns placeholders for `rows` rows, `($1,$2),($3,$4),…`, or on SQLite as many `?`.
    pub(super) fn values(self, rows: usize, columns: usize) -> String {
        debug_assert!(rows <= LIST_MAX && rows * columns <= PARAMETERS_MAX, "{rows} rows of {columns}");
        let mut text = String::with_capacity(rows * columns * 6);
        for row in 0..rows {
            text.push_str(if row == 0 { "(" } else { ",(" });
            text.push_str(&self.list(row * columns + 1, columns));
            text.push(')');
        }
        text
    }
}

/// Returns `items` with the last one repeated up to the next power of two, so that `IN` lists come
/// in few lengths and the statements stay in the cache. Never longer than [`LIST_MAX`] when `items`
/// is not.
pub(super) fn padded<T: Copy>(items: &[T]) -> impl Iterator<Item = T> + '_ {
    let last = items.last().copied();
    let more = padded_len(items) - items.len();
    items.iter().copied().chain(last.into_iter().cycle().take(more))
}

/// Length of [`padded`].
pub(super) fn padded_len<T>(items: &[T]) -> usize {
    items.len().next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_count_from_one() {
        assert_eq!(Engine::Postgres.values(2, 3), "($1,$2,$3),($4,$5,$6)");
        assert_eq!(Engine::Postgres.list(2, 2), "$2,$3");
        assert_eq!(Engine::Sqlite.values(2, 2), "(?,?),(?,?)");
        assert_eq!(padded(&[1, 2, 3]).collect::<Vec<_>>(), [1, 2, 3, 3]);
        assert_eq!(padded(&[1]).count(), padded_len(&[1]));
    }
}
