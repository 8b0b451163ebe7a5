//! `distd pull`: gets a release, from data on this device and from the parents.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use distd_core::names::Wanted;
use distd_peer::rates::Class;
use distd_peer::settings::{Table, TableArgs, TableOptions};
use serde::Serialize;

use super::context::Context;
use super::shown::ShownProgress;
use crate::config;
use crate::disk::path::{ArtifactPath, Role};
use crate::failure::{self, Failure};
use crate::pull::{Aim, Downgrade, Installed, LABELS_FRESH, PullRequest, Refused, pull};
use crate::share::Sharing;

/// Get a release into a file, a block device or a directory.
#[derive(clap::Args)]
pub struct Args {
    /// Release to get: PRODUCT@VERSION or PRODUCT:CHANNEL.
    #[arg(value_name = "PRODUCT@VERSION|PRODUCT:CHANNEL")]
    wanted: Wanted,
    /// Path to put the release at. A file or directory appears complete or not at all; a block
    /// device is written in place.
    #[arg(long, value_name = "FILE|BLOCKDEV|DIR")]
    out: PathBuf,
    #[command(flatten)]
    sources: Sources,
}

/// Options that say where chunks may come from.
#[derive(clap::Args)]
pub(crate) struct Sources {
    /// An earlier artifact to copy chunks from; repeat for more.
    #[arg(long, value_name = "OLD")]
    seed: Vec<PathBuf>,
    /// A bundle to get the release from, made by distd export; no parent and no neighbour is asked.
    #[arg(long, value_name = "BUNDLE", conflicts_with = "parents")]
    from: Option<PathBuf>,
    /// File with the root metadata of the bundle's realm, as its origin serves it under
    /// /tuf/1.root.json, for a machine that is not enrolled there.
    #[arg(long, value_name = "FILE", requires = "from")]
    root: Option<PathBuf>,
    /// When to use patches that need much processor time: bytes always, time if they pay off on a
    /// gigabit link, auto if they pay off at the link's measured rate.
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    optimize: Aim,
    /// Take the release that a channel points to even if this device has a later one and the
    /// channel does not order a downgrade.
    #[arg(long)]
    allow_downgrade: bool,
    /// Neither serve neighbours nor fetch from them.
    #[arg(long)]
    no_share: bool,
    /// Purpose of the pull: interactive, update or prefetch. Selects which limits of client.toml
    /// apply. Default: interactive when standard error is a terminal, else update.
    #[arg(long, value_name = "CLASS", env = "DISTD_CLASS")]
    class: Option<Class>,
    #[command(flatten)]
    settings: TableArgs<PullOptions>,
}

/// Settings that matter to a single pull.
pub(crate) enum PullOptions {}

impl TableOptions for PullOptions {
    type Values = config::Values;
    const TABLE: Table<config::Values> = config::TABLE;

    fn has(key: &str) -> bool {
        ["parents", "transport", "connectivity", "site", "metered", "share.linger_seconds", "view_memory_mib"]
            .contains(&key)
    }
}

impl Sources {
    pub(crate) fn request(
        self,
        context: &Context,
        wanted: Wanted,
        out: Option<PathBuf>,
    ) -> anyhow::Result<PullRequest> {
        let target = out.as_deref().map(ArtifactPath::target).transpose().map_err(Failure::from)?;
        let seed =
            |typed: &PathBuf| ArtifactPath::existing(typed, Role::Seed).map(|seed| seed.path().to_owned());
        let seeds: Vec<PathBuf> =
            self.seed.iter().map(seed).collect::<Result<_, _>>().map_err(Failure::from)?;
        let by_hand = || if std::io::stderr().is_terminal() { Class::Interactive } else { Class::Update };
        let class = self.class.unwrap_or_else(by_hand);
        let settings = context.settings(&self.settings.line)?;
        let sharing = Sharing::of(&settings).with_class(class);
        let outbound = settings.outbound(sharing.connectivity)?;
        let request = PullRequest {
            installed: Installed::Remembered,
            asks_for_turns: false,
            passing_failures: BTreeMap::new(),
            labels_fresh: LABELS_FRESH,
            expected: None,
            wanted,
            out: target.as_ref().map(|target| target.path().to_owned()).unwrap_or_default(),
            target,
            seeds,
            parents: settings.parents.clone(),
            data: context.data().to_owned(),
            downgrade: if self.allow_downgrade { Downgrade::Always } else { settings.downgrade },
            aim: self.optimize,
            view_memory: settings.view_memory(),
            sharing: if self.no_share { sharing.off() } else { sharing },
            outbound,
            news: None,
            bundle: None,
        };
        match &self.from {
            Some(bundle) => request.from_bundle(bundle, self.root.as_deref()),
            None => Ok(request),
        }
    }
}

#[derive(Serialize)]
struct RefusedDowngrade<'a> {
    downgrade: &'a Refused,
}

/// Adds to the JSON of a failure which downgrade was refused, if the failure is a refused
/// downgrade.
pub(crate) fn say_refused(context: &Context, error: &anyhow::Error) {
    if let Some(downgrade) = failure::cause_of::<Refused>(error) {
        context.output().beside_failure(&RefusedDowngrade { downgrade });
    }
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let request = args.sources.request(context, args.wanted, Some(args.out))?;
    let progress = Arc::new(ShownProgress::new(context.output()));
    let outcome = pull(&request, progress).await.inspect_err(|error| say_refused(context, error))?;
    context.output().result(&outcome, |outcome| outcome.summary())
}
