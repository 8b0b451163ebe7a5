//! `distd status`: what this device runs and does, by its agent's own notes.

use anyhow::anyhow;
use distd_core::names::Name;

use super::context::Context;
use crate::failure::{Code, Failure};
use crate::follow::{Status, read_status};
use crate::text::time;

/// Show what this device runs, what it is to run, and what it does. Asks nobody.
#[derive(clap::Args)]
pub struct Args {}

/// The state that the agent of this device wrote last.
///
/// # Errors
/// Failures with [`Code::Local`] when there is none.
pub(super) fn of_this_device(context: &Context) -> anyhow::Result<Status> {
    let data = context.data();
    let found = read_status(data).map_err(|error| {
        let error = anyhow::Error::new(error).context("the state of this device cannot be read");
        Failure::new(Code::Local, error).next("run the command as the user of the agent")
    })?;
    found.ok_or_else(|| {
        let error = anyhow!("no agent has followed a channel with the state directory {}", data.display());
        let next = "name the agent's state directory with --data, or start one: distd agent --follow PRODUCT:CHANNEL";
        Failure::new(Code::Local, error).next(next).into()
    })
}

fn at(seconds: u64) -> String {
    time(i64::try_from(seconds).unwrap_or(i64::MAX))
}

pub(super) fn shown(status: &Status) -> String {
    let or_none = |name: &Option<Name>| name.as_ref().map_or("-".to_owned(), Name::to_string);
    let mut lines = vec![
        format!("channel  {}:{}", status.product, status.channel),
        format!("runs     {}", or_none(&status.version)),
    ];
    if let Some(slot) = &status.slot {
        lines.push(format!("slot     {slot}"));
    }
    lines.push(format!("wanted   {}", or_none(&status.wanted)));
    if let Some(attempt) = &status.attempt {
        let mut text =
            format!("attempt  {} at {}: {}", attempt.number, attempt.version, attempt.state.as_str());
        text.push_str(&format!(", began {}, {} s", at(attempt.began), attempt.seconds));
        if let Some(failure) = &attempt.failure {
            text.push_str(&format!(" ({}: {})", failure.kind, failure.detail));
        }
        lines.push(text);
    }
    lines.push(format!("looked   {}", status.looked.map_or("never".to_owned(), at)));
    if let Some(error) = &status.error {
        lines.push(format!("error    {error}"));
    }
    lines.push(format!("noted    {}", at(status.written)));
    lines.push(status.why());
    lines.join("\n")
}

pub(crate) fn run(context: &Context, _: Args) -> anyhow::Result<()> {
    context.output().result(&of_this_device(context)?, shown)
}
