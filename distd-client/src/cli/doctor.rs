//! `distd doctor`: what keeps this device from its work, and how to mend it.

use std::process::ExitCode;

use distd_peer::clock::unix_now;
use distd_peer::doctor::{Examination, NodePatient};
use distd_peer::settings::{Table, TableArgs, TableOptions};

use super::context::Context;
use crate::config;
use crate::follow::{examine_place, read_status};

/// Say what keeps this device from its work, and how to mend it: clock, names, UDP, MTU, proxy,
/// certificate, disk, rights of secrets, slots and boot loader, version. Changes nothing.
///
/// Ends with 0 when nothing is found, else with 1.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: TableArgs<DoctorOptions>,
}

/// Settings that say whom a device asks.
enum DoctorOptions {}

impl TableOptions for DoctorOptions {
    type Values = config::Values;
    const TABLE: Table<config::Values> = config::TABLE;

    fn has(key: &str) -> bool {
        matches!(key, "parents" | "transport")
    }
}

/// Looks that an agent may miss before it is a finding.
const LOOKS_MISSED: u64 = 5;

/// Checks the agent by its own notes.
fn agent(found: &mut Examination, context: &Context, poll: u64) {
    match read_status(context.data()) {
        Ok(Some(status)) => {
            let since = status.looked.map(|at| unix_now().saturating_sub(at));
            let attempt = status.attempt.as_ref().filter(|attempt| attempt.failure.is_some());
            match (since, &status.error, attempt) {
                (None, _, _) => found.finding(
                    "agent",
                    "it has never got an answer about its channel",
                    "start it (systemctl start distd-agent), and look at its log",
                ),
                (Some(since), _, _) if since > poll.saturating_mul(LOOKS_MISSED) => found.finding(
                    "agent",
                    format!("it got its last answer about its channel {since} s ago"),
                    "start it (systemctl start distd-agent), and look at its log",
                ),
                (_, Some(error), _) => {
                    found.finding("agent", error.clone(), "distd why says more; so does the agent's log");
                }
                (Some(_), None, Some(_)) => found.finding(
                    "agent",
                    status.why(),
                    "the report of the device has the failure too: distd rollout status",
                ),
                (Some(since), None, None) => {
                    found.sound("agent", format!("got an answer about its channel {since} s ago"));
                }
            }
        }
        Ok(None) => found.skipped("agent", "no agent has followed a channel here"),
        Err(error) => found.finding(
            "agent",
            format!("its notes cannot be read: {error}"),
            "run this as the user of the agent",
        ),
    }
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let settings = context.settings(&args.settings.line)?;
    let mut found = Examination::default();
    let patient = NodePatient {
        data: context.data(),
        parents: &settings.parents,
        transport: settings.transport,
        proxy_url: settings.proxy_url.as_deref(),
        secrets: settings.gateway_key.iter().cloned().collect(),
        program: "distd",
        room: 0,
    };
    patient.examine(&mut found).await;
    examine_place(&mut found, &settings, context.data()).await;
    if settings.follow.is_some() {
        agent(&mut found, context, settings.follow_poll.as_secs());
    } else {
        found.skipped("agent", "this device follows no channel");
    }
    context.output().result(&found, ToString::to_string)?;
    Ok(if found.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
