//! A relay's settings: command line over environment over TOML file over default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::net::Transport;
use crate::serve::ServeConfig;
use crate::store::StoreConfig;

/// Settings of one relay.
#[derive(Clone)]
pub struct RelayConfig {
    /// State and cache.
    pub data: PathBuf,
    /// Parents, `HOST:PORT`, asked in this order.
    pub parents: Vec<String>,
    /// Where to listen: UDP for QUIC, TCP for HTTPS.
    pub listen: SocketAddr,
    /// How parents are reached.
    pub transport: Transport,
    /// The HTTP proxy towards parents; else `HTTPS_PROXY` says. A secret: it may hold a password.
    pub proxy_url: Option<String>,
    /// What operators see.
    pub label: String,
    /// Bounds of the store.
    pub store: StoreConfig,
    /// Bounds of the answering side.
    pub serve: ServeConfig,
}

/// The file's form. Unknown keys are refused.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayFile {
    /// Parents, `HOST:PORT`.
    pub parents: Option<Vec<String>>,
    /// `ADDR:PORT` to listen on.
    pub listen: Option<SocketAddr>,
    /// How parents are reached: `auto`, `quic` or `https`.
    pub transport: Option<Transport>,
    /// `http://[USER:PASSWORD@]HOST:PORT`.
    pub proxy_url: Option<String>,
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
    #[error("{} is not usable: line {line}: {what}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
}

impl RelayFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`RelayConfigError`]; it names the line and what is wrong there.
    pub fn read(path: &Path) -> Result<Self, RelayConfigError> {
        let text = std::fs::read_to_string(path).map_err(|e| RelayConfigError::Read(path.to_owned(), e))?;
        toml::from_str(&text).map_err(|e| {
            // The parser's own text quotes the line, and the line may be the one with the proxy's password.
            let line = e
                .span()
                .and_then(|at| text.get(..at.start))
                .map_or(1, |before| before.matches('\n').count() + 1);
            RelayConfigError::Parse { path: path.to_owned(), line, what: e.message().to_owned() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = toml::from_str::<RelayFile>("lisen = \"[::]:4433\"").err().expect("typo");
        assert!(error.to_string().contains("lisen"), "{error}");
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("relay.toml");
        std::fs::write(&path, "label = \"a\"\nproxy_url = \"http://u:topsecret@p:1\" 5\n").expect("write");
        let error = RelayFile::read(&path).err().expect("not TOML").to_string();
        assert!(error.contains("line 2") && !error.contains("topsecret"), "{error}");
        let file: RelayFile = toml::from_str("parents = [\"a:1\"]\n[cache]\nmax_bytes = 5").expect("valid");
        assert_eq!(file.cache.and_then(|c| c.max_bytes), Some(5));
    }
}
