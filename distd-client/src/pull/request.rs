//! A request to pull a release, and the files that a pull keeps until it ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distd_core::fleet::rollout::RolloutId;
use distd_core::names::{Name, Wanted};
use distd_core::patch::ROUTE_LEGS_MAX;
use distd_peer::bundle::{self, Bundle};
use distd_peer::net::{Outbound, Transport};
use distd_peer::news::Newsroom;

use super::bundles;
use super::downgrade::Downgrade;
use super::kept;
use super::patches::Aim;
use crate::config::Settings;
use crate::disk::path::ArtifactPath;
use crate::failure::Failure;
use crate::share::Sharing;

/// File with the chunks that a small patch set rebuilt before the manifest was known.
pub(super) const REBUILT_FILE: &str = ".distd-part-rebuilt";

/// File with transient chunks: those that only a later patch needs.
pub(super) const TRANSIENT_FILE: &str = ".distd-part-passing";

/// Suffixes of all files of patches beside the target; the payloads of each set of a route come
/// first. An interrupted pull leaves these files, and the pull that continues it need not use
/// patches at all.
pub(super) const PATCH_FILES: [&str; ROUTE_LEGS_MAX + 2] = [
    ".distd-part-patches",
    ".distd-part-patches1",
    ".distd-part-patches2",
    ".distd-part-patches3",
    REBUILT_FILE,
    TRANSIENT_FILE,
];

/// Longest time for which the labels and pins of this device are used without asking a parent for
/// them.
pub const LABELS_FRESH: Duration = Duration::from_secs(10 * 60);

/// Version that a device runs, as far as its part in a rollout is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Installed {
    /// The version that is remembered of the channel and the target.
    #[default]
    Remembered,
    /// This version, or none.
    Is(Option<Name>),
}

/// A request to pull a release.
pub struct PullRequest {
    /// The release or channel.
    pub wanted: Wanted,
    /// Path of the target in the form of [`ArtifactPath`]; empty when `target` is `None`.
    pub out: PathBuf,
    /// The target, with the kind of object found there; `None` for a plan without a target.
    pub target: Option<ArtifactPath>,
    /// Paths of earlier artifacts.
    pub seeds: Vec<PathBuf>,
    /// Addresses of the parents, nearest first.
    pub parents: Vec<String>,
    /// State directory of the device.
    pub data: PathBuf,
    /// Whether a channel may lead to an older release.
    pub downgrade: Downgrade,
    /// Version that the device runs, for its part in rollouts.
    pub installed: Installed,
    /// Number of attempts by each rollout that failed on this device for reasons which are not the
    /// release's.
    pub passing_failures: BTreeMap<RolloutId, u32>,
    /// Whether the caller asks for a turn before it begins an attempt at a rollout that wants that.
    pub asks_for_turns: bool,
    /// Time for which the labels and pins of this device are used without asking a parent for them.
    pub labels_fresh: Duration,
    /// Version that the channel must lead to; `None` for any.
    pub expected: Option<Name>,
    /// Resource to save when patches are chosen.
    pub aim: Aim,
    /// Memory for views that are packed or unpacked at once, bytes.
    pub view_memory: u64,
    /// Settings of the exchange with neighbours.
    pub sharing: Sharing,
    /// Settings for reaching parents.
    pub outbound: Arc<Outbound>,
    /// News of the agent in this process. Without it the device obeys the halt notices that its
    /// agent has kept.
    pub news: Option<Arc<Newsroom>>,
    /// Bundle that is the only parent, if there is one: chunks and patches that it lacks cannot be
    /// had.
    pub bundle: Option<BundleSource>,
}

/// A bundle that a release is taken from.
#[derive(Clone, Debug)]
pub struct BundleSource {
    /// The bundle.
    pub bundle: Arc<Bundle>,
    /// Root metadata of the bundle's realm, for a device that is not of that realm; `None`: the
    /// device's own.
    pub root: Option<Bytes>,
}

