//! `distd node`: lists, shows, labels and revokes the nodes of a realm.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::anyhow;
use clap::Subcommand;
use distd_client::api::ApiError;
use distd_client::cli::parse::{LabelChange, ReleaseName, node_id};
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::{Code, Failure};
use distd_client::text::table;
use distd_client::text::time;
use distd_core::api::{ChangeLabels, Node, NodeDetail, NodeLabels, NodeRunning, Word, code};
use distd_core::fleet::Selector;
use distd_core::names::Name;
use distd_core::text::shown;
use serde::Serialize;

use super::grant::grant_table;

/// Longest label shown, in characters.
const LABEL_SHOWN: usize = 40;

/// List, show, label or revoke nodes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the relays and devices of the realm.
    Ls {
        /// Show only the nodes that a selector selects, such as 'site=12,role!=relay'.
        #[arg(long = "where", value_name = "SELECTOR")]
        selector: Option<Selector>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show a node: its labels with their sources, its groups, and the grants that give it rights.
    Show {
        /// Id of the node, from distd node ls.
        #[arg(value_parser = node_id)]
        id: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Set labels of a node (KEY=VALUE), or remove labels that were set so (KEY-). They replace
    /// labels of the same keys that the node has from its join token.
    Label {
        /// Id of the node, from distd node ls.
        #[arg(value_parser = node_id)]
        id: String,
        /// Labels to set (KEY=VALUE) and to remove (KEY-).
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        labels: Vec<LabelChange>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Pin a node to a release: of the product's channels it installs that version and no other.
    Pin {
        /// Id of the node, from distd node ls.
        #[arg(value_parser = node_id)]
        id: String,
        /// Release to stay on.
        #[arg(value_name = "PRODUCT@VERSION")]
        release: ReleaseName,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Remove a pin: the node follows its channel again.
    Unpin {
        /// Id of the node, from distd node ls.
        #[arg(value_parser = node_id)]
        id: String,
        /// Product of the pin.
        product: Name,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Revoke a node: nobody serves it any more, and it gets no further certificate.
    Revoke {
        /// Id of the node, from distd node ls.
        #[arg(value_parser = node_id)]
        id: String,
        /// Also revoke the join tokens that the node enrolled with. Anybody who has such a token
        /// could enrol again with a new key.
        #[arg(long)]
        with_token: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
}

#[derive(Serialize)]
struct Revoked<'a> {
    revoked: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    join_tokens: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Pinned<'a> {
    pinned: &'a str,
    release: String,
}

#[derive(Serialize)]
struct Unpinned<'a> {
    unpinned: &'a str,
    product: String,
}

/// Whether a selector selects a node. No selector of this build selects a role that only a later
/// origin has.
pub(super) fn is_selected(node: &Node, selector: &Selector) -> bool {
    match &node.role {
        Word::Known(role) => selector.selects(&node.labels.parsed(), *role),
        Word::Other(_) => selector.is_all(),
    }
}

/// The labels that hold, by key.
fn labels_text(labels: &NodeLabels) -> String {
    let NodeLabels { token, operator, .. } = labels;
    let all: BTreeMap<_, _> = token.iter().chain(operator).collect();
    all.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// A release that runs on a node, as `PRODUCT:CHANNEL@VERSION`.
fn runs_text(running: &NodeRunning) -> String {
    let NodeRunning { product, channel, version, .. } = running;
    format!("{product}:{channel}@{}", version.as_deref().unwrap_or("none"))
}

/// A node with its labels by source, its groups and its grants.
pub(super) fn node_text(detail: &NodeDetail) -> String {
    let NodeDetail { node, groups, grants, pins } = detail;
    let state = if node.revoked.is_some() { "revoked" } else { "enrolled" };
    let head = format!(
        "node               {}\nrole               {}\nlabel              {}\nstate              {state}\n\
         enrolled           {}\ncertificate until  {}\ngroups             {}",
        node.id,
        node.role,
        shown(&node.label, LABEL_SHOWN),
        time(node.enrolled),
        time(node.cert_expires),
        groups.join(", ")
    );
    let mut runs = match node.reported {
        Some(at) => format!("\nreported           {}", time(at)),
        None => String::new(),
    };
    for running in &node.running {
        let held = running.held.as_ref().map_or_else(String::new, |held| format!(" ({held})"));
        runs.push_str(&format!("\nruns               {}{held}", runs_text(running)));
    }
    for (product, version) in pins {
        runs.push_str(&format!("\npinned to          {product}@{version}"));
    }
    let NodeLabels { token, operator, facts } = &node.labels;
    let mut rows = vec![["LABEL", "FROM"].map(str::to_owned).to_vec()];
    for (source, map) in [("operator", operator), ("join token", token), ("the node itself (a fact)", facts)]
    {
        rows.extend(map.iter().map(|(key, value)| {
            let replaced = source == "join token" && operator.contains_key(key);
            let source = if replaced { "join token, replaced by the operator's" } else { source };
            vec![format!("{key}={value}"), source.to_owned()]
        }));
    }
    let labels = if rows.len() == 1 { "no labels".to_owned() } else { table(&rows) };
    let grants = if grants.is_empty() { "no rights".to_owned() } else { grant_table(grants) };
    format!("{head}{runs}\n\n{labels}\n\n{grants}")
}

/// The changes of labels as one request.
fn label_changes(changes: &[LabelChange]) -> anyhow::Result<ChangeLabels> {
    let mut all = ChangeLabels::default();
    let mut seen = BTreeSet::new();
    for change in changes {
        let (LabelChange::Set(key, _) | LabelChange::Remove(key)) = change;
        if !seen.insert(key) {
            let error = anyhow!("the label {key} is named twice");
            return Err(Failure::new(Code::Usage, error).next("name each label once").into());
        }
        match change {
            LabelChange::Set(key, value) => drop(all.set.insert(key.to_string(), value.to_string())),
            LabelChange::Remove(key) => all.remove.push(key.to_string()),
        }
    }
    Ok(all)
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Ls { selector, api } => {
            let mut list = context.api(&api)?.nodes().await.map_err(Failure::from)?;
            if let Some(selector) = &selector {
                list.nodes.retain(|node| is_selected(node, selector));
            }
            context.output().result(&list, |list| {
                let head = [
                    "ID",
                    "ROLE",
                    "LABEL",
                    "LABELS",
                    "RUNS",
                    "REPORTED",
                    "ENROLLED",
                    "CERTIFICATE UNTIL",
                    "STATE",
                ];
                let mut rows = vec![head.map(str::to_owned).to_vec()];
                rows.extend(list.nodes.iter().map(|node| {
                    let Node {
                        id,
                        role,
                        label,
                        enrolled,
                        cert_expires,
                        revoked,
                        labels,
                        reported,
                        running,
                        ddi,
                    } = node.clone();
                    let label = shown(&label, LABEL_SHOWN);
                    let state = if revoked.is_some() { "revoked" } else { "" }.to_owned();
                    let labels = labels_text(&labels);
                    let runs: Vec<_> = running.iter().map(runs_text).collect();
                    let reported = reported.map_or_else(String::new, time);
                    let (enrolled, until) = (time(enrolled), time(cert_expires));
                    vec![
                        id,
                        if ddi { "ddi".to_owned() } else { role.to_string() },
                        label,
                        labels,
                        runs.join(","),
                        reported,
                        enrolled,
                        until,
                        state,
                    ]
                }));
                table(&rows)
            })
        }
        Command::Show { id, api } => {
            let node = context.api(&api)?.node(&id).await.map_err(ApiError::about_a_node)?;
            context.output().result(&node, node_text)
        }
        Command::Label { id, labels, api } => {
            let change = label_changes(&labels)?;
            let labels = context.api(&api)?.label_node(&id, &change).await.map_err(ApiError::about_a_node)?;
            context.output().result(&labels, |labels| {
                let text = labels_text(labels);
                if text.is_empty() { format!("node {id} has no labels") } else { text }
            })?;
            context.output().note(&format!("next: distd node show {id}"));
            Ok(())
        }
        Command::Pin { id, release: ReleaseName { product, version }, api } => {
            context.api(&api)?.pin_node(&id, product.as_str(), version.as_str()).await.map_err(|error| {
                match error.code() {
                    code::UNKNOWN_VERSION => {
                        Failure::from(error).next(format!("see what there is: distd release ls {product}"))
                    }
                    _ => error.about_a_node(),
                }
            })?;
            let pinned = Pinned { pinned: &id, release: format!("{product}@{version}") };
            context
                .output()
                .result(&pinned, |done| format!("node {} is pinned to {}", done.pinned, done.release))
        }
        Command::Unpin { id, product, api } => {
            context.api(&api)?.unpin_node(&id, product.as_str()).await.map_err(ApiError::about_a_node)?;
            let unpinned = Unpinned { unpinned: &id, product: product.to_string() };
            context
                .output()
                .result(&unpinned, |done| format!("node {} is pinned to no {}", done.unpinned, done.product))
        }
        Command::Revoke { id, with_token, api } => {
            let api = context.api(&api)?;
            let revoked = match with_token {
                true => api.revoke_node_and_tokens(&id).await.map(|done| Some(done.join_tokens)),
                false => api.revoke_node(&id).await.map(|()| None),
            };
            let join_tokens = revoked.map_err(ApiError::about_a_node)?;
            context.output().result(&Revoked { revoked: &id, join_tokens }, |done| {
                match &done.join_tokens {
                    None => format!("node {id} is revoked"),
                    Some(tokens) => {
                        format!(
                            "node {id} is revoked, and so are the join tokens it enrolled with: {}",
                            tokens.join(" ")
                        )
                    }
                }
            })?;
            if !with_token {
                let text = format!(
                    "a join token with uses left would let it enrol again with a new key; next: distd node revoke {id} --with-token"
                );
                context.output().note(&text);
            }
            Ok(())
        }
    }
}
