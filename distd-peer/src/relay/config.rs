//! A relay's settings: command line over environment over TOML file over default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits::{Limits, LimitsError, LimitsFile, Throttle};
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
    /// Whether nobody said where: a default of all addresses falls back to IPv4 where there is no IPv6.
    pub listen_is_default: bool,
    /// How parents are reached.
    pub transport: Transport,
    /// The HTTP proxy towards parents; else `HTTPS_PROXY` says. A secret: it may hold a password.
    pub proxy_url: Option<String>,
    /// What operators see.
    pub label: String,
    /// Loopback address metrics are given on.
    pub metrics: Option<SocketAddr>,
    /// Bounds of the store.
    pub store: StoreConfig,
    /// What chunks from parents may take of the link.
    pub download: Option<Arc<Throttle>>,
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
    /// Loopback address metrics are given on.
    pub metrics: Option<SocketAddr>,
    /// Cache bounds.
    pub cache: Option<CacheFile>,
    /// Most batches answered at once.
    pub upload_slots_max: Option<usize>,
    /// Most connections.
    pub connections_max: Option<usize>,
    /// Rates.
    pub limits: Option<LimitsFile>,
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
    /// Values that cannot be.
    #[error("{} is not usable: {wrong}", .path.display())]
    Limits {
        /// The file.
        path: PathBuf,
        /// All of them.
        wrong: LimitsError,
    },
}

impl RelayFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`RelayConfigError`]; it names the line and what is wrong there.
    pub fn read(path: &Path) -> Result<Self, RelayConfigError> {
        let text = std::fs::read_to_string(path).map_err(|e| RelayConfigError::Read(path.to_owned(), e))?;
        let file: Self = toml::from_str(&text).map_err(|e| {
            // The parser's own text quotes the line, and the line may be the one with the proxy's password.
            let line = e
                .span()
                .and_then(|at| text.get(..at.start))
                .map_or(1, |before| before.matches('\n').count() + 1);
            RelayConfigError::Parse { path: path.to_owned(), line, what: e.message().to_owned() }
        })?;
        match file.limits() {
            Ok(_) => Ok(file),
            Err(wrong) => Err(RelayConfigError::Limits { path: path.to_owned(), wrong }),
        }
    }

    /// What `[limits]` says.
    ///
    /// # Errors
    /// [`LimitsError`]; none for a file that was [read](Self::read).
    pub fn limits(&self) -> Result<Limits, LimitsError> {
        self.limits.as_ref().map_or(Ok(Limits::default()), LimitsFile::check_without_classes)
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
        std::fs::write(&path, "[limits]\nupload_slots = 3\ndownload_bytes_per_second = 1\n").expect("write");
        let error = RelayFile::read(&path).err().expect("no such limits").to_string();
        assert!(
            error.contains("upload_slots_max") && error.contains("download_bytes_per_second = 1"),
            "{error}"
        );
        let file: RelayFile = toml::from_str("parents = [\"a:1\"]\n[cache]\nmax_bytes = 5").expect("valid");
        assert_eq!(file.cache.and_then(|c| c.max_bytes), Some(5));
    }
}
