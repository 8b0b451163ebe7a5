//! A relay's settings: command line over environment over TOML file over default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::serve::ServeConfig;
use crate::store::StoreConfig;

/// Settings of one relay.
#[derive(Clone)]
pub struct RelayConfig {
    /// State and cache.
    pub data: PathBuf,
    /// Parents, `HOST:PORT`, asked in this order.
    pub parents: Vec<String>,
    /// Where to listen for QUIC.
    pub listen: SocketAddr,
    /// What operators see.
    pub label: String,
    /// Bounds of the store.
    pub store: StoreConfig,
    /// Bounds of the answering side.
    pub serve: ServeConfig,
}

/// The file's form. Unknown keys are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayFile {
    /// Parents, `HOST:PORT`.
    pub parents: Option<Vec<String>>,
    /// `ADDR:PORT` to listen on.
    pub listen: Option<SocketAddr>,
    /// State and cache.
    pub data: Option<PathBuf>,
    /// What operators see.
    pub label: Option<String>,
    /// Cache bounds.
    pub cache: Option<CacheFile>,
    /// Most batches answered at once.
    pub upload_slots_max: Option<usize>,
    /// Most connections.
    pub connections_max: Option<usize>,
}

/// `[cache]` of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheFile {
    /// Most bytes of the edge store.
    pub max_bytes: Option<u64>,
    /// Free space left on its file system, bytes.
    pub min_free_bytes: Option<u64>,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RelayConfigError {
    /// The file cannot be read.
    #[error("could not read {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// The file is no valid TOML of this form.
    #[error("{} is not usable", .0.display())]
    Parse(PathBuf, #[source] Box<toml::de::Error>),
}

impl RelayFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`RelayConfigError`]; it names the line and what is wrong there.
    pub fn read(path: &Path) -> Result<Self, RelayConfigError> {
        let text = std::fs::read_to_string(path).map_err(|e| RelayConfigError::Read(path.to_owned(), e))?;
        toml::from_str(&text).map_err(|e| RelayConfigError::Parse(path.to_owned(), Box::new(e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = toml::from_str::<RelayFile>("lisen = \"[::]:4433\"").expect_err("typo");
        assert!(error.to_string().contains("lisen"), "{error}");
        let file: RelayFile = toml::from_str("parents = [\"a:1\"]\n[cache]\nmax_bytes = 5").expect("valid");
        assert_eq!(file.cache.and_then(|c| c.max_bytes), Some(5));
    }
}
