//! Decision whether the release of a channel may replace the release that this device has. A
//! channel that was moved back is followed only if a downgrade was ordered (docs/trust.md,
//! "Downgrades").
//!
//! `DIR/releases.json` records what pulls have installed. For each channel it has the latest
//! release, at whatever path, so that the older of two slots permits no downgrade. For each path it
//! has the release that is there, however it was chosen.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use distd_core::error::Chain;
use distd_core::names::{Name, Wanted};
use distd_peer::trust::tuf::Resolved;
use serde::{Deserialize, Serialize};

use super::kept;
use super::request::PullRequest;
use crate::disk::lock::{Patience, lock};
use crate::disk::side::{self, SideError};
use crate::failure::{Code, Failure};

/// Name of the file in the state directory.
const FILE_NAME: &str = "releases.json";

/// Largest number of channels, and of paths, that are remembered; the least recently changed is
/// dropped. A device follows one channel of a few products, into two slots each.
const REMEMBERED_MAX: usize = 64;

/// Largest file read, in bytes. 128 entries with three names of 100 bytes take a quarter of it.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// Policy: whether a channel may take this device back to an older release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Downgrade {
    /// Only if the signed channel orders it.
    #[default]
    Ordered,
    /// Never.
    Never,
    /// Whenever the channel points to an older release.
    Always,
}

/// Sequence number of a release; `None` is lower than all numbers.
type Sequence = Option<u64>;

/// Direction of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Not a downgrade: the release is not older than the latest of the channel, or the version was
    /// named exactly.
    On,
    /// A downgrade from this version, ordered by the channel or allowed by the user.
    Back(Name),
}

impl Step {
    /// Returns the version that the pull downgrades from.
    pub(super) fn back_from(&self) -> Option<String> {
        match self {
            Self::On => None,
            Self::Back(version) => Some(version.to_string()),
        }
    }
}

/// A channel points to an older release than this device has, and no downgrade is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error(
    "{product}:{channel} points to {offered}, which is older than {has} on this device, and {}",
    match policy {
        Downgrade::Never => "client.toml has policy.downgrade = \"never\"",
        Downgrade::Ordered | Downgrade::Always => "no downgrade was ordered",
    }
)]
pub struct Refused {
    product: Name,
    channel: Name,
    /// Version that this device has.
    has: Name,
    /// Version that the channel points to.
    offered: Name,
    policy: Downgrade,
}

/// The file does not parse.
#[derive(Debug, thiserror::Error)]
#[error("{} is damaged, so it is unknown which releases this device has had", .0.display())]
struct Damaged(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>);

/// A remembered release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Had {
    product: Name,
    version: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sequence: Sequence,
}

/// The latest release of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct OfChannel {
    channel: Name,
    #[serde(flatten)]
    had: Had,
}

/// The release at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct OfPlace {
    /// First 32 hexadecimal digits of the path's BLAKE3. The path itself may be long, and need not
    /// be UTF-8.
    place: String,
    #[serde(flatten)]
    had: Had,
}

/// Everything that is remembered, most recently changed first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    #[serde(default)]
    channels: Vec<OfChannel>,
    #[serde(default)]
    places: Vec<OfPlace>,
}

fn place_of(out: &Path) -> String {
    blake3::hash(out.as_os_str().as_encoded_bytes()).to_hex()[..32].to_owned()
}

fn had_of(resolved: &Resolved) -> Had {
    Had {
        product: resolved.product.clone(),
        version: resolved.version.clone(),
        sequence: resolved.sequence(),
    }
}

/// Decides about a release with the sequence number `wanted` on a device whose latest release has
/// the number `had`.
///
/// Returns `Ok(true)` for an allowed downgrade, `Ok(false)` if the release is not older, and `Err`
/// for a downgrade that is not allowed.
fn may_follow(policy: Downgrade, wanted: Sequence, had: Sequence, order: Sequence) -> Result<bool, ()> {
    if wanted >= had {
        return Ok(false);
    }
    match policy {
        Downgrade::Always => Ok(true),
        // An order reaches devices whose number is at most `order`. Without a number there is no
        // order.
        Downgrade::Ordered if order.is_some() && had <= order => Ok(true),
        Downgrade::Ordered | Downgrade::Never => Err(()),
    }
}

