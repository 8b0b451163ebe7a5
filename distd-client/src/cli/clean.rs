//! `distd clean`: removes the leftovers of interrupted pulls.

use std::path::PathBuf;

use serde::Serialize;

use super::context::Context;
use crate::disk::path::ArtifactPath;
use crate::failure::Failure;
use crate::pull::clean;

/// Remove the files that interrupted pulls left beside an artifact.
///
/// The same pull, run again, would continue from these files. Clean is for pulls that will not be
/// run again. The artifact itself is not touched.
#[derive(clap::Args)]
pub struct Args {
    /// The path that was given to the pull as --out; several are allowed.
    #[arg(value_name = "FILE|BLOCKDEV|DIR", required = true)]
    out: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Cleaned {
    removed: Vec<String>,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let targets = args.out.iter().map(|out| ArtifactPath::target(out));
    let targets = targets.collect::<Result<Vec<_>, _>>().map_err(Failure::from)?;
    let data = context.data().to_owned();
    let work = move || {
        let mut removed = Vec::new();
        for target in &targets {
            removed.extend(clean(target.path(), &data)?);
        }
        anyhow::Ok(removed)
    };
    let removed = tokio::task::spawn_blocking(work).await??;
    let cleaned = Cleaned { removed: removed.iter().map(|path| path.display().to_string()).collect() };
    context.output().result(&cleaned, |cleaned| match cleaned.removed.is_empty() {
        true => "nothing was left".to_owned(),
        false => format!("removed {}", cleaned.removed.join("\nremoved ")),
    })
}
