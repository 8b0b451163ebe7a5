//! A device that follows a channel: it looks for the release that it is to run, installs it, makes
//! it the current one, checks that it works, goes back otherwise, and reports (docs/rollouts.md).
//!
//! `journal` holds what must survive a crash; each step is written there before it is taken.
//! `begin` decides whether an attempt may begin, `step` takes it, `recover` goes on after a crash.
//! `trying` marks a first boot. `place` is where releases are: a `directory`, or `slots` with a
//! `boot` loader. `orders` come from somebody at the device, `by_hand` carries them out with a
//! `deferral`. `hooks` runs the operator's programs, `restart` the system, [`failures`] remembers
//! releases that did not work here, `reports` tells the realm, and `receipts` what the device
//! signed about the releases that it ran.

mod begin;
mod boot;
mod by_hand;
mod deferral;
mod directory;
mod examine;
pub mod failures;
mod hooks;
mod journal;
mod orders;
mod place;
mod programs;
mod receipts;
mod recover;
mod reports;
mod restart;
mod simulated;
mod slots;
mod status;
mod step;
mod trying;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use distd_core::error::Chain;
use distd_core::fleet::window::{WeekTime, Window, is_open};
use distd_core::names::{Name, Wanted};
use distd_peer::filesystem;
use distd_peer::net::Outbound;
use distd_peer::news::Newsroom;
use distd_peer::parents::Parents;
use distd_peer::random;
use distd_peer::rates::local_time;
use distd_peer::trust::identity::NodeIdentity;
use jiff::tz::TimeZone;
use tokio::sync::{Notify, watch};

pub use self::boot::LoaderKind;
use self::boot::{ESP, Kernel, LoaderSettings, Start};
use self::directory::Directory;
pub use self::examine::examine_place;
use self::orders::{Given, Orders};
pub use self::orders::{Order, give_order};
use self::place::Place;
use self::reports::Reporter;
use self::restart::BootId;
use self::simulated::SimulatedPlace;
pub use self::simulated::{Simulated, SimulatedState, follow_simulated};
pub use self::slots::PartitionPlace;
use self::slots::Slots;
pub use self::status::{Status, read_status};
use self::step::Step;
use crate::config::Settings;
use crate::failure::{Code, Failure};
use crate::pull::Downgrade;
use crate::share::Sharing;

/// File in the state directory that the following process locks.
const LOCK: &str = "follow.lock";

/// Longest time between two reports when nothing changes: the origin counts devices that it has
/// heard of within a week, and shows those that are silent for longer than a few of these.
const REPORT_EVERY: Duration = Duration::from_secs(distd_core::fleet::state::REPORT_PERIOD);

/// Settings of the place of a channel's releases.
#[derive(Clone, Debug)]
enum PlaceSettings {
    /// None: the device installs nothing.
    Simulated(Simulated),
    /// Directory with `releases/VERSION` and the link `current`.
    Directory {
        directory: PathBuf,
        /// Number of releases that stay in it, the current one included; 2 at least.
        keep: usize,
    },
    /// Two slots that the system is started from.
    Slots {
        /// Name and block device of each.
        slots: Vec<(Name, PathBuf)>,
        /// Partitions of a release; empty when it is the image of the slot's device.
        partitions: Vec<PartitionPlace>,
        loader: LoaderSettings,
        /// Number of times that a release is started before it has failed.
        tries: u32,
        /// Command that restarts the system; empty when something else does.
        reboot: String,
    },
}

/// A channel to follow, and the place where its releases are installed.
#[derive(Clone)]
pub struct FollowRequest {
    /// Product of the channel.
    pub product: Name,
    /// Channel.
    pub channel: Name,
    /// Place of its releases.
    place: PlaceSettings,
    /// Time between two looks at the channel.
    pub poll: Duration,
    /// Memory for views that are packed or unpacked at once, bytes.
    pub view_memory: u64,
    /// Parts of the week in which the device may act.
    windows: Windows,
    /// Directory with the programs that are run at each state.
    pub hooks: PathBuf,
    /// Time limit of each of these programs.
    pub hook_limit: Duration,
    /// Longest time for which somebody at the device may put updates off.
    pub defer_max: Duration,
    /// Time within which a receipt of the device must be in the realm's log.
    receipt_bound: Duration,
    /// State directory of the device.
    pub data: PathBuf,
    /// Addresses of the parents, nearest first.
    pub parents: Vec<String>,
    /// Whether a channel may lead to an older release.
    pub downgrade: Downgrade,
    /// Settings of the exchange with neighbours.
    pub sharing: Sharing,
    /// Settings for reaching parents.
    pub outbound: Arc<Outbound>,
}

