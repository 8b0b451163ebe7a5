//! `distd why`: one line for each channel that a node follows: why it runs what it runs.

use serde::Serialize;

use super::context::{ApiArgs, Context};
use super::parse::node_id;
use super::status::of_this_device;
use crate::api::ApiError;
use crate::failure::Failure;
use crate::text::time;

/// Say why a node does not run the release of its channel. Without an id: this device, by its
/// agent's own notes.
#[derive(clap::Args)]
pub struct Args {
    /// Id of the node, from distd node ls.
    #[arg(value_parser = node_id)]
    id: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Serialize)]
struct Why {
    /// Id of the node; absent for this device.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// One sentence for each channel that the node follows.
    why: Vec<String>,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let Some(id) = args.id else {
        let why = vec![of_this_device(context)?.why()];
        return context.output().result(&Why { node: None, why }, |found| found.why.join("\n"));
    };
    let api = context.api(&args.api)?;
    let node = api.node(&id).await.map_err(ApiError::about_a_node)?;
    let node = node.node;
    let mut why: Vec<String> = node.why_silent(time).into_iter().collect();
    if why.is_empty() {
        for running in &node.running {
            let channel = match api.channel(&running.product, &running.channel).await {
                Ok(channel) => Some(channel.version),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(Failure::from(error).into()),
            };
            why.push(node.why(running, channel.as_deref(), time));
        }
    }
    context.output().result(&Why { node: Some(id), why }, |found| found.why.join("\n"))
}
