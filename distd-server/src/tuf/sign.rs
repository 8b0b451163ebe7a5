//! The repository's current state, read and verified, and the signing of the next one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use distd_core::error::Chain;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::schema::{
    DelegatedRole, Delegations, Hashes, Metafile, PathPattern, PathSet, Role, RoleKeys, RoleType, Root,
    Signature, Signed, Snapshot, Targets, Timestamp,
};

use super::bins::{self, RELEASES, key_role, parent_of, release_roles};
use super::keys::{KeyError, KeyRing, SigningKey};
use super::root::{self, Missing, RootFile};
use crate::realm::Roots;
use crate::signer::{KeyHolder, SignerError};
use distd_peer::trust::token::sha256;
use distd_peer::trust::tuf::{MetadataStore, SIGNED_AT, StoreError};

/// Seconds in a day.
const DAY: u64 = 24 * 3600;
/// Version of the TUF specification that the metadata states.
const SPEC: &str = "1.0.0";
/// Delegated roles, with the targets that each may sign. Opening a repository adds the roles that
/// are newer than it.
pub(super) const DELEGATED: [(&str, &str); 3] =
    [("releases", "releases/*/*"), ("channels", "channels/*/*"), ("patches", "patches/*")];

/// Roles that have keys of their own.
pub(crate) fn key_roles() -> impl Iterator<Item = &'static str> {
    ["root", "targets", "snapshot", "timestamp"].into_iter().chain(DELEGATED.map(|(name, _)| name))
}

/// Validity of a role's metadata, seconds.
pub(super) fn lifetime(role: &str) -> u64 {
    match role {
        "timestamp" => DAY,
        "snapshot" => 7 * DAY,
        "root" => 365 * DAY,
        _ => 90 * DAY,
    }
}

/// Reason why the repository could not be opened, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The metadata store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The keys could not be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A file is missing.
    #[error("the TUF repository lacks {0}: restore it from a backup")]
    Missing(String),
    /// A file is not the one that this origin signed.
    #[error("{name} in the TUF repository is not what this origin signed: restore it from a backup")]
    Altered {
        /// Name of the file.
        name: String,
        /// The cause.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The first root waits for signatures by keys that are kept elsewhere.
    #[error("{missing}")]
    FirstRootUnsigned {
        /// The root so far.
        file: Box<RootFile>,
        /// Signatures that it lacks.
        missing: Missing,
    },
    /// The root does not follow the one in force.
    #[error("root {version} cannot follow root {in_force}, which is in force: prepare a new one")]
    RootOutdated {
        /// Version of the root.
        version: u64,
        /// Version in force; 0 if there is none.
        in_force: u64,
    },
    /// No root key, or more than one, has an id that begins with this text.
    #[error(
        "no root key, or more than one, has an id that begins with {0:?}: look the ids up with distd-server root show"
    )]
    NoSuchRootKey(String),
    /// The number of keys or of signatures is out of bounds.
    #[error(
        "a root cannot have {keys} root keys and need {threshold} signatures: choose at most 32 keys, and no more signatures than keys"
    )]
    RootThreshold {
        /// Number of root keys.
        keys: usize,
        /// Number of signatures that the root would need.
        threshold: u64,
    },
    /// Metadata could not be made.
    #[error("could not make TUF metadata")]
    Schema(#[source] Box<dyn std::error::Error + Send + Sync>),
}

pub(super) fn schema(e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> RepositoryError {
    RepositoryError::Schema(e.into())
}

/// Options for a new repository.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of signatures that a root needs.
    pub root_threshold: NonZeroU64,
    /// Root keys that are kept elsewhere. Without them, as many root keys as must sign are made
    /// here.
    pub offline_root: Vec<Key>,
    /// First root with the signatures of the keys that are kept elsewhere.
    pub first_root: Option<RootFile>,
}

