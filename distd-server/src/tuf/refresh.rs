//! Upkeep of the repository: signs metadata again before it expires, and removes old files.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use distd_peer::trust::tuf::PRUNING;
use distd_peer::trust::tuf::wire::target_path;
use tough::schema::RoleType;

use super::metadata::{RepositoryError, expires, lifetime, next, schema, sign};
use super::root::is_refused;
use super::state::{Dirty, State, TufRepository};

/// Time for which an unreachable file stays, seconds. A device in the middle of an update, or a
/// cache, may still fetch it.
const PRUNE_AFTER_SECONDS: u64 = 24 * 3600;

/// Result of [`TufRepository::refresh`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Roles that were signed again.
    pub signed: Vec<String>,
    /// Number of files removed.
    pub pruned: usize,
    /// Latest time for the next call, unix seconds.
    pub next: u64,
    /// Whether the root is due and its keys are not here (kept offline), so that an operator has to
    /// sign it.
    pub root_key_needed: bool,
}

/// Role whose keys can be changed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotatableRole {
    /// Lists the keys of all four roles.
    Root,
    /// Delegates to the roles of releases, channels and patch sets.
    Targets,
    /// States the versions of targets and of all delegated roles.
    Snapshot,
    /// States the newest snapshot.
    Timestamp,
}

impl RotatableRole {
    pub(super) fn role_type(self) -> RoleType {
        match self {
            Self::Root => RoleType::Root,
            Self::Targets => RoleType::Targets,
            Self::Snapshot => RoleType::Snapshot,
            Self::Timestamp => RoleType::Timestamp,
        }
    }
}

impl TufRepository {
    /// Signs again, at `now` (unix seconds), all metadata with less than a third of its time left,
    /// and removes files that have been unreachable for a day. To be called at the start and at
    /// [`Refreshed::next`].
    pub async fn refresh(&self, now: u64) -> Result<Refreshed, RepositoryError> {
        let keys = self.keys.lock().await;
        let mut state = self.state(&keys).await?;
        self.read_bins(&mut state, &keys).await?;
        let mut out = Refreshed::default();

        if due("root", state.root.signed.expires, now) {
            let ids =
                &state.root.signed.roles.get(&RoleType::Root).map(|r| r.keyids.clone()).unwrap_or_default();
            let signers = keys.keys_of("root", ids);
            let mut root = state.root.signed.clone();
            root.version = next(root.version);
            root.expires = expires("root", now)?;
            // A signer refuses a root with keys that it does not hold. The other roles must not
            // wait for that root.
            let signed = match (signers.len() as u64) < threshold(&state) {
                true => None,
                false => match sign(root, &signers) {
                    Err(error) if is_refused(&error) => None,
                    other => Some(other?),
                },
            };
            match signed {
                None => out.root_key_needed = true,
                Some(bytes) => {
                    self.put_root(&mut state, bytes).await?;
                    out.signed.push("root".to_owned());
                }
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
            // Devices fetch the roots one by one, starting with any old one.
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

/// Time at which a role's metadata has a third of its validity left, unix seconds.
fn due_at(role: &str, expires: jiff::Timestamp) -> u64 {
    u64::try_from(expires.as_second()).unwrap_or(0).saturating_sub(lifetime(role) / 3)
}

/// Whether metadata of `role` that expires at `expires` has to be signed again at `now` (unix
/// seconds).
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
    // At least a minute passes before the next call, whatever the clock does.
    all.into_iter().min().unwrap_or(now).max(now + 60)
}
