//! `distd verify`: checks an artifact against the manifest kept beside it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use distd_core::manifest::Manifest;

use super::context::Context;
use crate::disk::path::{ArtifactPath, PathError, Role};
use crate::failure::{Code, Failure};
use crate::pull::{Kept, verify, verify_kept};

/// Check an artifact against its manifest.
#[derive(clap::Args)]
pub struct Args {
    /// Artifact to check.
    path: PathBuf,
    /// Manifest to check against. Default: the one kept beside the artifact.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let path = match ArtifactPath::existing(&args.path, Role::Artifact) {
        Ok(found) => found.path().to_owned(),
        // Most likely no manifest is kept beside the missing artifact either, and the error about
        // the missing manifest is the more useful one.
        Err(PathError::Missing { .. }) => args.path.components().collect(),
        Err(error) => return Err(Failure::from(error).into()),
    };
    let named = args.manifest.as_deref().map(read_manifest).transpose()?;
    let (data, artifact) = (context.data().to_owned(), path.clone());
    let check = move || match named {
        Some(manifest) => verify(&artifact, &data, &Kept::named(manifest, &artifact)),
        None => verify_kept(&artifact, &data),
    };
    let report = tokio::task::spawn_blocking(check).await??;
    if report.is_intact() {
        return context.output().result(&report, |report| report.summary());
    }
    context.output().finding(&report, |report| report.summary())?;
    let error = anyhow!("{} does not match its manifest", path.display());
    Err(Failure::new(Code::Integrity, error).next("pull it again: chunks that still match are kept").into())
}

fn read_manifest(path: &Path) -> anyhow::Result<Manifest> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("could not read {}", path.display()))
        .map_err(|e| Failure::new(Code::Local, e))?;
    let manifest = Manifest::from_file_bytes(bytes.into())
        .with_context(|| format!("{} is no manifest", path.display()))
        .map_err(|e| Failure::new(Code::Unusable, e))?;
    Ok(manifest)
}