impl Default for Options {
    fn default() -> Self {
        Self { root_threshold: NonZeroU64::MIN, offline_root: Vec::new(), first_root: None }
    }
}

/// The realm's TUF repository, opened for publishing.
///
/// Operations in one process exclude each other. If several origins share a store, the caller must
/// hold a lock of the database around each operation. Only roots and keys are kept in memory
/// between operations.
pub struct TufRepository {
    pub(super) store: Arc<dyn MetadataStore>,
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
    pub(super) snapshot: Snapshot,
    pub(super) targets: Targets,
    /// Delegated roles by name: those of [`DELEGATED`], and the nodes and bins that were read or
    /// made.
    pub(super) roles: BTreeMap<String, Targets>,
    /// Roles that were made and are not written yet.
    pub(super) fresh: BTreeSet<String>,
}

impl TufRepository {
    /// Opens the repository in `store` with the keys of `keys_of`, and creates both at `now` (unix
    /// seconds) if there is none. An interrupted creation is continued.
    pub async fn open(
        store: Arc<dyn MetadataStore>,
        keys_of: &KeyHolder,
        options: Options,
        now: u64,
    ) -> Result<Self, RepositoryError> {
        let this = Self::make(store, keys_of, options, &DELEGATED, now).await?;
        let mut keys = this.keys.lock().await;
        let state = this.state(&keys).await?;
        this.delegate_missing(state, &mut keys, now).await?;
        this.fill_bins(&keys, now).await?;
        drop(keys);
        Ok(this)
    }

    /// Opens the repository. If there is none, creates it with the delegated roles `delegated`.
    async fn make(
        store: Arc<dyn MetadataStore>,
        keys_of: &KeyHolder,
        options: Options,
        delegated: &[(&str, &str)],
        now: u64,
    ) -> Result<Self, RepositoryError> {
        let mut keys = KeyRing::load(keys_of)?;
        let begun = store.get("1.root.json").await?;
        if begun.is_none() {
            let once = ["targets", "snapshot", "timestamp"].into_iter();
            let once = once.chain(delegated.iter().map(|(name, _)| *name)).map(|role| (role, 1));
            let here = if options.offline_root.is_empty() { options.root_threshold.get() } else { 0 };
            for (role, count) in [("root", here)].into_iter().chain(once) {
                let have = keys.of_role(role).count() as u64;
                for _ in have..count {
                    keys.generate(role)?;
                }
            }
            store.put("1.root.json", make_first_root(&keys, &options, now)?).await?;
        }
        let this = Self { store, keys: Mutex::new(keys), chain: Mutex::default(), holder: keys_of.clone() };
        if this.store.get("timestamp.json").await?.is_none() {
            this.first_publication(delegated, now).await?;
        }
        Ok(this)
    }

    /// Adds the delegated roles that are newer than the repository.
    async fn delegate_missing(
        &self,
        mut state: State,
        keys: &mut KeyRing,
        now: u64,
    ) -> Result<(), RepositoryError> {
        let mut dirty = Dirty { targets: true, ..Dirty::default() };
        for (name, pattern) in DELEGATED {
            if state.roles.contains_key(name) {
                continue;
            }
            // A key without a role comes from an interrupted addition and is used now.
            if keys.of_role(name).next().is_none() {
                keys.generate(name)?;
            }
            let delegations = state.targets.delegations.get_or_insert_with(Delegations::new);
            delegate(delegations, keys, name, pattern)?;
            state.roles.insert(name.to_owned(), empty_role(name, now)?);
            state.fresh.insert(name.to_owned());
            dirty.roles.push(name.to_owned());
        }
        if dirty.roles.is_empty() { Ok(()) } else { self.write(&mut state, keys, &dirty, now).await }
    }

