//! The files at hand: what the cache held, what the source answered, and what it is asked for once more.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::wire::{Answer, QUERY_NAMES_MAX, Query, ROOTS_PER_ANSWER, WireError};

/// Why a source gave no answer.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Whoever answers metadata questions: a parent over QUIC, the origin over HTTPS. It need not be trusted.
#[async_trait]
pub trait MetadataSource: Send + Sync {
    /// One round trip: a [`Query`]'s bytes out, an [`Answer`]'s bytes back.
    ///
    /// # Errors
    /// When nobody could be reached; a wrong answer is found by the caller.
    async fn query(&self, query: Vec<u8>) -> Result<Vec<u8>, SourceError>;
}

/// No source: what is held and has not expired must do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offline;

#[async_trait]
impl MetadataSource for Offline {
    async fn query(&self, _query: Vec<u8>) -> Result<Vec<u8>, SourceError> {
        Ok(Answer::default().encode())
    }
}

/// Why files could not be fetched.
#[derive(Debug)]
pub(super) enum FetchError {
    Source(SourceError),
    Wire(WireError),
}

/// Files by name in the repository, and the source of the ones still missing.
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
    /// Root versions that came in the last answer: fewer than the most means there are no more.
    roots_answered: u64,
    round_trips: u32,
    received: u64,
    /// Questions asked again for single files; bounded, since each costs a round trip.
    repeats: u32,
    failure: Option<FetchError>,
}

/// Most questions for single files in one update: a correct source needs none.
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

    /// Asks once and keeps what comes.
    pub(super) async fn ask(&self, query: &Query) -> Result<(), FetchError> {
        let bytes = self.inner.source.query(query.encode()).await.map_err(FetchError::Source)?;
        let answer = Answer::decode(&bytes).map_err(FetchError::Wire)?;
        self.with(|state| {
            state.round_trips += 1;
            state.received += bytes.len() as u64;
            state.roots_answered =
                answer.files.iter().filter(|(n, _)| n.ends_with(".root.json")).count() as u64;
            state.files.extend(answer.files);
        });
        Ok(())
    }

    pub(super) fn get(&self, name: &str) -> Option<Bytes> {
        self.with(|state| state.files.get(name).cloned())
    }

    /// Round trips and bytes received.
    pub(super) fn cost(&self) -> (u32, u64) {
        self.with(|state| (state.round_trips, state.received))
    }

    /// Why the source failed, if it did.
    pub(super) fn take_failure(&self) -> Option<FetchError> {
        self.with(|state| state.failure.take())
    }

    /// A file that is at hand, or that the source has.
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
