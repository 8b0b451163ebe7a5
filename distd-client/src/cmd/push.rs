//! `distd push`: makes a release of a file, block device or directory.

use std::path::PathBuf;
use std::sync::Arc;

use distd_core::names::Name;
use distd_core::packing::LEVEL_DEFAULT;

use crate::context::{ApiArgs, Context};
use crate::push::{Outcome, PushRequest, push};
use crate::shown::ShownProgress;

/// Make a release of a file, a block device or a directory.
///
/// The artifact is cut into chunks on this machine, and only the chunks that the origin lacks are
/// sent. If interrupted, the same command continues where it stopped. A version is released once:
/// pushing the same bytes again changes nothing, pushing other bytes is refused.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The artifact to push.
    #[arg(value_name = "FILE|BLOCKDEV|DIR")]
    path: PathBuf,
    /// The product; created if it is new.
    #[arg(long, value_name = "PRODUCT")]
    product: Name,
    /// The version of the new release.
    #[arg(long, value_name = "VERSION")]
    version: Name,
    /// zstd level for new chunks: higher is smaller and slower.
    #[arg(long, value_name = "1-19", default_value_t = LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,
    /// Point this channel at the release once it is committed. The token also needs the scope
    /// channel.
    #[arg(long, value_name = "CHANNEL")]
    channel: Option<Name>,
    #[command(flatten)]
    api: ApiArgs,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let api = context.api(&args.api)?;
    let Args { path, product, version, level, channel, .. } = args;
    let request = PushRequest { path, product, version, level, channel };
    let progress = Arc::new(ShownProgress::new(context.output()));
    let outcome = push(&api, &request, progress).await?;
    show(context, &outcome)
}

/// Prints what was pushed, and warns of what was left out.
pub(super) fn show(context: &Context, outcome: &Outcome) -> anyhow::Result<()> {
    context.output().result(outcome, |outcome| outcome.summary())?;
    for what in outcome.left_out() {
        context.output().note(&format!("warning: {what} were left out"));
    }
    Ok(())
}
