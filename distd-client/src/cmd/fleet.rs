//! `distd fleet`: the state of the fleet: sums, devices, and one node.

use std::time::Duration;

use clap::Subcommand;
use distd_client::api::ApiError;
use distd_client::cli::parse::node_id;
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::Failure;
use distd_client::text::{human_bytes, joined, table, time};
use distd_core::api::{
    DEVICES_PAGE, DEVICES_PAGE_MAX, FleetChannel, FleetCount, FleetDevice, FleetNode, FleetPage,
    FleetRelease, FleetStatus, NodeAttempt, NodeLog,
};
use distd_core::fleet::Selector;
use distd_core::fleet::state::{Contact, UpdateState};
use distd_core::names::Name;
use distd_core::text::shown;

use super::node::node_text;

/// Longest label shown, in characters.
const LABEL_SHOWN: usize = 40;

/// Pause between two looks of `--watch`.
const WATCH: Duration = Duration::from_secs(5);

/// See the state of the fleet: which devices are heard of, and how far their updates are.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

/// Devices that a command is about.
#[derive(clap::Args)]
struct Which {
    /// Only devices that follow a channel of this product.
    #[arg(long, value_name = "PRODUCT")]
    product: Option<Name>,
    /// Only devices that follow a channel of this name.
    #[arg(long, value_name = "CHANNEL")]
    channel: Option<Name>,
    /// Only members of this group.
    #[arg(long, value_name = "GROUP")]
    group: Option<Name>,
    /// Only devices that a selector selects, such as 'site=12,kind!=kiosk'.
    #[arg(long = "where", value_name = "SELECTOR")]
    selector: Option<Selector>,
}

