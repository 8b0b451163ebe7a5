//! `distd product`: lists the products of an origin, and sets their file names.

use clap::Subcommand;

use crate::context::{ApiArgs, Context};
use distd_client::failure::Failure;
use distd_client::text::table;
use distd_client::text::time;
use distd_core::api::Product;
use distd_core::file_name::FilePattern;
use distd_core::names::Name;

/// List products, or set the names under which other update clients know their releases.
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
    /// Set or remove the file name of a product.
    Set {
        /// Product to change; it must exist.
        product: Name,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        api: ApiArgs,
    },
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Change {
    /// Pattern of the names of files under which other update clients know the product's releases,
    /// with @v for the version, such as os_@v.erofs. The origin signs the SHA-256 of the releases
    /// to which channels lead.
    #[arg(long, value_name = "PATTERN")]
    file_name: Option<FilePattern>,
    /// Remove the file name.
    #[arg(long)]
    no_file_name: bool,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Ls { api } => ls(context, &api).await,
        Command::Set { product, change, api } => set(context, &product, change, &api).await,
    }
}

async fn set(context: &Context, product: &Name, change: Change, api: &ApiArgs) -> anyhow::Result<()> {
    let api = context.api(api)?;
    let changed = match change.file_name {
        Some(pattern) => {
            api.set_file_name(product.as_str(), pattern.as_str()).await.map_err(Failure::from)?;
            serde_json::json!({"product": product, "file_name": pattern})
        }
        None => {
            api.remove_file_name(product.as_str()).await.map_err(Failure::from)?;
            serde_json::json!({"product": product, "file_name": null})
        }
    };
    context.output().result(&changed, |changed| match changed["file_name"].as_str() {
        Some(pattern) => format!("releases of {product} are the files {pattern}"),
        None => format!("releases of {product} have no file name"),
    })
}

async fn ls(context: &Context, api: &ApiArgs) -> anyhow::Result<()> {
    let list = context.api(api)?.products().await.map_err(Failure::from)?;
    context.output().result(&list, |list| {
        if list.products.is_empty() {
            return "there are no products".to_owned();
        }
        let mut rows = vec![["PRODUCT", "CUT", "FILE NAME", "CREATED"].map(str::to_owned).to_vec()];
        rows.extend(list.products.iter().map(|product| {
            let Product { name, cut, created, file_name } = product.clone();
            let file_name = file_name.unwrap_or_else(|| "-".to_owned());
            vec![name, format!("{}/{}/{}", cut.min, cut.avg, cut.max), file_name, time(created)]
        }));
        table(&rows)
    })
}