impl FollowRequest {
    /// Makes the request that the settings of the device whose state directory is `data` describe;
    /// `None` when they name no channel.
    ///
    /// # Errors
    /// Failures with [`Code::Usage`] when they name a channel and no place, a place and no channel,
    /// or the proxy is unusable.
    pub fn of(settings: &Settings, data: &Path) -> anyhow::Result<Option<Self>> {
        let Some(Wanted::Channel { product, channel }) = settings.follow.clone() else {
            if settings.follow_directory.is_some() || !settings.slots.is_empty() {
                let error = anyhow!("a place for releases is named, and no channel to follow");
                let next =
                    "name the channel: --follow PRODUCT:CHANNEL, or channel in [follow] of client.toml";
                return Err(Failure::new(Code::Usage, error).next(next).into());
            }
            return Ok(None);
        };
        let place = PlaceSettings::of(settings, data)?;
        let sharing = Sharing::of(settings);
        Ok(Some(Self {
            product,
            channel,
            place,
            poll: settings.follow_poll,
            view_memory: settings.view_memory(),
            windows: Windows {
                download: settings.download_windows.clone(),
                install: settings.install_windows.clone(),
                zone: settings.time_zone.clone(),
            },
            hooks: settings.hooks.clone(),
            hook_limit: settings.hook_limit,
            defer_max: settings.defer_max,
            receipt_bound: settings.receipt_bound,
            data: data.to_owned(),
            parents: settings.parents.clone(),
            downgrade: settings.downgrade,
            outbound: settings.outbound(sharing.connectivity)?,
            sharing,
        }))
    }
}

/// Parts of the week in which the device may act; an empty list is the whole week.
#[derive(Clone, Debug, Default)]
struct Windows {
    download: Vec<Window>,
    install: Vec<Window>,
    /// Time zone of the windows; `None` for the system's.
    zone: Option<TimeZone>,
}

/// Freedom of a device to act now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MayNow {
    /// A fetch may begin.
    download: bool,
    /// An installation may begin.
    install: bool,
}

impl Windows {
    fn local_time(&self) -> WeekTime {
        local_time(self.zone.as_ref())
    }

    fn now(&self) -> MayNow {
        let at = self.local_time();
        MayNow { download: is_open(&self.download, at), install: is_open(&self.install, at) }
    }
}

/// How systemd-boot starts a slot by these settings; `None` when they do not say.
fn start_of(settings: &Settings) -> anyhow::Result<Option<Start>> {
    let usage = |error: anyhow::Error, next: &str| Err(Failure::new(Code::Usage, error).next(next).into());
    let label = match (&settings.unified_kernel, &settings.kernel) {
        (None, None) => return Ok(None),
        (None, Some(kernel)) => {
            let (initrd, options) = (settings.initrd.clone(), settings.kernel_options.clone());
            return Ok(Some(Start::Kernel(Kernel { kernel: kernel.clone(), initrd, options })));
        }
        (Some(_), Some(_)) => {
            let error =
                anyhow!("a kernel and a unified kernel image are named, and a slot is started by one");
            return usage(error, "remove kernel or unified_kernel from [follow] of client.toml");
        }
        (Some(label), None) => label,
    };
    let place = settings.partitions.iter().find(|partition| partition.label == *label);
    let esp = settings.boot_path.clone().unwrap_or_else(|| ESP.into());
    let path = place.and_then(|place| Path::new(place.path.as_ref()?).strip_prefix(&esp).ok()?.to_str());
    match path {
        // systemd-boot starts such an image without an entry, also one that is half written.
        Some(path) if path.to_ascii_lowercase().starts_with("efi/linux/") => {
            let error = anyhow!("systemd-boot lists every image in EFI/Linux by itself");
            usage(error, "choose another directory for the unified kernel image, such as distd/{slot}")
        }
        Some(path) => {
            Ok(Some(Start::Unified { path: path.to_owned(), options: settings.kernel_options.clone() }))
        }
        None => {
            let error = anyhow!("the unified kernel image {label} has no place on the EFI system partition");
            let next =
                format!("add it to follow.partitions: {label}={}/distd/{{slot}}/uki.efi", esp.display());
            usage(error, &next)
        }
    }
}

