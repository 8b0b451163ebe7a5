//! Whether the release of a channel may take the place of what this device has: a channel that is
//! moved back is followed only where that was ordered (docs/trust.md, "Downgrades").
//!
//! `DIR/releases.json` remembers what pulls have installed: of each channel the release that came last, whatever the
//! place, so that the older of two slots permits nothing; of each place the release that is there,
//! whichever way it came.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use distd_core::names::Name;
use distd_peer::trust::tuf::Resolved;
use serde::{Deserialize, Serialize};

use crate::disk::lock::{Patience, lock};
use crate::disk::side::{self, SideError};
use crate::exit::{Code, Failure};

/// Name of the file in the state directory.
const FILE_NAME: &str = "releases.json";

/// Most channels and most places remembered; the one that changed longest ago goes first. A device
/// follows one channel of a few products, into two slots each.
const REMEMBERED_MAX: usize = 64;

/// Longest file read, bytes: 128 entries of three names of 100 bytes take a quarter.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// Whether a channel may lead this device back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Downgrade {
    /// Where the signed channel orders it.
    #[default]
    Ordered,
    /// Not at all.
    Never,
    /// Whenever it points to an older release.
    Always,
}

impl Downgrade {
    /// Whether it is what nothing said means.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A number of a release; none is below all numbers.
type Sequence = Option<u64>;

/// Which way a pull goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Not to an older release than a channel brought, or to an exact version.
    On,
    /// Back, from this version, as the channel orders or the user allows.
    Back(Name),
}

impl Step {
    /// The version that was gone back from.
    pub(super) fn back_from(&self) -> Option<String> {
        match self {
            Self::On => None,
            Self::Back(version) => Some(version.to_string()),
        }
    }
}

/// A channel that points to an older release than this device has, without leave to go back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error(
    "{product}:{channel} points to {offered}, which is older than {has} on this device, and {}",
    match policy {
        Downgrade::Never => "client.toml has downgrade = \"never\"",
        Downgrade::Ordered | Downgrade::Always => "no downgrade was ordered",
    }
)]
pub(crate) struct Refused {
    product: Name,
    channel: Name,
    /// The version that this device has.
    has: Name,
    /// The version that the channel points to.
    offered: Name,
    policy: Downgrade,
}

/// The file says nothing that can be read.
#[derive(Debug, thiserror::Error)]
#[error("{} is damaged: which releases this device has had is not known", .0.display())]
struct Damaged(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>);

/// A release as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Had {
    product: Name,
    version: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sequence: Sequence,
}

/// The release that a channel brought last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct OfChannel {
    channel: Name,
    #[serde(flatten)]
    had: Had,
}

/// The release at a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct OfPlace {
    /// 32 hexadecimal digits of the path's BLAKE3: a path may be long, and no UTF-8.
    place: String,
    #[serde(flatten)]
    had: Had,
}

/// All that is remembered, what changed last first.
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

/// Decides about a release with number `wanted` where the latest that this device has is numbered `had`.
///
/// `Ok(true)` when it goes back with leave.
fn may_follow(policy: Downgrade, wanted: Sequence, had: Sequence, order: Sequence) -> Result<bool, ()> {
    if wanted >= had {
        return Ok(false);
    }
    match policy {
        Downgrade::Always => Ok(true),
        // An order is for devices that have at most this; a number that there is not is no order.
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

    /// The latest release of the product that the channel brought, or that is at `place`.
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

    /// Enters a release. While `is_done` is false it is about to take its place, and only what is
    /// later than what is remembered is entered: a kill in between leaves the memory of the later
    /// of both.
    fn enter(&mut self, had: &Had, channel: Option<&Name>, place: &str, step: &Step, is_done: bool) {
        let of_channel = |of: &&OfChannel| Some(&of.channel) == channel && of.had.product == had.product;
        if let Some(channel) = channel {
            let known = self.channels.iter().find(of_channel).map(|of| &of.had);
            // Another pull of the channel may have come further meanwhile.
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
                "look at what the channel points to (distd channel show, at the origin's side); to take it whatever it is and \
                 remember anew, run the same command with --allow-downgrade",
            ),
        }
    }
}

/// Looks whether `resolved` may be pulled into `out`; nothing is written.
///
/// # Errors
/// Failures with [`Code::Refused`] around [`Refused`], or with [`Code::Local`] when the memory
/// cannot be read.
pub(super) fn check(
    data: &Path,
    out: Option<&Path>,
    resolved: &Resolved,
    policy: Downgrade,
) -> anyhow::Result<Step> {
    // Whoever asks for a version by name has chosen it.
    let Some(doc) = &resolved.channel else { return Ok(Step::On) };
    let memory = match Memory::load(data) {
        Ok(memory) => memory,
        Err(error) if policy == Downgrade::Always => {
            tracing::warn!(error = &error as &dyn std::error::Error, "what this device has had is forgotten");
            Memory::default()
        }
        Err(error) => return Err(Failure::from(error).into()),
    };
    // A place with nothing in it has no release, whatever was there.
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

/// How far a pull is when its release is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// The release is about to take its place.
    Before,
    /// It is in place.
    After,
}

/// A release on its way into its place.
#[derive(Clone)]
pub(super) struct Arrival {
    data: PathBuf,
    place: String,
    had: Had,
    channel: Option<Name>,
    policy: Downgrade,
    pub(super) step: Step,
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrival").field("had", &self.had).field("step", &self.step).finish_non_exhaustive()
    }
}

