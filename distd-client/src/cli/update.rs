//! `distd update` and `distd rollback`: orders of somebody at the device to its agent.

use std::time::Duration;

use anyhow::anyhow;
use clap::Subcommand;
use distd_core::fleet::report::AttemptState;
use distd_core::fleet::rollout::Held;
use distd_core::names::Name;

use super::context::Context;
use super::parse::duration;
use super::status::shown;
use crate::failure::{Code, Failure};
use crate::follow::{Order, Status, give_order};
use crate::text::time;

/// Have the agent of this device look for a release, install it now, or put updates off.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Look at the channel, and begin nothing.
    Check,
    /// Install what this device is to run without waiting for the device's own windows or its hook
    /// `consent`. The waves, windows and halts of the rollout hold all the same.
    Now {
        /// Try a release again that failed here, or that this device was taken back from.
        #[arg(long)]
        again: bool,
    },
    /// Put updates off for a time, as in 90m, 8h or 2d, up to `follow.defer_seconds` in all. A
    /// rollout that is forced does not wait.
    Defer {
        /// How long, from now.
        #[arg(value_parser = duration, required_unless_present = "off")]
        time: Option<Duration>,
        /// End a deferral.
        #[arg(long, conflicts_with = "time")]
        off: bool,
    },
}

/// Take this device back to the release before the one that runs. It does not install the release
/// that it leaves again, unless told to: distd update now --again.
#[derive(clap::Args)]
pub struct RollbackArgs {
    /// The release to go back to, when several are here.
    #[arg(long, value_name = "VERSION")]
    to: Option<Name>,
}

/// Gives an order, and shows on standard error what the device does meanwhile.
async fn give(context: &Context, order: &Order) -> anyhow::Result<Status> {
    let output = context.output();
    let mut said = String::new();
    let on_state = |status: &Status| {
        let why = status.why();
        if why != said && !output.is_quiet() {
            eprintln!("{why}");
            said = why;
        }
    };
    give_order(context.data(), order, on_state).await
}

/// Why the device does not do what `distd update now` asked for; `None` when it does, or has.
fn unmet(status: &Status) -> Option<Failure> {
    if status.version.is_some() && status.version == status.wanted {
        return None;
    }
    if status.under_way().is_some_and(|attempt| attempt.state == AttemptState::Restarting) {
        return None;
    }
    let failed = status
        .attempt
        .as_ref()
        .filter(|at| at.failure.is_some() && Some(&at.version) == status.wanted.as_ref());
    let next = match (&status.held, failed) {
        (Some(Held::Failed { .. } | Held::TakenBack), _) => "try it again: distd update now --again",
        (Some(_), _) => "see the rollout: distd rollout status PRODUCT:CHANNEL, with a token",
        (None, _) => "see the state of the device: distd status",
    };
    Some(Failure::new(Code::Conflict, anyhow!(status.why())).next(next))
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Check => {
            let status = give(context, &Order::Check {}).await?;
            context.output().result(&status, Status::why)
        }
        Command::Now { again } => {
            let status = give(context, &Order::Now { again }).await?;
            if let Some(failure) = unmet(&status) {
                return Err(failure.into());
            }
            context.output().result(&status, Status::why)
        }
        Command::Defer { time: wanted, .. } => {
            let seconds = wanted.map_or(0, |wanted| wanted.as_secs());
            let status = give(context, &Order::Defer { seconds }).await?;
            context.output().result(&status, |status| match status.held {
                Some(Held::Deferred { until }) => {
                    format!("updates wait until {}", time(i64::try_from(until).unwrap_or(i64::MAX)))
                }
                _ => "updates do not wait".to_owned(),
            })
        }
    }
}

pub(crate) async fn roll_back(context: &Context, args: RollbackArgs) -> anyhow::Result<()> {
    let status = give(context, &Order::RollBack { to: args.to }).await?;
    context.output().result(&status, shown)
}
