//! `distd rollout`: brings a release to the devices of a channel in waves.

use std::time::Duration;

use clap::Subcommand;
use distd_client::api::ApiError;
use distd_client::cli::parse::{ChannelName, ParseError, duration, moment};
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::Failure;
use distd_client::text::{human_bytes, table, time};
use distd_core::api::{
    Approval, NewRollout, Rollout, RolloutDetail, RolloutFailure, RolloutList, RolloutOrder, RolloutStage,
    RolloutVerb, RolloutWave, Word, code,
};
use distd_core::fleet::Selector;
use distd_core::fleet::rollout::{
    AfterHalt, Conditions, GroupBudget, HaltOn, Rate, RolloutId, Share, Urgency, Waves,
};
use distd_core::fleet::window::Window;
use distd_core::names::Name;

/// Bring a release to the devices of a channel in waves, and stop when too many fail.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Begin a rollout. Each device works out its own wave; the channel points to the release when
    /// every wave has succeeded.
    Start(Box<StartArgs>),
    /// Show the rollout of a channel that is under way, or else the newest.
    Status {
        /// Channel of the rollout.
        #[arg(value_name = "PRODUCT:CHANNEL")]
        channel: ChannelName,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Let no further device begin, until the rollout is resumed.
    Pause(OrderArgs),
    /// Go on after a pause or a halt. Devices on which the release failed do not try again.
    Resume(OrderArgs),
    /// Stop the rollout. Devices that have the release keep it.
    Halt(OrderArgs),
    /// End the rollout: devices that have the release go back to the release of the channel.
    Rollback(OrderArgs),
    /// Approve a rollout that another token began, where the channel wants that: its first wave may
    /// open.
    Approve {
        /// Id of the rollout, from distd rollout status: an approval is of what was looked at.
        #[arg(long, value_name = "ID")]
        rollout: RolloutId,
        #[command(flatten)]
        order: OrderArgs,
    },
    /// List the rollouts of a channel, the newest first.
    History {
        /// Channel of the rollouts.
        #[arg(value_name = "PRODUCT:CHANNEL")]
        channel: ChannelName,
        #[command(flatten)]
        api: ApiArgs,
    },
}

#[derive(clap::Args)]
struct StartArgs {
    /// Channel whose devices get the release.
    #[arg(value_name = "PRODUCT:CHANNEL")]
    channel: ChannelName,
    /// Version to install.
    version: Name,
    /// Sizes of the waves, each with all waves before it; the last is 100%.
    #[arg(long, value_name = "SIZES", default_value = "1%,10%,50%,100%")]
    waves: Waves,
    /// Least time for which a wave is open before the next one.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = wait)]
    soak: Duration,
    /// Share of a wave's devices that must have succeeded before the next one opens.
    #[arg(long, value_name = "SHARE", default_value = "95%")]
    success: Share,
    /// Failures that halt the rollout: a number, or a share of the devices in open waves.
    #[arg(long, value_name = "N|SHARE", default_value = "2%")]
    halt_on: HaltOn,
    /// When the rollout halts, devices that have the release keep it (stay), or go back to the
    /// release of the channel (back).
    #[arg(long, value_name = "WHAT", default_value = "stay", value_parser = after_halt)]
    after_halt: AfterHalt,
    /// Number of attempts after which a device gives up.
    #[arg(long, value_name = "N", default_value_t = 1)]
    attempts: u32,
    /// Time after which an attempt has failed.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    timeout: Duration,
    /// Selector of the devices that take part. Default: all that follow the channel.
    #[arg(long = "for", value_name = "SELECTOR")]
    selector: Option<Selector>,
    /// Version of which one must run before; a device with another version installs the first
    /// one named before. May be repeated.
    #[arg(long, value_name = "VERSION")]
    requires: Vec<Name>,
    /// Longest time for which the first wave waits for patches to the release.
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = wait)]
    wait_for_patches: Duration,
    /// Part of the week in which a device begins, by its clock, as in "mon-fri 22:00-05:00". May
    /// be repeated.
    #[arg(long = "window", value_name = "WINDOW")]
    windows: Vec<Window>,
    /// Do not let the devices' own windows and their hook `consent` hold the release up.
    #[arg(long, conflicts_with_all = ["soft", "forced_from"])]
    forced: bool,
    /// Install the release only where the device's hook `consent` says so.
    #[arg(long)]
    soft: bool,
    /// Time from which the rollout is forced, UTC.
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    forced_from: Option<i64>,
    /// Selector of devices that are in the first wave.
    #[arg(long, value_name = "SELECTOR")]
    first: Option<Selector>,
    /// Number of devices that may be under way at once.
    #[arg(long, value_name = "N")]
    at_once: Option<u64>,
    /// Label by whose value devices are grouped, as `site`: only --max-unavailable of a group
    /// are under way at once.
    #[arg(long, value_name = "LABEL")]
    group_by: Option<String>,
    /// Number of devices of a group that may be under way at once.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "group_by")]
    max_unavailable: u64,
    /// Number of devices that may begin within a time, as in 100/1h.
    #[arg(long, value_name = "N/TIME", value_parser = rate)]
    rate: Option<Rate>,
    /// Time before which no wave opens, UTC.
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    not_before: Option<i64>,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(clap::Args)]
struct OrderArgs {
    /// Channel of the rollout.
    #[arg(value_name = "PRODUCT:CHANNEL")]
    channel: ChannelName,
    /// Reason, for the history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    api: ApiArgs,
}

