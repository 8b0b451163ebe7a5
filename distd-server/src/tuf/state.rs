//! The repository's current state, read and verified.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use distd_core::error::Chain;
use distd_peer::trust::token::sha256;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{Metafile, RoleType, Root, Signed, Snapshot, Targets, Timestamp};

use super::bins::{RELEASES, parent_of, release_roles};
use super::keys::{KeyError, KeyRing};
use super::metadata::{DELEGATED, RepositoryError, altered, parse};
use super::shared::SharedStore;
use crate::realm::Roots;
use crate::signer::{KeyHolder, SignerError};

/// The realm's TUF repository, opened for publishing.
///
/// Operations in one process exclude each other. Where another process has published since the
/// state was read, nothing is published. Only roots and keys are kept in memory between operations.
pub struct TufRepository {
    pub(super) store: Arc<dyn SharedStore>,
    pub(super) keys: Mutex<KeyRing>,
    /// Roots so far, oldest first; each is signed by the keys of the one before.
    pub(super) chain: Mutex<Vec<(Bytes, Signed<Root>)>>,
    /// The holder of the keys also remembers the roots, so write access to the store is not enough
    /// to choose a root.
    pub(super) holder: KeyHolder,
}

impl std::fmt::Debug for TufRepository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TufRepository")
    }
}

/// Metadata that is in force now.
pub(super) struct State {
    pub(super) root: Signed<Root>,
    pub(super) root_bytes: Bytes,
    pub(super) timestamp: Timestamp,
    /// `timestamp.json` as it was read; `None` before the first publication.
    pub(super) timestamp_bytes: Option<Bytes>,
    pub(super) snapshot: Snapshot,
    pub(super) targets: Targets,
    /// Delegated roles by name: those of [`DELEGATED`], and the nodes and bins that were read or
    /// made.
    pub(super) roles: BTreeMap<String, Targets>,
    /// Roles that were made and are not written yet.
    pub(super) fresh: BTreeSet<String>,
}

/// Metadata that a write has to sign again.
#[derive(Default)]
pub(super) struct Dirty {
    pub(super) roles: Vec<String>,
    pub(super) targets: bool,
    pub(super) snapshot: bool,
    /// Keys that also sign although the root does not list them yet, during a rotation.
    pub(super) also: Vec<Decoded<Hex>>,
    pub(super) first: bool,
}

impl Dirty {
    /// Everything in `state`, none of which is published yet.
    pub(super) fn everything(state: &State) -> Self {
        let roles = state.roles.keys().cloned().collect();
        Self { roles, targets: true, snapshot: true, also: Vec::new(), first: true }
    }

    /// Adds a role.
    pub(super) fn role(&mut self, name: &str) {
        if !self.roles.iter().any(|role| role == name) {
            self.roles.push(name.to_owned());
        }
    }
}

impl TufRepository {
    /// Newest root metadata, which a node gets when it enrols.
    pub async fn root_json(&self) -> Result<Bytes, RepositoryError> {
        Ok(self.newest_root().await?.1)
    }

    /// All roots so far: the newest in full, and each by its SHA-256. A root never changes once it
    /// is written, so each is read once.
    pub async fn roots(&self) -> Result<Roots, RepositoryError> {
        let newest = self.newest_root().await?.1;
        let chain = self.chain.lock().await;
        let sha256 = chain.iter().map(|(bytes, _)| sha256(bytes)).collect();
        Ok(Roots { newest: String::from_utf8_lossy(&newest).into_owned(), sha256 })
    }

