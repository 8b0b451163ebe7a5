//! Client of a realm's signed metadata: leads from `PRODUCT@VERSION` or `PRODUCT:CHANNEL` to a
//! verified manifest root.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::bounds::NODE_BYTES_MAX;
use distd_core::fleet::rollout::{Held, RolloutDoc};
use distd_core::manifest::Root;
use distd_core::names::{Name, Wanted, patches_target, release_target};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use tough::TargetName;

use super::channel_files::{ChannelFiles, readable_files};
use super::error::TufError;
use super::memory::{Files, MetadataSource};
use super::store::Store;
use super::walk::{Verified, current_files, newest_root};
use super::wire::{
    HELD_TARGETS_MAX, QUERY_NAMES_MAX, Query, held_prefix, role_file, target_hash, target_of, version_of,
};

/// Maximum number of role files kept, as a question names each of them.
const ROLES_KEPT_MAX: usize = QUERY_NAMES_MAX;

/// Maximum size of a target file, bytes. Targets are root nodes of manifests and channel documents.
const TARGET_BYTES_MAX: u64 = NODE_BYTES_MAX as u64;

/// Field of `timestamp.json` in which the origin states when it signed, unix seconds.
pub const SIGNED_AT: &str = "signed_at";

/// Field signed beside a release, a whole number that orders the releases of a product. A later
/// release has a higher number.
pub const SEQUENCE: &str = "sequence";

/// Validity of a timestamp that does not state when it was signed, seconds.
const TIMESTAMP_SECONDS: u64 = 24 * 3600;

/// Maximum time by which this machine's clock may be behind the origin's, seconds; certificates are
/// backdated by the same time.
const CLOCK_BEHIND_MAX: u64 = 3600;

/// Channel document: the JSON in the file of a channel target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelDoc {
    /// Product of the channel.
    pub product: Name,
    /// Name of the channel.
    pub channel: Name,
    /// Version that the channel points to.
    pub version: Name,
    /// Manifest of that release.
    pub manifest: ManifestId,
    /// Number that grows by one with each change.
    pub counter: u64,
    /// Ordered downgrade: devices with releases of the product up to this [number](SEQUENCE) may go
    /// back to this release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downgrade_from: Option<u64>,
    /// Rollout of another release to the devices of the channel.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "readable_rollout")]
    pub rollout: Option<RolloutDoc>,
    /// Names and sums of the files that the channel's releases are to other update clients.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "readable_files")]
    pub files: Option<ChannelFiles>,
    /// Fields that later versions add.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Reads a rollout. One that this build cannot read must not hide the channel's own release.
fn readable_rollout<'de, D: Deserializer<'de>>(from: D) -> Result<Option<RolloutDoc>, D::Error> {
    let value = Option::<Value>::deserialize(from)?;
    Ok(value.map(|value| serde_json::from_value(value).unwrap_or_else(|_| RolloutDoc::unreadable())))
}

/// List of a product's patch sets: the JSON document in the target file `patches/PRODUCT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchesDoc {
    /// Product of the list.
    pub product: Name,
    /// Patch sets of the product.
    pub sets: Vec<PatchSetRef>,
}

/// Reference to one patch set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchSetRef {
    /// Manifest of the release that the set starts from; [`ManifestId::NOTHING`] for a set that
    /// rebuilds a release from nothing.
    pub from: ManifestId,
    /// Manifest of the release that the set leads to.
    pub to: ManifestId,
    /// Manifest of the set itself.
    pub set: ManifestId,
    /// Length of the set: index and payloads, bytes.
    pub bytes: u64,
}

/// Network cost of an update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Number of questions asked and answered.
    pub round_trips: u32,
    /// Bytes of the answers.
    pub received_bytes: u64,
}

/// A release whose signatures, hashes and dates are all valid.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Product of the release.
    pub product: Name,
    /// Version of the release.
    pub version: Name,
    /// Channel document that led to the release, if a channel was requested.
    pub channel: Option<ChannelDoc>,
    /// Choice among the releases to which the channel leads.
    pub choice: Choice,
    /// The manifest's root node, verbatim.
    pub root_node: Bytes,
    /// Hash of the root node, which identifies the manifest.
    pub manifest: ManifestId,
    /// Fields that the publisher signed beside the release.
    pub custom: Map<String, Value>,
    /// Patch sets of the product; empty if the origin lists none, or if its list does not parse.
    pub patches: Vec<PatchSetRef>,
    /// Network cost of the resolution.
    pub cost: Cost,
}