impl PlaceSettings {
    fn of(settings: &Settings, data: &Path) -> anyhow::Result<Self> {
        let usage = |text: &str, next: &str| {
            Err(Failure::new(Code::Usage, anyhow!(text.to_owned())).next(next).into())
        };
        match (settings.follow_directory.clone(), settings.slots.as_slice(), settings.boot_loader) {
            (Some(directory), [], None) => Ok(Self::Directory { directory, keep: settings.follow_keep }),
            (None, [], None) => usage(
                "a channel is to be followed, and no place for its releases is named",
                "name a directory: --follow-into DIR, or directory in [follow] of client.toml; or two slots: --slot",
            ),
            (Some(_), ..) => usage(
                "a directory and slots are named, and a channel has one place",
                "remove one of both: --follow-into, or --slot with --boot-loader",
            ),
            (None, [], Some(_)) => {
                usage("a boot loader is named, and no slots", "name two: --slot NAME=DEVICE")
            }
            (None, _, None) => usage(
                "slots are named, and no boot loader",
                "name it: --boot-loader systemd-boot, grub, u-boot, rauc or command",
            ),
            (None, slots, Some(kind)) => {
                let partitions = settings.partitions.clone();
                let path = settings.boot_path.clone();
                let loader = LoaderSettings { kind, start: start_of(settings)?, path, data: data.to_owned() };
                Ok(Self::Slots {
                    slots: slots.to_vec(),
                    partitions,
                    loader,
                    tries: settings.boot_tries,
                    reboot: settings.reboot_command.clone(),
                })
            }
        }
    }
}

/// A device that is ready to follow a channel.
pub struct Follower {
    step: Step,
    looks: Arc<Notify>,
    /// Orders of somebody at the device; `None` for a simulated one.
    orders: Option<Orders>,
    /// One journal has one writer.
    _lock: File,
}

impl Follower {
    /// Opens the place and the journal of the device.
    ///
    /// # Errors
    /// When the place cannot be used, or another process of this device follows a channel.
    pub async fn open(
        request: FollowRequest,
        identity: &NodeIdentity,
        parents: Arc<Parents>,
        news: Arc<Newsroom>,
    ) -> anyhow::Result<Self> {
        let lock_path = request.data.join(LOCK);
        let lock = filesystem::try_lock(&lock_path)
            .with_context(|| format!("could not lock {}", lock_path.display()))
            .map_err(|error| Failure::new(Code::Local, error))?;
        let lock = lock.ok_or_else(|| {
            let error = anyhow!("another process of this device follows a channel");
            Failure::new(Code::Local, error)
                .next("stop that process, or give this one a state directory of its own")
        })?;
        let place = match &request.place {
            PlaceSettings::Simulated(device) => {
                Place::Simulated(SimulatedPlace::new(device.clone(), &request.data))
            }
            PlaceSettings::Directory { directory, keep } => {
                Place::Directory(Directory::open(directory, *keep)?)
            }
            PlaceSettings::Slots { .. } if !BootId::current().is_known() => {
                let error = anyhow!("the system does not tell the id of its boot");
                let next = "let the agent read /proc/sys/kernel/random/boot_id (ProcSubset=all of its unit)";
                return Err(Failure::new(Code::Local, error).next(next).into());
            }
            PlaceSettings::Slots { slots, partitions, loader, .. } => {
                let (product, data) = (&request.product, &request.data);
                Place::Slots(Slots::open(slots, partitions, loader, product, data).await?)
            }
        };
        let reporter = Reporter::open(identity, parents, &request.data, request.receipt_bound)?;
        let (state, seen) = watch::channel(None);
        let is_simulated = matches!(place, Place::Simulated(_));
        let orders = (!is_simulated).then(|| Orders::listen(&request.data, seen));
        let step = Step::open(request, place, reporter, news, state);
        Ok(Self { step, looks: Arc::default(), orders, _lock: lock })
    }

    /// Signal to look at the channel now.
    pub fn looks(&self) -> Arc<Notify> {
        self.looks.clone()
    }

    /// Follows the channel until `stop` is set or its sender is gone. An attempt that is under
    /// way is continued by the next process.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let Self { mut step, looks, mut orders, _lock } = self;
        let following = async {
            loop {
                let taken = step.take().await;
                step.note_look(taken.as_ref().err());
                if let Err(error) = taken {
                    tracing::warn!(error = %Chain(error.as_ref()), "no release was installed; trying again");
                }
                step.report().await;
                step.look_at_log().await;
                // Jitter keeps a fleet that was switched on at once from asking in step ever after.
                let wait = step.pause().mul_f64(0.75 + 0.25 * random::fraction());
                let mut waited = std::pin::pin!(tokio::time::sleep(wait));
                loop {
                    tokio::select! {
                        () = &mut waited => break,
                        () = looks.notified() => {
                            tracing::debug!("looking at the channel because of news");
                            break;
                        }
                        given = next_order(&mut orders) => step.obey(given).await,
                    }
                }
            }
        };
        tokio::select! {
            () = following => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        step.stopped();
    }
}

/// Waits for the next order; for ever on a device that takes none.
async fn next_order(orders: &mut Option<Orders>) -> Given {
    match orders {
        Some(orders) => orders.next().await,
        None => std::future::pending().await,
    }
}