    /// Newest root to which the first one leads. A file that its predecessor's keys did not sign
    /// does not count: write access to the store must not be enough to have the origin vouch for a
    /// root.
    pub(super) async fn newest_root(&self) -> Result<(Signed<Root>, Bytes), RepositoryError> {
        let mut chain = self.chain.lock().await;
        // Version of the newest root that the holder of the keys knows.
        let mut known = 0;
        loop {
            let name = format!("{}.root.json", chain.len() + 1);
            let Some(bytes) = self.store.get(&name).await? else { break };
            match self.next_root(chain.last().map(|(_, root)| root), chain.len() as u64 + 1, &name, &bytes) {
                Ok((root, newest)) => {
                    known = newest;
                    chain.push((bytes, root));
                }
                Err(error) if chain.is_empty() => return Err(error),
                Err(error) => {
                    let error = tracing::field::display(Chain(&error));
                    tracing::error!(
                        error,
                        "a file in the TUF repository is not a root of this realm: remove it"
                    );
                    break;
                }
            }
        }
        if known > chain.len() as u64 {
            tracing::error!(
                known,
                newest = chain.len(),
                "the TUF repository lacks a root that the holder of the keys knows: restore {known}.root.json"
            );
        }
        let (bytes, root) = chain.last().ok_or_else(|| RepositoryError::Missing("1.root.json".to_owned()))?;
        Ok((root.clone(), bytes.clone()))
    }

    fn next_root(
        &self,
        before: Option<&Signed<Root>>,
        version: u64,
        name: &str,
        bytes: &Bytes,
    ) -> Result<(Signed<Root>, u64), RepositoryError> {
        let root: Signed<Root> = parse(name, bytes)?;
        root.signed.verify_role(&root).map_err(altered(name))?;
        if root.signed.version.get() != version {
            return Err(altered(name)("it states another version"));
        }
        if let Some(before) = before {
            before.signed.verify_role(&root).map_err(altered(name))?;
        }
        let known = self.holder.follow_root(bytes).map_err(|error| match error {
            KeyError::OtherRoot(_) | KeyError::Signer(SignerError::Refused(_)) => altered(name)(error),
            error => error.into(),
        })?;
        Ok((root, known))
    }

    /// Reads the published metadata and checks that this origin's keys signed it. Write access to
    /// the store must not be enough to have the origin sign foreign metadata.
    pub(super) async fn state(&self, keys: &KeyRing) -> Result<State, RepositoryError> {
        let (root, root_bytes) = self.newest_root().await?;
        for role in [RoleType::Targets, RoleType::Snapshot, RoleType::Timestamp] {
            let ids = root.signed.roles.get(&role).map(|r| r.keyids.as_slice()).unwrap_or_default();
            require_own(keys, &role.to_string(), ids)?;
        }
        let timestamp_bytes = self.read_bytes("timestamp.json", None).await?;
        let timestamp: Signed<Timestamp> = parse("timestamp.json", &timestamp_bytes)?;
        root.signed.verify_role(&timestamp).map_err(altered("timestamp.json"))?;
        let meta = |metas: &HashMap<String, Metafile>, name: &str| {
            metas.get(name).cloned().ok_or_else(|| RepositoryError::Missing(name.to_owned()))
        };
        let at = meta(&timestamp.signed.meta, "snapshot.json")?;
        let snapshot: Signed<Snapshot> =
            self.read(&format!("{}.snapshot.json", at.version), Some(&at)).await?;
        root.signed.verify_role(&snapshot).map_err(altered("snapshot.json"))?;
        let at = meta(&snapshot.signed.meta, "targets.json")?;
        let targets: Signed<Targets> = self.read(&format!("{}.targets.json", at.version), Some(&at)).await?;
        root.signed.verify_role(&targets).map_err(altered("targets.json"))?;
        let delegations = targets.signed.delegations.clone().unwrap_or_default();
        let mut roles = BTreeMap::new();
        for (name, _) in DELEGATED {
            if !delegations.roles.iter().any(|role| role.name == name) {
                continue;
            }
            let file = format!("{name}.json");
            let at = meta(&snapshot.signed.meta, &file)?;
            let role: Signed<Targets> = self.read(&format!("{}.{file}", at.version), Some(&at)).await?;
            delegations.verify_role(&role, name).map_err(altered(&file))?;
            let ids = delegations.roles.iter().find(|r| r.name == name).map(|r| r.keyids.as_slice());
            require_own(keys, name, ids.unwrap_or_default())?;
            roles.insert(name.to_owned(), role.signed);
        }
        Ok(State {
            root,
            root_bytes,
            timestamp: timestamp.signed,
            timestamp_bytes: Some(timestamp_bytes),
            snapshot: snapshot.signed,
            targets: targets.signed,
            roles,
            fresh: BTreeSet::new(),
        })
    }

