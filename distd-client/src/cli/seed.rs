//! `distd seed`: packages that are here already, for the cache of the proxy for apt.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::Subcommand;
use distd_peer::apt::{Import, Shelf};
use distd_peer::process::told_to_end;
use serde::Serialize;

use super::cache;
use super::context::Context;
use crate::failure::{Code, Failure};

/// Interval at which watched directories are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Deepest directory that is looked into.
const DEPTH_MAX: usize = 32;

/// Take packages that are here already over into the cache of the proxy for apt (docs/apt.md).
///
/// A package is given by its hash, once an index of a repository lists it. The original stays.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Copy packages into the cache.
    Import {
        /// Packages (`.deb`, `.udeb`, `.ddeb`), or directories with some.
        #[arg(required = true, value_name = "FILE|DIR")]
        paths: Vec<PathBuf>,
        /// Look into directories below, too.
        #[arg(short, long)]
        recursive: bool,
        /// Go on until stopped, and take over what comes.
        #[arg(long)]
        watch: bool,
    },
    /// List the packages in the cache.
    Ls,
}

#[derive(Debug, Default, Serialize)]
struct Imported {
    imported: u64,
    present: u64,
    refused: Vec<String>,
    bytes: u64,
}

impl Imported {
    fn add(&mut self, more: Self) {
        self.imported += more.imported;
        self.present += more.present;
        self.bytes += more.bytes;
        self.refused.extend(more.refused);
    }
}

/// Files that were looked at: path, length and date.
type Seen = BTreeSet<(PathBuf, u64, Option<SystemTime>)>;

fn is_package(path: &Path) -> bool {
    path.extension()
        .and_then(|suffix| suffix.to_str())
        .is_some_and(|suffix| matches!(suffix, "deb" | "udeb" | "ddeb"))
}

/// Packages at or below a path; links to directories are not followed.
fn packages(path: &Path, recursive: bool, depth: usize) -> anyhow::Result<Vec<PathBuf>> {
    let unreadable = || format!("could not look at {}", path.display());
    if !std::fs::metadata(path).with_context(unreadable)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut out = Vec::new();
    for entry in std::fs::read_dir(path).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let kind = entry.file_type().with_context(unreadable)?;
        if kind.is_dir() && recursive && depth < DEPTH_MAX {
            out.extend(packages(&entry.path(), recursive, depth + 1)?);
        } else if kind.is_file() && is_package(&entry.path()) {
            out.push(entry.path());
        }
    }
    out.sort();
    Ok(out)
}

fn import(shelf: &Shelf, path: &Path, done: &mut Imported) -> anyhow::Result<()> {
    let failed = || format!("could not take {} over", path.display());
    match shelf.import(path).with_context(failed)? {
        Import::Added(sum) => {
            done.imported += 1;
            done.bytes += sum.bytes;
        }
        Import::There(_) => done.present += 1,
        Import::NoPackage => done.refused.push(path.display().to_string()),
    }
    Ok(())
}

/// Takes over what is there and was not seen before at that length and date.
fn look(shelf: &Shelf, paths: &[PathBuf], recursive: bool, seen: &mut Seen) -> anyhow::Result<Imported> {
    let mut done = Imported::default();
    // Files that are gone are forgotten.
    let before = std::mem::take(seen);
    for path in paths {
        for package in packages(path, recursive, 0)? {
            // It may be gone since it was listed.
            let Ok(meta) = std::fs::metadata(&package) else { continue };
            let this = (package, meta.len(), meta.modified().ok());
            if !before.contains(&this) {
                import(shelf, &this.0, &mut done)?;
            }
            seen.insert(this);
        }
    }
    Ok(done)
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let (shelf, _) = cache::shelf(context)?;
    let local = |error: anyhow::Error| Failure::new(Code::Local, error);
    let (paths, recursive, watch) = match args.command {
        Command::Import { paths, recursive, watch } => (paths, recursive, watch),
        Command::Ls => {
            let mut items = shelf.list().map_err(|error| local(error.into()))?;
            items.retain(|item| is_package(Path::new(&item.marks.name)));
            return cache::show(context, &items);
        }
    };
    let mut seen = Seen::new();
    let mut total = look(&shelf, &paths, recursive, &mut seen).map_err(local)?;
    if watch {
        let ended = told_to_end();
        tokio::pin!(ended);
        loop {
            tokio::select! {
                ended = &mut ended => {
                    ended?;
                    break;
                }
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            total.add(look(&shelf, &paths, recursive, &mut seen).map_err(local)?);
        }
    }
    let refused = total.refused.len();
    context.output().result(&total, |total| {
        let refused = total.refused.iter().map(|path| format!("\nno package: {path}")).collect::<String>();
        format!(
            "took over {} packages of {} bytes; {} were there{refused}",
            total.imported, total.bytes, total.present
        )
    })?;
    match refused {
        0 => Ok(()),
        _ => Err(Failure::new(Code::Unusable, anyhow::anyhow!("{refused} files are no packages")).into()),
    }
}
