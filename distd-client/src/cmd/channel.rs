//! `distd channel`: which release a channel points at.

use clap::Subcommand;
use distd_core::names::Name;

use super::parse::{ChannelName, time};
use crate::api::Channel;
use crate::context::{ApiArgs, Context};
use crate::exit::Failure;

/// See or move channels.
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
    /// Show what a channel points at.
    Show {
        /// The channel.
        #[arg(value_name = "PRODUCT:CHANNEL")]
        channel: ChannelName,
        #[command(flatten)]
        api: ApiArgs,
    },
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let channel = match args.command {
        Command::Set { channel: ChannelName { product, channel }, version, api } => {
            context.api(&api)?.set_channel(product.as_str(), channel.as_str(), version.as_str()).await
        }
        Command::Show { channel: ChannelName { product, channel }, api } => {
            context.api(&api)?.channel(product.as_str(), channel.as_str()).await
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