impl Resolved {
    /// The release's [number](SEQUENCE); `None` if an origin of an earlier version signed it.
    pub fn sequence(&self) -> Option<u64> {
        self.custom.get(SEQUENCE)?.as_u64()
    }
}

/// Release that a device chooses among those to which a channel may lead it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Chosen {
    /// The release to which the channel points.
    #[default]
    OfChannel,
    /// The release of the channel's rollout.
    OfRollout,
    /// This version: one that a rollout requires, or to which the device is pinned.
    Version(Name),
}

/// Choice of a device about a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The release.
    pub release: Chosen,
    /// Why it is not that of the channel's rollout.
    pub held: Option<Held>,
}

/// The function by which a device makes its [`Choice`].
pub type Choose<'a> = &'a (dyn Fn(&ChannelDoc) -> Choice + Send + Sync);

/// Verifier of one realm's releases and channels. Remembers on disk what it has verified.
pub struct TufClient {
    store: Arc<Store>,
    initial_root: Vec<u8>,
}

impl std::fmt::Debug for TufClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TufClient")
    }
}

impl TufClient {
    /// Opens the client's state in `DIR/tuf`. `initial_root` is the `root.json` of the enrolment.
    /// Once a newer root has been verified, the client starts from that one.
    pub fn open(dir: &Path, initial_root: &[u8]) -> Result<Self, TufError> {
        Ok(Self { store: Arc::new(Store::open(dir)?), initial_root: initial_root.to_vec() })
    }

    /// Updates the metadata from `source` (one round trip) and resolves `wanted` at `now` (unix
    /// seconds), without a part in rollouts: a channel leads to its own release.
    ///
    /// With [`super::Offline`] as the source, the stored files are used as long as none of them has
    /// expired.
    ///
    /// # Errors
    /// [`TufError`] says what to do next. Nothing unverified is returned or stored.
    pub async fn resolve(
        &self,
        source: Arc<dyn MetadataSource>,
        wanted: &Wanted,
        now: u64,
    ) -> Result<Resolved, TufError> {
        self.resolve_choosing(source, wanted, now, &[], &|_| Choice::default()).await
    }

    /// Version of the newest root that was verified.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn root_version(&self) -> Result<u64, TufError> {
        let root = self.store.trusted_root()?.unwrap_or_else(|| self.initial_root.clone());
        Ok(version_of(&root).unwrap_or(1))
    }

    /// Files other than roots that the last resolution verified and needed, by name.
    pub fn kept_files(&self) -> BTreeMap<String, Bytes> {
        self.store.cached()
    }

    /// As [`resolve`](Self::resolve); `choose` chooses among the releases to which the channel may
    /// lead this device. The question also asks for the targets `also`.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub async fn resolve_choosing(
        &self,
        source: Arc<dyn MetadataSource>,
        wanted: &Wanted,
        now: u64,
        also: &[String],
        choose: Choose<'_>,
    ) -> Result<Resolved, TufError> {
        let store = self.store.clone();
        let _lock = tokio::task::spawn_blocking(move || store.lock())
            .await
            .map_err(|e| TufError::Store(e.into()))??;
        let held = self.store.cached();
        let had_cache = !held.is_empty();
        match self.attempt(source.clone(), held, wanted, now, (also, choose)).await {
            // A damaged cache must not lock a device out, so try again with only the trusted state.
            // The cache is replaced only if that succeeds: while no parent answers, the device has
            // nothing else.
            Err(e) if had_cache && e.may_be_cache() => {
                match self.attempt(source, BTreeMap::new(), wanted, now, (also, choose)).await {
                    // Offline there is nothing to fetch, and the first error says more.
                    Err(TufError::Missing { .. }) => Err(e),
                    other => other,
                }
            }
            other => other,
        }
    }

    async fn attempt(
        &self,
        source: Arc<dyn MetadataSource>,
        held: BTreeMap<String, Bytes>,
        wanted: &Wanted,
        now: u64,
        (also, choose): (&[String], Choose<'_>),
    ) -> Result<Resolved, TufError> {
        let root = self.store.trusted_root()?.unwrap_or_else(|| self.initial_root.clone());
        let query = query(&root, &held, wanted, also);
        let held_targets: Vec<String> =
            held.keys().filter(|name| name.starts_with("targets/")).cloned().collect();
        let files = Files::new(source, held);
        files.ask(&query).await?;

        let newest = match newest_root(&root, &files).await {
            Ok(newest) => newest,
            Err(error) => return Err(failure_or(&files, error)),
        };
        if newest.is_rotated {
            self.store.forget_seen()?;
        }
        let seen = self.store.seen()?;
        let verified = Verified::load(&newest.root, &files, &seen, now).await;
        // A verified root is stored, even if the rest is wrong.
        self.store.set_trusted(verified.as_ref().ok(), &newest.bytes)?;
        let mut verified = verified.map_err(|error| failure_or(&files, error))?;
        check_clock(&verified, now)?;
        let resolved = find(&mut verified, wanted, choose).await.map_err(|error| failure_or(&files, error));
        self.store.set_cached(&to_keep(&verified, &files, &held_targets, resolved.as_ref().ok()))?;
        let (round_trips, received_bytes) = files.cost();
        resolved.map(|r| Resolved { cost: Cost { round_trips, received_bytes }, ..r })
    }
}

