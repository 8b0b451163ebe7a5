//! How a node reaches its parents: the transport, the proxy, and which transport worked before.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distd_core::error::Chain;
use serde::{Deserialize, Serialize};

use super::connection::Carrier;
use super::local::LocalParent;
use super::proxy::Proxies;
use crate::clock::unix_now;
use crate::trust::files;

/// Time for which HTTPS is dialled first for a parent that only HTTPS reached; after that QUIC goes
/// first again. An hour is short compared with the life of a firewall rule, and long compared with
/// a pull.
const HTTPS_SECONDS: u64 = 3600;

/// Number of starved QUIC connections of a parent, within [`STARVED_SECONDS`], after which HTTPS
/// goes first. A single one may be an unplugged cable.
const STARVED_MAX: u32 = 2;

/// Time over which starved connections are counted, seconds. Each takes half a minute to be
/// noticed.
const STARVED_SECONDS: u64 = 600;

/// Maximum number of parents remembered.
const PARENTS_MAX: usize = 64;

/// Transport that may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// QUIC or HTTPS, whichever gets through; QUIC is preferred.
    #[default]
    Auto,
    /// Only QUIC.
    Quic,
    /// Only HTTPS.
    Https,
}

/// A text that does not name a transport.
#[derive(Debug, thiserror::Error)]
#[error("there is no transport {0:?}: choose auto, quic or https")]
pub struct UnknownTransport(String);

impl FromStr for Transport {
    type Err = UnknownTransport;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "quic" => Ok(Self::Quic),
            "https" => Ok(Self::Https),
            other => Err(UnknownTransport(other.to_owned())),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Quic => "quic",
            Self::Https => "https",
        })
    }
}

impl Transport {
    /// Whether this is the default transport.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Settings and memory of one node for dialling parents, shared by everything that dials them.
#[derive(Debug)]
pub struct Outbound {
    pub(super) transport: Transport,
    pub(super) proxies: Proxies,
    path: Option<PathBuf>,
    parents: Mutex<BTreeMap<String, Learned>>,
    /// Parents inside this process, by address.
    local: Mutex<BTreeMap<String, LocalParent>>,
}

/// Experience with one parent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Learned {
    /// Time at which HTTPS got through and QUIC did not, unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    https_since: Option<u64>,
    /// Number of QUIC connections that starved since `starved_since` (unix seconds).
    #[serde(default)]
    starved: u32,
    #[serde(default)]
    starved_since: u64,
}

impl Learned {
    fn https_first(&self, now: u64) -> bool {
        // A time in the future was written while the clock was ahead, and is ignored.
        self.https_since.is_some_and(|since| since <= now && now < since.saturating_add(HTTPS_SECONDS))
    }
}

