//! Publishers: tokens, and the products they are for.

use std::fmt;

use distd_core::bounds::NAME_BYTES_MAX;
use distd_core::names::Name;

/// Most patterns of one token.
pub const PATTERNS_MAX: usize = 64;

/// Error in patterns.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// There is no pattern, or there are too many.
    #[error("a token is for 1 to {PATTERNS_MAX} patterns of products, not for {0}")]
    Count(usize),
    /// A pattern that no product's name can match.
    #[error("{0:?} is no pattern of product names: write names, with * for any characters")]
    Pattern(String),
}

/// The products that a token is for: names, in which `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Products(Vec<String>);

impl Products {
    /// All products, also those that are added later.
    pub fn all() -> Self {
        Self(vec!["*".to_owned()])
    }

    /// The products of these patterns.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn new(patterns: &[String]) -> Result<Self, PatternError> {
        if patterns.is_empty() || patterns.len() > PATTERNS_MAX {
            return Err(PatternError::Count(patterns.len()));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-' | '*');
        for pattern in patterns {
            let length = 1..=NAME_BYTES_MAX;
            if !length.contains(&pattern.len()) || !pattern.chars().all(plain) {
                return Err(PatternError::Pattern(pattern.clone()));
            }
        }
        Ok(Self(patterns.to_vec()))
    }

    /// Reads the patterns of a row; a row without a pattern is for no product.
    pub fn of_row(row: &str) -> Self {
        Self(row.split(',').filter(|pattern| !pattern.is_empty()).map(str::to_owned).collect())
    }

    /// Writes the patterns for a row.
    pub fn to_row(&self) -> String {
        self.0.join(",")
    }

    /// The patterns.
    pub fn patterns(&self) -> &[String] {
        &self.0
    }

    /// Whether every product is among them.
    pub fn are_all(&self) -> bool {
        self.0.iter().any(|pattern| pattern == "*")
    }

    /// Whether a product is among them.
    pub fn has(&self, product: &Name) -> bool {
        self.0.iter().any(|pattern| matches(pattern.as_bytes(), product.as_str().as_bytes()))
    }
}

impl fmt::Display for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// Compares in time proportional to the product of both lengths: on a mismatch the last `*` takes
/// one byte more.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(byte) if *byte == name[n] => (p, n) = (p + 1, n + 1),
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                (p, n) = (at + 1, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// A token that publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publisher {
    /// Name that operators see.
    pub label: String,
    /// Its id.
    pub token: String,
    /// Products that it may publish.
    pub products: Products,
}

impl Publisher {
    /// Returns the publisher for all products whose id is its label: the origin itself.
    pub fn unbound(label: &str) -> Self {
        Self { label: label.to_owned(), token: label.to_owned(), products: Products::all() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let cases = [
            ("*", "os", true),
            ("os", "os", true),
            ("os", "os2", false),
            ("os", "xos", false),
            ("os-*", "os-a", true),
            ("os-*", "os-", true),
            ("os-*", "os", false),
            ("*-os", "a-os", true),
            ("*-os", "a-os-b", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("**", "x", true),
            ("*a*a*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ];
        for (pattern, name, expected) in cases {
            let products = Products::new(&[pattern.to_owned()]).expect("a pattern");
            assert_eq!(products.has(&name.parse().expect("a name")), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn patterns_survive_their_row_and_an_empty_row_is_for_nothing() {
        let products = Products::new(&["os".to_owned(), "app-*".to_owned()]).expect("patterns");
        assert_eq!(Products::of_row(&products.to_row()), products);
        assert!(!Products::of_row("").has(&"os".parse().expect("a name")));
        assert!(Products::all().are_all() && !products.are_all());
    }

    #[test]
    fn a_pattern_that_no_name_can_match_is_refused() {
        for bad in ["", "a,b", "a b", "../x", "ö", &"x".repeat(101)] {
            assert!(Products::new(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
        assert!(Products::new(&[]).is_err());
        assert!(Products::new(&vec!["a".to_owned(); PATTERNS_MAX + 1]).is_err());
    }
}
