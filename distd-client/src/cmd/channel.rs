//! `distd channel`: which release a channel points at, and which there are.

use clap::Subcommand;
use distd_core::names::Name;
use serde::Serialize;

use super::parse::{ChannelName, time};
use crate::api::{Api, Channel, ChannelList};
use crate::context::{ApiArgs, Context};
use crate::exit::Failure;
use crate::output::table;

/// See, move or remove channels.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Point a channel at a release; the channel is made when it is new.
    Set {
        /// The channel.
        #[arg(value_name = "PRODUCT:CHANNEL")]
        channel: ChannelName,
        /// A version of the product.
        version: Name,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List channels, of one product or of all.
    Ls {
        /// The product.
        product: Option<Name>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Remove a channel: devices that follow it are told that there is none.
    Rm {
        /// The channel.
        #[arg(value_name = "PRODUCT:CHANNEL")]
        channel: ChannelName,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show what a channel points at.
    Show {
        /// The channel.
        #[arg(value_name = "PRODUCT:CHANNEL")]
        channel: ChannelName,
        #[command(flatten)]
        api: ApiArgs,
    },
}

#[derive(Serialize)]
struct Removed<'a> {
    removed: &'a str,
}

async fn list(context: &Context, api: &Api, product: Option<Name>) -> anyhow::Result<()> {
    let products = match product {
        Some(product) => vec![product.to_string()],
        None => {
            let list = api.products().await.map_err(Failure::from)?;
            list.products.into_iter().map(|product| product.name).collect()
        }
    };
    let mut channels = Vec::new();
    for product in products {
        channels.extend(api.channels(&product).await.map_err(Failure::from)?.channels);
    }
    context.output().result(&ChannelList { channels }, |list| {
        if list.channels.is_empty() {
            return "there are no channels".to_owned();
        }
        let head = ["CHANNEL", "VERSION", "CHANGE", "UPDATED", "MANIFEST"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(list.channels.iter().map(|channel| {
            let Channel { product, channel, version, manifest, counter, updated } = channel.clone();
            let mut short = manifest.to_string();
            short.truncate(16);
            vec![format!("{product}:{channel}"), version, counter.to_string(), time(updated), short]
        }));
        table(&rows)
    })
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let channel = match args.command {
        Command::Set { channel: ChannelName { product, channel }, version, api } => {
            context.api(&api)?.set_channel(product.as_str(), channel.as_str(), version.as_str()).await
        }
        Command::Show { channel: ChannelName { product, channel }, api } => {
            context.api(&api)?.channel(product.as_str(), channel.as_str()).await
        }
        Command::Ls { product, api } => return list(context, &context.api(&api)?, product).await,
        Command::Rm { channel, api } => {
            let ChannelName { product, channel: name } = &channel;
            let done = context.api(&api)?.remove_channel(product.as_str(), name.as_str()).await;
            done.map_err(Failure::from)?;
            let removed = channel.to_string();
            return context
                .output()
                .result(&Removed { removed: &removed }, |done| format!("{} is removed", done.removed));
        }
    };
    context.output().result(&channel.map_err(Failure::from)?, |channel| {
        let Channel { product, channel, version, manifest, counter, updated } = channel;
        format!(
            "{product}:{channel} points at {version} (change {counter}, {})\nmanifest {manifest}",
            time(*updated)
        )
    })
}