impl Memory {
    fn load(data: &Path) -> Result<Self, LoadError> {
        let path = data.join(FILE_NAME);
        let bytes = match side::read(&path, FILE_BYTES_MAX) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(Self::default()),
            Err(SideError::Io { cause, .. }) if cause.kind() == io::ErrorKind::FileTooLarge => {
                return Err(Damaged(path, cause.into()).into());
            }
            Err(error) => return Err(error.into()),
        };
        let mut memory: Self = serde_json::from_slice(&bytes).map_err(|cause| Damaged(path, cause.into()))?;
        memory.channels.truncate(REMEMBERED_MAX);
        memory.places.truncate(REMEMBERED_MAX);
        Ok(memory)
    }

    /// Writes the file durably.
    fn store(&self, data: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| anyhow!(error))?;
        Ok(side::write_atomic(&data.join(FILE_NAME), &text).map_err(Failure::from)?)
    }

    /// Returns the latest release of the product that came by the channel or is at `place`.
    fn latest(&self, product: &Name, channel: &Name, place: Option<&str>) -> Option<&Had> {
        let channels = self.channels.iter().filter(|of| of.channel == *channel).map(|of| &of.had);
        let places = self.places.iter().filter(|of| Some(of.place.as_str()) == place).map(|of| &of.had);
        channels.chain(places).filter(|had| had.product == *product).max_by_key(|had| had.sequence)
    }

    fn set_channel(&mut self, channel: &Name, had: &Had) {
        let is_it = |of: &OfChannel| of.channel == *channel && of.had.product == had.product;
        self.channels.retain(|of| !is_it(of));
        self.channels.insert(0, OfChannel { channel: channel.clone(), had: had.clone() });
        self.channels.truncate(REMEMBERED_MAX);
    }

    fn set_place(&mut self, place: &str, had: &Had) {
        self.places.retain(|of| of.place != place);
        self.places.insert(0, OfPlace { place: place.to_owned(), had: had.clone() });
        self.places.truncate(REMEMBERED_MAX);
    }

    /// Records a release. While `is_done` is false the release is about to be put in place, and
    /// only a release later than the remembered one is recorded. If the pull is killed in between,
    /// the later of both releases stays remembered.
    fn enter(&mut self, had: &Had, channel: Option<&Name>, place: &str, step: &Step, is_done: bool) {
        let of_channel = |of: &&OfChannel| Some(&of.channel) == channel && of.had.product == had.product;
        if let Some(channel) = channel {
            let known = self.channels.iter().find(of_channel).map(|of| &of.had);
            // Another pull of the channel may have installed a later release meanwhile.
            let is_back = is_done && *step != Step::On;
            let is_later = known.is_none_or(|known| known.sequence <= had.sequence);
            if (is_back || is_later) && known != Some(had) {
                self.set_channel(channel, had);
            }
        }
        let known = self.places.iter().find(|of| of.place == place).map(|of| &of.had);
        let is_later =
            known.is_none_or(|known| known.product == had.product && known.sequence <= had.sequence);
        if (is_done || is_later) && known != Some(had) {
            self.set_place(place, had);
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Side(#[from] SideError),
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Side(error) => error.into(),
            LoadError::Damaged(error) => Self::new(Code::Local, error.into()).next(
                "check which release the channel points to (an operator can: distd channel show); to take that release in any case and start a new record, run the same command with --allow-downgrade",
            ),
        }
    }
}