impl Outbound {
    /// Loads the memory from `path`; a missing or unreadable file is an empty memory.
    pub fn new(transport: Transport, proxies: Proxies, path: &Path) -> Arc<Self> {
        let parents = match files::read(path) {
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), error = %Chain(&error), "remembered transports are unreadable; starting with an empty list");
                BTreeMap::new()
            }),
            _ => BTreeMap::new(),
        };
        Arc::new(Self {
            transport,
            proxies,
            path: Some(path.to_owned()),
            parents: Mutex::new(parents),
            local: Mutex::default(),
        })
    }

    /// Uses no proxies, and keeps its memory only in this process.
    pub fn direct(transport: Transport) -> Arc<Self> {
        Self::forgetful(transport, Proxies::none())
    }

    /// Keeps its memory only in this process.
    pub fn forgetful(transport: Transport, proxies: Proxies) -> Arc<Self> {
        Arc::new(Self { transport, proxies, path: None, parents: Mutex::default(), local: Mutex::default() })
    }

    fn parents(&self) -> MutexGuard<'_, BTreeMap<String, Learned>> {
        self.parents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `address` that of a parent inside this process.
    pub fn add_local(&self, address: &str, parent: LocalParent) {
        self.local.lock().unwrap_or_else(PoisonError::into_inner).insert(address.to_owned(), parent);
    }

    /// The parent inside this process that has this address.
    pub(super) fn local(&self, address: &str) -> Option<LocalParent> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner).get(address).cloned()
    }

    /// Whether `address` is that of a parent inside this process.
    pub fn is_local(&self, address: &str) -> bool {
        self.local(address).is_some()
    }

    /// Carrier over which the parent at `address` is dialled first, if both are allowed.
    pub(super) fn first(&self, address: &str) -> Carrier {
        let learned = self.parents().get(address).copied().unwrap_or_default();
        if learned.https_first(unix_now()) { Carrier::Https } else { Carrier::Quic }
    }

    /// Records that the parent at `address` was reached over `carrier` before the other carrier,
    /// after `first` was dialled first.
    pub(super) fn reached(&self, address: &str, first: Carrier, carrier: Carrier) {
        let now = unix_now();
        self.change(address, |learned| match (first, carrier) {
            // Not renewed while HTTPS goes first, so that its time ends.
            (Carrier::Quic, Carrier::Https) => learned.https_since = Some(now),
            (Carrier::Https, Carrier::Quic) => *learned = Learned::default(),
            _ => {}
        });
    }

    /// Records that a QUIC connection to the parent at `address` was established and then received
    /// nothing any more.
    pub(crate) fn starved(&self, address: &str) {
        if self.transport != Transport::Auto {
            return;
        }
        let now = unix_now();
        self.change(address, |learned| {
            let recent = learned.starved_since..learned.starved_since.saturating_add(STARVED_SECONDS);
            if !recent.contains(&now) {
                (learned.starved, learned.starved_since) = (0, now);
            }
            learned.starved += 1;
            if learned.starved >= STARVED_MAX {
                *learned = Learned { https_since: Some(now), ..Learned::default() };
                tracing::warn!(
                    parent = address,
                    "QUIC connections keep falling silent; dialling HTTPS first for an hour"
                );
            }
        });
    }

    fn change(&self, address: &str, change: impl FnOnce(&mut Learned)) {
        let mut parents = self.parents();
        let before = parents.get(address).copied().unwrap_or_default();
        let mut after = before;
        change(&mut after);
        if before == after {
            return;
        }
        match after == Learned::default() {
            true => parents.remove(address),
            false => parents.insert(address.to_owned(), after),
        };
        while parents.len() > PARENTS_MAX {
            parents.pop_first();
        }
        let Some(path) = &self.path else { return };
        let text = serde_json::to_vec_pretty(&*parents).expect("strings and numbers always encode");
        if let Err(error) = files::write_atomic(path, &text, 0o600) {
            tracing::warn!(
                error = %Chain(&error),
                "remembered transports could not be written; they will be lost at the next restart"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbound(path: &Path) -> Arc<Outbound> {
        Outbound::new(Transport::Auto, Proxies::none(), path)
    }

    #[test]
    fn the_transport_that_worked_goes_first_after_a_restart_for_an_hour() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("transports.json");
        let first = outbound(&path);
        assert_eq!(first.first("a:1"), Carrier::Quic);
        first.reached("a:1", Carrier::Quic, Carrier::Https);
        let again = outbound(&path);
        assert_eq!(again.first("a:1"), Carrier::Https);
        assert_eq!(again.first("b:1"), Carrier::Quic);
        let learned = again.parents()["a:1"];
        let since = learned.https_since.expect("since now");
        assert!(
            learned.https_first(since + HTTPS_SECONDS - 1) && !learned.https_first(since + HTTPS_SECONDS)
        );
        assert!(!learned.https_first(since - 1), "written by a clock that was ahead");
        // The time is renewed only if QUIC fails once more.
        again.reached("a:1", Carrier::Https, Carrier::Https);
        assert_eq!(again.parents()["a:1"], learned);
        again.reached("a:1", Carrier::Https, Carrier::Quic);
        assert_eq!(outbound(&path).first("a:1"), Carrier::Quic);
    }

    #[test]
    fn quic_that_starves_twice_goes_second() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("transports.json");
        outbound(&path).starved("a:1");
        assert_eq!(outbound(&path).first("a:1"), Carrier::Quic, "once may be a cable");
        outbound(&path).starved("a:1");
        assert_eq!(outbound(&path).first("a:1"), Carrier::Https);
        let slow = outbound(&dir.path().join("other.json"));
        slow.starved("a:1");
        slow.parents().get_mut("a:1").expect("known").starved_since -= STARVED_SECONDS;
        slow.starved("a:1");
        assert_eq!(slow.first("a:1"), Carrier::Quic, "twice in a long time is no pattern");
    }

    #[test]
    fn an_unreadable_file_is_ignored() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("transports.json");
        std::fs::write(&path, "junk").expect("write");
        assert_eq!(outbound(&path).first("a:1"), Carrier::Quic);
    }
}
