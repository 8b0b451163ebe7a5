//! Changes of the root: a proposal, signatures from wherever the root keys are, and the
//! installation.
//!
//! A root key may be on another machine, or several people may have one key each. So a root is
//! first proposed, then signed as a file by one key after the other, and installed once it
//! satisfies both the root before it and its own rules.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU64;

use bytes::Bytes;
use distd_core::error::Chain;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::schema::{Role, RoleKeys, RoleType, Root, Signature, Signed};

use super::keys::{KeyError, KeyRing, OfflineKey};
use super::metadata::{RepositoryError, expires, next, schema, sign};
use super::refresh::RotatableRole;
use super::state::{Dirty, State, TufRepository};
use crate::signer::SignerError;

/// Changes that a new root makes. Its validity begins anew in any case.
#[derive(Clone, Debug, Default)]
pub struct RootChange {
    /// Root keys to list from now on, in addition to those before.
    pub add: Vec<Key>,
    /// Root keys to list no more, by their hexadecimal id or the beginning of it.
    pub remove: Vec<String>,
    /// Number of root keys that must sign, if it changes.
    pub threshold: Option<NonZeroU64>,
    /// Roles that get a new key on this origin.
    pub rotate: Vec<RotatableRole>,
}

/// Signatures that a root still needs before devices accept it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Version of the root.
    pub version: u64,
    /// Number of missing signatures by keys of the root before it.
    pub by_old: u64,
    /// Number of missing signatures by its own keys.
    pub by_new: u64,
}

impl Missing {
    /// Whether no signature is missing.
    pub fn is_none(&self) -> bool {
        self.by_old == 0 && self.by_new == 0
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { version, by_old, by_new } = self;
        let signatures = |count: &u64| match count {
            1 => "1 signature".to_owned(),
            count => format!("{count} signatures"),
        };
        let (old, new) = (signatures(by_old), signatures(by_new));
        match (by_old, by_new) {
            (0, 0) => write!(f, "root {version} has all signatures"),
            (_, 0) => write!(f, "root {version} lacks {old} by keys of the root before it"),
            (0, _) => write!(f, "root {version} lacks {new} by its own keys"),
            (_, _) => write!(
                f,
                "root {version} lacks {old} by keys of the root before it and {new} by its own keys"
            ),
        }
    }
}

/// A root as a file that travels from key to key.
#[derive(Clone, Debug)]
pub struct RootFile(Signed<Root>);