/// Checks whether `resolved` may be pulled into `out`; writes nothing.
///
/// # Errors
/// Failures with [`Code::Refused`] around [`Refused`], or with [`Code::Local`] when the file cannot
/// be read.
pub(super) fn check(
    data: &Path,
    out: Option<&Path>,
    resolved: &Resolved,
    policy: Downgrade,
) -> anyhow::Result<Step> {
    // A user who names an exact version has chosen it.
    let Some(doc) = &resolved.channel else { return Ok(Step::On) };
    let memory = match Memory::load(data) {
        Ok(memory) => memory,
        Err(error) if policy == Downgrade::Always => {
            tracing::warn!(error = %Chain(&error), "what this device has had is forgotten");
            Memory::default()
        }
        Err(error) => return Err(Failure::from(error).into()),
    };
    // If nothing is at the path, the release that was there does not count.
    let place = out.filter(|out| out.exists()).map(place_of);
    let Some(had) = memory.latest(&doc.product, &doc.channel, place.as_deref()) else {
        return Ok(Step::On);
    };
    match may_follow(policy, resolved.sequence(), had.sequence, doc.downgrade_from) {
        Ok(false) => Ok(Step::On),
        Ok(true) => Ok(Step::Back(had.version.clone())),
        Err(()) => {
            let refused = Refused {
                product: doc.product.clone(),
                channel: doc.channel.clone(),
                has: had.version.clone(),
                offered: resolved.version.clone(),
                policy,
            };
            let next = match policy {
                Downgrade::Never => {
                    "to go back all the same, run the same command with --allow-downgrade".to_owned()
                }
                Downgrade::Ordered | Downgrade::Always => format!(
                    "ask the operator: distd channel history {0}:{1} shows who moved it, distd channel set {0}:{1} {2} \
                     --downgrade orders it; or go back on this device alone with --allow-downgrade",
                    doc.product, doc.channel, resolved.version
                ),
            };
            Err(Failure::new(Code::Refused, refused.into()).next(next).into())
        }
    }
}

/// Version of the wanted channel's product that this device had last by the channel or at the
/// target; `None` for a release that is named, or when nothing is known.
pub(super) fn installed(request: &PullRequest) -> Option<Name> {
    let Wanted::Channel { product, channel } = &request.wanted else { return None };
    let memory = Memory::load(&request.data).ok()?;
    let out = request.target.as_ref().map(|target| target.path());
    let place = out.filter(|out| out.exists()).map(place_of);
    memory.latest(product, channel, place.as_deref()).map(|had| had.version.clone())
}

/// Version of a product that a pull has put at `out` whole; `None` for anything else.
pub(crate) fn version_at(data: &Path, out: &Path, product: &Name) -> Option<Name> {
    if kept::has_part(out, data) {
        return None;
    }
    let memory = Memory::load(data).ok()?;
    let place = place_of(out);
    let at = memory.places.into_iter().find(|of| of.place == place)?;
    (at.had.product == *product).then_some(at.had.version)
}

/// Records that this device has gone back to the release at `out`, or to none, because the
/// channel's later one does not run here: the channel is followed from there on.
///
/// # Errors
/// Failures with [`Code::Local`].
pub(crate) fn went_back(data: &Path, wanted: &Wanted, out: Option<&Path>) -> anyhow::Result<()> {
    let Wanted::Channel { product, channel } = wanted else { return Ok(()) };
    let _turn = turn(data)?;
    let mut memory = Memory::load(data).map_err(Failure::from)?;
    let before = memory.clone();
    let place = out.map(place_of);
    let had = memory.places.iter().find(|of| Some(&of.place) == place.as_ref()).map(|of| of.had.clone());
    match had {
        Some(had) => memory.set_channel(channel, &had),
        None if out.is_none() => {
            memory.channels.retain(|of| of.channel != *channel || of.had.product != *product);
        }
        None => {}
    }
    if memory == before { Ok(()) } else { memory.store(data) }
}

/// Stage of a pull at which its release is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// The release is about to be put in place.
    Before,
    /// The release is in place.
    After,
}

/// A release that a pull is about to put in place.
#[derive(Clone)]
pub(super) struct PendingRelease {
    data: PathBuf,
    place: String,
    had: Had,
    channel: Option<Name>,
    policy: Downgrade,
    pub(super) step: Step,
}

impl fmt::Debug for PendingRelease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingRelease")
            .field("had", &self.had)
            .field("step", &self.step)
            .finish_non_exhaustive()
    }
}

impl PendingRelease {
    /// Makes the record for `resolved`, which [`check`] let pass as `step`.
    pub(super) fn new(data: &Path, out: &Path, resolved: &Resolved, policy: Downgrade, step: Step) -> Self {
        Self {
            data: data.to_owned(),
            place: place_of(out),
            had: had_of(resolved),
            channel: resolved.channel.as_ref().map(|doc| doc.channel.clone()),
            policy,
            step,
        }
    }

