//! `distd why`: one line for each channel that a node follows: why it runs what it runs.

use distd_client::failure::Failure;
use distd_client::text::time;
use distd_core::api::{Channel, Node, NodeRunning};
use serde::Serialize;

use super::parse::node_id;
use crate::context::{ApiArgs, Context};

/// Say why a node does not run the release of its channel.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Id of the node, from distd node ls.
    #[arg(value_parser = node_id)]
    id: String,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Serialize)]
struct Why {
    node: String,
    /// One sentence for each channel that the node follows.
    why: Vec<String>,
}

/// The sentence about a node that says nothing about any channel.
fn of_silent(node: &Node) -> Option<String> {
    if let Some(at) = node.revoked {
        return Some(format!("the node was revoked at {}: no parent serves it", time(at)));
    }
    match node.reported {
        None => Some(
            "the node has sent no report: it runs no agent that follows a channel, or lacks the right report"
                .to_owned(),
        ),
        Some(at) if node.running.is_empty() => {
            Some(format!("the node follows no channel, by its report of {}", time(at)))
        }
        Some(_) => None,
    }
}

/// The sentence about one channel; `channel` is `None` when it is gone.
fn of_channel(node: &Node, running: &NodeRunning, channel: Option<&Channel>) -> String {
    let NodeRunning { product, channel: name, version, held } = running;
    let runs = version.as_deref().unwrap_or("no release");
    let head = format!("{product}:{name}: the node runs {runs}");
    let Some(channel) = channel else { return format!("{head}; the channel was removed") };
    let wanted = &channel.version;
    let reported = node.reported.map_or_else(String::new, |at| format!(", by its report of {}", time(at)));
    match held {
        Some(held) => format!("{head}: {held}{reported}"),
        None if version.as_deref() == Some(wanted) => format!("{head}, the release of the channel{reported}"),
        None => format!("{head}, and the channel leads to {wanted}: it has not ended its update{reported}"),
    }
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let api = context.api(&args.api)?;
    let node = api.node(&args.id).await.map_err(|error| match error.is_not_found() {
        true => Failure::from(error).next("list the nodes: distd node ls"),
        false => Failure::from(error),
    })?;
    let node = node.node;
    let mut why: Vec<String> = of_silent(&node).into_iter().collect();
    if why.is_empty() {
        for running in &node.running {
            let channel = match api.channel(&running.product, &running.channel).await {
                Ok(channel) => Some(channel),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(Failure::from(error).into()),
            };
            why.push(of_channel(&node, running, channel.as_ref()));
        }
    }
    context.output().result(&Why { node: args.id, why }, |found| found.why.join("\n"))
}

#[cfg(test)]
mod tests {
    use distd_core::ManifestId;
    use distd_core::api::{NodeLabels, Word};
    use distd_core::role::Role;

    use super::*;

    #[test]
    fn each_state_has_its_sentence() {
        let mut node = Node {
            id: "0a".into(),
            role: Word::from(Role::Leaf),
            label: String::new(),
            enrolled: 0,
            cert_expires: 0,
            revoked: None,
            labels: NodeLabels::default(),
            reported: None,
            running: Vec::new(),
        };
        let silent = |node: &Node| of_silent(node).unwrap_or_default();
        assert!(silent(&node).contains("no report"));
        node.reported = Some(0);
        assert!(silent(&node).contains("follows no channel"));
        let mut running = NodeRunning {
            product: "os".into(),
            channel: "stable".into(),
            version: Some("1".into()),
            held: Some("the rollout is paused".into()),
        };
        node.running = vec![running.clone()];
        assert_eq!(silent(&node), "");
        let channel = Channel {
            product: "os".into(),
            channel: "stable".into(),
            version: "2".into(),
            manifest: ManifestId([0; 32]),
            counter: 1,
            updated: 0,
            downgrade_from: None,
        };
        let say = |running: &NodeRunning, channel| of_channel(&node, running, channel);
        assert!(
            say(&running, Some(&channel)).starts_with("os:stable: the node runs 1: the rollout is paused")
        );
        running.held = None;
        assert!(say(&running, Some(&channel)).contains("leads to 2: it has not ended its update"));
        assert!(say(&running, None).ends_with("the channel was removed"));
        running.version = Some("2".into());
        assert!(say(&running, Some(&channel)).contains("the release of the channel"));
        node.revoked = Some(1);
        assert!(silent(&node).contains("revoked"));
    }
}
