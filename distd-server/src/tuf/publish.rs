//! Publishing and withdrawing of releases, channels and lists of patch sets.

use std::collections::HashMap;

use bytes::Bytes;
use distd_core::manifest::Root as ManifestRoot;
use distd_core::names::{Name, channel_target, patches_target, release_target};
use distd_peer::trust::tuf::wire::target_path;
use distd_peer::trust::tuf::{ChannelDoc, PatchesDoc};
use serde_json::{Map, Value};
use tough::TargetName;
use tough::schema::Target;

use super::bins::release_roles;
use super::metadata::{RepositoryError, hashes, schema};
use super::state::{Dirty, State, TufRepository};

/// One change of the metadata that devices see.
#[derive(Clone, Debug)]
pub enum Change {
    /// Publishes a release.
    SetRelease {
        /// Product of the release.
        product: Name,
        /// Version of the release.
        version: Name,
        /// Root node of the manifest, verbatim.
        root_node: Bytes,
        /// Fields that are signed beside the release, for clients to read.
        custom: Map<String, Value>,
    },
    /// Replaces the fields that are signed beside a release. A release that is not listed stays
    /// unlisted.
    SetCustom {
        /// Product of the release.
        product: Name,
        /// Version of the release.
        version: Name,
        /// All fields.
        custom: Map<String, Value>,
    },
    /// Creates or moves a channel.
    SetChannel {
        /// Product of the channel.
        product: Name,
        /// Name of the channel.
        channel: Name,
        /// Channel document, JSON of [`ChannelDoc`].
        json: Bytes,
    },
    /// Replaces the list of all patch sets of a product.
    SetPatches {
        /// Product of the patch sets.
        product: Name,
        /// JSON of [`PatchesDoc`], at most [`PATCHES_BYTES_MAX`] bytes. A list without a set
        /// removes the target.
        json: Bytes,
    },
    /// Withdraws a release.
    RemoveRelease {
        /// Product of the release.
        product: Name,
        /// Version of the release.
        version: Name,
    },
    /// Removes a channel.
    RemoveChannel {
        /// Product of the channel.
        product: Name,
        /// Name of the channel.
        channel: Name,
    },
}

/// Longest list of patch sets, bytes. Devices accept no target above 64 KiB.
pub const PATCHES_BYTES_MAX: usize = 48 << 10;

/// Effect of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// The metadata has changed, and devices see it from now on.
    Changed,
    /// The metadata was already as requested.
    Unchanged,
}

/// Reason why a change was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The version is already signed with other bytes.
    #[error("{0} is already published with other contents: choose a new version")]
    VersionTaken(String),
    /// The manifest's root node cannot be decoded.
    #[error("the manifest of {target} cannot be decoded")]
    Manifest {
        /// Target of the release.
        target: String,
        /// The cause.
        #[source]
        cause: distd_core::manifest::NodeError,
    },
    /// The channel document does not fit the change.
    #[error("the document of {target} does not fit: {reason}")]
    Channel {
        /// Target of the channel.
        target: String,
        /// Reason of the refusal.
        reason: String,
    },
    /// The list of patch sets does not fit the change.
    #[error("the list of {target} does not fit: {reason}")]
    Patches {
        /// Target of the list.
        target: String,
        /// Reason of the refusal.
        reason: String,
    },
    /// A channel points to the release.
    #[error("{channel} points to {release}: first move or remove the channel")]
    InUse {
        /// Target of the release.
        release: String,
        /// Target of the channel.
        channel: String,
    },
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// Custom field in which a channel's target repeats the version that the channel points to, so that
/// a withdrawal can check it.
const POINTS_TO: &str = "version";

impl TufRepository {
    /// Publishes a release at `now` (unix seconds). Publishing the same bytes again changes
    /// nothing.
    pub async fn publish_release(
        &self,
        product: &Name,
        version: &Name,
        root_node: Bytes,
        custom: Map<String, Value>,
        now: u64,
    ) -> Result<Published, PublishError> {
        let (product, version) = (product.clone(), version.clone());
        self.apply(vec![Change::SetRelease { product, version, root_node, custom }], now).await
    }

