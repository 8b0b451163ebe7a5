//! The client workflow of the TUF specification (1.0.33, section 5): root, timestamp, snapshot,
//! targets, and those delegated roles that are on the way to one target.
//!
//! `tough` parses files and verifies signatures. Its own workflow loads every delegated role that a
//! snapshot lists, so a device would receive all releases of a realm with each update
//! (docs/decisions/0013-delegated-roles-one-by-one.md).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU64;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tough::TargetName;
use tough::schema::{Metafile, PathSet, Role, RoleType, Root, Signed, Snapshot, Target, Targets, Timestamp};

use super::error::TufError;
use super::memory::Files;
use super::wire::target_path;

/// Maximum sizes of files whose length no signed file states, bytes.
const ROOT_BYTES_MAX: u64 = 256 << 10;
const TIMESTAMP_BYTES_MAX: u64 = 16 << 10;
const SNAPSHOT_BYTES_MAX: u64 = 256 << 10;
const TARGETS_BYTES_MAX: u64 = 16 << 20;

/// Maximum number of roots walked in one update.
const ROOT_UPDATES_MAX: u64 = 1024;

/// Maximum number of delegated roles visited for one target. The way to a target of distd has
/// three.
const ROLES_VISITED_MAX: usize = 32;

/// The newest root that is reachable from the trusted one.
pub(super) struct NewRoot {
    pub(super) root: Signed<Root>,
    pub(super) bytes: Bytes,
    /// Whether the keys of snapshot or timestamp have changed, which makes their old versions
    /// irrelevant (5.3.11).
    pub(super) is_rotated: bool,
}

/// Walks the roots from `start`. Each must be signed by its own keys and by those of the root
/// before it (5.3).
pub(super) async fn newest_root(start: &[u8], files: &Files) -> Result<NewRoot, TufError> {
    let first: Signed<Root> = parse(start)?;
    verify(&first, &first, "trusted root")?;
    let mut newest = NewRoot { root: first.clone(), bytes: Bytes::copy_from_slice(start), is_rotated: false };
    for _ in 0..ROOT_UPDATES_MAX {
        let version = newest.root.signed.version.get().saturating_add(1);
        let Some(bytes) = files.get_or_ask(&format!("{version}.root.json")).await else { break };
        check_length(&bytes, ROOT_BYTES_MAX)?;
        let next: Signed<Root> = parse(&bytes)?;
        verify(&newest.root, &next, "root")?;
        verify(&next, &next, "root")?;
        not_older("root", NonZeroU64::MIN.saturating_add(version - 1), next.signed.version)?;
        if next.signed.version.get() != version {
            return Err(mismatch("a root states a later version than its file"));
        }
        (newest.root, newest.bytes) = (next, bytes);
    }
    let keys = |root: &Root, role| -> BTreeSet<Vec<u8>> {
        root.roles.get(&role).into_iter().flat_map(|keys| keys.keyids.iter().map(|id| id.to_vec())).collect()
    };
    newest.is_rotated = [RoleType::Timestamp, RoleType::Snapshot]
        .into_iter()
        .any(|role| keys(&first.signed, role) != keys(&newest.root.signed, role));
    Ok(newest)
}

/// Files that an earlier update verified and that must not be rolled back.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) timestamp: Option<Vec<u8>>,
    pub(super) snapshot: Option<Vec<u8>>,
}

/// Metadata whose signatures, hashes, versions and dates are all valid, and the delegated roles
/// loaded so far.
pub(super) struct Verified {
    files: Files,
    now: u64,
    pub(super) timestamp: Signed<Timestamp>,
    pub(super) timestamp_bytes: Bytes,
    pub(super) snapshot: Signed<Snapshot>,
    pub(super) snapshot_bytes: Bytes,
    targets: Targets,
    roles: BTreeMap<String, Targets>,
}

