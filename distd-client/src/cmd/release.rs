//! `distd release`: lists, shows and withdraws releases.

use clap::Subcommand;
use distd_core::names::Name;
use serde::Serialize;

use super::parse::ReleaseName;
use crate::context::{ApiArgs, Context};
use distd_client::failure::Failure;
use distd_client::text::time;
use distd_client::text::{human_bytes, table};
use distd_core::api::{Release, code};

/// List, show or withdraw releases.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the releases of a product.
    Ls {
        /// Product to list.
        product: Name,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Withdraw a release that no channel points to. The origin no longer offers it to devices, and
    /// frees the space that no other release needs.
    Rm {
        /// Release to withdraw.
        #[arg(value_name = "PRODUCT@VERSION")]
        release: ReleaseName,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show one release.
    Show {
        /// Release to show.
        #[arg(value_name = "PRODUCT@VERSION")]
        release: ReleaseName,
        #[command(flatten)]
        api: ApiArgs,
    },
}

#[derive(Serialize)]
struct Withdrawn<'a> {
    withdrawn: &'a str,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Ls { product, api } => {
            let list = context.api(&api)?.releases(product.as_str()).await.map_err(Failure::from)?;
            context.output().result(&list, |list| {
                if list.releases.is_empty() {
                    return format!("{product} has no releases");
                }
                let mut rows = vec![
                    ["VERSION", "KIND", "SIZE", "CHUNKS", "CREATED", "BLAKE3", "CHANNELS", "STATE"]
                        .map(str::to_owned)
                        .to_vec(),
                ];
                rows.extend(list.releases.iter().map(|release| {
                    let Release { version, kind, bytes, chunks, created, blake3, channels, damaged, .. } =
                        release.clone();
                    let state = if damaged { "damaged: push it again" } else { "" }.to_owned();
                    let mut short = blake3.to_string();
                    short.truncate(16);
                    vec![
                        version,
                        kind.to_string(),
                        human_bytes(bytes),
                        chunks.to_string(),
                        time(created),
                        short,
                        channels.join(","),
                        state,
                    ]
                }));
                table(&rows)
            })
        }
        Command::Rm { release: ReleaseName { product, version }, api } => {
            let outcome = context.api(&api)?.withdraw(product.as_str(), version.as_str()).await;
            outcome.map_err(|error| match error.code() {
                code::IN_USE => Failure::from(error).next(format!(
                    "distd channel set {product}:CHANNEL OTHER-VERSION (with --downgrade if it is older), or distd \
                     channel rm {product}:CHANNEL"
                )),
                _ => Failure::from(error),
            })?;
            let withdrawn = format!("{product}@{version}");
            context.output().result(&Withdrawn { withdrawn: &withdrawn }, |withdrawn| {
                format!("{} is withdrawn", withdrawn.withdrawn)
            })
        }
        Command::Show { release: ReleaseName { product, version }, api } => {
            let release = context.api(&api)?.release(product.as_str(), version.as_str()).await;
            let release = release.map_err(Failure::from)?;
            context.output().result(&release, |release| {
                let Release { product, version, kind, manifest, blake3, bytes, chunks, created, .. } = release;
                let state = if release.damaged { "\nstate    damaged: push it again" } else { "" };
                format!(
                    "release  {product}@{version}\nkind     {kind}\nbytes    {bytes}\nchunks   {chunks}\ncreated  {}\n\
                     blake3   {blake3}\nmanifest {manifest}{state}",
                    time(*created)
                )
            })
        }
    }
}
