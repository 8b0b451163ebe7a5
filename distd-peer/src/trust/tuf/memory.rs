//! Metadata files of one update: those from the cache, those that the source sent, and those
//! requested later by name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::error::Chain;

use super::differences::is_same_file;
use super::wire::{Answer, QUERY_NAMES_MAX, Query, ROOTS_PER_ANSWER, WireError};
use crate::request;

/// Reason why a source gave no answer.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// A source that answers metadata questions: a parent over QUIC, or the origin over HTTPS. It need
/// not be trusted.
#[async_trait]
pub trait MetadataSource: Send + Sync {
    /// Makes one round trip: sends the bytes of a [`Query`] and returns the bytes of an [`Answer`].
    ///
    /// # Errors
    /// If the source could not be reached. The caller detects a wrong answer.
    async fn query(&self, query: Vec<u8>) -> Result<Vec<u8>, SourceError>;
}

/// A source that has nothing: only stored files that have not expired are used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offline;

#[async_trait]
impl MetadataSource for Offline {
    async fn query(&self, _query: Vec<u8>) -> Result<Vec<u8>, SourceError> {
        Ok(Answer::default().encode())
    }
}

/// Reason why files could not be fetched.
#[derive(Debug)]
pub(super) enum FetchError {
    Source(SourceError),
    Wire(WireError),
}

/// Files by their name in the repository, and the source of missing ones.
#[derive(Clone)]
pub(super) struct Files {
    inner: Arc<Inner>,
}

struct Inner {
    source: Arc<dyn MetadataSource>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Bytes>,
    /// Number of roots in the last answer. Fewer than the maximum means that there are no more.
    roots_answered: u64,
    round_trips: u32,
    received: u64,
    /// Number of questions for single files. Bounded, as each costs a round trip.
    repeats: u32,
    failure: Option<FetchError>,
}

/// Maximum number of questions for single files in one update. A correct source needs none.
const REPEATS_MAX: u32 = 40;

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Files")
    }
}

impl Files {
    pub(super) fn new(source: Arc<dyn MetadataSource>, held: BTreeMap<String, Bytes>) -> Self {
        let state = State { files: held, ..State::default() };
        Self { inner: Arc::new(Inner { source, state: Mutex::new(state) }) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.inner.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks one question and keeps the files of the answer. An answer over held files that cannot
    /// be read, because such a file is damaged or the origin was restored from a backup, is asked
    /// for again as one of its own.
    pub(super) async fn ask(&self, query: &Query) -> Result<(), FetchError> {
        match self.ask_once(query).await {
            Err(FetchError::Wire(error)) if query.differences => {
                tracing::debug!(error = %Chain(&error), "asking for metadata without differences");
                self.ask_once(&Query { differences: false, ..query.clone() }).await
            }
            done => done,
        }
    }

    async fn ask_once(&self, query: &Query) -> Result<(), FetchError> {
        let id = request::current();
        tracing::debug!(target: request::LOG_TARGET, request = %id, targets = ?query.targets, "asking for metadata");
        let query = Query { request: Some(id.to_string()), ..query.clone() };
        let bytes = self.inner.source.query(query.encode()).await.map_err(FetchError::Source)?;
        self.with(|state| {
            state.round_trips += 1;
            state.received += bytes.len() as u64;
        });
        let answer = Answer::decode_over(&bytes, |name| self.held(name)).map_err(FetchError::Wire)?;
        self.with(|state| {
            state.roots_answered =
                answer.files.iter().filter(|(n, _)| n.ends_with(".root.json")).count() as u64;
            state.files.extend(answer.files);
        });
        Ok(())
    }

    pub(super) fn get(&self, name: &str) -> Option<Bytes> {
        self.with(|state| state.files.get(name).cloned())
    }

    /// Returns a held file that has the bytes of `name`.
    fn held(&self, name: &str) -> Option<Bytes> {
        let same = |state: &mut State| {
            let mut files = state.files.iter();
            files.find(|(known, _)| is_same_file(known, name)).map(|(_, bytes)| bytes.clone())
        };
        self.get(name).or_else(|| self.with(same))
    }

    /// Number of round trips and of bytes received.
    pub(super) fn cost(&self) -> (u32, u64) {
        self.with(|state| (state.round_trips, state.received))
    }

    /// Takes the failure of the source, if it failed.
    pub(super) fn take_failure(&self) -> Option<FetchError> {
        self.with(|state| state.failure.take())
    }

    /// Returns a file that is held, or asks the source for it.
    pub(super) async fn get_or_ask(&self, name: &str) -> Option<Bytes> {
        if let Some(bytes) = self.get(name) {
            return Some(bytes);
        }
        let ask = self.with(|state| {
            let is_root = name.ends_with(".root.json");
            let may = state.repeats < REPEATS_MAX && (!is_root || state.roots_answered >= ROOTS_PER_ANSWER);
            state.repeats += u32::from(may);
            may
        });
        if !ask {
            return None;
        }
        let version = name.strip_suffix(".root.json").and_then(|v| v.parse::<u64>().ok());
        let query = match version {
            Some(version) => Query { root: version.saturating_sub(1), ..Query::default() },
            None => Query { files: vec![name.to_owned()], ..Query::default() },
        };
        debug_assert!(query.files.len() <= QUERY_NAMES_MAX);
        if let Err(failure) = self.ask(&query).await {
            self.with(|state| state.failure = Some(failure));
            return None;
        }
        self.get(name)
    }
}