impl Verified {
    /// Verifies timestamp, snapshot and targets under `root` at `now` (unix seconds). None of them
    /// may be older than those in `seen` (5.4 to 5.6).
    pub(super) async fn load(
        root: &Signed<Root>,
        files: &Files,
        seen: &Seen,
        now: u64,
    ) -> Result<Self, TufError> {
        check_expired(&root.signed, "root", now)?;
        // Only files that the present keys have signed count as seen.
        let seen_timestamp = trusted::<Timestamp>(root, seen.timestamp.as_deref());
        let seen_snapshot = trusted::<Snapshot>(root, seen.snapshot.as_deref());

        let timestamp_bytes = fetch(files, "timestamp.json", TIMESTAMP_BYTES_MAX, None).await?;
        let timestamp: Signed<Timestamp> = parse(&timestamp_bytes)?;
        verify(root, &timestamp, "timestamp")?;
        let at = timestamp.signed.meta.get("snapshot.json");
        let at = at.ok_or_else(|| malformed("the timestamp names no snapshot"))?.clone();
        if let Some(seen) = &seen_timestamp {
            not_older("timestamp", seen.version, timestamp.signed.version)?;
            let seen = seen.meta.get("snapshot.json").map_or(NonZeroU64::MIN, |at| at.version);
            not_older("snapshot", seen, at.version)?;
        }
        check_expired(&timestamp.signed, "timestamp", now)?;

        let name = format!("{}.snapshot.json", at.version);
        let snapshot_bytes = fetch(files, &name, SNAPSHOT_BYTES_MAX, Some(&at)).await?;
        let snapshot: Signed<Snapshot> = parse(&snapshot_bytes)?;
        verify(root, &snapshot, "snapshot")?;
        same_version(snapshot.signed.version, at.version)?;
        if let Some(seen) = &seen_snapshot {
            not_older("snapshot", seen.version, snapshot.signed.version)?;
            for (file, seen) in &seen.meta {
                let role = file.trim_end_matches(".json");
                let Some(at) = snapshot.signed.meta.get(file) else {
                    return Err(TufError::RolledBack {
                        which: role.to_owned(),
                        held: seen.version.get(),
                        offered: 0,
                    });
                };
                not_older(role, seen.version, at.version)?;
            }
        }
        check_expired(&snapshot.signed, "snapshot", now)?;

        let at = snapshot.signed.meta.get("targets.json");
        let at = at.ok_or_else(|| malformed("the snapshot names no targets"))?;
        let name = format!("{}.targets.json", at.version);
        let targets: Signed<Targets> = parse(&fetch(files, &name, TARGETS_BYTES_MAX, Some(at)).await?)?;
        verify(root, &targets, "targets")?;
        same_version(targets.signed.version, at.version)?;
        check_expired(&targets.signed, "targets", now)?;
        Ok(Self {
            files: files.clone(),
            now,
            timestamp,
            timestamp_bytes,
            snapshot,
            snapshot_bytes,
            targets: targets.signed,
            roles: BTreeMap::new(),
        })
    }

    /// Finds a target: depth first through the delegations whose paths match it, up to a
    /// terminating one (5.6.7). `None` if no role on the way lists it.
    pub(super) async fn find(&mut self, target: &TargetName) -> Result<Option<Target>, TufError> {
        if let Some(found) = self.targets.targets.get(target) {
            return Ok(Some(found.clone()));
        }
        let mut visited = BTreeSet::new();
        let mut stack = Vec::new();
        push_delegates(&mut stack, None, &self.targets, target);
        while let Some((parent, role)) = stack.pop() {
            if visited.len() >= ROLES_VISITED_MAX || !visited.insert(role.clone()) {
                continue;
            }
            // A role that the snapshot does not list ends the search (5.6.7.1).
            let Some(found) = self.role(parent.as_deref(), &role).await? else { return Ok(None) };
            if let Some(found) = found.targets.get(target) {
                return Ok(Some(found.clone()));
            }
            push_delegates(&mut stack, Some(&role), found, target);
        }
        Ok(None)
    }

