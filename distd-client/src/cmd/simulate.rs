//! `distd simulate`: a scripted fleet, for trying a rollout's policy before it is used.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use distd_client::cli::Context;
use distd_client::cli::parse::{ChannelName, duration};
use distd_client::cli::secret::join_token_in;
use distd_client::config;
use distd_client::config::Settings;
use distd_client::failure::{Code, Failure, code_of_enrollment};
use distd_client::follow::{Simulated, follow_simulated};
use distd_core::error::Chain;
use distd_core::fleet::rollout::Share;
use distd_core::role::Role;
use distd_peer::enrollment::{self, EnrollmentError};
use distd_peer::process;
use distd_peer::process::told_to_end;
use distd_peer::settings::{Table, TableArgs, TableOptions};
use distd_peer::trust::identity::NodeIdentity;
use distd_peer::trust::token::JoinToken;
use serde::Serialize;
use tokio::sync::{Semaphore, watch};

/// Most devices of one process: each has sockets and a state directory.
const DEVICES_MAX: u64 = 20_000;

/// Devices that enrol at once.
const ENROL_AT_ONCE: usize = 16;

/// Interval of the lines that say how the fleet stands.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Time that devices have to end when the fleet is told to stop.
const STOP: Duration = Duration::from_secs(5);

/// Run a fleet of simulated devices, to try a rollout's policy before it is used.
///
/// Each device is a real node with a key and a certificate, follows the channel, takes its part in
/// rollouts and reports. It fetches and installs nothing. Use a realm for tests, or a join token
/// with a label by which a rollout selects these devices alone (--for).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Channel that the devices follow.
    #[arg(value_name = "PRODUCT:CHANNEL")]
    channel: ChannelName,
    /// Number of devices, at most 20000.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=DEVICES_MAX))]
    devices: u64,
    /// Directory for the devices' keys and states. The same directory gives the same devices.
    #[arg(long, value_name = "DIR")]
    fleet: PathBuf,
    /// Relay or origin of the devices; repeat for more, which the devices share evenly.
    #[arg(long, required = true, value_name = "HOST:PORT", value_delimiter = ',',
          value_parser = config::parent)]
    parent: Vec<String>,
    /// File that holds a join token for the devices that are not enrolled yet.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Share of the devices on which a release fails its check, after the first release.
    #[arg(long, value_name = "SHARE")]
    fail: Option<Share>,
    /// Time of a fetch.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    fetch_time: Duration,
    /// Time of a check.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    check_time: Duration,
    /// Seed of the draw of failures.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Time after which the fleet stops. Default: when told to.
    #[arg(long = "stop-after", value_name = "TIME", value_parser = duration)]
    stop_after: Option<Duration>,
    #[command(flatten)]
    settings: TableArgs<SimulateOptions>,
}

/// Settings that matter to simulated devices.
enum SimulateOptions {}

impl TableOptions for SimulateOptions {
    type Values = config::Values;
    const TABLE: Table<config::Values> = config::TABLE;

    fn has(key: &str) -> bool {
        ["transport", "connectivity", "follow.poll_seconds"].contains(&key)
    }
}

/// How the fleet stands.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Standing {
    devices: u64,
    /// Devices by the version that they run; those without one under `-`.
    running: BTreeMap<String, u64>,
    /// Devices by the state of their newest attempt.
    attempts: BTreeMap<String, u64>,
    /// Devices by what holds them.
    held: BTreeMap<String, u64>,
    /// Devices that could not be started.
    broken: u64,
}

impl Standing {
    fn of(devices: &[Simulated], broken: u64) -> Self {
        let mut standing = Self { devices: devices.len() as u64, broken, ..Self::default() };
        for device in devices {
            let state = device.state().clone();
            let version = state.version.map_or_else(|| "-".to_owned(), |version| version.to_string());
            *standing.running.entry(version).or_default() += 1;
            if let Some(attempt) = state.attempt {
                *standing.attempts.entry(attempt.as_str().to_owned()).or_default() += 1;
            }
            if let Some(held) = state.held {
                *standing.held.entry(held.as_str().to_owned()).or_default() += 1;
            }
        }
        standing
    }

