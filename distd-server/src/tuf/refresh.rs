//! What has to happen with time: signing again before metadata runs out, changing keys, removing old files.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use distd_peer::trust::tuf::PRUNING;
use distd_peer::trust::tuf::wire::target_path;
use tough::schema::{RoleType, Signed};

use super::sign::{Dirty, RepositoryError, State, TufRepository, expires, lifetime, next, schema, sign};

/// How long an unreachable file stays, seconds: a device in the middle of an update, or a cache, may want it.
const PRUNE_AFTER_SECONDS: u64 = 24 * 3600;

/// What [`TufRepository::refresh`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Roles signed again.
    pub signed: Vec<String>,
    /// Files removed.
    pub pruned: usize,
    /// When to call again at the latest, unix seconds.
    pub next: u64,
    /// The root is due and its keys are not here (kept offline): an operator has to sign it.
    pub root_key_needed: bool,
}

/// A role whose keys can be changed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotatableRole {
    /// Signs who signs.
    Root,
    /// Delegates to releases and channels.
    Targets,
    /// States the versions of all.
    Snapshot,
    /// States the newest snapshot.
    Timestamp,
}

impl RotatableRole {
    fn role_type(self) -> RoleType {
        match self {
            Self::Root => RoleType::Root,
            Self::Targets => RoleType::Targets,
            Self::Snapshot => RoleType::Snapshot,
            Self::Timestamp => RoleType::Timestamp,
        }
    }
}

impl TufRepository {
    /// Signs again, at `now` (unix seconds), whatever has less than a third of its time left, and removes files
    /// nobody can reach any more. Call at start and at [`Refreshed::next`].
    pub async fn refresh(&self, now: u64) -> Result<Refreshed, RepositoryError> {
        let keys = self.keys.lock().await;
        let mut state = self.state(&keys).await?;
        self.read_bins(&mut state, &keys).await?;
        let mut out = Refreshed::default();

        if due("root", state.root.signed.expires, now) {
            let ids =
                &state.root.signed.roles.get(&RoleType::Root).map(|r| r.keyids.clone()).unwrap_or_default();
            let signers = keys.keys_of("root", ids);
            if (signers.len() as u64) < threshold(&state) {
                out.root_key_needed = true;
            } else {
                let mut root = state.root.signed.clone();
                root.version = next(root.version);
                root.expires = expires("root", now)?;
                let bytes = sign(root, &signers)?;
                self.put_root(&mut state, bytes).await?;
                out.signed.push("root".to_owned());
            }
        }

        let mut dirty = Dirty::default();
        for (name, role) in &state.roles {
            if due(name, role.expires, now) {
                dirty.roles.push(name.clone());
            }
        }
        dirty.targets = due("targets", state.targets.expires, now);
        dirty.snapshot = due("snapshot", state.snapshot.expires, now);
        out.signed.extend(dirty.roles.iter().cloned());
        out.signed.extend(dirty.targets.then(|| "targets".to_owned()));
        let snapshot = dirty.snapshot || dirty.targets || !dirty.roles.is_empty();
        out.signed.extend(snapshot.then(|| "snapshot".to_owned()));
        if snapshot || due("timestamp", state.timestamp.expires, now) {
            out.signed.push("timestamp".to_owned());
            self.write(&mut state, &keys, &dirty, now).await?;
        }
        out.pruned = self.prune(&state, now).await?;
        out.next = next_due(&state, now, out.root_key_needed);
        Ok(out)
    }

