//! Settings of a relay. The command line comes before the environment, the environment before the
//! TOML file, and the file before the defaults.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::net::Transport;
use crate::rates::{Limits, LimitsError, LimitsFile, Throttle};
use crate::serve::ServeConfig;
use crate::store::StoreConfig;

/// Settings of one relay.
#[derive(Clone)]
pub struct RelayConfig {
    /// Directory for state and cache.
    pub data: PathBuf,
    /// Parents, `HOST:PORT`, asked in this order.
    pub parents: Vec<String>,
    /// Address to listen on, UDP for QUIC and TCP for HTTPS.
    pub listen: SocketAddr,
    /// Whether `listen` is the default, which falls back from all IPv6 addresses to IPv4 on a host
    /// without IPv6.
    pub listen_is_default: bool,
    /// How parents are reached: QUIC, HTTPS or whichever gets through.
    pub transport: Transport,
    /// URL of the HTTP proxy towards parents; if `None`, `HTTPS_PROXY` applies. Secret, as it may
    /// contain a password.
    pub proxy_url: Option<String>,
    /// Name of the relay that operators see.
    pub label: String,
    /// Loopback address where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Bounds of the store.
    pub store: StoreConfig,
    /// Rate limit for chunks from parents.
    pub download: Option<Arc<Throttle>>,
    /// Bounds of the answering side.
    pub serve: ServeConfig,
}

/// The configuration file. Unknown keys are refused.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayFile {
    /// Parents, `HOST:PORT`.
    pub parents: Option<Vec<String>>,
    /// `ADDR:PORT` to listen on.
    pub listen: Option<SocketAddr>,
    /// How parents are reached: `auto`, `quic` or `https`.
    pub transport: Option<Transport>,
    /// URL of the HTTP proxy towards parents, `http://[USER:PASSWORD@]HOST:PORT`.
    pub proxy_url: Option<String>,
    /// Directory for state and cache.
    pub data: Option<PathBuf>,
    /// Name of the relay that operators see.
    pub label: Option<String>,
    /// Loopback address where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Bounds of the edge store.
    pub cache: Option<CacheFile>,
    /// Maximum number of batches answered at once.
    pub upload_slots_max: Option<usize>,
    /// Maximum number of connections of nodes.
    pub connections_max: Option<usize>,
    /// Rate limits.
    pub limits: Option<LimitsFile>,
}

/// The `[cache]` section of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheFile {
    /// Maximum size of the edge store, bytes.
    pub max_bytes: Option<u64>,
    /// Free space to leave on the store's file system, bytes.
    pub min_free_bytes: Option<u64>,
}

/// Reason why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RelayConfigError {
    /// The file cannot be read.
    #[error("could not read {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// The file is not valid TOML, or not of this form.
    #[error("{} is not usable: line {line}: {what}", .path.display())]
    Parse {
        /// Path of the file.
        path: PathBuf,
        /// Line number, counted from 1.
        line: usize,
        /// The mistake in that line.
        what: String,
    },
    /// Values in `[limits]` that are not allowed.
    #[error("{} is not usable: {wrong}", .path.display())]
    Limits {
        /// Path of the file.
        path: PathBuf,
        /// All mistakes.
        wrong: LimitsError,
    },
}

impl RelayFile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`RelayConfigError`], which names the line and the mistake in it.
    pub fn read(path: &Path) -> Result<Self, RelayConfigError> {
        let text = std::fs::read_to_string(path).map_err(|e| RelayConfigError::Read(path.to_owned(), e))?;
        let file: Self = toml::from_str(&text).map_err(|e| {
            // The parser's own message quotes the line, which may contain the proxy's password.
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

    /// Returns the limits of the `[limits]` section.
    ///
    /// # Errors
    /// [`LimitsError`]; never for a file that was [read](Self::read).
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