/// Replaces a "missing" error by the source's failure, if the source failed.
fn failure_or(files: &Files, error: TufError) -> TufError {
    match (&error, files.take_failure()) {
        (TufError::Missing { .. }, Some(failure)) => failure.into(),
        _ => error,
    }
}

/// Makes the question: everything newer than the held files, and the wanted targets.
fn query(root: &[u8], held: &BTreeMap<String, Bytes>, wanted: &Wanted, also: &[String]) -> Query {
    let mut query = Query {
        root: version_of(root).unwrap_or(1),
        latest: true,
        on_path: true,
        differences: true,
        timestamp: held.get("timestamp.json").and_then(|b| version_of(b)).unwrap_or(0),
        targets: vec![wanted.target_name(), patches_target(wanted.product())],
        ..Query::default()
    };
    for name in held.keys() {
        if let Some(sha256) = target_hash(name) {
            query.held.push(held_prefix(&sha256));
        } else if let Some((role, version)) = role_file(name) {
            match role {
                "snapshot" => query.snapshot = version,
                role => query.roles.push((role.to_owned(), version)),
            }
        }
    }
    query.held.truncate(HELD_TARGETS_MAX);
    query.targets.extend(also.iter().take(QUERY_NAMES_MAX - 2).cloned());
    query
}

/// Refuses a clock that is behind the time at which the origin signed the timestamp, as expired
/// metadata would pass for valid. No other time is remembered. Earlier readings of this machine's
/// own clock prove nothing, and a device whose clock was ahead works again once its clock is right.
fn check_clock(verified: &Verified, now: u64) -> Result<(), TufError> {
    let timestamp = &verified.timestamp.signed;
    let signed_at = timestamp._extra.get(SIGNED_AT).and_then(Value::as_u64).unwrap_or_else(|| {
        // An origin of an earlier version does not state the time, and signs for a day.
        u64::try_from(timestamp.expires.as_second()).unwrap_or(0).saturating_sub(TIMESTAMP_SECONDS)
    });
    if now.saturating_add(CLOCK_BEHIND_MAX) < signed_at {
        return Err(TufError::ClockBehind { now, signed_at });
    }
    Ok(())
}

async fn find(repo: &mut Verified, wanted: &Wanted, choose: Choose<'_>) -> Result<Resolved, TufError> {
    let (product, channel) = match wanted {
        Wanted::Release { product, .. } => (product, None),
        Wanted::Channel { product, channel } => {
            let target = wanted.target_name();
            let (bytes, _) = read_target(repo, &target).await?;
            let bad = |cause| TufError::BadTarget { target: target.clone(), cause };
            let doc: ChannelDoc = serde_json::from_slice(&bytes).map_err(|e| bad(Some(e.into())))?;
            if doc.product != *product || doc.channel != *channel {
                return Err(bad(None));
            }
            (product, Some(doc))
        }
    };
    let choice = channel.as_ref().map(choose).unwrap_or_default();
    // The channel's document states the manifests of the releases to which it leads by itself.
    let (version, stated) = match (wanted, &channel) {
        (Wanted::Release { version, .. }, _) => (version.clone(), None),
        (Wanted::Channel { .. }, None) => unreachable!("a channel has its document"),
        (Wanted::Channel { .. }, Some(doc)) => match (&choice.release, &doc.rollout) {
            (Chosen::OfRollout, Some(rollout)) => (rollout.version.clone(), Some(rollout.manifest)),
            (Chosen::Version(version), _) => (version.clone(), None),
            (Chosen::OfChannel | Chosen::OfRollout, _) => (doc.version.clone(), Some(doc.manifest)),
        },
    };
    let target = release_target(product, &version);
    let (root_node, custom) = read_target(repo, &target).await?;
    let bad = |cause| TufError::BadTarget { target: target.clone(), cause };
    let manifest = Root::decode(&root_node).map_err(|e| bad(Some(e.into())))?.id();
    if stated.is_some_and(|stated| stated != manifest) {
        return Err(bad(None));
    }
    let patches = find_patches(repo, product).await?;
    let (product, cost) = (product.clone(), Cost::default());
    Ok(Resolved { product, version, channel, choice, root_node, manifest, custom, patches, cost })
}

