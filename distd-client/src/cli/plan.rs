//! `distd plan`: shows what a pull would fetch, before it fetches anything.

use std::path::PathBuf;

use distd_core::names::Wanted;

use super::context::Context;
use super::pull::{Sources, say_refused};
use crate::pull::plan;

/// Show what a pull would fetch, without fetching it.
#[derive(clap::Args)]
pub struct Args {
    /// Release to plan for: PRODUCT@VERSION or PRODUCT:CHANNEL.
    #[arg(value_name = "PRODUCT@VERSION|PRODUCT:CHANNEL")]
    wanted: Wanted,
    /// Path where a pull would put the release. Content already there counts as held.
    #[arg(long, value_name = "FILE|BLOCKDEV|DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    sources: Sources,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let request = args.sources.request(context, args.wanted, args.out)?.unshared();
    let report = plan(&request).await.inspect_err(|error| say_refused(context, error))?;
    context.output().result(&report, |report| report.summary())
}