#[derive(Subcommand)]
enum Command {
    /// Sum up the fleet: devices by contact, by the state of their update, by release, by failure.
    Status {
        #[command(flatten)]
        which: Which,
        /// Look again every 5 seconds, until the command is interrupted.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List devices by id, each with the state of its updates.
    Ls {
        #[command(flatten)]
        which: Which,
        /// Only devices whose update is in this state: up_to_date, outdated, updating, failed, held
        /// or unknown.
        #[arg(long, value_name = "STATE")]
        state: Option<UpdateState>,
        /// Only devices with this contact: online, offline or unknown.
        #[arg(long, value_name = "CONTACT")]
        contact: Option<Contact>,
        /// Only devices that run this version.
        #[arg(long, value_name = "VERSION")]
        version: Option<Name>,
        /// Largest number of devices to show.
        #[arg(long, value_name = "N", default_value_t = DEVICES_PAGE, value_parser = clap::value_parser!(u32).range(1..=i64::from(DEVICES_PAGE_MAX)))]
        limit: u32,
        /// Show only devices whose ids are greater than this one.
        #[arg(long, value_name = "ID", value_parser = node_id)]
        after: Option<String>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show all that is known about a node: labels, groups, grants, pins, updates, attempts, and
    /// why it runs what it runs.
    Show {
        /// Id of the node, from distd fleet ls.
        #[arg(value_parser = node_id)]
        id: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

impl Which {
    fn query(&self) -> Vec<(&'static str, Option<String>)> {
        let text = |name: &Option<Name>| name.as_ref().map(ToString::to_string);
        vec![
            ("product", text(&self.product)),
            ("channel", text(&self.channel)),
            ("group", text(&self.group)),
            ("where", self.selector.as_ref().map(ToString::to_string)),
        ]
    }
}

/// Counts with their words, those of no device left out.
fn counts_text(counts: &[(&str, u64)]) -> String {
    let some: Vec<_> = counts.iter().filter(|(_, n)| *n > 0).map(|(word, n)| format!("{n} {word}")).collect();
    if some.is_empty() { "none".to_owned() } else { some.join(", ") }
}

fn words_text(counts: &[FleetCount]) -> String {
    let counts: Vec<_> = counts.iter().map(|count| (count.word.as_str(), count.devices)).collect();
    counts_text(&counts)
}

fn status_text(status: &FleetStatus) -> String {
    let FleetStatus { at, devices, contact, update, releases, releases_left_out, failures, held } = status;
    let contacts =
        [("online", contact.online), ("offline", contact.offline), ("never heard of", contact.unknown)];
    let updates = [
        ("up to date", update.up_to_date),
        ("outdated", update.outdated),
        ("updating", update.updating),
        ("failed", update.failed),
        ("held", update.held),
        ("unknown", update.unknown),
    ];
    let mut text = format!(
        "at        {}\ndevices   {devices}\ncontact   {}\nupdates   {}\nfailures  {}\nheld      {}",
        time(*at),
        counts_text(&contacts),
        counts_text(&updates),
        words_text(failures),
        words_text(held),
    );
    if !releases.is_empty() {
        let mut rows = vec![["CHANNEL", "VERSION", "DEVICES", "ONLINE"].map(str::to_owned).to_vec()];
        rows.extend(releases.iter().map(|release| {
            let FleetRelease { product, channel, version, devices, online } = release;
            let version = version.as_deref().unwrap_or("none").to_owned();
            vec![format!("{product}:{channel}"), version, devices.to_string(), online.to_string()]
        }));
        text.push_str(&format!("\n\n{}", table(&rows)));
    }
    if *releases_left_out > 0 {
        text.push_str(&format!("\nand {releases_left_out} more; name one with --product"));
    }
    text
}

/// Table of the channels that devices follow; `head` is the title of the first columns.
fn channel_cells(channel: &FleetChannel) -> Vec<String> {
    let FleetChannel { product, channel, version, wanted, update, held, failure } = channel;
    let reason = failure.clone().or_else(|| held.clone()).unwrap_or_default();
    vec![
        format!("{product}:{channel}"),
        version.as_deref().unwrap_or("none").to_owned(),
        wanted.as_deref().unwrap_or("-").to_owned(),
        update.to_string(),
        reason,
    ]
}

/// Longest text about a fault of the log that is shown, characters.
const FAULT_SHOWN: usize = 100;

const CHANNEL_HEAD: [&str; 5] = ["CHANNEL", "RUNS", "WANTED", "UPDATE", "REASON"];

fn page_text(page: &FleetPage) -> String {
    if page.devices.is_empty() {
        return "no such device".to_owned();
    }
    let head = ["ID", "LABEL", "CONTACT", "REPORTED"].into_iter().chain(CHANNEL_HEAD);
    let mut rows = vec![head.map(str::to_owned).collect::<Vec<_>>()];
    for device in &page.devices {
        let FleetDevice { id, label, contact, reported, channels } = device;
        let reported = reported.map_or("-".to_owned(), time);
        let first = [id.clone(), shown(label, LABEL_SHOWN), contact.to_string(), reported];
        if channels.is_empty() {
            let nothing = ["-", "-", "-", "unknown"].map(str::to_owned);
            rows.push(first.iter().cloned().chain(nothing).collect());
        }
        rows.extend(channels.iter().map(|channel| [&first[..], &channel_cells(channel)].concat()));
    }
    table(&rows)
}

fn show_text(found: &FleetNode) -> String {
    let FleetNode { detail, contact, channels, attempts, log, why } = found;
    let mut text = format!("contact            {contact}\n{}", node_text(detail));
    if let Some(log) = log {
        let NodeLog { size, head_at, fault, hidden, .. } = log;
        text.push_str(&format!(
            "\nlog of receipts    {size} entries, signed {}",
            time(i64::try_from(*head_at).unwrap_or(i64::MAX))
        ));
        if let Some(fault) = fault {
            text.push_str(&format!("\nFAULT OF THE LOG   {}", shown(fault, FAULT_SHOWN)));
        }
        if *hidden > 0 {
            text.push_str(&format!("\nHIDDEN RECEIPTS    {hidden}: sent twice, and not in a later head"));
        }
    }
    if !channels.is_empty() {
        let mut rows = vec![CHANNEL_HEAD.map(str::to_owned).to_vec()];
        rows.extend(channels.iter().map(channel_cells));
        text.push_str(&format!("\n\n{}", table(&rows)));
    }
    if !attempts.is_empty() {
        let head = [
            "ROLLOUT OF",
            "ATTEMPT",
            "RESULT",
            "SECONDS",
            "DISK",
            "NEIGHBOURS",
            "RELAY",
            "ORIGIN",
            "REPORTED",
            "FAILURE",
            "DETAIL",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(attempts.iter().map(|attempt| {
            let NodeAttempt { product, channel, version, number, state, seconds, failure, .. } = attempt;
            let bytes =
                [attempt.bytes_disk, attempt.bytes_neighbours, attempt.bytes_relay, attempt.bytes_origin];
            [
                format!("{product}:{channel}@{version}"),
                number.to_string(),
                state.to_string(),
                seconds.to_string(),
            ]
            .into_iter()
            .chain(bytes.map(human_bytes))
            .chain([time(attempt.reported), failure.clone().unwrap_or_default(), attempt.detail.clone()])
            .collect()
        }));
        text.push_str(&format!("\n\n{}", table(&rows)));
    }
    format!("{text}\n\n{}", joined(why, "\n"))
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Status { which, watch, api } => {
            let api = context.api(&api)?;
            let query = which.query();
            loop {
                let status = api.fleet_status(&query).await.map_err(Failure::from)?;
                context.output().result(&status, status_text)?;
                if !watch {
                    return Ok(());
                }
                tokio::time::sleep(WATCH).await;
                context.output().note("");
            }
        }
        Command::Ls { which, state, contact, version, limit, after, api } => {
            let mut query = which.query();
            query.push(("update", state.map(|state| state.to_string())));
            query.push(("contact", contact.map(|contact| contact.to_string())));
            query.push(("version", version.map(|version| version.to_string())));
            query.push(("limit", Some(limit.to_string())));
            query.push(("after", after));
            let page = context.api(&api)?.fleet_devices(&query).await.map_err(Failure::from)?;
            context.output().result(&page, page_text)?;
            if let Some(after) = &page.after {
                context
                    .output()
                    .note(&format!("there are more devices; next: the same with --after {after}"));
            }
            Ok(())
        }
        Command::Show { id, api } => {
            let found = context.api(&api)?.fleet_node(&id).await.map_err(ApiError::about_a_node)?;
            context.output().result(&found, show_text)
        }
    }
}