/// Reason why a file is not a root, or was not signed.
#[derive(Debug, thiserror::Error)]
pub enum RootFileError {
    /// The file is not TUF root metadata.
    #[error("the file is not a TUF root: give the file that distd-server root prepare wrote")]
    Malformed(#[source] serde_json::Error),
    /// The files hold different roots.
    #[error("the files hold different roots: sign copies of one file")]
    Different,
    /// The files hold more signatures than copies of one root can have.
    #[error("the files hold more than 128 signatures: give the copies that the owners of the keys sent back")]
    TooManySignatures,
    /// Signing failed.
    #[error(transparent)]
    Sign(#[from] RepositoryError),
}

impl RootFile {
    /// Longest file, bytes.
    pub const BYTES_MAX: u64 = 1 << 20;

    /// Reads TUF root metadata, signed or not.
    ///
    /// # Errors
    /// [`RootFileError::Malformed`]
    pub fn parse(bytes: &[u8]) -> Result<Self, RootFileError> {
        serde_json::from_slice(bytes).map(Self).map_err(RootFileError::Malformed)
    }

    /// Bytes of the file, indented JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(&self.0).expect("a root always encodes")
    }

    /// Version of the root.
    pub fn version(&self) -> u64 {
        self.0.signed.version.get()
    }

    /// Adds the signature of a key. `false` if this root does not list the key, so that only the
    /// root before it may count the signature.
    ///
    /// # Errors
    /// [`RootFileError::Sign`]
    pub fn sign(&mut self, key: &OfflineKey) -> Result<bool, RootFileError> {
        let message = self.0.signed.canonical_form().map_err(schema)?;
        let (id, sig) = (key.id().clone(), key.sign(&message).map_err(RepositoryError::from)?.into());
        self.0.signatures.retain(|signature| signature.keyid != id);
        self.0.signatures.push(Signature { keyid: id.clone(), sig });
        Ok(root_key_ids(&self.0.signed).contains(&id))
    }

    /// Takes over the signatures of another copy. Several signatures of one key stay side by side,
    /// because a bad one must not displace a good one.
    ///
    /// # Errors
    /// [`RootFileError::Different`]; [`RootFileError::TooManySignatures`]
    pub fn merge(&mut self, other: Self) -> Result<(), RootFileError> {
        if self.0.signed != other.0.signed {
            return Err(RootFileError::Different);
        }
        for signature in other.0.signatures {
            if !self.0.signatures.contains(&signature) {
                self.0.signatures.push(signature);
            }
        }
        if self.0.signatures.len() > SIGNATURES_MAX {
            return Err(RootFileError::TooManySignatures);
        }
        Ok(())
    }

    /// Description of the root for the people who sign it, in lines.
    pub fn describe(&self) -> Vec<String> {
        let root = &self.0.signed;
        let mut lines = vec![format!("root {}, valid until {}", root.version, root.expires)];
        for role in [RoleType::Root, RoleType::Targets, RoleType::Snapshot, RoleType::Timestamp] {
            let Some(keys) = root.roles.get(&role) else { continue };
            let ids: Vec<_> = keys.keyids.iter().map(hex::encode).collect();
            lines.push(format!("{role}: {} of {}: {}", keys.threshold, ids.len(), ids.join(", ")));
        }
        lines
    }

    /// Signatures that the root lacks to follow the root `before`.
    fn missing(&self, before: Option<&Root>) -> Missing {
        let by_old = before.map_or(0, |before| lacking(before, &self.0));
        Missing { version: self.version(), by_old, by_new: lacking(&self.0.signed, &self.0) }
    }
}

/// Number of signatures by root keys of `by` that `root` lacks.
fn lacking(by: &Root, root: &Signed<Root>) -> u64 {
    let Some(keys) = by.roles.get(&RoleType::Root) else { return 0 };
    let good: BTreeSet<_> =
        good_signatures(by, root).into_iter().map(|signature| signature.keyid.clone()).collect();
    keys.threshold.get().saturating_sub(good.len() as u64)
}

/// Valid signatures of `root` by root keys of `by`.
fn good_signatures<'a>(by: &Root, root: &'a Signed<Root>) -> Vec<&'a Signature> {
    let listed: BTreeSet<_> = root_key_ids(by).into_iter().collect();
    let is_good = |signature: &&Signature| {
        // This rule is satisfied by a valid signature of this key alone.
        let mut rule = by.clone();
        let keyids = vec![signature.keyid.clone()];
        rule.roles
            .insert(RoleType::Root, RoleKeys { keyids, threshold: NonZeroU64::MIN, _extra: HashMap::new() });
        let alone = Signed { signed: root.signed.clone(), signatures: vec![(*signature).clone()] };
        listed.contains(&signature.keyid) && rule.verify_role(&alone).is_ok()
    };
    root.signatures.iter().filter(is_good).collect()
}

/// The root with one valid signature of each key. TUF clients refuse metadata that has several
/// signatures of one key.
fn with_good_signatures(before: &Root, root: &Signed<Root>) -> Signed<Root> {
    let mut signatures: Vec<Signature> = Vec::new();
    for signature in [before, &root.signed].into_iter().flat_map(|by| good_signatures(by, root)) {
        if !signatures.iter().any(|known| known.keyid == signature.keyid) {
            signatures.push(signature.clone());
        }
    }
    Signed { signed: root.signed.clone(), signatures }
}

