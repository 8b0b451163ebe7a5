//! The answering side of the metadata exchange, at the origin and at a relay whose parents are
//! away. Takes a device's question and returns the files that the device lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use distd_core::bounds::ROLLOUT_REQUIRES_MAX;
use distd_core::names::release_target;
use serde::Deserialize;

use super::bins::{parent_of, release_roles};
use super::client::ChannelDoc;
use super::differences::{BASES_BYTES_MAX, BASES_MAX, Bases};
use super::files_store::{MetadataStore, StoreError, is_served_name};
use super::wire::{
    ANSWER_BYTES_MAX, Answer, Query, ROOTS_PER_ANSWER, WireError, held_prefix, role_file, target_path,
};

/// Maximum number of bytes of immutable files kept in memory.
const CACHE_BYTES_MAX: usize = 8 << 20;

/// Reason why a question got no answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The question is malformed.
    #[error("the metadata question is unusable")]
    Query(#[from] WireError),
    /// The storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The repository is damaged.
    #[error("{0} in the TUF repository is missing or damaged; look at the log")]
    Damaged(String),
}

/// Answers devices' questions from a repository. Signs nothing and decides nothing.
pub struct Answerer {
    store: Arc<dyn MetadataStore>,
    /// Files that a timestamp names, directly or through other files. They never change.
    cache: Mutex<BTreeMap<String, Bytes>>,
}

impl std::fmt::Debug for Answerer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answerer")
    }
}

#[derive(Deserialize)]
struct Doc<T> {
    signed: T,
}

#[derive(Deserialize)]
struct Metas {
    version: u64,
    meta: BTreeMap<String, Version>,
}

#[derive(Deserialize)]
struct Version {
    version: u64,
}

#[derive(Deserialize)]
struct Targets {
    targets: BTreeMap<String, Target>,
}

#[derive(Deserialize)]
struct Target {
    hashes: Hashes,
}

#[derive(Deserialize)]
struct Hashes {
    sha256: String,
}

impl Answerer {
    /// Creates an answerer over the repository in `store`.
    pub fn new(store: Arc<dyn MetadataStore>) -> Self {
        Self { store, cache: Mutex::default() }
    }

    /// Answers one question: takes the bytes of a [`Query`] and returns those of an [`Answer`].
    pub async fn answer(&self, query: &[u8]) -> Result<Vec<u8>, AnswerError> {
        let query = Query::decode(query)?;
        let mut out = Collected::default();
        if query.root > 0 {
            for version in (query.root.saturating_add(1)..).take(ROOTS_PER_ANSWER as usize) {
                let name = format!("{version}.root.json");
                let Some(bytes) = self.store.get(&name).await? else { break };
                out.push(name, bytes);
            }
        }
        if query.latest {
            self.latest(&query, &mut out).await?;
        }
        for name in query.files.iter().filter(|name| is_served_name(name)) {
            if let Some(bytes) = self.store.get(name).await? {
                out.push(name.clone(), bytes);
            }
        }
        let bases = if query.differences { self.bases(&query, &out).await? } else { Bases::default() };
        Ok(Answer { files: out.files }.encode_over(&bases))
    }

    /// Files that the asker holds, of which the answer has another version, and the targets that
    /// these list; as far as the repository still has them.
    async fn bases(&self, query: &Query, out: &Collected) -> Result<Bases, AnswerError> {
        let (mut bases, mut read) = (Bases::default(), 0);
        if out.files.is_empty() {
            return Ok(bases);
        }
        let snapshot = ("snapshot", query.snapshot);
        let roles = query.roles.iter().map(|(role, version)| (role.as_str(), *version));
        let sent: BTreeSet<&str> =
            out.files.iter().filter_map(|(name, _)| Some(role_file(name)?.0)).collect();
        let held = [snapshot].into_iter().chain(roles).filter(|(role, _)| sent.contains(role));
        let mut targets = BTreeSet::new();
        for (role, version) in held.take(BASES_MAX) {
            let name = format!("{version}.{role}.json");
            if version == 0 || !is_served_name(&name) || name.contains('/') {
                continue;
            }
            let Some(bytes) = self.kept(&name).await? else { continue };
            bases.push(&name, &bytes);
            // A question must not make the repository read all it has.
            read += bytes.len();
            if read > BASES_BYTES_MAX {
                break;
            }
            let Ok(listed) = parse::<Targets>(&name, &bytes) else { continue };
            for (target, at) in listed.targets {
                let Ok(sha256) = hex::decode(&at.hashes.sha256) else { continue };
                // Several targets can be one file, of which the asker holds one.
                let prefix = held_prefix(&sha256);
                if query.held.contains(&prefix) && targets.insert(prefix) {
                    let path = target_path(&target, &sha256);
                    if let Some(bytes) = self.kept(&path).await? {
                        bases.push(&path, &bytes);
                    }
                }
            }
        }
        Ok(bases)
    }