    /// Moves releases into bins out of `releases.json`, in which earlier versions of distd listed
    /// all of them.
    async fn fill_bins(&self, keys: &KeyRing, now: u64) -> Result<(), RepositoryError> {
        let mut state = self.state(keys).await?;
        let listed = state.roles.get_mut(RELEASES).map(|role| std::mem::take(&mut role.targets));
        let listed = listed.unwrap_or_default();
        if listed.is_empty() {
            return Ok(());
        }
        tracing::info!(releases = listed.len(), "releases are moved into bins");
        let mut dirty = Dirty { roles: vec![RELEASES.to_owned()], ..Dirty::default() };
        for (name, target) in listed {
            let bin = self.make_bin(&mut state, keys, name.raw(), &mut dirty, now).await?;
            bin.targets.insert(name, target);
        }
        self.write(&mut state, keys, &dirty, now).await
    }

    /// Bin of a release's target, read or newly made. Marks it as dirty, and all that is made for
    /// it.
    pub(super) async fn make_bin<'s>(
        &self,
        state: &'s mut State,
        keys: &KeyRing,
        target: &str,
        dirty: &mut Dirty,
        now: u64,
    ) -> Result<&'s mut Targets, RepositoryError> {
        let roles = release_roles(target);
        for role in &roles {
            if self.read_role(state, keys, role).await? {
                continue;
            }
            let parent = parent_of(role).unwrap_or(RELEASES);
            let own: Vec<_> = keys.of_role(RELEASES).collect();
            if own.is_empty() {
                return Err(keys.missing(RELEASES).into());
            }
            let above =
                state.roles.get_mut(parent).ok_or_else(|| RepositoryError::Missing(parent.to_owned()))?;
            let delegations = above.delegations.get_or_insert_with(Delegations::new);
            delegations.keys.extend(own.iter().map(|k| (k.id.clone(), k.public.clone())));
            delegations.roles.retain(|known| known.name != *role);
            delegations.roles.push(bins::delegation(role, &own)?);
            dirty.role(parent);
            state.roles.insert(role.clone(), empty_role(role, now)?);
            state.fresh.insert(role.clone());
        }
        let [_, bin] = roles;
        dirty.role(&bin);
        state.roles.get_mut(&bin).ok_or(RepositoryError::Missing(bin))
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
    async fn read_role(
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

    async fn first_publication(&self, delegated: &[(&str, &str)], now: u64) -> Result<(), RepositoryError> {
        let keys = self.keys.lock().await;
        let (root, root_bytes) = self.newest_root().await?;
        let mut delegations = Delegations::new();
        for (name, pattern) in delegated {
            delegate(&mut delegations, &keys, name, pattern)?;
        }
        let version = NonZeroU64::MIN;
        let mut targets = Targets::new(SPEC.to_owned(), version, expires("targets", now)?);
        targets.delegations = Some(delegations);
        let mut roles = BTreeMap::new();
        for (name, _) in delegated {
            roles.insert((*name).to_owned(), empty_role(name, now)?);
        }
        let snapshot = Snapshot::new(SPEC.to_owned(), version, expires("snapshot", now)?);
        let timestamp = Timestamp::new(SPEC.to_owned(), version, expires("timestamp", now)?);
        let fresh = roles.keys().cloned().collect();
        let mut state = State { root, root_bytes, timestamp, snapshot, targets, roles, fresh };
        let dirty = Dirty::everything(&state);
        self.write(&mut state, &keys, &dirty, now).await
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

    /// Raises the versions of the snapshot, the targets and all delegated roles by `by` and signs
    /// them again, at `now` (unix seconds). After a restored backup no device or relay then takes a
    /// new file for one of the same version that it has seen.
    pub async fn skip_versions(&self, by: u64, now: u64) -> Result<(), RepositoryError> {
        let keys = self.keys.lock().await;
        let mut state = self.state(&keys).await?;
        self.read_bins(&mut state, &keys).await?;
        for role in state.roles.values_mut() {
            role.version = role.version.saturating_add(by);
        }
        let raise = |version: &mut NonZeroU64| *version = version.saturating_add(by);
        raise(&mut state.targets.version);
        raise(&mut state.snapshot.version);
        let dirty = Dirty { roles: state.roles.keys().cloned().collect(), targets: true, ..Dirty::default() };
        self.write(&mut state, &keys, &dirty, now).await
    }

    /// Reads the published metadata and checks that this origin's keys signed it. Write access to
    /// the store must not be enough to have the origin sign foreign metadata.
    pub(super) async fn state(&self, keys: &KeyRing) -> Result<State, RepositoryError> {
        let (root, root_bytes) = self.newest_root().await?;
        for role in [RoleType::Targets, RoleType::Snapshot, RoleType::Timestamp] {
            let ids = root.signed.roles.get(&role).map(|r| r.keyids.as_slice()).unwrap_or_default();
            require_own(keys, &role.to_string(), ids)?;
        }
        let timestamp: Signed<Timestamp> = self.read("timestamp.json", None).await?;
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
            snapshot: snapshot.signed,
            targets: targets.signed,
            roles,
            fresh: BTreeSet::new(),
        })
    }

    async fn read<T: DeserializeOwned>(
        &self,
        name: &str,
        at: Option<&Metafile>,
    ) -> Result<Signed<T>, RepositoryError> {
        let bytes = self.store.get(name).await?.ok_or_else(|| RepositoryError::Missing(name.to_owned()))?;
        if let Some(hashes) = at.and_then(|at| at.hashes.as_ref())
            && digest(&SHA256, &bytes).as_ref() != &*hashes.sha256
        {
            return Err(altered(name)("its hash differs from the signed one"));
        }
        parse(name, &bytes)
    }

    /// Signs and writes the dirty roles and all roles above them. The write of `timestamp.json`,
    /// the last one, makes them current. Versions are raised here, except in the first publication.
    pub(super) async fn write(
        &self,
        state: &mut State,
        keys: &KeyRing,
        dirty: &Dirty,
        now: u64,
    ) -> Result<(), RepositoryError> {
        let names: Vec<_> = state.roles.keys().filter(|name| dirty.roles.contains(name)).cloned().collect();
        for name in names {
            let above = match parent_of(&name) {
                Some(parent) => state.roles.get(parent).and_then(|role| role.delegations.as_ref()),
                None => state.targets.delegations.as_ref(),
            };
            let listed = above.and_then(|above| above.roles.iter().find(|r| r.name == name));
            let ids = listed.map(|r| r.keyids.clone()).unwrap_or_default();
            let signers = signers(keys, key_role(&name), &ids, dirty)?;
            let is_fresh = state.fresh.remove(&name);
            let Some(role) = state.roles.get_mut(&name) else { continue };
            if !is_fresh {
                role.version = next(role.version);
            }
            role.expires = expires(&name, now)?;
            let bytes = sign(role.clone(), &signers)?;
            let file = format!("{name}.json");
            let at = match parent_of(&name) {
                // There are hundreds of these roles, so the snapshot lists only their versions,
                // which prevent a rollback.
                Some(_) => {
                    Metafile { length: None, hashes: None, version: role.version, _extra: HashMap::new() }
                }
                None => metafile(role.version, &bytes),
            };
            state.snapshot.meta.insert(file.clone(), at);
            self.store.put(&format!("{}.{file}", role.version), bytes).await?;
        }
        if dirty.targets {
            if !dirty.first {
                state.targets.version = next(state.targets.version);
            }
            state.targets.expires = expires("targets", now)?;
            let signers = self.root_signers(state, keys, RoleType::Targets, dirty)?;
            let bytes = sign(state.targets.clone(), &signers)?;
            let at = metafile(state.targets.version, &bytes);
            state.snapshot.meta.insert("targets.json".to_owned(), at);
            self.store.put(&format!("{}.targets.json", state.targets.version), bytes).await?;
        }
        if dirty.snapshot || dirty.targets || !dirty.roles.is_empty() {
            if !dirty.first {
                state.snapshot.version = next(state.snapshot.version);
            }
            state.snapshot.expires = expires("snapshot", now)?;
            let signers = self.root_signers(state, keys, RoleType::Snapshot, dirty)?;
            let bytes = sign(state.snapshot.clone(), &signers)?;
            let at = metafile(state.snapshot.version, &bytes);
            state.timestamp.meta = HashMap::from([("snapshot.json".to_owned(), at)]);
            self.store.put(&format!("{}.snapshot.json", state.snapshot.version), bytes).await?;
        }
        if !dirty.first {
            state.timestamp.version = next(state.timestamp.version);
        }
        state.timestamp.expires = expires("timestamp", now)?;
        // A device may take the time from here, because its own clock may be wrong.
        state.timestamp._extra.insert(SIGNED_AT.to_owned(), now.into());
        let signers = self.root_signers(state, keys, RoleType::Timestamp, dirty)?;
        let bytes = sign(state.timestamp.clone(), &signers)?;
        self.store.put("timestamp.json", bytes).await?;
        Ok(())
    }

    fn root_signers<'a>(
        &self,
        state: &State,
        keys: &'a KeyRing,
        role: RoleType,
        dirty: &Dirty,
    ) -> Result<Vec<&'a SigningKey>, RepositoryError> {
        let ids = state.root.signed.roles.get(&role).map(|r| r.keyids.clone()).unwrap_or_default();
        signers(keys, &role.to_string(), &ids, dirty)
    }
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
    fn everything(state: &State) -> Self {
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

/// Delegates the targets that match `pattern` to the keys of a role.
fn delegate(
    delegations: &mut Delegations,
    keys: &KeyRing,
    name: &str,
    pattern: &str,
) -> Result<(), RepositoryError> {
    let own: Vec<_> = keys.of_role(name).collect();
    if own.is_empty() {
        return Err(keys.missing(name).into());
    }
    delegations.keys.extend(own.iter().map(|k| (k.id.clone(), k.public.clone())));
    delegations.roles.push(DelegatedRole {
        name: name.to_owned(),
        keyids: own.iter().map(|k| k.id.clone()).collect(),
        threshold: NonZeroU64::MIN,
        paths: PathSet::Paths(vec![PathPattern::new(pattern).map_err(schema)?]),
        terminating: true,
        targets: None,
    });
    Ok(())
}

fn empty_role(name: &str, now: u64) -> Result<Targets, RepositoryError> {
    let mut role = Targets::new(SPEC.to_owned(), NonZeroU64::MIN, expires(name, now)?);
    role.delegations = None;
    Ok(role)
}

fn signers<'a>(
    keys: &'a KeyRing,
    role: &str,
    listed: &[Decoded<Hex>],
    dirty: &Dirty,
) -> Result<Vec<&'a SigningKey>, RepositoryError> {
    let ids: Vec<_> = listed.iter().chain(&dirty.also).cloned().collect();
    let found: Vec<_> = keys.keys_of(role, &ids);
    if found.is_empty() { Err(keys.missing(role).into()) } else { Ok(found) }
}