    /// Returns a delegated role, verified against the delegation in `parent` (`None`: the top-level
    /// targets). `None` if the snapshot does not list the role.
    async fn role(&mut self, parent: Option<&str>, name: &str) -> Result<Option<&Targets>, TufError> {
        if !self.roles.contains_key(name) {
            let file = format!("{name}.json");
            let Some(at) = self.snapshot.signed.meta.get(&file) else { return Ok(None) };
            let path = format!("{}.{file}", at.version);
            let role: Signed<Targets> =
                parse(&fetch(&self.files, &path, TARGETS_BYTES_MAX, Some(at)).await?)?;
            let parent = parent.map_or(Some(&self.targets), |parent| self.roles.get(parent));
            let delegations = parent.and_then(|parent| parent.delegations.as_ref());
            let delegations = delegations.ok_or_else(|| malformed("a role without the one above it"))?;
            let signed = delegations.verify_role(&role, name);
            signed.map_err(|e| TufError::BadSignature { which: name.to_owned(), cause: Box::new(e) })?;
            same_version(role.signed.version, at.version)?;
            check_expired(&role.signed, name, self.now)?;
            self.roles.insert(name.to_owned(), role.signed);
        }
        Ok(self.roles.get(name))
    }

    /// Returns the bytes of a target that was found.
    pub(super) async fn read(&self, name: &TargetName, target: &Target) -> Result<Bytes, TufError> {
        let path = target_path(name.raw(), &target.hashes.sha256);
        let missing = || TufError::Missing { name: path.clone() };
        let bytes = self.files.get_or_ask(&path).await.ok_or_else(missing)?;
        check_length(&bytes, target.length)?;
        check_hash(&bytes, &target.hashes.sha256)?;
        Ok(bytes)
    }

    /// Path in the repository of a target among the roles loaded so far.
    pub(super) fn known_path(&self, name: &TargetName) -> Option<String> {
        let roles = std::iter::once(&self.targets).chain(self.roles.values());
        let target = roles.filter_map(|role| role.targets.get(name)).next()?;
        Some(target_path(name.raw(), &target.hashes.sha256))
    }
}

/// Pushes the roles to which `role` delegates `target` onto the stack, the first on top, each with
/// the role above it. Nothing is visited after a terminating delegation.
fn push_delegates(
    stack: &mut Vec<(Option<String>, String)>,
    name: Option<&str>,
    role: &Targets,
    target: &TargetName,
) {
    let mut next = Vec::new();
    for delegated in role.delegations.iter().flat_map(|delegations| &delegations.roles) {
        if fits(&delegated.paths, target) {
            next.push((name.map(str::to_owned), delegated.name.clone()));
            if delegated.terminating {
                stack.clear();
                break;
            }
        }
    }
    stack.extend(next.into_iter().rev());
}

fn fits(paths: &PathSet, target: &TargetName) -> bool {
    match paths {
        PathSet::Paths(patterns) => patterns.iter().any(|p| fits_pattern(p.value(), target.raw())),
        PathSet::PathHashPrefixes(prefixes) => {
            let hash = hex::encode(digest(&SHA256, target.raw().as_bytes()));
            prefixes.iter().any(|prefix| !prefix.value().is_empty() && hash.starts_with(prefix.value()))
        }
    }
}

/// Whether a path matches a pattern, in which `*` stands for any characters but a slash and `?` for
/// one of them.
fn fits_pattern(pattern: &str, path: &str) -> bool {
    let mut patterns = pattern.split('/');
    let mut parts = path.split('/');
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(part)) if fits_part(pattern.as_bytes(), part.as_bytes()) => {}
            _ => return false,
        }
    }
}

