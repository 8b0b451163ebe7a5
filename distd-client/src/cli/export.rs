//! `distd export` and `distd bundle`: releases in files, for places without a parent.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use async_trait::async_trait;
use clap::Subcommand;
use distd_core::api::{BundleMetadata, NewBundleMetadata};
use distd_core::names::{Name, Wanted};
use distd_peer::bundle::{Bundle, Head, SwarmPart};
use distd_peer::settings::{Table, TableArgs, TableOptions};
use serde::Serialize;

use super::context::{ApiArgs, Context};
use super::parse::duration;
use super::shown::ShownProgress;
use crate::api::Api;
use crate::config;
use crate::failure::{Code, Failure};
use crate::pull::{
    ExportRequest, Exported, PullRequest, SignForBundle, export, name_of, open_bundle, timestamp_ends,
};
use crate::text::{human_bytes, table, time};

/// Write a release into a bundle: a file that a device or relay without a parent takes it from.
#[derive(clap::Args)]
pub struct Args {
    /// Release to export: PRODUCT@VERSION or PRODUCT:CHANNEL.
    #[arg(value_name = "PRODUCT@VERSION|PRODUCT:CHANNEL")]
    wanted: Wanted,
    /// File to write; - for standard output.
    #[arg(short, long, value_name = "BUNDLE")]
    out: PathBuf,
    /// Version that the readers of the bundle have: the bundle brings only what that version lacks.
    #[arg(long, value_name = "VERSION")]
    since: Option<Name>,
    /// Have the origin sign metadata for the bundle that is valid for longer than a day, as in 14d.
    /// Needs a token with the scope admin, and bundle_validity at the origin. Whoever of the realm
    /// has the bundle may read the release until then.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    valid_for: Option<Duration>,
    /// Replace the file if it is there.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    settings: TableArgs<ExportOptions>,
    /// File that holds the API token for --valid-for. Default: $DISTD_TOKEN, then the token given
    /// to `distd login`.
    #[arg(long, value_name = "FILE", requires = "valid_for")]
    token_file: Option<PathBuf>,
}

/// Asks the origin over its HTTP API.
struct ByApi {
    api: Api,
    seconds: u64,
}

#[async_trait]
impl SignForBundle for ByApi {
    async fn sign(&self, product: &Name, version: &Name) -> anyhow::Result<BundleMetadata> {
        let wanted = NewBundleMetadata { seconds: self.seconds };
        let signed = self.api.sign_for_bundle(product, version, &wanted).await;
        Ok(signed.map_err(Failure::from)?)
    }
}

/// Settings that matter to an export.
pub(crate) enum ExportOptions {}

impl TableOptions for ExportOptions {
    type Values = config::Values;
    const TABLE: Table<config::Values> = config::TABLE;

    fn has(key: &str) -> bool {
        ["parents", "transport", "view_memory_mib"].contains(&key)
    }
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let settings = context.settings(&args.settings.line)?;
    let wanted = args.wanted.to_string();
    let pull = PullRequest::without_target(context.data(), args.wanted, &settings)?.unshared();
    let out = Some(args.out).filter(|out| out != Path::new("-"));
    if out.is_none() && context.output().is_json() {
        let error = anyhow!("the bundle and the JSON object would both go to standard output");
        return Err(Failure::new(Code::Usage, error).next("name a file with --out").into());
    }
    let to_file = out.clone();
    let longer = match args.valid_for {
        Some(valid_for) => {
            let api = context.api(&ApiArgs::with_token_file(args.token_file))?;
            Some(Arc::new(ByApi { api, seconds: valid_for.as_secs() }) as Arc<dyn SignForBundle>)
        }
        None => None,
    };
    let request = ExportRequest { pull, since: args.since, out, replace: args.force, longer };
    let progress = Arc::new(ShownProgress::new(context.output()));
    let exported = export(&request, progress).await?;
    match to_file {
        Some(out) => context.output().result(&exported, |exported| summary(exported, &out, &wanted)),
        // Standard output is the bundle.
        None => {
            context.output().note(&summary(&exported, Path::new("standard output"), &wanted));
            Ok(())
        }
    }
}

fn summary(exported: &Exported, out: &Path, wanted: &str) -> String {
    let from = exported.since.as_ref().map(|since| format!(" for devices that have {since}"));
    let kept = match exported.kept {
        0 => String::new(),
        kept => format!(", {kept} of them left by an interrupted export"),
    };
    format!(
        "{}@{}{} in {}: {}, {} chunks and {} patches{kept}; {} received\nvalid until {}\nnext: on the device: distd pull {} --from BUNDLE --out FILE; at a relay: distd-peer import BUNDLE",
        exported.product,
        exported.version,
        from.unwrap_or_default(),
        out.display(),
        human_bytes(exported.bundle_bytes),
        exported.chunks,
        exported.patches,
        human_bytes(exported.wire_bytes),
        time(exported.valid_until as i64),
        wanted,
    )
}

/// Look into a bundle.
#[derive(clap::Args)]
pub struct BundleArgs {
    #[command(subcommand)]
    command: BundleCommand,
}

#[derive(Subcommand)]
enum BundleCommand {
    /// Read a bundle whole, check that it is complete and undamaged, and say what it brings. Its
    /// signatures are checked where it is used: by a pull, or by the import at a relay.
    Show {
        /// The bundle.
        bundle: PathBuf,
    },
}

/// A bundle, as `show` prints it.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    head: Head,
    /// Length of the bundle, bytes.
    bundle_bytes: u64,
    /// Packed bytes of the release's chunks.
    chunk_bytes: u64,
    /// Packed bytes of patches and their indexes.
    patch_bytes: u64,
    /// Bytes of manifest nodes.
    node_bytes: u64,
    /// Time from which the metadata is refused, unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_until: Option<u64>,
}

impl Shown {
    fn of(bundle: &Bundle) -> Self {
        let (release, sets) = bundle.swarms().split_at(bundle.swarms().len().min(1));
        let sum = |swarms: &[SwarmPart], of: fn(&SwarmPart) -> u64| swarms.iter().map(of).sum();
        Self {
            head: bundle.head().clone(),
            bundle_bytes: bundle.bytes(),
            chunk_bytes: sum(release, SwarmPart::chunk_bytes),
            patch_bytes: sum(sets, SwarmPart::chunk_bytes),
            node_bytes: sum(bundle.swarms(), SwarmPart::node_bytes),
            valid_until: timestamp_ends(bundle.metadata()),
        }
    }

    fn summary(&self) -> String {
        let for_whom = match &self.head.since {
            Some(since) => format!("devices that have {}@{}", self.head.product, since.version),
            None => "any device".to_owned(),
        };
        let valid = self.valid_until.map_or_else(|| "unknown".to_owned(), |until| time(until as i64));
        let rows = [
            ("brings", name_of(&self.head)),
            ("for", for_whom),
            ("artifact", human_bytes(self.head.bytes)),
            ("bundle", human_bytes(self.bundle_bytes)),
            ("chunks", human_bytes(self.chunk_bytes)),
            ("patches", human_bytes(self.patch_bytes)),
            ("manifest nodes", human_bytes(self.node_bytes)),
            ("made", time(self.head.made as i64)),
            ("valid until", valid),
        ];
        table(&rows.map(|(name, value)| vec![name.to_owned(), value]))
    }
}

pub(crate) async fn bundle(context: &Context, args: BundleArgs) -> anyhow::Result<()> {
    let BundleCommand::Show { bundle } = args.command;
    let opened = tokio::task::spawn_blocking(move || open_bundle(&bundle)).await??;
    context.output().result(&Shown::of(&opened), Shown::summary)
}
