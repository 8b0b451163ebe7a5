//! `distd product`: lists and shows the products of an origin, and sets their file names and what
//! they keep.

use clap::Subcommand;
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::Failure;
use distd_client::text::table;
use distd_client::text::time;
use distd_core::api::{Product, RETENTION_MAX, Retention, code};
use distd_core::file_name::FilePattern;
use distd_core::names::Name;

/// List or show products, or set what they keep and the names under which other update clients know
/// their releases.
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
    /// Show one product.
    Show {
        /// Product to show.
        product: Name,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Say which releases of a product are kept although no channel, rollout, node or pin needs
    /// them. The origin removes the others by itself. Without a policy all are kept.
    Retention {
        /// Product to change; it must exist.
        product: Name,
        #[command(flatten)]
        policy: Policy,
        /// Set the policy even if it leaves the product without a release.
        #[arg(long, conflicts_with = "off")]
        yes: bool,
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

#[derive(clap::Args)]
#[group(required = true, multiple = true)]
struct Policy {
    /// Number of the newest releases that are kept.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(RETENTION_MAX)))]
    keep: Option<u32>,
    /// Days for which a release is kept after it was made, or after it was withdrawn.
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u32).range(..=i64::from(RETENTION_MAX)))]
    days: Option<u32>,
    /// Keep all releases.
    #[arg(long, conflicts_with_all = ["keep", "days"])]
    off: bool,
}

/// A policy in words.
fn policy_text(retention: Option<&Retention>) -> String {
    let Some(Retention { keep, days, .. }) = retention else { return "all releases".to_owned() };
    let words = [keep.map(|n| format!("the newest {n}")), days.map(|days| format!("{days} days"))];
    let words: Vec<String> = words.into_iter().flatten().collect();
    if words.is_empty() {
        "what is used".to_owned()
    } else {
        format!("{}, and what is used", words.join(", "))
    }
}

async fn retain(
    context: &Context,
    product: &Name,
    policy: Policy,
    yes: bool,
    api: &ApiArgs,
) -> anyhow::Result<()> {
    let api = context.api(api)?;
    if policy.off {
        api.remove_retention(product.as_str()).await.map_err(Failure::from)?;
        let changed = serde_json::json!({"product": product, "retention": null});
        return context.output().result(&changed, |_| format!("{product} keeps all releases"));
    }
    let retention = Retention { keep: policy.keep, days: policy.days, may_empty: yes };
    let set = api.set_retention(product.as_str(), &retention).await.map_err(|error| match error.code() {
        code::WOULD_EMPTY => Failure::from(error).next("keep more, or add --yes".to_owned()),
        _ => Failure::from(error),
    })?;
    context.output().result(&set, |set| {
        format!(
            "{product} keeps {}: {} releases stay, {} go; distd gc --explain says why",
            policy_text(Some(&set.retention)),
            set.keeps,
            set.removes
        )
    })
}

async fn show(context: &Context, product: &Name, api: &ApiArgs) -> anyhow::Result<()> {
    let product = context.api(api)?.product(product.as_str()).await.map_err(Failure::from)?;
    context.output().result(&product, |product| {
        let Product { name, cut, created, file_name, retention } = product;
        format!(
            "product   {name}\ncut       {}/{}/{}\nfile name {}\nkeeps     {}\ncreated   {}",
            cut.min,
            cut.avg,
            cut.max,
            file_name.as_deref().unwrap_or("-"),
            policy_text(retention.as_ref()),
            time(*created)
        )
    })
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Ls { api } => ls(context, &api).await,
        Command::Show { product, api } => show(context, &product, &api).await,
        Command::Retention { product, policy, yes, api } => {
            retain(context, &product, policy, yes, &api).await
        }
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
            let Product { name, cut, created, file_name, .. } = product.clone();
            let file_name = file_name.unwrap_or_else(|| "-".to_owned());
            vec![name, format!("{}/{}/{}", cut.min, cut.avg, cut.max), file_name, time(created)]
        }));
        table(&rows)
    })
}