fn fits_part(pattern: &[u8], part: &[u8]) -> bool {
    // The last star seen, and the position in `part` at which the rest of the pattern was last
    // tried.
    let (mut p, mut s, mut star) = (0, 0, None);
    while s < part.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, s));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == part[s] => {
                p += 1;
                s += 1;
            }
            _ => {
                let Some((at, tried)) = star else { return false };
                star = Some((at, tried + 1));
                (p, s) = (at + 1, tried + 1);
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

async fn fetch(files: &Files, name: &str, max: u64, at: Option<&Metafile>) -> Result<Bytes, TufError> {
    let missing = || TufError::Missing { name: name.to_owned() };
    let bytes = files.get_or_ask(name).await.ok_or_else(missing)?;
    check_length(&bytes, at.and_then(|at| at.length).unwrap_or(max).min(max))?;
    if let Some(hashes) = at.and_then(|at| at.hashes.as_ref()) {
        check_hash(&bytes, &hashes.sha256)?;
    }
    Ok(bytes)
}

fn check_length(bytes: &Bytes, max: u64) -> Result<(), TufError> {
    if bytes.len() as u64 > max { Err(mismatch("a file is longer than it may be")) } else { Ok(()) }
}

fn check_hash(bytes: &Bytes, sha256: &[u8]) -> Result<(), TufError> {
    if digest(&SHA256, bytes).as_ref() != sha256 {
        return Err(mismatch("a file has another hash than the signed one"));
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<Signed<T>, TufError> {
    serde_json::from_slice(bytes).map_err(|e| TufError::Malformed(e.into()))
}

fn verify<T: Role + serde::Serialize>(
    root: &Signed<Root>,
    role: &Signed<T>,
    which: &str,
) -> Result<(), TufError> {
    let signed = root.signed.verify_role(role);
    signed.map_err(|e| TufError::BadSignature { which: which.to_owned(), cause: Box::new(e) })
}

/// Returns a file verified earlier, if the present keys signed it.
fn trusted<T: Role + serde::Serialize + DeserializeOwned>(
    root: &Signed<Root>,
    bytes: Option<&[u8]>,
) -> Option<T> {
    let seen: Signed<T> = serde_json::from_slice(bytes?).ok()?;
    root.signed.verify_role(&seen).ok()?;
    Some(seen.signed)
}

fn check_expired<T: Role>(role: &T, which: &str, now: u64) -> Result<(), TufError> {
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    if now > role.expires().as_second() {
        return Err(TufError::Expired { which: which.to_owned() });
    }
    Ok(())
}

fn not_older(which: &str, seen: NonZeroU64, offered: NonZeroU64) -> Result<(), TufError> {
    if offered < seen {
        let (held, offered) = (seen.get(), offered.get());
        return Err(TufError::RolledBack { which: which.to_owned(), held, offered });
    }
    Ok(())
}

fn same_version(stated: NonZeroU64, signed: NonZeroU64) -> Result<(), TufError> {
    if stated != signed {
        Err(mismatch("a file states another version than the one above it"))
    } else {
        Ok(())
    }
}

fn mismatch(text: &'static str) -> TufError {
    TufError::Mismatch(text.into())
}

fn malformed(text: &'static str) -> TufError {
    TufError::Malformed(text.into())
}

/// Returns the file names of the roles that a snapshot lists, with their versions, by role file.
pub(super) fn current_files(snapshot: &Snapshot) -> HashMap<String, String> {
    snapshot.meta.iter().map(|(file, at)| (file.clone(), format!("{}.{file}", at.version))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stop_at_slashes() {
        for (pattern, path, is_fit) in [
            ("releases/*/*", "releases/os/1", true),
            ("releases/*/*", "releases/os/1/2", false),
            ("releases/*/*", "releases/os", false),
            ("releases/*", "channels/os", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("*", "", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("**a", "ba", true),
        ] {
            assert_eq!(fits_pattern(pattern, path), is_fit, "{pattern} {path}");
        }
    }
}
