//! Conditions of a statement that a request may have or not.

use sqlx::Any;
use sqlx::any::AnyArguments;
use sqlx::query::Query;

/// Conditions, and the values of their parameters in order.
pub(super) struct Conditions {
    /// Text to append to a condition that is there: each part begins with ` AND `.
    pub(super) sql: String,
    values: Vec<String>,
    before: usize,
}

impl Conditions {
    /// No condition, for a statement that has `before` parameters already.
    pub(super) fn after(before: usize) -> Self {
        Self { sql: String::new(), values: Vec::new(), before }
    }

    /// Adds a condition, in which each `{}` stands for the value; nothing without a value.
    pub(super) fn and(mut self, condition: &str, value: Option<impl ToString>) -> Self {
        let Some(value) = value.map(|value| value.to_string()) else { return self };
        self.sql.push_str(" AND ");
        for (n, part) in condition.split("{}").enumerate() {
            if n > 0 {
                self.values.push(value.clone());
                self.sql.push_str(&format!("${}", self.before + self.values.len()));
            }
            self.sql.push_str(part);
        }
        self
    }

    /// Adds a condition, in which the `{}` stand for these values, one after the other.
    pub(super) fn and_each(mut self, condition: &str, values: impl IntoIterator<Item = String>) -> Self {
        let mut parts = condition.split("{}");
        self.sql.push_str(" AND ");
        self.sql.push_str(parts.next().unwrap_or_default());
        for (value, part) in values.into_iter().zip(parts) {
            self.values.push(value);
            self.sql.push_str(&format!("${}{part}", self.before + self.values.len()));
        }
        self
    }

    /// Whether there is no condition.
    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Binds the values; the parameters before them are bound already.
    pub(super) fn bind<'q>(&self, query: Query<'q, Any, AnyArguments>) -> Query<'q, Any, AnyArguments> {
        self.values.iter().fold(query, |query, value| query.bind(value.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_count_their_parameters() {
        let none: Option<&str> = None;
        let some = Conditions::after(2).and("a = {}", Some("x")).and("b = {}", none);
        let some = some.and("(c = {} OR d = {})", Some(7));
        assert_eq!(some.sql, " AND a = $3 AND (c = $4 OR d = $5)");
        assert_eq!(some.values, ["x", "7", "7"]);
        assert!(Conditions::after(1).and("a = {}", none).is_empty());
        let list =
            Conditions::after(1).and_each("a = {} AND b IN ({}, {})", ["k", "x", "y"].map(str::to_owned));
        assert_eq!(list.sql, " AND a = $2 AND b IN ($3, $4)");
        assert_eq!(list.values, ["k", "x", "y"]);
    }
}
