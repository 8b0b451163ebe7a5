//! `distd channel`: shows and changes which release a channel points to.

use clap::Subcommand;
use distd_client::api::Api;
use distd_client::cli::parse::ChannelName;
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::Failure;
use distd_client::text::table;
use distd_client::text::time;
use distd_core::api::{CHANGES_PAGE_MAX, Channel, ChannelChange, ChannelHistory, ChannelList};
use distd_core::names::Name;
use serde::Serialize;

/// List, show, set or remove channels.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Point a channel at a release. A new channel is created.
    Set {
        /// Channel to set.
        #[arg(value_name = "PRODUCT:CHANNEL")]
        channel: ChannelName,
        /// Version of the product to point at; it must be released.
        version: Name,
        /// Order devices that have a later release back to this one. The token also needs the scope
        /// downgrade.
        #[arg(long)]
        downgrade: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List the channels of one product, or of all.
    Ls {
        /// Product to list. Default: all products.
        product: Option<Name>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Remove a channel. Devices that follow it are told that it does not exist.
    Rm {
        /// Channel to remove.
        #[arg(value_name = "PRODUCT:CHANNEL")]
        channel: ChannelName,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show the changes of a channel and the token that made each, newest first. Works for removed
    /// channels too.
    History {
        /// Channel whose changes to show.
        #[arg(value_name = "PRODUCT:CHANNEL")]
        channel: ChannelName,
        /// Largest number of changes to show.
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Have the rollouts of a channel wait for the approval of a second token, from the next one on
    /// (on), or not (off). The channel is then neither set nor removed by hand.
    Approval {
        /// Channel of the rollouts.
        #[arg(value_name = "PRODUCT:CHANNEL")]
        channel: ChannelName,
        /// on or off.
        #[arg(value_parser = ["on", "off"])]
        wanted: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show the release that a channel points to.
    Show {
        /// Channel to show.
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
            let Channel { product, channel, version, manifest, counter, updated, .. } = channel.clone();
            let mut short = manifest.to_string();
            short.truncate(16);
            vec![format!("{product}:{channel}"), version, counter.to_string(), time(updated), short]
        }));
        table(&rows)
    })
}

/// Prints the newest `limit` changes.
async fn history(context: &Context, api: &Api, channel: &ChannelName, limit: u32) -> anyhow::Result<()> {
    let ChannelName { product, channel } = channel;
    let mut found = ChannelHistory { changes: Vec::new(), before: None };
    loop {
        let left = limit.saturating_sub(u32::try_from(found.changes.len()).unwrap_or(u32::MAX));
        let page = api
            .channel_history(product.as_str(), channel.as_str(), found.before, left.min(CHANGES_PAGE_MAX))
            .await;
        let page = page.map_err(Failure::from)?;
        let is_end = page.changes.is_empty() || left <= CHANGES_PAGE_MAX;
        found.changes.extend(page.changes);
        found.before = page.before;
        if is_end || found.before.is_none() {
            break;
        }
    }
    context.output().result(&found, |found| {
        let head = ["WHEN", "FROM", "TO", "DOWNGRADE", "BY", "TOKEN"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(found.changes.iter().map(|change| {
            let ChannelChange { at, from, to, downgrade, token, label, .. } = change.clone();
            let none = || "-".to_owned();
            let by = label.unwrap_or_else(|| "the origin".to_owned());
            let downgrade = if downgrade { "ordered".to_owned() } else { none() };
            vec![
                time(at),
                from.unwrap_or_else(none),
                to.unwrap_or_else(|| "removed".to_owned()),
                downgrade,
                by,
                token.unwrap_or_else(none),
            ]
        }));
        table(&rows)
    })
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let channel = match args.command {
        Command::Set { channel: ChannelName { product, channel }, version, downgrade, api } => {
            let (product, channel, version) = (product.as_str(), channel.as_str(), version.as_str());
            context.api(&api)?.set_channel(product, channel, version, downgrade).await
        }
        Command::Show { channel: ChannelName { product, channel }, api } => {
            context.api(&api)?.channel(product.as_str(), channel.as_str()).await
        }
        Command::Ls { product, api } => return list(context, &context.api(&api)?, product).await,
        Command::History { channel, limit, api } => {
            return history(context, &context.api(&api)?, &channel, limit).await;
        }
        Command::Approval { channel, wanted, api } => {
            let ChannelName { product, channel: name } = &channel;
            let set = context.api(&api)?.set_approval(product.as_str(), name.as_str(), wanted == "on").await;
            return context.output().result(&set.map_err(Failure::from)?, |set| match set.wanted {
                true => format!("rollouts of {channel} wait for the approval of a second token"),
                false => format!("rollouts of {channel} wait for no approval"),
            });
        }
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
        let Channel { product, channel, version, manifest, counter, updated, downgrade_from, approval } =
            channel;
        let order = match downgrade_from {
            Some(_) => "; devices with a later release are ordered back to it",
            None => "",
        };
        let approval = if *approval { "; its rollouts wait for the approval of a second token" } else { "" };
        format!(
            "{product}:{channel} points at {version} (change {counter}, {}){order}{approval}\nmanifest {manifest}",
            time(*updated)
        )
    })
}
