//! `distd product`: lists the products of an origin.

use clap::Subcommand;

use crate::context::{ApiArgs, Context};
use distd_client::failure::Failure;
use distd_client::text::table;
use distd_client::text::time;
use distd_core::api::Product;

/// List products.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the products that the token is valid for.
    Ls {
        #[command(flatten)]
        api: ApiArgs,
    },
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let Command::Ls { api } = args.command;
    let list = context.api(&api)?.products().await.map_err(Failure::from)?;
    context.output().result(&list, |list| {
        if list.products.is_empty() {
            return "there are no products".to_owned();
        }
        let mut rows = vec![["PRODUCT", "CUT", "CREATED"].map(str::to_owned).to_vec()];
        rows.extend(list.products.iter().map(|product| {
            let Product { name, cut, created } = product.clone();
            vec![name, format!("{}/{}/{}", cut.min, cut.avg, cut.max), time(created)]
        }));
        table(&rows)
    })
}