fn root_key_ids(root: &Root) -> Vec<Decoded<Hex>> {
    root.roles.get(&RoleType::Root).map(|role| role.keyids.clone()).unwrap_or_default()
}

impl TufRepository {
    /// Root in force, as a file.
    ///
    /// # Errors
    /// [`RepositoryError`]
    pub async fn root_file(&self) -> Result<RootFile, RepositoryError> {
        Ok(RootFile(self.newest_root().await?.0))
    }

    /// Whether the file's root is, or was, in force under its version.
    ///
    /// # Errors
    /// [`RepositoryError`]
    pub async fn was_installed(&self, file: &RootFile) -> Result<bool, RepositoryError> {
        self.newest_root().await?;
        let chain = self.chain.lock().await;
        let index = usize::try_from(file.version() - 1).unwrap_or(usize::MAX);
        Ok(chain.get(index).is_some_and(|(_, root)| root.signed == file.0.signed))
    }

    /// Proposes the next root at `now` (unix seconds), signed by the root keys at hand. The
    /// repository stays as it is; only keys for rotated roles are made.
    ///
    /// # Errors
    /// [`RepositoryError`]
    pub async fn propose_root(&self, change: &RootChange, now: u64) -> Result<RootFile, RepositoryError> {
        let mut keys = self.keys.lock().await;
        self.propose(&mut keys, change, now).await
    }

    async fn propose(
        &self,
        keys: &mut KeyRing,
        change: &RootChange,
        now: u64,
    ) -> Result<RootFile, RepositoryError> {
        let before = self.newest_root().await?.0.signed;
        let mut root = before.clone();
        root.version = next(root.version);
        root.expires = expires("root", now)?;
        for key in &change.add {
            let id = key.key_id().map_err(schema)?;
            let role = role_keys(&mut root, RoleType::Root)?;
            if !role.keyids.contains(&id) {
                role.keyids.push(id.clone());
            }
            root.keys.insert(id, key.clone());
        }
        for start in &change.remove {
            let role = role_keys(&mut root, RoleType::Root)?;
            let found: Vec<_> = role
                .keyids
                .iter()
                .filter(|id| hex::encode(id).starts_with(start.as_str()))
                .cloned()
                .collect();
            let [id] = &found[..] else {
                return Err(RepositoryError::NoSuchRootKey(start.clone()));
            };
            role.keyids.retain(|known| known != id);
            root.keys.remove(id);
        }
        for role in &change.rotate {
            let kind = role.role_type();
            let fresh = keys.generate(&kind.to_string())?;
            let public = keys.keys_of(&kind.to_string(), std::slice::from_ref(&fresh));
            root.keys.extend(public.iter().map(|key| (key.id.clone(), key.public.clone())));
            let listed = role_keys(&mut root, kind)?;
            let old = std::mem::replace(&mut listed.keyids, vec![fresh]);
            if *role == RotatableRole::Root {
                listed.threshold = NonZeroU64::MIN;
            }
            root.keys.retain(|id, _| !old.contains(id));
        }
        let role = role_keys(&mut root, RoleType::Root)?;
        role.threshold = change.threshold.unwrap_or(role.threshold);
        if role.keyids.len() as u64 > ROOT_KEYS_MAX || (role.keyids.len() as u64) < role.threshold.get() {
            return Err(RepositoryError::RootThreshold {
                keys: role.keyids.len(),
                threshold: role.threshold.get(),
            });
        }
        let mut ids = root_key_ids(&before);
        ids.extend(root_key_ids(&root));
        match sign(root.clone(), &keys.keys_of("root", &ids)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(RootFile).map_err(schema),
            // A signer signs no root with keys that it does not hold. People sign such a root.
            Err(error) if is_refused(&error) => {
                tracing::info!(
                    error = %Chain(&error),
                    "the signer refused to sign the proposed root; its root keys have to sign it"
                );
                Ok(unsigned(root))
            }
            Err(error) => Err(error),
        }
    }