impl PullRequest {
    /// Requests `wanted` for `out` with the settings that the device whose state directory is
    /// `data` remembers in `client.toml`, and without seeds beyond what the device itself
    /// installed.
    ///
    /// # Errors
    /// Failures with [`Code::Local`](crate::failure::Code::Local) or
    /// [`Code::Usage`](crate::failure::Code::Usage) when `client.toml` or `out` is unusable.
    pub fn new(data: &Path, wanted: Wanted, out: &Path) -> anyhow::Result<Self> {
        let settings = Settings::of_file(data).map_err(Failure::from)?;
        Self::without_target(data, wanted, &settings)?.to(out)
    }

    /// Sets the target.
    ///
    /// # Errors
    /// Failures with [`Code::Local`](crate::failure::Code::Local) or
    /// [`Code::Usage`](crate::failure::Code::Usage) when `out` is unusable.
    pub fn to(self, out: &Path) -> anyhow::Result<Self> {
        let target = ArtifactPath::target(out).map_err(Failure::from)?;
        Ok(Self { out: target.path().to_owned(), target: Some(target), ..self })
    }

    /// Requests `wanted` by these settings of the device whose state directory is `data`, to be
    /// resolved and not put anywhere.
    ///
    /// # Errors
    /// Failures with [`Code::Usage`](crate::failure::Code::Usage) when the settings of the way to
    /// the parents are unusable.
    pub fn without_target(data: &Path, wanted: Wanted, settings: &Settings) -> anyhow::Result<Self> {
        let sharing = Sharing::of(settings);
        Ok(Self {
            wanted,
            out: PathBuf::new(),
            target: None,
            seeds: Vec::new(),
            outbound: settings.outbound(sharing.connectivity)?,
            parents: settings.parents.clone(),
            data: data.to_owned(),
            downgrade: settings.downgrade,
            installed: Installed::Remembered,
            passing_failures: BTreeMap::new(),
            asks_for_turns: false,
            labels_fresh: LABELS_FRESH,
            expected: None,
            aim: Aim::default(),
            view_memory: settings.view_memory(),
            sharing,
            news: None,
            bundle: None,
        })
    }

    /// Makes the bundle at `path` the only parent, and touches no network. With `root`, a file with
    /// the root metadata of the bundle's realm, this device need not be of that realm; what it
    /// remembers of the realm is kept apart.
    ///
    /// # Errors
    /// Failures with [`Code::Integrity`](crate::failure::Code::Integrity) when the file is damaged,
    /// with [`Code::Usage`](crate::failure::Code::Usage) when it is the bundle of another release,
    /// with [`Code::Local`](crate::failure::Code::Local) when a file cannot be read.
    pub fn from_bundle(mut self, path: &Path, root: Option<&Path>) -> anyhow::Result<Self> {
        let bundle = Arc::new(bundles::open(path)?);
        bundles::check_wanted(bundle.head(), &self.wanted, path)?;
        let root = root.map(bundles::read_root).transpose()?;
        if let Some(root) = &root {
            self.data = bundles::data_of_root(&self.data, root)?;
        }
        self.outbound = Outbound::direct(Transport::default());
        self.parents = vec![bundle::add_parent(&self.outbound, path, bundle.clone())];
        self.bundle = Some(BundleSource { bundle, root });
        Ok(self.unshared())
    }

    /// Turns the exchange off, for a request that fetches no chunks that neighbours could have.
    pub fn unshared(mut self) -> Self {
        self.sharing = self.sharing.off();
        self
    }

    /// Place of the pull's target and files.
    pub(super) fn place(&self) -> Place<'_> {
        Place { out: &self.out, data: &self.data }
    }
}

/// Where a pull or a fetch puts its artifact, and the files that it keeps until it ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'p> {
    /// Path of the target in the form of [`ArtifactPath`].
    pub(super) out: &'p Path,
    /// State directory of the device.
    pub(super) data: &'p Path,
}

impl Place<'_> {
    /// Returns the path of a file of the pull: beside the target, or in the state directory for a
    /// block device.
    pub(super) fn state_path(self, suffix: &str) -> PathBuf {
        kept::part_path(self.out, self.data, suffix)
    }
}