fn require_own(keys: &KeyRing, role: &str, listed: &[Decoded<Hex>]) -> Result<(), RepositoryError> {
    // Every listed key must be ours, because the owner of another key could have signed files in
    // the store.
    if listed.is_empty() || keys.keys_of(role, listed).len() != listed.len() {
        return Err(keys.missing(role).into());
    }
    Ok(())
}

/// First root with all its signatures.
fn make_first_root(keys: &KeyRing, options: &Options, now: u64) -> Result<Bytes, RepositoryError> {
    let Options { root_threshold, offline_root, first_root } = options;
    let root = || first_root_of(keys, offline_root, *root_threshold, now);
    if offline_root.is_empty() {
        return sign(root()?, &keys.of_role("root").collect::<Vec<_>>());
    }
    let file = match first_root {
        // A file of an earlier attempt with other keys is replaced.
        Some(file) if root::check_first(file, offline_root, *root_threshold, keys).is_ok() => file.clone(),
        _ => root::unsigned(root()?),
    };
    let missing = root::check_first(&file, offline_root, *root_threshold, keys)?;
    if !missing.is_none() {
        return Err(RepositoryError::FirstRootUnsigned { file: Box::new(file), missing });
    }
    Ok(file.to_bytes().into())
}

fn first_root_of(
    keys: &KeyRing,
    offline_root: &[Key],
    root_threshold: NonZeroU64,
    now: u64,
) -> Result<Root, RepositoryError> {
    let mut root = Root {
        spec_version: SPEC.to_owned(),
        consistent_snapshot: true,
        version: NonZeroU64::MIN,
        expires: expires("root", now)?,
        keys: HashMap::new(),
        roles: HashMap::new(),
        _extra: HashMap::new(),
    };
    for (role, threshold) in [
        (RoleType::Root, root_threshold),
        (RoleType::Targets, NonZeroU64::MIN),
        (RoleType::Snapshot, NonZeroU64::MIN),
        (RoleType::Timestamp, NonZeroU64::MIN),
    ] {
        let name = role.to_string();
        let listed: Vec<(Decoded<Hex>, Key)> = if role == RoleType::Root && !offline_root.is_empty() {
            let listed = offline_root.iter().map(|key| Ok((key.key_id().map_err(schema)?, key.clone())));
            listed.collect::<Result<_, RepositoryError>>()?
        } else {
            keys.of_role(&name).map(|key| (key.id.clone(), key.public.clone())).collect()
        };
        let mut keyids: Vec<_> = listed.iter().map(|(id, _)| id.clone()).collect();
        keyids.sort();
        keyids.dedup();
        root.keys.extend(listed);
        root.roles.insert(role, RoleKeys { keyids, threshold, _extra: HashMap::new() });
    }
    Ok(root)
}

