//! `distd import`: makes a release of another realm one of this realm.

use std::path::PathBuf;
use std::sync::Arc;

use distd_client::cli::ShownProgress;
use distd_client::cli::{ApiArgs, Context};
use distd_client::pull::{PullRequest, open_bundle, pull};
use distd_core::names::{Name, Wanted};
use distd_core::packing::LEVEL_DEFAULT;
use distd_peer::settings::CommandLine;

use super::push::show;
use crate::push::{PushRequest, Pushed, push};

/// Take a release out of a bundle and push it to an origin, mostly that of another realm.
///
/// The release is put at --out, as distd pull --from does, and pushed from there under its version.
/// Keep that file: a later bundle that was exported with --since starts from it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The bundle.
    bundle: PathBuf,
    /// Path to put the release at.
    #[arg(long, value_name = "FILE|DIR")]
    out: PathBuf,
    /// File with the root metadata of the bundle's realm, as its origin serves it under
    /// /tuf/1.root.json, for a machine that is not enrolled there.
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// Product at the origin. Default: as in the bundle.
    #[arg(long, value_name = "PRODUCT")]
    product: Option<Name>,
    /// Point this channel at the release once it is committed. The token also needs the scope
    /// channel.
    #[arg(long, value_name = "CHANNEL")]
    channel: Option<Name>,
    #[command(flatten)]
    api: ApiArgs,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    // Before the work: a token that is missing is said at once.
    let api = context.api(&args.api)?;
    let path = args.bundle.clone();
    let head = tokio::task::spawn_blocking(move || open_bundle(&path)).await??.head().clone();
    let wanted = Wanted::Release { product: head.product.clone(), version: head.release.version.clone() };
    let settings = context.settings(&CommandLine::default())?;
    let request = PullRequest::without_target(context.data(), wanted, &settings)?;
    let request = request.to(&args.out)?.from_bundle(&args.bundle, args.root.as_deref())?;
    let progress = Arc::new(ShownProgress::new(context.output()));
    let path = request.out.clone();
    pull(&request, progress.clone()).await?;
    let request = PushRequest {
        artifact: Pushed::Path(path),
        product: args.product.unwrap_or(head.product),
        version: head.release.version,
        level: LEVEL_DEFAULT,
        channel: args.channel,
    };
    let outcome = push(&api, &request, progress).await?;
    show(context, &outcome)
}
