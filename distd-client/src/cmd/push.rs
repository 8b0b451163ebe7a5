//! `distd push`: makes a release of a file, block device or directory.

use std::path::PathBuf;
use std::sync::Arc;

use distd_client::cli::ShownProgress;
use distd_client::cli::{ApiArgs, Context};
use distd_core::names::Name;
use distd_core::packing::LEVEL_DEFAULT;

use crate::push::{Outcome, PushRequest, Pushed, push};

/// Make a release of a file, a block device, a directory, or several files.
///
/// With --artifact, the release is a disk image that has a partition for each file. A device with
/// slots writes each partition to a place of its own, all of them or none.
///
/// The artifact is cut into chunks on this machine, and only the chunks that the origin lacks are
/// sent. If interrupted, the same command continues where it stopped. A version is released once:
/// pushing the same bytes again changes nothing, pushing other bytes is refused.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The artifact to push.
    #[arg(value_name = "FILE|BLOCKDEV|DIR", required_unless_present = "artifacts")]
    path: Option<PathBuf>,
    /// Label of a partition and the file that goes there, such as root=root.erofs; several times.
    #[arg(long = "artifact", value_name = "LABEL=FILE", value_parser = partition, conflicts_with = "path")]
    artifacts: Vec<(String, PathBuf)>,
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

/// Parses the label of a partition and a path.
fn partition(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((label, path)) if !label.is_empty() && !path.is_empty() => Ok((label.to_owned(), path.into())),
        _ => Err("is not LABEL=FILE, as in root=root.erofs".to_owned()),
    }
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let api = context.api(&args.api)?;
    let Args { path, artifacts, product, version, level, channel, .. } = args;
    let artifact = path.map_or(Pushed::Disk(artifacts), Pushed::Path);
    let request = PushRequest { artifact, product, version, level, channel };
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
