//! A device that installs nothing, for trying the policy of a rollout (docs/operations.md,
//! "Simulated devices"). It looks, decides, waits, reports and goes back as any other: only the
//! fetch and the check are replaced.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use distd_core::fleet::report::AttemptState;
use distd_core::fleet::rollout::{Held, Share};
use distd_core::names::Name;
use distd_core::proto::close::CloseCode;
use distd_peer::enrollment::renew_regularly;
use distd_peer::net::close_code;
use distd_peer::news::Newsroom;
use tokio::sync::watch;

use super::{FollowRequest, Follower, PlaceSettings, Windows};
use crate::config::Settings;
use crate::disk::side;
use crate::failure::Failure;
use crate::share::{DeviceNode, Sharing, anywhere};

/// File in the state directory with the version that the device is taken to run.
const RUNS: &str = "simulated-release";

/// Longest version that is read, bytes.
const RUNS_BYTES_MAX: u64 = 256;

/// Parts in a whole, for drawing.
const PARTS: u64 = 1_000_000;

/// Fate of releases on a simulated device.
#[derive(Clone, Debug)]
pub struct Simulated {
    /// Time of a fetch.
    pub fetch: Duration,
    /// Time of a check.
    pub check: Duration,
    /// Share of the devices on which a release fails its check; `None` for none. The first release
    /// of a device works.
    pub fail: Option<Share>,
    /// Number of the device, by which it is drawn whether a release fails.
    pub number: u64,
    /// Seed of the draw.
    pub seed: u64,
    /// State of the device, for whoever runs it.
    pub state: Arc<Mutex<SimulatedState>>,
}

/// State of a simulated device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimulatedState {
    /// Version that it runs.
    pub version: Option<Name>,
    /// State of its newest attempt.
    pub attempt: Option<AttemptState>,
    /// Why it does not install the release of the rollout.
    pub held: Option<Held>,
}

impl Simulated {
    /// The state, for reading or writing.
    pub fn state(&self) -> MutexGuard<'_, SimulatedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a release fails on the device. The same device, release and seed give the same
    /// answer.
    pub fn fails(&self, version: &Name) -> bool {
        let Some(share) = self.fail else { return false };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_be_bytes()).update(&self.number.to_be_bytes());
        hasher.update(version.as_str().as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_be_bytes(first) % PARTS < share.of(PARTS)
    }
}

/// Place of the releases of a simulated device.
pub(super) struct SimulatedPlace {
    pub(super) device: Simulated,
    path: PathBuf,
}

impl SimulatedPlace {
    pub(super) fn new(device: Simulated, data: &Path) -> Self {
        Self { device, path: data.join(RUNS) }
    }

    /// Path by which releases are named.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn running(&self) -> anyhow::Result<Option<Name>> {
        let bytes = side::read(&self.path, RUNS_BYTES_MAX);
        let bytes = bytes.with_context(|| format!("could not read {}", self.path.display()))?;
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        Ok(text.and_then(|text| text.trim().parse().ok()))
    }

    /// Makes a version the one that runs, or none.
    pub(super) fn run(&self, version: Option<&Name>) -> anyhow::Result<()> {
        match version {
            Some(version) => {
                Ok(side::write_atomic(&self.path, version.as_str().as_bytes()).map_err(Failure::from)?)
            }
            None => match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            },
        }
    }

    /// Checks a release as the hook `health` does.
    ///
    /// # Errors
    /// When the release is one of those that fail on this device.
    pub(super) async fn check(&self, version: &Name, is_first: bool) -> anyhow::Result<()> {
        tokio::time::sleep(self.device.check).await;
        match !is_first && self.device.fails(version) {
            true => Err(anyhow::anyhow!("{version} is one of those that fail on this simulated device")),
            false => Ok(()),
        }
    }
}

/// Follows a channel with a simulated device that is enrolled, until `stopped` is set or its sender
/// is gone. `data` is the device's state directory, `parents` are its parents, nearest first.
///
/// # Errors
/// As [`DeviceNode::open`] and [`Follower::open`].
pub async fn follow_simulated(
    settings: &Settings,
    (product, channel): (Name, Name),
    data: &Path,
    parents: Vec<String>,
    device: Simulated,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let sharing = Sharing::of(settings).off();
    let outbound = settings.outbound(sharing.connectivity)?;
    let node =
        DeviceNode::open(data, parents.clone(), anywhere(0), false, &sharing, outbound.clone()).await?;
    let request = FollowRequest {
        product,
        channel,
        place: PlaceSettings::Simulated(device),
        poll: settings.follow_poll,
        view_memory: settings.view_memory(),
        windows: Windows { download: Vec::new(), install: Vec::new(), zone: settings.time_zone.clone() },
        hooks: PathBuf::new(),
        hook_limit: settings.hook_limit,
        defer_max: settings.defer_max,
        receipt_bound: settings.receipt_bound,
        data: data.to_owned(),
        parents,
        downgrade: settings.downgrade,
        sharing,
        outbound: outbound.clone(),
    };
    // A simulated device polls: nobody has to be told of its releases, and it tells nobody.
    let ca = node.identity.ca_der().context("the device has no CA certificate")?.clone();
    let news = Newsroom::open(data, ca);
    let follower = Follower::open(request, &node.identity, node.parents.clone(), news).await?;
    let DeviceNode { identity, credentials, parent_addresses, endpoint, .. } = node;
    let renewing = tokio::spawn(renew_regularly(identity, credentials, parent_addresses, outbound));
    follower.run(stopped).await;
    renewing.abort();
    endpoint.close(close_code(CloseCode::Done), b"");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_devices_that_fail_is_drawn_and_repeated() {
        let device = |number, seed| Simulated {
            fetch: Duration::ZERO,
            check: Duration::ZERO,
            fail: Some("3%".parse().expect("a share")),
            number,
            seed,
            state: Arc::default(),
        };
        let (two, three) = ("2".parse().expect("a name"), "3".parse().expect("a name"));
        let failing =
            |seed, version| (0..10_000).filter(|n| device(*n, seed).fails(version)).collect::<Vec<_>>();
        let first = failing(1, &two);
        assert!((200..400).contains(&first.len()), "{}", first.len());
        assert_eq!(first, failing(1, &two));
        assert_ne!(first, failing(1, &three));
        assert_ne!(first, failing(2, &two));
        let sound = Simulated { fail: None, ..device(0, 1) };
        assert!(!sound.fails(&two));
    }

    #[test]
    fn a_simulated_device_runs_what_it_was_told() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let device = Simulated {
            fetch: Duration::ZERO,
            check: Duration::ZERO,
            fail: None,
            number: 0,
            seed: 0,
            state: Arc::default(),
        };
        let place = SimulatedPlace::new(device, dir.path());
        assert_eq!(place.running().expect("reads"), None);
        let version: Name = "2".parse().expect("a name");
        place.run(Some(&version)).expect("runs");
        assert_eq!(place.running().expect("reads"), Some(version));
        for _ in 0..2 {
            place.run(None).expect("runs nothing");
        }
        assert_eq!(place.running().expect("reads"), None);
    }
}
