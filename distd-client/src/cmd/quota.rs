//! `distd quota`: bounds of the bytes that products and API tokens may have.

use clap::Subcommand;
use distd_client::api::QuotaOf;
use distd_client::cli::parse::{bytes, token_id};
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::Failure;
use distd_client::text::{human_bytes, table};
use distd_core::api::QuotaBounds;
use distd_core::names::Name;
use serde::Serialize;

/// List, set or remove quotas of products and API tokens.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the quotas, and how much of each is taken.
    Ls {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Set the quota of a product or of a token. What is there already stays.
    Set {
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        bounds: Bounds,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Remove the quota of a product or of a token.
    Rm {
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        api: ApiArgs,
    },
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Of {
    /// Product that the quota is for.
    #[arg(long)]
    product: Option<Name>,
    /// Id of the API token that the quota is for.
    #[arg(long, value_name = "ID", value_parser = token_id)]
    token: Option<String>,
}

impl Of {
    fn of(&self) -> QuotaOf<'_> {
        match (&self.product, &self.token) {
            (Some(product), _) => QuotaOf::Product(product.as_str()),
            (None, token) => QuotaOf::Token(token.as_deref().unwrap_or_default()),
        }
    }

    fn text(&self) -> String {
        match (&self.product, &self.token) {
            (Some(product), _) => format!("product {product}"),
            (None, token) => format!("token {}", token.as_deref().unwrap_or_default()),
        }
    }
}

#[derive(clap::Args)]
#[group(required = true, multiple = true)]
struct Bounds {
    /// Most bytes of new chunks, as stored, such as 50GB.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    stored: Option<u64>,
    /// Most bytes of releases, such as 500GB.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    releases: Option<u64>,
}

#[derive(Serialize)]
struct Changed {
    quota: String,
    bounds: Option<QuotaBounds>,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Ls { api } => {
            let list = context.api(&api)?.quotas().await.map_err(Failure::from)?;
            context.output().result(&list, |list| {
                if list.quotas.is_empty() {
                    return "there are no quotas".to_owned();
                }
                let head = ["FOR", "NEW CHUNKS", "OF AT MOST", "RELEASES", "OF AT MOST"];
                let bound = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), human_bytes);
                let rows = list.quotas.iter().map(|quota| {
                    vec![
                        format!("{} {}", quota.kind, quota.name),
                        human_bytes(quota.stored_bytes),
                        bound(quota.bounds.stored_bytes),
                        human_bytes(quota.release_bytes),
                        bound(quota.bounds.release_bytes),
                    ]
                });
                table(&std::iter::once(head.map(str::to_owned).to_vec()).chain(rows).collect::<Vec<_>>())
            })
        }
        Command::Set { of, bounds, api } => {
            let bounds = QuotaBounds { stored_bytes: bounds.stored, release_bytes: bounds.releases };
            context.api(&api)?.set_quota(of.of(), bounds).await.map_err(Failure::from)?;
            let changed = Changed { quota: of.text(), bounds: Some(bounds) };
            context.output().result(&changed, |changed| format!("{} has a quota", changed.quota))
        }
        Command::Rm { of, api } => {
            context.api(&api)?.remove_quota(of.of()).await.map_err(Failure::from)?;
            let changed = Changed { quota: of.text(), bounds: None };
            context.output().result(&changed, |changed| format!("{} has no quota", changed.quota))
        }
    }
}