    /// Signatures that a proposed root lacks before it can be installed.
    ///
    /// # Errors
    /// [`RepositoryError::RootOutdated`] if another root has come into force meanwhile.
    pub async fn root_missing(&self, file: &RootFile) -> Result<Missing, RepositoryError> {
        let before = self.newest_root().await?.0.signed;
        if file.version() != before.version.get() + 1 {
            return Err(RepositoryError::RootOutdated {
                version: file.version(),
                in_force: before.version.get(),
            });
        }
        Ok(file.missing(Some(&before)))
    }

    /// Puts a root in force at `now` (unix seconds) if it has all signatures. Returns the
    /// signatures that it lacks. The repository verifies at every moment in between: a role with a
    /// new key is first signed by both keys, and then the root lists only the new key.
    ///
    /// # Errors
    /// [`RepositoryError`]
    pub async fn install_root(&self, file: &RootFile, now: u64) -> Result<Missing, RepositoryError> {
        let mut keys = self.keys.lock().await;
        self.install(&mut keys, file, now).await
    }

    async fn install(
        &self,
        keys: &mut KeyRing,
        file: &RootFile,
        now: u64,
    ) -> Result<Missing, RepositoryError> {
        let missing = self.root_missing(file).await?;
        if !missing.is_none() {
            return Ok(missing);
        }
        // Another process may have made keys for its proposal.
        *keys = KeyRing::load(&self.holder)?;
        let mut state = self.state(keys).await?;
        let root = &file.0.signed;
        let mut dirty = Dirty::default();
        for role in ONLINE {
            let name = role.to_string();
            let ids = |root: &Root| root.roles.get(&role).map(|r| r.keyids.clone()).unwrap_or_default();
            let (old, new) = (ids(&state.root.signed), ids(root));
            // If a key of this role were elsewhere, nothing could be published any more.
            if new.is_empty() || keys.keys_of(&name, &new).len() != new.len() {
                return Err(keys.missing(&name).into());
            }
            let fresh: Vec<_> = new.into_iter().filter(|id| !old.contains(id)).collect();
            if !fresh.is_empty() {
                dirty.targets |= role == RoleType::Targets;
                dirty.snapshot |= role == RoleType::Snapshot;
                dirty.also.extend(fresh);
            }
        }
        if !dirty.also.is_empty() {
            self.write(&mut state, keys, &dirty, now).await?;
        }
        let signed = with_good_signatures(&state.root.signed, &file.0);
        let bytes = serde_json::to_vec(&serde_json::to_value(&signed).map_err(schema)?).map_err(schema)?;
        self.put_root(&mut state, bytes.into()).await?;
        retire(keys, root)?;
        Ok(missing)
    }

    /// Gives a role a new key at `now` (unix seconds) and removes the old one. The root keys must
    /// be here.
    ///
    /// A change of the snapshot and timestamp keys also makes devices forget which versions they
    /// have seen. Devices recover that way after an attacker has raised the versions, or after a
    /// restored backup.
    ///
    /// # Errors
    /// [`RepositoryError`]; without the root keys nothing changes.
    pub async fn rotate_key(&self, role: RotatableRole, now: u64) -> Result<(), RepositoryError> {
        let mut keys = self.keys.lock().await;
        let before = self.newest_root().await?.0.signed;
        let threshold = before.roles.get(&RoleType::Root).map_or(1, |role| role.threshold.get());
        if (keys.keys_of("root", &root_key_ids(&before)).len() as u64) < threshold {
            return Err(keys.missing("root").into());
        }
        let file =
            self.propose(&mut keys, &RootChange { rotate: vec![role], ..RootChange::default() }, now).await?;
        let missing = self.install(&mut keys, &file, now).await?;
        if missing.is_none() { Ok(()) } else { Err(keys.missing("root").into()) }
    }

