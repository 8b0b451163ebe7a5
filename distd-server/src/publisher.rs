//! Publishers: tokens, and the products they are for.

use std::fmt;

use distd_core::fleet::ReleasePattern;
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
    #[error(transparent)]
    Pattern(#[from] distd_core::fleet::PatternError),
}

/// The products that a token is for, and the channels of them that it may move: patterns `PRODUCT`
/// or `PRODUCT:CHANNEL`, in which `*` stands for any characters. Without a channel a pattern is for
/// all channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Products(Vec<ReleasePattern>);

impl Products {
    /// All products, also those that are added later.
    pub fn all() -> Self {
        Self(vec![ReleasePattern::all()])
    }

    /// The products of these patterns.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn new(patterns: &[String]) -> Result<Self, PatternError> {
        if patterns.is_empty() || patterns.len() > PATTERNS_MAX {
            return Err(PatternError::Count(patterns.len()));
        }
        let patterns: Result<_, distd_core::fleet::PatternError> =
            patterns.iter().map(|pattern| pattern.parse()).collect();
        Ok(Self(patterns?))
    }

    /// Reads the patterns of a row; a row without a pattern is for no product.
    pub fn of_row(row: &str) -> Self {
        Self(row.split(',').filter_map(|pattern| pattern.parse().ok()).collect())
    }

    /// Writes the patterns for a row.
    pub fn to_row(&self) -> String {
        self.patterns().join(",")
    }

    /// The patterns as text.
    pub fn patterns(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// Whether every product with all its channels is among them.
    pub fn are_all(&self) -> bool {
        self.0.iter().any(|pattern| pattern.product.is_all() && pattern.channel.is_none())
    }

    /// Whether a product is among them, with some or all of its channels.
    pub fn has(&self, product: &Name) -> bool {
        self.0.iter().any(|pattern| pattern.product.matches(product))
    }

    /// Whether a channel of a product is among them.
    pub fn has_channel(&self, product: &Name, channel: &Name) -> bool {
        self.0.iter().any(|pattern| pattern.covers(product, [channel]))
    }
}

impl fmt::Display for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.patterns().join(", "))
    }
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
    fn patterns_survive_their_row_and_an_empty_row_is_for_nothing() {
        let products = Products::new(&["os".to_owned(), "app-*".to_owned()]).expect("patterns");
        assert_eq!(Products::of_row(&products.to_row()), products);
        assert!(!Products::of_row("").has(&"os".parse().expect("a name")));
        assert!(Products::all().are_all() && !products.are_all());
    }

    #[test]
    fn a_pattern_with_a_channel_is_for_its_product_and_that_channel_alone() {
        let products = Products::new(&["os:test*".to_owned(), "app".to_owned()]).expect("patterns");
        assert_eq!(Products::of_row(&products.to_row()), products);
        let name = |text: &str| text.parse::<Name>().expect("a name");
        assert!(products.has(&name("os")) && products.has(&name("app")));
        let cases =
            [("os", "testing", true), ("os", "stable", false), ("app", "stable", true), ("x", "test", false)];
        for (product, channel, expected) in cases {
            assert_eq!(products.has_channel(&name(product), &name(channel)), expected, "{product}:{channel}");
        }
        let every = Products::new(&["*:stable".to_owned()]).expect("a pattern");
        assert!(!every.are_all(), "it may not move every channel");
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