    fn shown(&self) -> String {
        let list = |of: &BTreeMap<String, u64>| {
            of.iter().map(|(word, count)| format!("{word} {count}")).collect::<Vec<_>>().join(", ")
        };
        let mut text = format!("{} devices run: {}", self.devices, list(&self.running));
        for (name, of) in [("attempts", &self.attempts), ("held", &self.held)] {
            if !of.is_empty() {
                text.push_str(&format!("; {name}: {}", list(of)));
            }
        }
        if self.broken > 0 {
            text.push_str(&format!("; not started: {}", self.broken));
        }
        text
    }
}

/// Settings that all devices have in common.
struct Fleet {
    settings: Settings,
    channel: ChannelName,
    token: Option<JoinToken>,
    enrolling: Semaphore,
}

impl Fleet {
    /// Enrols a device that has no certificate.
    async fn enrol(&self, data: &Path, parent: &str, number: u64) -> anyhow::Result<()> {
        let outbound = self.settings.outbound(self.settings.connectivity)?;
        let mut identity = NodeIdentity::load_or_create(data).context("could not make the device's key")?;
        if identity.cert().is_none() {
            let token = self.token.as_ref().ok_or_else(|| {
                let error = anyhow!("{} is not enrolled, and no join token is named", data.display());
                Failure::new(Code::Usage, error)
                    .next("name one: --token-file FILE; make one: distd token join --role leaf")
            })?;
            let _turn = self.enrolling.acquire().await?;
            let parents = [parent.to_owned()];
            let label = format!("simulated-{number}");
            let enrolled =
                enrollment::enroll(&mut identity, token, Role::Leaf, &label, &parents, &outbound).await;
            enrolled.map_err(|e: EnrollmentError| Failure::new(code_of_enrollment(&e), e.into()))?;
        }
        Ok(())
    }

    /// Runs a device until `stopped` is set.
    async fn run(
        &self,
        data: &Path,
        parent: &str,
        device: Simulated,
        stopped: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        self.enrol(data, parent, device.number).await?;
        let ChannelName { product, channel } = self.channel.clone();
        let parents = vec![parent.to_owned()];
        follow_simulated(&self.settings, (product, channel), data, parents, device, stopped).await
    }
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    process::raise_open_files();
    let fleet = Arc::new(Fleet {
        settings: context.settings(&args.settings.line)?,
        channel: args.channel.clone(),
        token: args.token_file.as_deref().map(join_token_in).transpose()?,
        enrolling: Semaphore::new(ENROL_AT_ONCE),
    });
    let (stop, stopped) = watch::channel(false);
    let (mut devices, mut running) = (Vec::new(), tokio::task::JoinSet::new());
    for number in 0..args.devices {
        let device = Simulated {
            fetch: args.fetch_time,
            check: args.check_time,
            fail: args.fail,
            number,
            seed: args.seed,
            state: Arc::default(),
        };
        devices.push(device.clone());
        let data = args.fleet.join(format!("device-{number}"));
        let parent = args.parent[number as usize % args.parent.len()].clone();
        let (fleet, stopped) = (fleet.clone(), stopped.clone());
        running.spawn(async move { fleet.run(&data, &parent, device, stopped).await });
    }
    let deadline = args.stop_after.map(|after| Instant::now() + after);
    let mut broken = 0;
    let mut first: Option<anyhow::Error> = None;
    let mut say = tokio::time::interval(SAY_EVERY);
    let until = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => std::future::pending().await,
        }
    };
    let told = told_to_end();
    tokio::pin!(until, told);
    loop {
        tokio::select! {
            _ = say.tick() => context.output().note(&Standing::of(&devices, broken).shown()),
            Some(ended) = running.join_next() => {
                if let Err(error) = ended.context("a device ended by itself").and_then(|ended| ended) {
                    tracing::warn!(error = %Chain(error.as_ref()), "a simulated device could not be started");
                    broken += 1;
                    first.get_or_insert(error);
                }
                if running.is_empty() {
                    break;
                }
            }
            () = &mut until => break,
            told = &mut told => {
                told?;
                break;
            }
        }
    }
    stop.send_replace(true);
    let _ = tokio::time::timeout(STOP, async { while running.join_next().await.is_some() {} }).await;
    let standing = Standing::of(&devices, broken);
    if let Some(error) = first.filter(|_| broken == args.devices) {
        return Err(error.context("no simulated device could be started"));
    }
    context.output().result(&standing, Standing::shown)
}