    async fn latest(&self, query: &Query, out: &mut Collected) -> Result<(), AnswerError> {
        let name = "timestamp.json";
        let bytes = self.store.get(name).await?.ok_or_else(|| AnswerError::Damaged(name.to_owned()))?;
        let timestamp: Metas = parse(name, &bytes)?;
        if timestamp.version != query.timestamp {
            out.push(name.to_owned(), bytes);
        }
        let at = timestamp.meta.get("snapshot.json").ok_or_else(|| AnswerError::Damaged(name.to_owned()))?;
        let name = format!("{}.snapshot.json", at.version);
        let bytes = self.immutable(&name).await?;
        let snapshot: Metas = parse(&name, &bytes)?;
        if snapshot.version != query.snapshot {
            out.push(name, bytes);
        }
        // Wanted targets and the roles that list them. A device of the current version needs no
        // other delegated roles.
        let mut wanted: Vec<String> = query.targets.clone();
        let mut targets = BTreeMap::new();
        for file in ["channels.json", "patches.json"] {
            if let Some(at) = snapshot.meta.get(file) {
                let name = format!("{}.{file}", at.version);
                let bytes = self.immutable(&name).await?;
                targets.extend(parse::<Targets>(&name, &bytes)?.targets);
            }
        }
        // A device asks for a channel to get the release behind it, so the answer contains that
        // release.
        for channel in query.targets.iter().filter(|name| name.starts_with("channels/")) {
            if let Some(bytes) = self.target(channel, &targets, query, out).await?
                && let Ok(doc) = serde_json::from_slice::<ChannelDoc>(&bytes)
            {
                wanted.push(release_target(&doc.product, &doc.version));
                // The device works out by itself which of them it installs.
                if let Some(rollout) = doc.rollout {
                    let required = rollout.requires.iter().take(ROLLOUT_REQUIRES_MAX);
                    let versions = [&rollout.version].into_iter().chain(required);
                    wanted.extend(versions.map(|version| release_target(&doc.product, version)));
                }
            }
        }
        let releases = wanted.iter().filter(|name| name.starts_with("releases/"));
        let on_path: BTreeSet<String> = releases.flat_map(|name| release_roles(name)).collect();
        for (file, at) in &snapshot.meta {
            let role = file.trim_end_matches(".json");
            let is_bin = parent_of(role).is_some();
            if is_bin && query.on_path && !on_path.contains(role) {
                continue;
            }
            let name = format!("{}.{file}", at.version);
            let bytes = self.immutable(&name).await?;
            if is_bin && on_path.contains(role) {
                targets.extend(parse::<Targets>(&name, &bytes)?.targets);
            }
            if !query.roles.iter().any(|(r, v)| r == role && *v == at.version) {
                out.push(name, bytes);
            }
        }
        for name in &wanted {
            self.target(name, &targets, query, out).await?;
        }
        Ok(())
    }

    async fn target(
        &self,
        name: &str,
        targets: &BTreeMap<String, Target>,
        query: &Query,
        out: &mut Collected,
    ) -> Result<Option<Bytes>, AnswerError> {
        let Some(sha256) = targets.get(name).and_then(|t| hex::decode(&t.hashes.sha256).ok()) else {
            return Ok(None);
        };
        let path = target_path(name, &sha256);
        let bytes = self.immutable(&path).await?;
        if !query.held.contains(&held_prefix(&sha256)) {
            out.push(path, bytes.clone());
        }
        Ok(Some(bytes))
    }

    async fn immutable(&self, name: &str) -> Result<Bytes, AnswerError> {
        self.kept(name).await?.ok_or_else(|| AnswerError::Damaged(name.to_owned()))
    }

    /// Returns a file that never changes; `None` if the repository has it no more.
    async fn kept(&self, name: &str) -> Result<Option<Bytes>, AnswerError> {
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = cache().get(name) {
            return Ok(Some(bytes.clone()));
        }
        let Some(bytes) = self.store.get(name).await? else { return Ok(None) };
        let mut cache = cache();
        // Few files are in use at a time; a full cache mostly holds old ones.
        if cache.values().map(Bytes::len).sum::<usize>() + bytes.len() > CACHE_BYTES_MAX {
            cache.clear();
        }
        cache.insert(name.to_owned(), bytes.clone());
        Ok(Some(bytes))
    }
}

fn parse<T: serde::de::DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, AnswerError> {
    let doc: Doc<T> = serde_json::from_slice(bytes).map_err(|_| AnswerError::Damaged(name.to_owned()))?;
    Ok(doc.signed)
}

#[derive(Default)]
struct Collected {
    files: Vec<(String, Bytes)>,
    names: BTreeSet<String>,
    bytes: usize,
}

impl Collected {
    fn push(&mut self, name: String, bytes: Bytes) {
        // Names and framing are small compared with the 64 KiB of slack. The device asks by name
        // for a file that does not fit.
        if self.bytes + bytes.len() + (64 << 10) <= ANSWER_BYTES_MAX && self.names.insert(name.clone()) {
            self.bytes += bytes.len();
            self.files.push((name, bytes));
        }
    }
}