/// Signs the canonical JSON of metadata with each key. The file's fields are sorted, so equal input
/// gives equal bytes.
pub(super) fn sign<T: Role>(role: T, keys: &[&SigningKey]) -> Result<Bytes, RepositoryError> {
    let message = role.canonical_form().map_err(schema)?;
    let signatures = keys.iter().map(|key| {
        let sig = key.sign(&message)?;
        Ok(Signature { keyid: key.id.clone(), sig: sig.into() })
    });
    let signatures = signatures.collect::<Result<_, KeyError>>()?;
    let value = serde_json::to_value(Signed { signed: role, signatures }).map_err(schema)?;
    Ok(serde_json::to_vec(&value).map_err(schema)?.into())
}

/// Expiry of metadata of `role` that is signed at `now`, unix seconds.
pub(crate) fn expires_after(role: &str, now: u64) -> u64 {
    now.saturating_add(lifetime(role))
}

pub(super) fn expires(role: &str, now: u64) -> Result<jiff::Timestamp, RepositoryError> {
    let seconds = i64::try_from(expires_after(role, now)).map_err(schema)?;
    jiff::Timestamp::from_second(seconds).map_err(schema)
}

pub(super) fn next(version: NonZeroU64) -> NonZeroU64 {
    version.saturating_add(1)
}

