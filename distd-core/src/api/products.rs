//! Products.

use serde::{Deserialize, Deserializer, Serialize};

use super::Retention;
use crate::cut::CutParams;

/// Cut parameters, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Cut {
    /// Smallest chunk.
    pub min: u32,
    /// Average chunk.
    pub avg: u32,
    /// Largest chunk.
    pub max: u32,
}

impl From<CutParams> for Cut {
    fn from(cut: CutParams) -> Self {
        Self { min: cut.min(), avg: cut.avg(), max: cut.max() }
    }
}

/// Product to create, or product whose cut parameters are to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewProduct {
    /// Name of the product.
    pub name: String,
    /// Cut parameters of its releases; 4096/16384/65536 for a new product when absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "strict_cut")]
    pub cut: Option<Cut>,
}

/// Reads cut parameters of a request, which has no fields but theirs.
fn strict_cut<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cut>, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Strict {
        min: u32,
        avg: u32,
        max: u32,
    }
    let strict = Option::<Strict>::deserialize(deserializer)?;
    Ok(strict.map(|Strict { min, avg, max }| Cut { min, avg, max }))
}

/// A product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Product {
    /// Name of the product.
    pub name: String,
    /// Cut parameters of its next release.
    pub cut: Cut,
    /// Time of its creation, unix seconds.
    pub created: i64,
    /// Pattern of the names of files under which other update clients know its releases, as
    /// `os_@v.erofs`; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_name: Option<String>,
    /// Releases that are kept although nothing uses them; absent: all are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// File name of a product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct FileName {
    /// Letters, digits and `._+-`, with `@v` once where the version stands; at most 100 bytes, and
    /// no dot at the beginning.
    pub name: String,
}

/// Products for which the token is valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProductList {
    /// Products by name.
    pub products: Vec<Product>,
}
