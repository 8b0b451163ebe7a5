//! Signs and writes the next state of the repository.

use std::collections::HashMap;
use std::num::NonZeroU64;

use bytes::Bytes;
use distd_peer::trust::tuf::SIGNED_AT;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{Delegations, Metafile, Role, RoleType, Snapshot, Targets};

use super::bins::{self, RELEASES, key_role, parent_of, release_roles};
use super::keys::{KeyRing, SigningKey};
use super::metadata::{RepositoryError, empty_role, expires, expiry, metafile, next, sign};
use super::state::{Dirty, State, TufRepository};

/// Metadata for a bundle, which is in no repository.
#[derive(Clone, Debug)]
pub struct SignedForBundle {
    /// Name of the snapshot's file.
    pub snapshot_name: String,
    /// The snapshot.
    pub snapshot: Bytes,
    /// The timestamp.
    pub timestamp: Bytes,
}

impl TufRepository {
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

    /// Signs a snapshot and a timestamp of what is published that are valid until `until`, for a
    /// bundle, at `now` (both unix seconds), and publishes later ones with the usual validity: a
    /// node that has seen the repository does not take the bundle's for newer.
    pub async fn sign_for_bundle(&self, until: u64, now: u64) -> Result<SignedForBundle, RepositoryError> {
        let keys = self.keys.lock().await;
        let mut state = self.state(&keys).await?;
        let dirty = Dirty { snapshot: true, ..Dirty::default() };
        let until_then = expiry(until)?;
        state.snapshot.version = next(state.snapshot.version);
        state.snapshot.expires = until_then;
        let signers = self.root_signers(&state, &keys, RoleType::Snapshot, &dirty)?;
        let snapshot = sign(state.snapshot.clone(), &signers)?;
        let snapshot_name = format!("{}.snapshot.json", state.snapshot.version);
        let at = metafile(state.snapshot.version, &snapshot);
        state.timestamp.meta = HashMap::from([("snapshot.json".to_owned(), at)]);
        state.timestamp.version = next(state.timestamp.version);
        state.timestamp.expires = until_then;
        state.timestamp._extra.insert(SIGNED_AT.to_owned(), now.into());
        let signers = self.root_signers(&state, &keys, RoleType::Timestamp, &dirty)?;
        let timestamp = sign(state.timestamp.clone(), &signers)?;
        self.write(&mut state, &keys, &dirty, now).await?;
        Ok(SignedForBundle { snapshot_name, snapshot, timestamp })
    }

    /// Signs and writes the dirty roles and all roles above them. The write of `timestamp.json`,
    /// the last one, makes them current. Versions are raised here, except in the first publication:
    /// to the next one of which there is no file, because a write that was cut off, or another
    /// process, may have left one.
    ///
    /// # Errors
    /// [`RepositoryError::PublishedElsewhere`]: what is current is another process's. Others as the
    /// store and the keys have them.
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
            let file = format!("{name}.json");
            let bytes = self.put_version(role, &file, &signers).await?;
            let at = match parent_of(&name) {
                // There are hundreds of these roles, so the snapshot lists only their versions,
                // which prevent a rollback.
                Some(_) => {
                    Metafile { length: None, hashes: None, version: role.version, _extra: HashMap::new() }
                }
                None => metafile(role.version, &bytes),
            };
            state.snapshot.meta.insert(file.clone(), at);
        }
        if dirty.targets {
            if !dirty.first {
                state.targets.version = next(state.targets.version);
            }
            state.targets.expires = expires("targets", now)?;
            let signers = self.root_signers(state, keys, RoleType::Targets, dirty)?;
            let bytes = self.put_version(&mut state.targets, "targets.json", &signers).await?;
            let at = metafile(state.targets.version, &bytes);
            state.snapshot.meta.insert("targets.json".to_owned(), at);
        }
        if dirty.snapshot || dirty.targets || !dirty.roles.is_empty() {
            if !dirty.first {
                state.snapshot.version = next(state.snapshot.version);
            }
            state.snapshot.expires = expires("snapshot", now)?;
            let signers = self.root_signers(state, keys, RoleType::Snapshot, dirty)?;
            let bytes = self.put_version(&mut state.snapshot, "snapshot.json", &signers).await?;
            let at = metafile(state.snapshot.version, &bytes);
            state.timestamp.meta = HashMap::from([("snapshot.json".to_owned(), at)]);
        }
        if !dirty.first {
            state.timestamp.version = next(state.timestamp.version);
        }
        state.timestamp.expires = expires("timestamp", now)?;
        // A device may take the time from here, because its own clock may be wrong.
        state.timestamp._extra.insert(SIGNED_AT.to_owned(), now.into());
        let signers = self.root_signers(state, keys, RoleType::Timestamp, dirty)?;
        let bytes = sign(state.timestamp.clone(), &signers)?;
        let before = state.timestamp_bytes.as_ref();
        if !self.store.put_over("timestamp.json", bytes.clone(), before).await? {
            return Err(RepositoryError::PublishedElsewhere);
        }
        state.timestamp_bytes = Some(bytes);
        Ok(())
    }

    /// Signs a role and writes it under its version, or under the next one that is free. Returns
    /// the bytes.
    async fn put_version<T: Versioned>(
        &self,
        role: &mut T,
        file: &str,
        signers: &[&SigningKey],
    ) -> Result<Bytes, RepositoryError> {
        for _ in 0..TAKEN_MAX {
            let bytes = sign(role.clone(), signers)?;
            let version = role.version_mut();
            if self.store.put_new(&format!("{version}.{file}"), bytes.clone()).await? {
                return Ok(bytes);
            }
            *version = next(*version);
        }
        Err(RepositoryError::PublishedElsewhere)
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

/// Most versions that may be taken one after the other: each is a write that was cut off.
const TAKEN_MAX: u32 = 10_000;

/// A role with a version in the name of its file.
trait Versioned: Role + Clone {
    fn version_mut(&mut self) -> &mut NonZeroU64;
}

impl Versioned for Targets {
    fn version_mut(&mut self) -> &mut NonZeroU64 {
        &mut self.version
    }
}

impl Versioned for Snapshot {
    fn version_mut(&mut self) -> &mut NonZeroU64 {
        &mut self.version
    }
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
