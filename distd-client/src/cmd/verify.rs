//! `distd verify`: check an artifact against the manifest kept beside it.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use distd_core::manifest::Manifest;

use crate::context::Context;
use crate::exit::{Code, Failure};
use crate::pull::{read_kept_manifest, verify};

/// Check an artifact against its manifest.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The artifact.
    path: PathBuf,
    /// Its manifest; default: the one kept beside it.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let manifest = match &args.manifest {
        Some(path) => {
            let bytes = std::fs::read(path)
                .with_context(|| format!("could not read {}", path.display()))
                .map_err(|e| Failure::new(Code::Local, e))?;
            Manifest::from_file_bytes(bytes.into())
                .with_context(|| format!("{} is no manifest", path.display()))
                .map_err(|e| Failure::new(Code::Unusable, e))?
        }
        None => read_kept_manifest(&args.path, context.data()).ok_or_else(|| {
            let error = anyhow!("no manifest is kept beside {}", args.path.display());
            Failure::new(Code::NotFound, error)
                .next("name one with --manifest FILE, or pull the artifact with distd")
        })?,
    };
    let path = args.path.clone();
    let report = tokio::task::spawn_blocking(move || verify(&path, &manifest)).await??;
    context.output().result(&report, |report| report.summary())?;
    if report.is_intact() {
        return Ok(());
    }
    let error = anyhow!("{} does not match its manifest", args.path.display());
    Err(Failure::new(Code::Integrity, error).next("pull it again: chunks that still match are kept").into())
}