    /// Creates or moves a channel at `now` (unix seconds).
    pub async fn set_channel(
        &self,
        product: &Name,
        channel: &Name,
        json: Bytes,
        now: u64,
    ) -> Result<Published, PublishError> {
        let (product, channel) = (product.clone(), channel.clone());
        self.apply(vec![Change::SetChannel { product, channel, json }], now).await
    }

    /// Withdraws a release at `now` (unix seconds). Devices refuse it from then on.
    pub async fn remove_release(
        &self,
        product: &Name,
        version: &Name,
        now: u64,
    ) -> Result<Published, PublishError> {
        let (product, version) = (product.clone(), version.clone());
        self.apply(vec![Change::RemoveRelease { product, version }], now).await
    }

    /// Removes a channel at `now` (unix seconds).
    pub async fn remove_channel(
        &self,
        product: &Name,
        channel: &Name,
        now: u64,
    ) -> Result<Published, PublishError> {
        let (product, channel) = (product.clone(), channel.clone());
        self.apply(vec![Change::RemoveChannel { product, channel }], now).await
    }

    /// Makes several changes visible at once, at `now` (unix seconds).
    pub async fn apply(&self, changes: Vec<Change>, now: u64) -> Result<Published, PublishError> {
        let keys = self.keys.lock().await;
        let mut state = self.state(&keys).await?;
        let mut dirty = Dirty::default();
        let mut files = Vec::new();
        for change in changes {
            // Read the bins that the change depends on.
            match &change {
                Change::SetRelease { product, version, .. }
                | Change::SetCustom { product, version, .. }
                | Change::RemoveRelease { product, version } => {
                    self.read_bin(&mut state, &keys, &release_target(product, version)).await?;
                }
                Change::SetChannel { product, json, .. } => {
                    if let Ok(doc) = serde_json::from_slice::<ChannelDoc>(json) {
                        self.read_bin(&mut state, &keys, &release_target(product, &doc.version)).await?;
                    }
                }
                Change::SetPatches { .. } | Change::RemoveChannel { .. } => {}
            }
            match change_state(&mut state, change, &mut files)? {
                Some(Changed::Role(role)) => dirty.role(&role),
                Some(Changed::Release(name, new)) => {
                    let bin = self.make_bin(&mut state, &keys, name.raw(), &mut dirty, now).await?;
                    bin.targets.insert(name, *new);
                }
                None => {}
            }
        }
        if dirty.roles.is_empty() {
            return Ok(Published::Unchanged);
        }
        // Targets are written before the metadata that names them.
        for (path, bytes) in files {
            self.store.put(&path, bytes).await.map_err(RepositoryError::from)?;
        }
        self.write(&mut state, &keys, &dirty, now).await?;
        Ok(Published::Changed)
    }
}

/// Effect of a change on the state.
enum Changed {
    /// This role has to be written.
    Role(String),
    /// A release has to be put into its bin.
    Release(TargetName, Box<Target>),
}