/// Parses a duration that may be zero.
fn wait(text: &str) -> Result<Duration, ParseError> {
    if text == "0" { Ok(Duration::ZERO) } else { duration(text) }
}

/// Parses a number of devices in a period, as in `100/1h`.
fn rate(text: &str) -> Result<Rate, String> {
    let parts = text.split_once('/').and_then(|(devices, period)| {
        Some(Rate { devices: devices.parse().ok()?, period: duration(period).ok()?.as_secs() })
    });
    parts.ok_or_else(|| "write a number of devices and a time, as in 100/1h".to_owned())
}

/// Unix seconds of a moment; 0 for one before 1970.
fn unix(at: i64) -> u64 {
    u64::try_from(at).unwrap_or(0)
}

fn after_halt(text: &str) -> Result<AfterHalt, String> {
    match Word::from_text(text) {
        Word::Known(what) => Ok(what),
        Word::Other(_) => Err("write stay or back".to_owned()),
    }
}

/// Text about one rollout.
fn shown(detail: &RolloutDetail) -> String {
    let Rollout { product, channel, version, from, state, reason, not_before, waves: sizes, .. } =
        &detail.rollout;
    let mut text = format!("{product}:{channel} {from} -> {version}: {state}");
    if !reason.is_empty() {
        text.push_str(&format!(" ({reason})"));
    }
    match (detail.waits_for.as_deref(), not_before) {
        (Some("time"), Some(at)) => {
            let at = time(i64::try_from(*at).unwrap_or(i64::MAX));
            text.push_str(&format!("; no wave opens before {at}"));
        }
        (Some(what), _) => text.push_str(&format!("; the first wave waits for {what}")),
        (None, _) => {}
    }
    text.push_str(&format!("\nwaves {sizes}; rollout {}", detail.rollout.id));
    if let Some(selector) = &detail.rollout.selector {
        text.push_str(&format!("; for {selector}"));
    }
    if !detail.rollout.requires.is_empty() {
        text.push_str(&format!("; requires {}", detail.rollout.requires.join(" or ")));
    }
    let conditions = conditions(&detail.rollout.conditions);
    if !conditions.is_empty() {
        text.push_str(&format!("\n{}", conditions.join("; ")));
    }
    text.push_str("\n\n");
    let head = [
        "WAVE",
        "SIZE",
        "OPENED",
        "DEVICES",
        "SUCCEEDED",
        "FAILED",
        "TRYING",
        "DISK",
        "NEIGHBOURS",
        "RELAY",
        "ORIGIN",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(detail.waves.iter().enumerate().map(|(at, wave)| {
        let RolloutWave { size, opened, devices, succeeded, failed, trying, .. } = wave.clone();
        let bytes = [wave.bytes_disk, wave.bytes_neighbours, wave.bytes_relay, wave.bytes_origin];
        [(at + 1).to_string(), size, opened.map_or("-".to_owned(), time)]
            .into_iter()
            .chain([devices, succeeded, failed, trying].map(|n| n.to_string()))
            .chain(bytes.map(human_bytes))
            .collect()
    }));
    rows.extend(all_waves(&detail.waves));
    text.push_str(&table(&rows));
    if !detail.turns.is_empty() {
        let mut rows = vec![["UNDER WAY", "GROUP", "SINCE"].map(str::to_owned).to_vec()];
        rows.extend(detail.turns.iter().map(|turn| {
            let group = if turn.group.is_empty() { "-" } else { &turn.group };
            vec![turn.node.clone(), group.to_owned(), time(turn.given)]
        }));
        text.push_str(&format!("\n\n{}", table(&rows)));
    }
    if !detail.failures.is_empty() {
        let mut rows =
            vec![["NODE", "WAVE", "ATTEMPT", "RESULT", "KIND", "DETAIL"].map(str::to_owned).to_vec()];
        rows.extend(detail.failures.iter().map(|failure| {
            let RolloutFailure { node, wave, attempt, state, kind, detail } = failure.clone();
            vec![node, wave.to_string(), attempt.to_string(), state.to_string(), kind, detail]
        }));
        text.push_str(&format!("\n\n{}", table(&rows)));
    }
    text
}

/// Texts about the conditions of a rollout.
fn conditions(conditions: &Conditions) -> Vec<String> {
    let Conditions { windows, urgency, forced_from, first, at_once, budget, rate } = conditions;
    let mut texts = Vec::new();
    if !windows.is_empty() {
        let windows: Vec<_> = windows.iter().map(ToString::to_string).collect();
        texts.push(format!("in {}", windows.join(" or ")));
    }
    match urgency {
        Some(Urgency::Forced) => texts.push("forced".to_owned()),
        Some(Urgency::Soft) => texts.push("soft".to_owned()),
        Some(Urgency::Unknown) | None => {}
    }
    texts
        .extend(forced_from.map(|at| format!("forced from {}", time(i64::try_from(at).unwrap_or(i64::MAX)))));
    texts.extend(first.as_ref().map(|first| format!("first {first}")));
    texts.extend(at_once.map(|devices| format!("{devices} devices at once")));
    texts.extend(budget.as_ref().map(|of| format!("{} devices at once of each {}", of.unavailable, of.by)));
    texts.extend(rate.map(|rate| format!("{} devices in {} s", rate.devices, rate.period)));
    texts
}

/// Row with the sums over the waves; none for a single wave.
fn all_waves(waves: &[RolloutWave]) -> Option<Vec<String>> {
    if waves.len() < 2 {
        return None;
    }
    let sum = |of: fn(&RolloutWave) -> u64| waves.iter().map(of).fold(0, u64::saturating_add);
    let devices: [fn(&RolloutWave) -> u64; 4] = [|w| w.devices, |w| w.succeeded, |w| w.failed, |w| w.trying];
    let bytes: [fn(&RolloutWave) -> u64; 4] =
        [|w| w.bytes_disk, |w| w.bytes_neighbours, |w| w.bytes_relay, |w| w.bytes_origin];
    let head = ["all", "", ""].map(str::to_owned).into_iter();
    let devices = devices.into_iter().map(|of| sum(of).to_string());
    Some(head.chain(devices).chain(bytes.into_iter().map(|of| human_bytes(sum(of)))).collect())
}

/// Table of rollouts.
fn listed(list: &RolloutList) -> String {
    if list.rollouts.is_empty() {
        return "the channel has had no rollout".to_owned();
    }
    let mut rows = vec![["BEGAN", "FROM", "TO", "STATE", "CHANGED", "REASON"].map(str::to_owned).to_vec()];
    rows.extend(list.rollouts.iter().map(|rollout| {
        let Rollout { created, from, version, state, updated, reason, .. } = rollout.clone();
        let reason = if reason.is_empty() { "-".to_owned() } else { reason };
        vec![time(created), from, version, state.to_string(), time(updated), reason]
    }));
    table(&rows)
}

/// Failure of a request about the rollout of a channel, with the command that helps.
fn failed(error: ApiError, channel: &ChannelName) -> Failure {
    let next = match error.code() {
        code::NOT_FOUND => format!("begin one: distd rollout start {channel} VERSION"),
        code::CONFLICT => format!("look at the channel's rollouts: distd rollout history {channel}"),
        _ => return Failure::from(error),
    };
    Failure::from(error).next(next)
}

async fn order(
    context: &Context,
    args: OrderArgs,
    verb: RolloutVerb,
    id: Option<String>,
) -> anyhow::Result<()> {
    let OrderArgs { channel: named, reason, api } = args;
    let (product, channel) = (named.product.as_str(), named.channel.as_str());
    let api = context.api(&api)?;
    let order = RolloutOrder { order: verb, rollout: id, reason };
    let done = api.order_rollout(product, channel, &order).await;
    context.output().result(&done.map_err(|error| failed(error, &named))?, shown)
}

async fn start(context: &Context, args: StartArgs) -> anyhow::Result<()> {
    let StartArgs {
        channel: ChannelName { product, channel },
        version,
        waves,
        soak,
        success,
        halt_on,
        after_halt,
        attempts,
        timeout,
        selector,
        requires,
        wait_for_patches,
        windows,
        forced,
        soft,
        forced_from,
        first,
        at_once,
        group_by,
        max_unavailable,
        rate,
        not_before,
        api,
    } = args;
    let urgency = match (forced, soft) {
        (true, _) => Some(Urgency::Forced),
        (_, true) => Some(Urgency::Soft),
        _ => None,
    };
    let new = NewRollout {
        version: version.to_string(),
        waves: Some(waves.to_string()),
        soak: Some(soak.as_secs()),
        success: Some(success.to_string()),
        halt_on: Some(halt_on.to_string()),
        after_halt: Some(after_halt),
        attempts: Some(attempts),
        timeout: Some(timeout.as_secs()),
        not_before: not_before.map(unix),
        selector: selector.map(|selector| selector.to_string()),
        requires: requires.iter().map(ToString::to_string).collect(),
        patch_wait: Some(wait_for_patches.as_secs()),
        conditions: Conditions {
            windows,
            urgency,
            forced_from: forced_from.map(unix),
            first: first.map(|first| first.to_string()),
            at_once,
            budget: group_by.map(|by| GroupBudget { by, unavailable: max_unavailable }),
            rate,
        },
    };
    let begun = context.api(&api)?.start_rollout(product.as_str(), channel.as_str(), &new).await;
    let begun = begun.map_err(Failure::from)?;
    context.output().result(&begun, shown)?;
    if begun.rollout.approval == Approval::Wanted {
        context.output().note(&format!(
            "next: with another token: distd rollout approve {product}:{channel} --rollout {}",
            begun.rollout.id
        ));
        return Ok(());
    }
    context.output().note(&format!("next: distd rollout status {product}:{channel}"));
    Ok(())
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Start(args) => start(context, *args).await,
        Command::Status { channel: named, api } => {
            let ChannelName { product, channel } = &named;
            let found = context.api(&api)?.rollout(product.as_str(), channel.as_str()).await;
            let detail = found.map_err(|error| failed(error, &named))?;
            context.output().result(&detail, shown)?;
            if detail.rollout.state == RolloutStage::Halted {
                context.output().note(&format!(
                    "next: distd rollout resume {product}:{channel}, or distd rollout rollback {product}:{channel}"
                ));
            }
            Ok(())
        }
        Command::Pause(args) => order(context, args, RolloutVerb::Pause, None).await,
        Command::Resume(args) => order(context, args, RolloutVerb::Resume, None).await,
        Command::Halt(args) => order(context, args, RolloutVerb::Halt, None).await,
        Command::Rollback(args) => order(context, args, RolloutVerb::Rollback, None).await,
        Command::Approve { rollout, order: args } => {
            order(context, args, RolloutVerb::Approve, Some(rollout.to_string())).await
        }
        Command::History { channel: ChannelName { product, channel }, api } => {
            let list = context.api(&api)?.rollouts(product.as_str(), channel.as_str()).await;
            context.output().result(&list.map_err(Failure::from)?, listed)
        }
    }
}