pub(super) fn hashes(bytes: &[u8]) -> Hashes {
    Hashes { sha256: digest(&SHA256, bytes).as_ref().to_vec().into(), _extra: HashMap::new() }
}

fn metafile(version: NonZeroU64, bytes: &[u8]) -> Metafile {
    Metafile {
        length: Some(bytes.len() as u64),
        hashes: Some(hashes(bytes)),
        version,
        _extra: HashMap::new(),
    }
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, RepositoryError> {
    serde_json::from_slice(bytes).map_err(altered(name))
}

fn altered<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    name: &str,
) -> impl FnOnce(E) -> RepositoryError + use<E> {
    let name = name.to_owned();
    move |cause| RepositoryError::Altered { name, cause: cause.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use distd_peer::trust::tuf::DirStore;

    const NOW: u64 = 1_800_000_000;

    #[tokio::test]
    async fn releases_that_an_earlier_version_listed_in_one_role_are_moved_into_bins() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Arc::new(DirStore::new(dir.path().join("repo")));
        let keys = KeyHolder::in_dir(dir.path());
        let old = TufRepository::make(store.clone(), &keys, Options::default(), &DELEGATED, NOW).await;
        let old = old.expect("a repository");
        {
            let ring = old.keys.lock().await;
            let mut state = old.state(&ring).await.expect("verifies");
            let releases = state.roles.get_mut(RELEASES).expect("the role");
            for n in 0..40 {
                let target = tough::schema::Target {
                    length: 1,
                    hashes: hashes(&[n]),
                    custom: HashMap::new(),
                    _extra: HashMap::new(),
                };
                let name = tough::TargetName::new(format!("releases/os/{n}")).expect("a name");
                releases.targets.insert(name, target);
            }
            let dirty = Dirty { roles: vec![RELEASES.to_owned()], ..Dirty::default() };
            old.write(&mut state, &ring, &dirty, NOW).await.expect("written");
        }
        drop(old);
        for _ in 0..2 {
            let opened = TufRepository::open(store.clone(), &keys, Options::default(), NOW).await;
            let opened = opened.expect("opens");
            let ring = opened.keys.lock().await;
            let mut state = opened.state(&ring).await.expect("verifies");
            opened.read_bins(&mut state, &ring).await.expect("verify");
            assert!(state.roles[RELEASES].targets.is_empty());
            for n in 0..40 {
                let name = format!("releases/os/{n}");
                let [_, bin] = release_roles(&name);
                let name = tough::TargetName::new(name).expect("a name");
                assert!(state.roles[&bin].targets.contains_key(&name), "{n}");
            }
            assert_eq!(state.roles[RELEASES].version.get(), 3, "moved once");
        }
    }

    #[tokio::test]
    async fn opening_a_repository_adds_a_role_that_is_newer_than_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Arc::new(DirStore::new(dir.path().join("repo")));
        let keys = KeyHolder::in_dir(dir.path());
        let old = TufRepository::make(store.clone(), &keys, Options::default(), &DELEGATED[..2], NOW).await;
        drop(old.expect("a repository"));
        assert!(store.get("1.patches.json").await.expect("read").is_none());
        for _ in 0..2 {
            let opened = TufRepository::open(store.clone(), &keys, Options::default(), NOW).await;
            let opened = opened.expect("opens");
            let ring = opened.keys.lock().await;
            let state = opened.state(&ring).await.expect("verifies");
            let names: BTreeSet<_> = state.roles.keys().map(String::as_str).collect();
            assert_eq!(names, BTreeSet::from(DELEGATED.map(|(name, _)| name)));
            assert_eq!(state.targets.version.get(), 2, "the role is added once");
            assert_eq!(ring.of_role("patches").count(), 1);
            assert!(state.snapshot.meta.contains_key("patches.json"));
        }
    }

    #[tokio::test]
    async fn the_addition_of_a_role_continues_after_it_stopped_behind_the_key() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Arc::new(DirStore::new(dir.path().join("repo")));
        let keys = KeyHolder::in_dir(dir.path());
        let old = TufRepository::make(store.clone(), &keys, Options::default(), &DELEGATED[..2], NOW).await;
        old.expect("a repository").keys.lock().await.generate("patches").expect("a key");
        let opened = TufRepository::open(store, &keys, Options::default(), NOW).await.expect("opens");
        assert_eq!(opened.keys.lock().await.of_role("patches").count(), 1);
    }
}
