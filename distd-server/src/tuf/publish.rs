//! Releases and channels in and out of the repository.

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
use super::sign::{Dirty, RepositoryError, State, TufRepository, hashes, schema};

/// One change of what devices see.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new release.
    SetRelease {
        /// The product.
        product: Name,
        /// The version.
        version: Name,
        /// The manifest's root node, verbatim.
        root_node: Bytes,
        /// Signed beside it for clients to read.
        custom: Map<String, Value>,
    },
    /// What is signed beside a release that is listed; one that is not stays so.
    SetCustom {
        /// The product.
        product: Name,
        /// The version.
        version: Name,
        /// All of it.
        custom: Map<String, Value>,
    },
    /// A channel made or moved.
    SetChannel {
        /// The product.
        product: Name,
        /// The channel.
        channel: Name,
        /// The channel document, JSON of [`ChannelDoc`].
        json: Bytes,
    },
    /// The patch sets of a product, all of them.
    SetPatches {
        /// The product.
        product: Name,
        /// JSON of [`PatchesDoc`], at most [`PATCHES_BYTES_MAX`] bytes. Without a set the target goes.
        json: Bytes,
    },
    /// A release withdrawn.
    RemoveRelease {
        /// The product.
        product: Name,
        /// The version.
        version: Name,
    },
    /// A channel removed.
    RemoveChannel {
        /// The product.
        product: Name,
        /// The channel.
        channel: Name,
    },
}

/// Most bytes of a list of patch sets: devices take no target above 64 KiB.
pub const PATCHES_BYTES_MAX: usize = 48 << 10;

/// What a publication did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// Devices see it from now on.
    Changed,
    /// It was so already.
    Unchanged,
}

/// Why something was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The version is signed with other bytes.
    #[error("{0} is published with other contents; a version never changes: choose a new one")]
    VersionTaken(String),
    /// A root node that is none.
    #[error("the manifest of {target} is unusable")]
    Manifest {
        /// The release.
        target: String,
        /// The cause.
        #[source]
        cause: distd_core::manifest::NodeError,
    },
    /// A channel document that does not fit.
    #[error("the document of {target} does not fit: {reason}")]
    Channel {
        /// The channel.
        target: String,
        /// What is wrong.
        reason: String,
    },
    /// A list of patch sets that does not fit.
    #[error("the list of {target} does not fit: {reason}")]
    Patches {
        /// The list.
        target: String,
        /// What is wrong.
        reason: String,
    },
    /// A release that a channel points to.
    #[error("{release} is what {channel} points to; move or remove the channel first")]
    InUse {
        /// The release.
        release: String,
        /// The channel.
        channel: String,
    },
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// Name of the custom field in which a channel's target repeats where it points, so that a removal sees it.
const POINTS_TO: &str = "version";

impl TufRepository {
    /// Publishes a release at `now` (unix seconds). The same bytes again change nothing.
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

    /// Makes or moves a channel at `now` (unix seconds).
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
            // What the change looks at.
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
        // Targets before what names them.
        for (path, bytes) in files {
            self.store.put(&path, bytes).await.map_err(RepositoryError::from)?;
        }
        self.write(&mut state, &keys, &dirty, now).await?;
        Ok(Published::Changed)
    }
}

/// What a change came to.
enum Changed {
    /// This role is to be written.
    Role(String),
    /// A release is to be put into its bin.
    Release(TargetName, Box<Target>),
}

/// Changes the state in memory, but for a new release, whose bin may have to be made; `None` when nothing changed.
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

/// A release as its bin lists it.
fn listed_release<'a>(state: &'a State, name: &TargetName) -> Option<&'a Target> {
    let [_, bin] = release_roles(name.raw());
    state.roles.get(&bin)?.targets.get(name)
}

fn targets_of<'a>(
    state: &'a mut State,
    role: &str,
) -> Result<&'a mut HashMap<TargetName, Target>, RepositoryError> {
    // Opening adds every role; whoever put an older repository back did not open it.
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