    /// Removes keys that the root in force does not list. An interrupted installation leaves such
    /// keys.
    ///
    /// # Errors
    /// [`RepositoryError`]
    pub async fn retire_unlisted(&self) -> Result<(), RepositoryError> {
        let mut keys = self.keys.lock().await;
        *keys = KeyRing::load(&self.holder)?;
        let root = self.newest_root().await?.0.signed;
        retire(&mut keys, &root)
    }

    /// Appends a root to the chain.
    pub(super) async fn put_root(&self, state: &mut State, bytes: Bytes) -> Result<(), RepositoryError> {
        let root: Signed<Root> = serde_json::from_slice(&bytes).map_err(schema)?;
        // A root that its predecessor's keys did not sign would lock out every device.
        state.root.signed.verify_role(&root).map_err(schema)?;
        root.signed.verify_role(&root).map_err(schema)?;
        let (version, name) = (root.signed.version.get(), format!("{}.root.json", root.signed.version));
        if !self.store.put_new(&name, bytes.clone()).await? {
            let in_force = self.newest_root().await?.0.signed.version.get();
            if in_force >= version {
                return Err(RepositoryError::RootOutdated { version, in_force });
            }
            // The file there is no root of this realm.
            self.store.put(&name, bytes.clone()).await?;
        }
        self.holder.follow_root(&bytes)?;
        state.root = root;
        state.root_bytes = bytes;
        Ok(())
    }
}

/// Roles of a root whose keys belong to the origin.
const ONLINE: [RoleType; 3] = [RoleType::Targets, RoleType::Snapshot, RoleType::Timestamp];

/// Most keys of a root, because devices check every signature.
pub const ROOT_KEYS_MAX: u64 = 32;

/// Most signatures of a root file: those of the keys before and after, and as many invalid ones.
const SIGNATURES_MAX: usize = 4 * ROOT_KEYS_MAX as usize;

fn retire(keys: &mut KeyRing, root: &Root) -> Result<(), RepositoryError> {
    for role in ONLINE.into_iter().chain([RoleType::Root]) {
        let listed = root.roles.get(&role).map(|r| r.keyids.clone()).unwrap_or_default();
        keys.retire(&role.to_string(), &listed)?;
    }
    Ok(())
}

fn role_keys(root: &mut Root, role: RoleType) -> Result<&mut RoleKeys, RepositoryError> {
    root.roles.get_mut(&role).ok_or_else(|| schema(format!("the root lacks the role {role}")))
}

/// Whether the signer answered with a refusal.
pub(super) fn is_refused(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::Key(KeyError::Signer(SignerError::Refused(_))))
}

/// Root file without a signature.
pub(super) fn unsigned(root: Root) -> RootFile {
    RootFile(Signed { signed: root, signatures: Vec::new() })
}

/// Compares a first root that was signed elsewhere with the keys that were ordered and with the
/// origin's own. Returns the signatures that it lacks.
pub(super) fn check_first(
    file: &RootFile,
    ordered: &[Key],
    threshold: NonZeroU64,
    keys: &KeyRing,
) -> Result<Missing, RepositoryError> {
    let root = &file.0.signed;
    let outdated = || RepositoryError::RootOutdated { version: file.version(), in_force: 0 };
    let mut wanted: Vec<_> = ordered.iter().map(Key::key_id).collect::<Result<_, _>>().map_err(schema)?;
    let mut listed = root_key_ids(root);
    wanted.sort();
    wanted.dedup();
    listed.sort();
    let same = root.roles.get(&RoleType::Root).is_some_and(|role| role.threshold == threshold);
    if file.version() != 1 || wanted != listed || !same {
        return Err(outdated());
    }
    for role in ONLINE {
        let ids = root.roles.get(&role).map(|r| r.keyids.clone()).unwrap_or_default();
        if ids.is_empty() || keys.keys_of(&role.to_string(), &ids).len() != ids.len() {
            return Err(outdated());
        }
    }
    Ok(file.missing(None))
}
