//! `distd cache`: the packages that the proxy for apt keeps on this machine.

use clap::Subcommand;
use distd_peer::apt::{AptSettings, Item, Shelf};
use distd_peer::settings::CommandLine;
use serde::Serialize;

use super::context::Context;
use crate::failure::{Code, Failure};

/// Look at the cache of the proxy for apt, and change it (docs/apt.md).
///
/// The commands work on the files of the cache, while the agent runs or not. A WORD is the name of
/// a package's file, a pattern of names with `*`, or a SHA-256 or at least 8 digits of its
/// beginning.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the files, the last given first.
    Ls {
        /// Only these files.
        word: Option<String>,
    },
    /// Show how many files there are, and how much room they take.
    Stats,
    /// List the files that were given most often.
    Top {
        /// Number of files.
        #[arg(long, default_value_t = 10)]
        limit: usize,
    },
    /// Remove files. Downloads of them go on.
    Rm {
        /// Files to remove.
        #[arg(required = true)]
        words: Vec<String>,
    },
    /// Remove all files but those that are pinned.
    Clear {
        /// Remove the pinned ones too.
        #[arg(long)]
        pinned: bool,
    },
    /// Keep files when room is needed.
    Pin {
        /// Files to keep.
        #[arg(required = true)]
        words: Vec<String>,
    },
    /// Keep files no longer.
    Unpin {
        /// Files to keep no longer.
        #[arg(required = true)]
        words: Vec<String>,
    },
    /// List the files that are kept.
    Pins,
}

#[derive(Serialize)]
struct Line<'i> {
    sha256: &'i str,
    name: &'i str,
    bytes: u64,
    used: u64,
    given: u64,
    pinned: bool,
}

#[derive(Serialize)]
struct Lines<'i> {
    files: Vec<Line<'i>>,
}

#[derive(Serialize)]
struct Stats {
    files: usize,
    bytes: u64,
    pinned_bytes: u64,
    given: u64,
    max_bytes: u64,
    directory: String,
}

#[derive(Serialize)]
struct Changed {
    files: usize,
    bytes: u64,
}

fn local(error: std::io::Error) -> Failure {
    Failure::new(Code::Local, anyhow::Error::new(error).context("could not use the cache of packages"))
}

/// The cache of this device, and the settings of its proxy.
pub(super) fn shelf(context: &Context) -> anyhow::Result<(Shelf, AptSettings)> {
    let settings = context.settings(&CommandLine::new())?;
    let apt = match settings.apt() {
        Some(apt) => apt.clone(),
        None => super::apt::defaults()?,
    };
    Ok((Shelf::new(&apt.directory_in(context.data())), apt))
}

/// Shows files as a table, or as JSON.
pub(super) fn show(context: &Context, items: &[Item]) -> anyhow::Result<()> {
    let line = |item: &'_ Item| -> String {
        let name = if item.marks.name.is_empty() { "-" } else { &item.marks.name };
        let pin = if item.is_pinned { " pinned" } else { "" };
        format!("{}  {:>12}  {:>5}  {name}{pin}", &item.sha256[..12], item.bytes, item.marks.given)
    };
    let files = items.iter().map(|item| Line {
        sha256: &item.sha256,
        name: &item.marks.name,
        bytes: item.bytes,
        used: item.used,
        given: item.marks.given,
        pinned: item.is_pinned,
    });
    context.output().result(&Lines { files: files.collect() }, |_| {
        let head = format!("{:12}  {:>12}  {:>5}  NAME", "SHA-256", "BYTES", "GIVEN");
        items.iter().fold(head, |text, item| format!("{text}\n{}", line(item)))
    })
}

/// Finds the files of all words; each word must mean at least one.
fn all(shelf: &Shelf, words: &[String]) -> anyhow::Result<Vec<Item>> {
    let mut found: Vec<Item> = Vec::new();
    for word in words {
        let items = shelf.find(word).map_err(local)?;
        if items.is_empty() {
            let error = anyhow::anyhow!("no file of the cache is meant by {word:?}");
            return Err(Failure::new(Code::NotFound, error)
                .next("see which there are: distd cache ls")
                .into());
        }
        found.extend(items);
    }
    found.sort_by(|a, b| a.sha256.cmp(&b.sha256));
    found.dedup_by(|a, b| a.sha256 == b.sha256);
    Ok(found)
}

/// Does something to each file, and shows to how many.
fn each(
    context: &Context,
    items: &[Item],
    what: &str,
    act: impl Fn(&Item) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    for item in items {
        act(item).map_err(local)?;
    }
    let bytes = items.iter().map(|item| item.bytes).sum();
    context.output().result(&Changed { files: items.len(), bytes }, |changed| {
        format!("{what} {} files of {} bytes", changed.files, changed.bytes)
    })
}

pub(crate) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let (shelf, settings) = shelf(context)?;
    match args.command {
        Command::Ls { word: None } => show(context, &shelf.list().map_err(local)?),
        Command::Ls { word: Some(word) } => show(context, &shelf.find(&word).map_err(local)?),
        Command::Top { limit } => {
            let mut items = shelf.list().map_err(local)?;
            items.sort_by_key(|item| std::cmp::Reverse(item.marks.given));
            items.truncate(limit);
            show(context, &items)
        }
        Command::Pins => {
            let mut items = shelf.list().map_err(local)?;
            items.retain(|item| item.is_pinned);
            show(context, &items)
        }
        Command::Stats => {
            let items = shelf.list().map_err(local)?;
            let sum = |of: fn(&Item) -> u64| items.iter().map(of).sum();
            let stats = Stats {
                files: items.len(),
                bytes: sum(|item| item.bytes),
                pinned_bytes: sum(|item| if item.is_pinned { item.bytes } else { 0 }),
                given: sum(|item| item.marks.given),
                max_bytes: settings.bounds.max_bytes,
                directory: settings.directory_in(context.data()).display().to_string(),
            };
            context.output().result(&stats, |stats| {
                format!(
                    "{} files, {} of {} bytes, {} of them pinned; given {} times\n{}",
                    stats.files,
                    stats.bytes,
                    stats.max_bytes,
                    stats.pinned_bytes,
                    stats.given,
                    stats.directory
                )
            })
        }
        Command::Rm { words } => each(context, &all(&shelf, &words)?, "removed", |item| shelf.remove(item)),
        Command::Clear { pinned } => {
            let mut items = shelf.list().map_err(local)?;
            items.retain(|item| pinned || !item.is_pinned);
            each(context, &items, "removed", |item| shelf.remove(item))
        }
        Command::Pin { words } => each(context, &all(&shelf, &words)?, "pinned", |item| shelf.pin(item)),
        Command::Unpin { words } => {
            each(context, &all(&shelf, &words)?, "unpinned", |item| shelf.unpin(item))
        }
    }
}