/// Returns the product's patch sets. They only save bytes, so a list that does not parse counts as
/// empty.
async fn find_patches(repo: &mut Verified, product: &Name) -> Result<Vec<PatchSetRef>, TufError> {
    let bytes = match read_target(repo, &patches_target(product)).await {
        Ok((bytes, _)) => bytes,
        Err(TufError::UnknownTarget(_) | TufError::BadTarget { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    match serde_json::from_slice::<PatchesDoc>(&bytes) {
        Ok(doc) if doc.product == *product => Ok(doc.sets),
        _ => {
            tracing::warn!(%product, "list of patch sets is malformed and ignored");
            Ok(Vec::new())
        }
    }
}

async fn read_target(repo: &mut Verified, name: &str) -> Result<(Bytes, Map<String, Value>), TufError> {
    let bad = |cause| TufError::BadTarget { target: name.to_owned(), cause };
    let target_name = TargetName::new(name).map_err(|e| bad(Some(e.into())))?;
    let Some(target) = repo.find(&target_name).await? else {
        return Err(TufError::UnknownTarget(name.to_owned()));
    };
    if target.length > TARGET_BYTES_MAX {
        return Err(bad(None));
    }
    let custom = target.custom.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok((repo.read(&target_name, &target).await?, custom))
}

/// Returns the files worth keeping: the present metadata that was needed recently, and targets that
/// are still signed.
fn to_keep(
    repo: &Verified,
    files: &Files,
    held_targets: &[String],
    resolved: Option<&Resolved>,
) -> BTreeMap<String, Bytes> {
    let snapshot = &repo.snapshot.signed;
    let mut names = vec!["timestamp.json".to_owned(), format!("{}.snapshot.json", snapshot.version)];
    // Roles of other releases are kept too, as long as they are current: a device asks for few.
    let mut roles: Vec<_> =
        current_files(snapshot).into_values().filter(|name| files.get(name).is_some()).collect();
    roles.sort_unstable();
    roles.truncate(ROLES_KEPT_MAX);
    names.extend(roles);
    let path_of = |name: &str| repo.known_path(&TargetName::new(name).ok()?);
    if let Some(resolved) = resolved {
        names.extend(path_of(&release_target(&resolved.product, &resolved.version)));
        names.extend(path_of(&patches_target(&resolved.product)));
        let channel = resolved.channel.as_ref();
        // The releases of a rollout come with each answer as long as the question does not
        // name them as held.
        let rollout = channel.and_then(|doc| doc.rollout.as_ref());
        let versions = rollout.into_iter().flat_map(|doc| doc.requires.iter().chain([&doc.version]));
        names.extend(versions.filter_map(|version| path_of(&release_target(&resolved.product, version))));
        let channel = channel.map(|d| distd_core::names::channel_target(&d.product, &d.channel));
        names.extend(channel.and_then(|name| path_of(&name)));
    }
    // Targets that an earlier update held and this one did not use. They are checked again when
    // used.
    let is_superseded =
        |held: &String| target_of(held).and_then(|name| path_of(&name)).is_some_and(|now| now != *held);
    let others = held_targets.iter().filter(|held| !is_superseded(held));
    names.extend(others.take(HELD_TARGETS_MAX.saturating_sub(3)).cloned());
    names.into_iter().filter_map(|name| files.get(&name).map(|bytes| (name, bytes))).collect()
}