/// Applies a change to the state in memory, except a new release, whose bin may have to be made
/// first. `None` if nothing changed.
fn change_state(
    state: &mut State,
    change: Change,
    files: &mut Vec<(String, Bytes)>,
) -> Result<Option<Changed>, PublishError> {
    let role = |name: &str| Some(Changed::Role(name.to_owned()));
    match change {
        Change::SetRelease { product, version, root_node, custom } => {
            let name = release_target(&product, &version);
            let decoded = ManifestRoot::decode(&root_node);
            decoded.map_err(|cause| PublishError::Manifest { target: name.clone(), cause })?;
            let new = target(&root_node, custom.into_iter().collect());
            let key = target_name(&name)?;
            match listed_release(state, &key) {
                Some(old) if old.hashes != new.hashes => return Err(PublishError::VersionTaken(name)),
                Some(old) if *old == new => return Ok(None),
                _ => {}
            }
            files.push((target_path(&name, &new.hashes.sha256), root_node));
            Ok(Some(Changed::Release(key, Box::new(new))))
        }
        Change::SetCustom { product, version, custom } => {
            let key = target_name(&release_target(&product, &version))?;
            let [_, bin] = release_roles(key.raw());
            let Some(target) = state.roles.get_mut(&bin).and_then(|bin| bin.targets.get_mut(&key)) else {
                return Ok(None);
            };
            let custom: HashMap<String, Value> = custom.into_iter().collect();
            if target.custom == custom {
                return Ok(None);
            }
            target.custom = custom;
            Ok(role(&bin))
        }
        Change::SetChannel { product, channel, json } => {
            let name = channel_target(&product, &channel);
            let bad = |reason: String| PublishError::Channel { target: name.clone(), reason };
            let doc: ChannelDoc = serde_json::from_slice(&json).map_err(|e| bad(e.to_string()))?;
            if doc.product != product || doc.channel != channel {
                return Err(bad("it names another channel".into()));
            }
            let release = release_target(&product, &doc.version);
            if listed_release(state, &target_name(&release)?).is_none() {
                return Err(bad(format!("{release} is not published; push it first")));
            }
            let custom = HashMap::from([(POINTS_TO.to_owned(), Value::from(doc.version.as_str()))]);
            let new = target(&json, custom);
            let key = target_name(&name)?;
            let channels = targets_of(state, "channels")?;
            if channels.get(&key) == Some(&new) {
                return Ok(None);
            }
            files.push((target_path(&name, &new.hashes.sha256), json));
            channels.insert(key, new);
            Ok(role("channels"))
        }
        Change::SetPatches { product, json } => {
            let name = patches_target(&product);
            let bad = |reason: String| PublishError::Patches { target: name.clone(), reason };
            let doc: PatchesDoc = serde_json::from_slice(&json).map_err(|e| bad(e.to_string()))?;
            if doc.product != product {
                return Err(bad("it names another product".into()));
            }
            if json.len() > PATCHES_BYTES_MAX {
                return Err(bad(format!("it is longer than {PATCHES_BYTES_MAX} bytes")));
            }
            let key = target_name(&name)?;
            let patches = targets_of(state, "patches")?;
            if doc.sets.is_empty() {
                return Ok(patches.remove(&key).and_then(|_| role("patches")));
            }
            let new = target(&json, HashMap::new());
            if patches.get(&key) == Some(&new) {
                return Ok(None);
            }
            files.push((target_path(&name, &new.hashes.sha256), json));
            patches.insert(key, new);
            Ok(role("patches"))
        }
        Change::RemoveRelease { product, version } => {
            let release = release_target(&product, &version);
            let prefix = format!("channels/{product}/");
            let user = targets_of(state, "channels")?.iter().find(|(channel, target)| {
                channel.raw().starts_with(&prefix)
                    && target.custom.get(POINTS_TO).and_then(Value::as_str) == Some(version.as_str())
            });
            if let Some((channel, _)) = user {
                return Err(PublishError::InUse { release, channel: channel.raw().to_owned() });
            }
            let key = target_name(&release)?;
            let [_, bin] = release_roles(key.raw());
            let gone = state.roles.get_mut(&bin).and_then(|bin| bin.targets.remove(&key));
            Ok(gone.and_then(|_| role(&bin)))
        }
        Change::RemoveChannel { product, channel } => {
            let name = target_name(&channel_target(&product, &channel))?;
            Ok(targets_of(state, "channels")?.remove(&name).and_then(|_| role("channels")))
        }
    }
}

/// Release as its bin lists it.
fn listed_release<'a>(state: &'a State, name: &TargetName) -> Option<&'a Target> {
    let [_, bin] = release_roles(name.raw());
    state.roles.get(&bin)?.targets.get(name)
}

fn targets_of<'a>(
    state: &'a mut State,
    role: &str,
) -> Result<&'a mut HashMap<TargetName, Target>, RepositoryError> {
    // Opening a repository adds every role. One may be missing if an older repository was put back
    // since.
    state
        .roles
        .get_mut(role)
        .map(|role| &mut role.targets)
        .ok_or_else(|| RepositoryError::Missing(format!("{role}.json")))
}

fn target(bytes: &[u8], custom: HashMap<String, Value>) -> Target {
    Target { length: bytes.len() as u64, hashes: hashes(bytes), custom, _extra: HashMap::new() }
}

fn target_name(name: &str) -> Result<TargetName, RepositoryError> {
    TargetName::new(name).map_err(schema)
}