    /// Records the release durably. Flash wears out, so nothing is written when nothing changes.
    ///
    /// # Errors
    /// Failures with [`Code::Local`].
    pub(super) fn remember(&self, when: When) -> anyhow::Result<()> {
        let _turn = turn(&self.data)?;
        let before = match Memory::load(&self.data) {
            Ok(memory) => memory,
            // A new file would make the device follow every channel again; only the user may decide
            // that.
            Err(LoadError::Damaged(error)) if self.channel.is_none() => {
                tracing::warn!(error = %Chain(&error), "the release is not remembered");
                return Ok(());
            }
            Err(LoadError::Damaged(_)) if self.policy == Downgrade::Always => Memory::default(),
            Err(error) => return Err(Failure::from(error).into()),
        };
        let mut memory = before.clone();
        memory.enter(&self.had, self.channel.as_ref(), &self.place, &self.step, when == When::After);
        if memory == before { Ok(()) } else { memory.store(&self.data) }
    }
}

/// Waits for the turn to change the file: two pulls may end at the same time.
fn turn(data: &Path) -> Result<File, Failure> {
    let path = data.join("releases.lock");
    let (held, _) = side::open(&path)?;
    lock(&held, &path, Patience::Some)?;
    Ok(held)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn had(version: &str, sequence: impl Into<Sequence>) -> Had {
        Had { product: name("os"), version: name(version), sequence: sequence.into() }
    }

    #[test]
    fn only_an_order_that_reaches_this_device_allows_a_downgrade() {
        use Downgrade::{Always, Never, Ordered};
        // Results for the policies ordered, never and always: on, back, or refused.
        for (wanted, has, order, expected) in [
            (Some(14), Some(13), None, "on on on"),
            (Some(14), Some(14), None, "on on on"),
            (Some(14), None, None, "on on on"),
            (None, None, None, "on on on"),
            (Some(13), Some(14), None, "refused refused back"),
            (Some(13), Some(14), Some(13), "refused refused back"),
            (Some(13), Some(14), Some(14), "back refused back"),
            (Some(13), Some(14), Some(99), "back refused back"),
            // A release without a number is older than every release with one.
            (None, Some(1), None, "refused refused back"),
            (None, Some(0), None, "refused refused back"),
            (None, Some(1), Some(1), "back refused back"),
        ] {
            let words: Vec<_> = [Ordered, Never, Always]
                .into_iter()
                .map(|policy| match may_follow(policy, wanted, has, order) {
                    Ok(false) => "on",
                    Ok(true) => "back",
                    Err(()) => "refused",
                })
                .collect();
            assert_eq!(words.join(" "), expected, "{wanted:?} over {has:?}, order {order:?}");
        }
    }

    #[test]
    fn the_older_slot_permits_no_downgrade_and_other_products_and_channels_do_not_count() {
        let mut memory = Memory::default();
        let (stable, beta) = (name("stable"), name("beta"));
        memory.enter(&had("13", 13), Some(&stable), "a", &Step::On, true);
        memory.enter(&had("14", 14), Some(&stable), "b", &Step::On, true);
        memory.enter(&had("20", 20), Some(&beta), "c", &Step::On, true);
        let latest =
            |channel: &Name, place| memory.latest(&name("os"), channel, place).map(|had| had.sequence);
        for place in [None, Some("a"), Some("b"), Some("other")] {
            assert_eq!(latest(&stable, place), Some(Some(14)), "{place:?}");
        }
        // At a path, the release that is there counts, whatever its channel.
        assert_eq!(latest(&stable, Some("c")), Some(Some(20)));
        assert_eq!(latest(&name("none"), None), None);
        assert_eq!(memory.latest(&name("app"), &stable, Some("a")), None);
    }

    #[test]
    fn a_kill_leaves_the_later_release_remembered_and_the_end_the_installed_one() {
        let stable = name("stable");
        let mut memory = Memory::default();
        memory.enter(&had("14", 14), Some(&stable), "a", &Step::On, true);
        let back = Step::Back(name("14"));
        let was = memory.clone();
        memory.enter(&had("1", 1), Some(&stable), "a", &back, false);
        assert_eq!(memory, was, "going back is remembered when it is done");
        memory.enter(&had("1", 1), Some(&stable), "a", &back, true);
        assert_eq!(memory.latest(&name("os"), &stable, Some("a")), Some(&had("1", 1)));
        memory.enter(&had("15", 15), Some(&stable), "a", &Step::On, false);
        assert_eq!(memory.latest(&name("os"), &stable, Some("a")), Some(&had("15", 15)), "going on before");
        // A pull of the channel that ended after a pull of a later release.
        memory.enter(&had("14", 14), Some(&stable), "b", &Step::On, true);
        assert_eq!(memory.latest(&name("os"), &stable, Some("b")), Some(&had("15", 15)));
        // An exact version is recorded for its path and leaves the channel's record alone.
        memory.enter(&had("1", 1), None, "a", &Step::On, true);
        assert_eq!(memory.latest(&name("os"), &stable, None), Some(&had("15", 15)));
        assert_eq!(memory.latest(&name("os"), &name("edge"), Some("a")), Some(&had("1", 1)));
    }

    #[test]
    fn the_memory_is_bounded_and_drops_the_least_recently_changed() {
        let mut memory = Memory::default();
        for n in 0..200_u64 {
            memory.enter(&had("1", n), Some(&name(&format!("c{n}"))), &n.to_string(), &Step::On, true);
        }
        assert_eq!((memory.channels.len(), memory.places.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        assert_eq!(memory.channels[0].channel, name("c199"));
        let long = |n: usize| name(&format!("{n:0>100}"));
        for n in 0..200 {
            let had = Had { product: long(n), version: long(n), sequence: Some(u64::MAX) };
            memory.enter(&had, Some(&long(n)), &place_of(Path::new(&n.to_string())), &Step::On, true);
        }
        let text = serde_json::to_vec_pretty(&memory).expect("encodes");
        assert!(text.len() as u64 <= FILE_BYTES_MAX, "{} bytes", text.len());
    }

    #[test]
    fn a_damaged_memory_is_reported_and_replaced_only_on_request() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join(FILE_NAME);
        let pending = |channel: Option<&str>, policy| PendingRelease {
            data: dir.path().to_owned(),
            place: "a".to_owned(),
            had: had("1", 1),
            channel: channel.map(name),
            policy,
            step: Step::On,
        };
        for bytes in [&b"["[..], b"{\"channels\": 7}", b"", &vec![b' '; 300 << 10]] {
            fs::write(&file, bytes).expect("write");
            let error = Memory::load(dir.path()).expect_err("damaged");
            let failure = anyhow::Error::from(Failure::from(error));
            assert_eq!(crate::failure::code_of(&failure), Code::Local);
            assert!(format!("{failure:#}").contains(FILE_NAME), "{failure:#}");
        }
        fs::write(&file, "[").expect("write");
        assert!(pending(Some("stable"), Downgrade::Ordered).remember(When::After).is_err());
        pending(None, Downgrade::Always).remember(When::After).expect("an exact version");
        assert_eq!(fs::read(&file).expect("read"), b"[", "left for whoever looks");
        pending(Some("stable"), Downgrade::Always).remember(When::After).expect("said");
        let memory = Memory::load(dir.path()).expect("whole");
        assert_eq!(memory.latest(&name("os"), &name("stable"), None), Some(&had("1", 1)));
        // A file of a later version, with additional fields.
        fs::write(
            &file,
            r#"{"channels": [{"channel": "stable", "product": "os", "version": "2", "x": 1}], "y": 2}"#,
        )
        .expect("write");
        let memory = Memory::load(dir.path()).expect("whole");
        assert_eq!(memory.latest(&name("os"), &name("stable"), None), Some(&had("2", None)));
    }

    #[test]
    fn an_unchanged_memory_is_not_rewritten() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let pending = PendingRelease {
            data: dir.path().to_owned(),
            place: "a".to_owned(),
            had: had("1", 1),
            channel: Some(name("stable")),
            policy: Downgrade::Ordered,
            step: Step::On,
        };
        pending.remember(When::Before).expect("written");
        let inode =
            || std::os::unix::fs::MetadataExt::ino(&fs::metadata(dir.path().join(FILE_NAME)).expect("stat"));
        let first = inode();
        // Occupies the freed inode number, so that a rewritten file would get another one.
        let _other = File::create(dir.path().join("other")).expect("create");
        pending.remember(When::After).expect("nothing to do");
        assert_eq!(inode(), first);
    }
}