    /// Gives a role a new key, at `now` (unix seconds), and removes the old one. At every moment in between the
    /// repository verifies: the role is first signed by both keys, then the root lists the new one alone.
    ///
    /// Changing the snapshot and timestamp keys also makes devices forget which versions they have seen, which
    /// is how they recover after an attacker has counted the versions up, or after a restored backup.
    pub async fn rotate_key(&self, role: RotatableRole, now: u64) -> Result<(), RepositoryError> {
        let mut keys = self.keys.lock().await;
        let mut state = self.state(&keys).await?;
        let kind = role.role_type();
        let name = kind.to_string();
        let old = state.root.signed.roles.get(&kind).map(|r| r.keyids.clone()).unwrap_or_default();
        let root_ids =
            state.root.signed.roles.get(&RoleType::Root).map(|r| r.keyids.clone()).unwrap_or_default();
        if (keys.keys_of("root", &root_ids).len() as u64) < threshold(&state) {
            return Err(keys.missing("root").into());
        }
        let fresh = keys.generate(&name)?;
        if role != RotatableRole::Root {
            let dirty = Dirty {
                targets: role == RotatableRole::Targets,
                snapshot: role == RotatableRole::Snapshot,
                also: Some(fresh.clone()),
                ..Dirty::default()
            };
            self.write(&mut state, &keys, &dirty, now).await?;
        }
        let mut root = state.root.signed.clone();
        root.version = next(root.version);
        root.expires = expires("root", now)?;
        for id in &old {
            root.keys.remove(id);
        }
        let public = keys.keys_of(&name, std::slice::from_ref(&fresh));
        root.keys.extend(public.iter().map(|k| (k.id.clone(), k.public.clone())));
        let role_keys = root.roles.get_mut(&kind).ok_or_else(|| schema("the root lacks the role"))?;
        role_keys.keyids = vec![fresh.clone()];
        if role == RotatableRole::Root {
            role_keys.threshold = std::num::NonZeroU64::MIN;
        }
        // By the old root keys and, when they change, the new.
        let ids: Vec<_> = match role {
            RotatableRole::Root => root_ids.iter().chain([&fresh]).cloned().collect(),
            _ => root_ids,
        };
        let bytes = sign(root, &keys.keys_of("root", &ids))?;
        self.put_root(&mut state, bytes).await?;
        keys.retire(&name, &[fresh])?;
        Ok(())
    }

    async fn put_root(&self, state: &mut State, bytes: Bytes) -> Result<(), RepositoryError> {
        let root: Signed<tough::schema::Root> = serde_json::from_slice(&bytes).map_err(schema)?;
        // A root that its predecessor's keys did not sign would lock every device out.
        state.root.signed.verify_role(&root).map_err(schema)?;
        root.signed.verify_role(&root).map_err(schema)?;
        self.store.put(&format!("{}.root.json", root.signed.version), bytes.clone()).await?;
        state.root = root;
        state.root_bytes = bytes;
        Ok(())
    }

    async fn prune(&self, state: &State, now: u64) -> Result<usize, RepositoryError> {
        let mut reachable = BTreeSet::from(["timestamp.json".to_owned(), PRUNING.to_owned()]);
        reachable.insert(format!("{}.snapshot.json", state.snapshot.version));
        reachable.extend(state.snapshot.meta.iter().map(|(name, at)| format!("{}.{name}", at.version)));
        for role in state.roles.values() {
            let paths = role.targets.iter().map(|(name, t)| target_path(name.raw(), &t.hashes.sha256));
            reachable.extend(paths);
        }
        let noted: HashMap<String, u64> = match self.store.get(PRUNING).await? {
            Some(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            None => HashMap::new(),
        };
        let mut waiting = BTreeMap::new();
        let mut pruned = 0;
        for name in self.store.list().await? {
            // Devices walk the roots one by one, from any old one.
            if reachable.contains(&name) || name.ends_with(".root.json") {
                continue;
            }
            let since = noted.get(&name).copied().unwrap_or(now).min(now);
            if now - since >= PRUNE_AFTER_SECONDS {
                self.store.delete(&name).await?;
                pruned += 1;
            } else {
                waiting.insert(name, since);
            }
        }
        let same = waiting.len() == noted.len() && waiting.iter().all(|(k, v)| noted.get(k) == Some(v));
        if !same {
            let bytes = serde_json::to_vec(&waiting).map_err(schema)?;
            self.store.put(PRUNING, bytes.into()).await?;
        }
        Ok(pruned)
    }
}

fn threshold(state: &State) -> u64 {
    state.root.signed.roles.get(&RoleType::Root).map_or(1, |r| r.threshold.get())
}

/// When a role's metadata has a third of its time left, unix seconds.
fn due_at(role: &str, expires: jiff::Timestamp) -> u64 {
    u64::try_from(expires.as_second()).unwrap_or(0).saturating_sub(lifetime(role) / 3)
}

fn due(role: &str, expires: jiff::Timestamp, now: u64) -> bool {
    now >= due_at(role, expires)
}

fn next_due(state: &State, now: u64, root_waits: bool) -> u64 {
    let mut all = vec![
        due_at("timestamp", state.timestamp.expires),
        due_at("snapshot", state.snapshot.expires),
        due_at("targets", state.targets.expires),
    ];
    if !root_waits {
        all.push(due_at("root", state.root.signed.expires));
    }
    all.extend(state.roles.iter().map(|(name, role)| due_at(name, role.expires)));
    // Never at once again, whatever the clock does.
    all.into_iter().min().unwrap_or(now).max(now + 60)
}
