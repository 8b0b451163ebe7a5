//! `distd release`: lists, shows, withdraws, brings back, pins and removes releases.

use clap::Subcommand;
use distd_client::api::ApiError;
use distd_client::cli::parse::ReleaseName;
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::Failure;
use distd_client::text::time;
use distd_client::text::{human_bytes, table};
use distd_core::api::{Release, code};
use distd_core::names::Name;
use serde::Serialize;

/// List, show, withdraw, bring back, pin or remove releases.
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
        /// Also list releases that are withdrawn.
        #[arg(long)]
        withdrawn: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Remove a release that no channel points to. The origin no longer offers it to devices, and
    /// after a grace frees the space that no other release needs.
    Rm {
        /// Release to remove.
        #[arg(value_name = "PRODUCT@VERSION")]
        release: ReleaseName,
        /// Remove it even if nodes report it as running: their next update is without patches.
        #[arg(long)]
        force: bool,
        /// Free the space at once: downloads under way fail.
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Withdraw a release that no channel points to. The origin no longer offers it to devices. Its
    /// bytes stay, and distd release restore brings it back.
    Withdraw {
        /// Release to withdraw.
        #[arg(value_name = "PRODUCT@VERSION")]
        release: ReleaseName,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Bring a withdrawn release back, or a removed one whose bytes are still there.
    Restore {
        /// Release to bring back.
        #[arg(value_name = "PRODUCT@VERSION")]
        release: ReleaseName,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Pin a release: neither an order nor a policy removes it.
    Pin {
        /// Release to pin.
        #[arg(value_name = "PRODUCT@VERSION")]
        release: ReleaseName,
        /// Why, for other operators.
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Remove the pin of a release.
    Unpin {
        /// Release to unpin.
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
struct Done<'a> {
    release: &'a str,
    done: &'static str,
}

/// Prints what has happened to a release.
fn done(context: &Context, release: &ReleaseName, done: &'static str) -> anyhow::Result<()> {
    let ReleaseName { product, version } = release;
    let release = format!("{product}@{version}");
    context
        .output()
        .result(&Done { release: &release, done }, |done| format!("{} is {}", done.release, done.done))
}

/// A refusal to withdraw or remove a release, with the next step.
fn refused(error: ApiError, product: &Name) -> Failure {
    match error.code() {
        code::IN_USE => Failure::from(error).next(format!(
            "distd channel set {product}:CHANNEL OTHER-VERSION (with --downgrade if it is older), or distd channel rm \
             {product}:CHANNEL"
        )),
        code::RUNNING => Failure::from(error).next("update these nodes first, or add --force".to_owned()),
        _ => Failure::from(error),
    }
}

/// State of a release in words; empty for one that devices may take.
fn state(release: &Release) -> String {
    let mut words = Vec::new();
    match (release.removed_at, release.withdrawn) {
        (Some(at), _) => words.push(format!("removed, bytes go {}", time(at))),
        (None, Some(since)) => words.push(format!("withdrawn {}", time(since))),
        (None, None) => {}
    }
    match release.pinned.as_deref() {
        Some("") => words.push("pinned".to_owned()),
        Some(why) => words.push(format!("pinned: {why}")),
        None => {}
    }
    if release.damaged {
        words.push("damaged: push it again".to_owned());
    }
    words.join("; ")
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Ls { product, withdrawn, api } => {
            let list = context.api(&api)?.every_release(product.as_str()).await;
            let mut list = list.map_err(Failure::from)?;
            list.releases.retain(|release| withdrawn || release.withdrawn.is_none());
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
                    let state = state(release);
                    let Release { version, kind, bytes, chunks, created, blake3, channels, .. } =
                        release.clone();
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
        Command::Rm { release, force, now, api } => {
            let ReleaseName { product, version } = &release;
            let api = context.api(&api)?;
            let outcome = api.remove_release(product.as_str(), version.as_str(), now, force).await;
            outcome.map_err(|error| refused(error, product))?;
            done(context, &release, "removed")
        }
        Command::Withdraw { release, api } => {
            let ReleaseName { product, version } = &release;
            let outcome = context.api(&api)?.withdraw(product.as_str(), version.as_str()).await;
            outcome.map_err(|error| refused(error, product))?;
            done(context, &release, "withdrawn")
        }
        Command::Restore { release, api } => {
            let ReleaseName { product, version } = &release;
            context.api(&api)?.restore(product.as_str(), version.as_str()).await.map_err(Failure::from)?;
            done(context, &release, "offered again")
        }
        Command::Pin { release, why, api } => {
            let ReleaseName { product, version } = &release;
            let outcome = context.api(&api)?.pin_release(product.as_str(), version.as_str(), &why).await;
            outcome.map_err(Failure::from)?;
            done(context, &release, "pinned")
        }
        Command::Unpin { release, api } => {
            let ReleaseName { product, version } = &release;
            context
                .api(&api)?
                .unpin_release(product.as_str(), version.as_str())
                .await
                .map_err(Failure::from)?;
            done(context, &release, "not pinned")
        }
        Command::Show { release: ReleaseName { product, version }, api } => {
            let release = context.api(&api)?.release_in_any_state(product.as_str(), version.as_str()).await;
            let release = release.map_err(Failure::from)?;
            context.output().result(&release, |release| {
                let Release { product, version, kind, manifest, blake3, bytes, chunks, created, .. } = release;
                let state = match state(release) {
                    state if state.is_empty() => state,
                    state => format!("\nstate    {state}"),
                };
                format!(
                    "release  {product}@{version}\nkind     {kind}\nbytes    {bytes}\nchunks   {chunks}\ncreated  {}\n\
                     blake3   {blake3}\nmanifest {manifest}{state}",
                    time(*created)
                )
            })
        }
    }
}