impl Arrival {
    /// Of `resolved`, which [`check`] let pass as `step`.
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

    /// Remembers it, durably. Flash wears: nothing is written where nothing changes.
    ///
    /// # Errors
    /// Failures with [`Code::Local`].
    pub(super) fn remember(&self, when: When) -> anyhow::Result<()> {
        // Two pulls may end at once.
        let lock_path = self.data.join("releases.lock");
        let (held, _) = side::open(&lock_path).map_err(Failure::from)?;
        lock(&held, &lock_path, Patience::Some).map_err(Failure::from)?;
        let before = match Memory::load(&self.data) {
            Ok(memory) => memory,
            // Writing anew makes the device follow every channel again: that is the user's to say.
            Err(LoadError::Damaged(error)) if self.channel.is_none() => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the release is not remembered");
                return Ok(());
            }
            Err(LoadError::Damaged(_)) if self.policy == Downgrade::Always => Memory::default(),
            Err(error) => return Err(Failure::from(error).into()),
        };
        let mut memory = before.clone();
        memory.enter(&self.had, self.channel.as_ref(), &self.place, &self.step, when == When::After);
        if memory == before {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(&memory).map_err(|error| anyhow!(error))?;
        Ok(side::write_atomic(&self.data.join(FILE_NAME), &text).map_err(Failure::from)?)
    }
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
    fn only_an_order_that_reaches_this_device_leads_it_back() {
        use Downgrade::{Always, Never, Ordered};
        // Of the policies ordered, never and always: on, back, or refused.
        for (wanted, has, order, expected) in [
            (Some(14), Some(13), None, "on on on"),
            (Some(14), Some(14), None, "on on on"),
            (Some(14), None, None, "on on on"),
            (None, None, None, "on on on"),
            (Some(13), Some(14), None, "refused refused back"),
            (Some(13), Some(14), Some(13), "refused refused back"),
            (Some(13), Some(14), Some(14), "back refused back"),
            (Some(13), Some(14), Some(99), "back refused back"),
            // A release without a number is older than all that have one.
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
    fn the_older_slot_permits_nothing_and_another_product_or_channel_does_not_count() {
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
        // Of a place whatever is there counts.
        assert_eq!(latest(&stable, Some("c")), Some(Some(20)));
        assert_eq!(latest(&name("none"), None), None);
        assert_eq!(memory.latest(&name("app"), &stable, Some("a")), None);
    }

    #[test]
    fn a_kill_on_the_way_leaves_the_later_of_both_and_the_end_what_is_there() {
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
        // A pull of the channel that took longer than a later one.
        memory.enter(&had("14", 14), Some(&stable), "b", &Step::On, true);
        assert_eq!(memory.latest(&name("os"), &stable, Some("b")), Some(&had("15", 15)));
        // An exact version is the place's, and leaves the channel alone.
        memory.enter(&had("1", 1), None, "a", &Step::On, true);
        assert_eq!(memory.latest(&name("os"), &stable, None), Some(&had("15", 15)));
        assert_eq!(memory.latest(&name("os"), &name("edge"), Some("a")), Some(&had("1", 1)));
    }

    #[test]
    fn the_memory_is_bounded_and_the_one_that_changed_longest_ago_goes() {
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
    fn a_damaged_memory_is_named_and_mended_only_when_that_is_said() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join(FILE_NAME);
        let arrival = |channel: Option<&str>, policy| Arrival {
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
            assert_eq!(crate::exit::code_of(&failure), Code::Local);
            assert!(format!("{failure:#}").contains(FILE_NAME), "{failure:#}");
        }
        fs::write(&file, "[").expect("write");
        assert!(arrival(Some("stable"), Downgrade::Ordered).remember(When::After).is_err());
        arrival(None, Downgrade::Always).remember(When::After).expect("an exact version");
        assert_eq!(fs::read(&file).expect("read"), b"[", "left for whoever looks");
        arrival(Some("stable"), Downgrade::Always).remember(When::After).expect("said");
        let memory = Memory::load(dir.path()).expect("whole");
        assert_eq!(memory.latest(&name("os"), &name("stable"), None), Some(&had("1", 1)));
        // Written by a later version, with more in it.
        fs::write(
            &file,
            r#"{"channels": [{"channel": "stable", "product": "os", "version": "2", "x": 1}], "y": 2}"#,
        )
        .expect("write");
        let memory = Memory::load(dir.path()).expect("whole");
        assert_eq!(memory.latest(&name("os"), &name("stable"), None), Some(&had("2", None)));
    }

    #[test]
    fn what_is_remembered_already_is_not_written_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let arrival = Arrival {
            data: dir.path().to_owned(),
            place: "a".to_owned(),
            had: had("1", 1),
            channel: Some(name("stable")),
            policy: Downgrade::Ordered,
            step: Step::On,
        };
        arrival.remember(When::Before).expect("written");
        let inode =
            || std::os::unix::fs::MetadataExt::ino(&fs::metadata(dir.path().join(FILE_NAME)).expect("stat"));
        let first = inode();
        // A file in its place would take another number.
        let _other = fs::File::create(dir.path().join("other")).expect("create");
        arrival.remember(When::After).expect("nothing to do");
        assert_eq!(inode(), first);
    }
}
