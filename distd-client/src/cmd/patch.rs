//! `distd patch`: makes and lists the patch sets that an origin keeps between releases.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Subcommand;
use distd_client::api::Api;
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::{Code, Failure};
use distd_client::text::time;
use distd_client::text::{human_bytes, table};
use distd_core::api::{PatchSet, PatchSetState, Word};
use distd_core::names::Name;

/// Polling interval while waiting for a patch set.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Time between notes that the patch set is not finished.
const NOTE: Duration = Duration::from_secs(30);

/// Make or list patch sets.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Have the origin make the patches from version FROM to version TO; without FROM, for devices
    /// that have nothing. The origin makes the patches that channels need by itself.
    Make {
        /// Product of both versions.
        product: Name,
        /// The version that devices have (optional), then the version that they are to get.
        #[arg(value_names = ["FROM", "TO"], num_args = 1..=2, required = true)]
        versions: Vec<Name>,
        /// Wait until the patch set is ready; exit 1 if the origin could not make it. The token
        /// also needs the scope read.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List the patch sets of a product.
    Ls {
        /// Product to list.
        product: Name,
        #[command(flatten)]
        api: ApiArgs,
    },
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Make { product, versions, wait, api } => {
            let api = context.api(&api)?;
            let (from, to) = match &versions[..] {
                [from, to] => (Some(from.as_str()), to.as_str()),
                [to] => (None, to.as_str()),
                _ => unreachable!("clap lets one or two versions through"),
            };
            let made = api.make_patches(product.as_str(), from, to).await;
            let mut set = made.map_err(Failure::from)?;
            if wait {
                set = finished(context, &api, set).await?;
            }
            context.output().result(&set, sentence)
        }
        Command::Ls { product, api } => {
            let list = context.api(&api)?.patches(product.as_str()).await.map_err(Failure::from)?;
            context.output().result(&list, |list| {
                if list.patches.is_empty() {
                    return format!("{product} has no patch sets");
                }
                let head = ["FROM", "TO", "STATE", "PATCHES", "SIZE", "AS CHUNKS", "CREATED"];
                let mut rows = vec![head.map(str::to_owned).to_vec()];
                rows.extend(list.patches.iter().map(|set| {
                    let sizes = if set.set.is_some() {
                        [set.patches.to_string(), human_bytes(set.bytes), human_bytes(set.chunk_bytes)]
                    } else {
                        ["-"; 3].map(str::to_owned)
                    };
                    let [patches, bytes, chunk_bytes] = sizes;
                    let from = set.from.clone().unwrap_or_else(|| "-".to_owned());
                    let (to, state) = (set.to.clone(), set.state.to_string());
                    vec![from, to, state, patches, bytes, chunk_bytes, time(set.created)]
                }));
                table(&rows)
            })
        }
    }
}

/// Waits until the set is ready and returns it; a set that failed is an error.
async fn finished(context: &Context, api: &Api, asked: PatchSet) -> anyhow::Result<PatchSet> {
    let mut set = asked;
    let mut noted = Instant::now();
    loop {
        match &set.state {
            Word::Known(PatchSetState::Ready) => return Ok(set),
            Word::Known(PatchSetState::Failed) => {
                let why = set.error.as_deref().unwrap_or("it did not say why");
                let error = anyhow!("the origin could not make the patches: {why}");
                return Err(Failure::new(Code::Other, error).next("look at the origin's log").into());
            }
            _ => {}
        }
        if noted.elapsed() >= NOTE {
            noted = Instant::now();
            context.output().note(&sentence(&set));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        let list = api.patches(&set.product).await.map_err(Failure::from)?;
        let same = |other: &PatchSet| {
            (other.from_manifest, other.to_manifest) == (set.from_manifest, set.to_manifest)
        };
        // The list is bounded. If the set is no longer in it, keep the last known state.
        if let Some(found) = list.patches.into_iter().find(same) {
            set = found;
        }
    }
}

fn sentence(set: &PatchSet) -> String {
    let PatchSet { product, from, to, state, patches, bytes, chunk_bytes, .. } = set;
    let from = from.as_deref().unwrap_or("nothing");
    match (state, set.set) {
        (Word::Known(PatchSetState::Ready), Some(_)) => format!(
            "{product} {from} to {to}: {patches} patches, {} instead of {}",
            human_bytes(*bytes),
            human_bytes(*chunk_bytes)
        ),
        (Word::Known(PatchSetState::Ready), None) => {
            format!("{product} {from} to {to}: no patch would save anything")
        }
        (state, _) => format!("{product} {from} to {to}: {state}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_described_by_its_state() {
        let json = serde_json::json!({
            "product": "os", "from": "1", "to": "2", "from_manifest": "11".repeat(32),
            "to_manifest": "22".repeat(32), "state": "ready", "set": "33".repeat(32), "bytes": 1_200_000,
            "chunk_bytes": 9_000_000, "patches": 12, "error": null, "requested_by": "ci", "created": 1,
            "started": 2, "finished": 3, "of a later version": true,
        });
        let set: PatchSet = serde_json::from_value(json).expect("an answer");
        assert_eq!(sentence(&set), "os 1 to 2: 12 patches, 1.2 MB instead of 9.0 MB");
        assert!(sentence(&PatchSet { set: None, ..set.clone() }).ends_with("no patch would save anything"));
        assert!(
            sentence(&PatchSet { state: PatchSetState::Queued.into(), ..set }).ends_with("1 to 2: queued")
        );
    }
}
