//! Makes a repository, and brings one that an earlier version made up to date.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Mutex;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::schema::{
    DelegatedRole, Delegations, PathPattern, PathSet, RoleKeys, RoleType, Root, Snapshot, Targets, Timestamp,
};

use super::bins::RELEASES;
use super::keys::KeyRing;
use super::metadata::{DELEGATED, RepositoryError, SPEC, empty_role, expires, schema, sign};
use super::root::{self, RootFile};
use super::shared::SharedStore;
use super::state::{Dirty, State, TufRepository};
use crate::signer::KeyHolder;

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

impl TufRepository {
    /// Opens the repository in `store` with the keys of `keys_of`, and creates both at `now` (unix
    /// seconds) if there is none. An interrupted creation is continued.
    pub async fn open(
        store: Arc<dyn SharedStore>,
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

    /// Opens a repository that is there, for a process that does not publish: nothing is written.
    ///
    /// # Errors
    /// [`RepositoryError`], also when there is none.
    pub async fn open_present(
        store: Arc<dyn SharedStore>,
        keys_of: &KeyHolder,
    ) -> Result<Self, RepositoryError> {
        let keys = Mutex::new(KeyRing::load(keys_of)?);
        let this = Self { store, keys, chain: Mutex::default(), holder: keys_of.clone() };
        let keys = this.keys.lock().await;
        this.state(&keys).await?;
        drop(keys);
        Ok(this)
    }

    /// Opens the repository. If there is none, creates it with the delegated roles `delegated`.
    async fn make(
        store: Arc<dyn SharedStore>,
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
            let root = make_first_root(&keys, &options, now)?;
            if !store.put_new("1.root.json", root).await? {
                return Err(RepositoryError::PublishedElsewhere);
            }
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
        let timestamp_bytes = None;
        let mut state =
            State { root, root_bytes, timestamp, timestamp_bytes, snapshot, targets, roles, fresh };
        let dirty = Dirty::everything(&state);
        self.write(&mut state, &keys, &dirty, now).await
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::bins::release_roles;
    use super::super::metadata::hashes;
    use super::*;
    use distd_peer::trust::tuf::{DirStore, MetadataStore};

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