    /// Reads the node and the bin of a release's target, if they exist.
    pub(super) async fn read_bin(
        &self,
        state: &mut State,
        keys: &KeyRing,
        target: &str,
    ) -> Result<(), RepositoryError> {
        for role in release_roles(target) {
            if !self.read_role(state, keys, &role).await? {
                break;
            }
        }
        Ok(())
    }

    /// Reads all nodes and bins.
    pub(super) async fn read_bins(&self, state: &mut State, keys: &KeyRing) -> Result<(), RepositoryError> {
        let names: Vec<_> =
            state.snapshot.meta.keys().filter_map(|file| file.strip_suffix(".json")).collect();
        let mut names: Vec<_> =
            names.into_iter().filter(|name| parent_of(name).is_some()).map(str::to_owned).collect();
        // A node is read before its bins, and its name is shorter than theirs.
        names.sort_by_key(String::len);
        for name in names {
            self.read_role(state, keys, &name).await?;
        }
        Ok(())
    }

    /// Reads a node or bin and checks that this origin signed it; `false` if it does not exist.
    pub(super) async fn read_role(
        &self,
        state: &mut State,
        keys: &KeyRing,
        name: &str,
    ) -> Result<bool, RepositoryError> {
        if state.roles.contains_key(name) {
            return Ok(true);
        }
        let file = format!("{name}.json");
        let Some(at) = state.snapshot.meta.get(&file) else { return Ok(false) };
        let role: Signed<Targets> = self.read(&format!("{}.{file}", at.version), Some(at)).await?;
        let above = parent_of(name).and_then(|parent| state.roles.get(parent));
        let delegations = above.and_then(|above| above.delegations.as_ref());
        let delegations = delegations.ok_or_else(|| altered(&file)("no role delegates to it"))?;
        delegations.verify_role(&role, name).map_err(altered(&file))?;
        if role.signed.version != at.version {
            return Err(altered(&file)("it states another version than the snapshot"));
        }
        let ids = delegations.roles.iter().find(|r| r.name == name).map(|r| r.keyids.as_slice());
        require_own(keys, RELEASES, ids.unwrap_or_default())?;
        state.roles.insert(name.to_owned(), role.signed);
        Ok(true)
    }

    async fn read<T: DeserializeOwned>(
        &self,
        name: &str,
        at: Option<&Metafile>,
    ) -> Result<Signed<T>, RepositoryError> {
        parse(name, &self.read_bytes(name, at).await?)
    }

    async fn read_bytes(&self, name: &str, at: Option<&Metafile>) -> Result<Bytes, RepositoryError> {
        let bytes = self.store.get(name).await?.ok_or_else(|| RepositoryError::Missing(name.to_owned()))?;
        if let Some(hashes) = at.and_then(|at| at.hashes.as_ref())
            && digest(&SHA256, &bytes).as_ref() != &*hashes.sha256
        {
            return Err(altered(name)("its hash differs from the signed one"));
        }
        Ok(bytes)
    }
}

fn require_own(keys: &KeyRing, role: &str, listed: &[Decoded<Hex>]) -> Result<(), RepositoryError> {
    // Every listed key must be ours, because the owner of another key could have signed files in
    // the store.
    if listed.is_empty() || keys.keys_of(role, listed).len() != listed.len() {
        return Err(keys.missing(role).into());
    }
    Ok(())
}
