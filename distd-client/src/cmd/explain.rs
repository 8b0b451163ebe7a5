//! `distd explain`: shows the causes of the delta between two artifacts, and how to shrink it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use distd_client::cli::{Context, ShownProgress};
use distd_client::failure::{Code, Failure};
use distd_client::progress::Progress as _;

use crate::explain::{explain, html, text};

/// Show where the delta between two artifacts comes from, and what to change to shrink it.
///
/// Both artifacts are read on this machine; no origin is asked. The bytes on the wire are those of
/// chunks; patches need fewer.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The artifact that devices have.
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// The artifact that devices would get.
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// Number of paths in the table; --json lists all.
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// Also count the bytes of NEW that patches cannot see into: packed files that cannot be packed
    /// again to the same bytes. Takes minutes for a system.
    #[arg(long)]
    views: bool,
    /// Also draw a picture into this file: one HTML page without scripts, for any browser.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let progress = Arc::new(ShownProgress::new(context.output()));
    let (old, new) = (args.old.clone(), args.new.clone());
    let (counter, views) = (progress.clone(), args.views);
    let report = tokio::task::spawn_blocking(move || explain(&old, &new, views, &*counter)).await??;
    progress.end();
    if let Some(path) = &args.html {
        let title = format!("{} to {}", args.old.display(), args.new.display());
        std::fs::write(path, html::page(&report, &title))
            .with_context(|| format!("could not write {}", path.display()))
            .map_err(|e| Failure::new(Code::Local, e))?;
        context.output().note(&format!("picture in {}", path.display()));
    }
    context.output().result(&report, |report| text::summary(report, args.top))
}
