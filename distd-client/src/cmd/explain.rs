//! `distd explain`: where the delta between two artifacts comes from, and what to change.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;

use crate::context::Context;
use crate::exit::{Code, Failure};
use crate::explain::{explain, html, text};
use crate::progress::Progress;

/// Say where the delta between two artifacts comes from, and what to change.
///
/// Both are read here; no origin is asked. Bytes on the wire are those of chunks: patches make fewer of them.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What devices have.
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// What they would get.
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// Paths in the table; --json has them all.
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// Draw a picture too: one file without scripts, for any browser.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let progress = Arc::new(Progress::new(context.output()));
    let (old, new) = (args.old.clone(), args.new.clone());
    let counter = progress.clone();
    let report = tokio::task::spawn_blocking(move || explain(&old, &new, &counter)).await??;
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
