//! `distd group`: groups of nodes, to which rights are granted.

use anyhow::anyhow;
use clap::Subcommand;
use distd_client::api::Api;
use distd_client::cli::parse::node_id;
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::{Code, Failure};
use distd_client::text::{joined, table};
use distd_core::api::{Group, GroupMembers, GroupSelection, MEMBERS_PAGE, MEMBERS_PAGE_MAX, NewGroup, code};
use distd_core::fleet::Selector;
use distd_core::names::Name;
use serde::Serialize;

use super::node::is_selected;

/// Make, list, show or remove groups of nodes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a group, or give it another definition: a selector or a list of nodes.
    #[command(group(clap::ArgGroup::new("definition").required(true).args(["selector", "nodes"])))]
    Set {
        /// Name of the group.
        name: Name,
        /// Selector of the nodes, such as 'site=12,kind in (till, kiosk)'. Nodes that get these
        /// labels later are members from then on.
        selector: Option<Selector>,
        /// Ids of the nodes; repeat or separate by commas.
        #[arg(long, value_name = "ID", value_delimiter = ',', num_args = 1.., value_parser = node_id)]
        nodes: Vec<String>,
        /// Accept a selector that selects no node or every node.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List the groups.
    Ls {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show a group and its members.
    Show {
        /// Name of the group.
        name: Name,
        /// Largest number of members to show.
        #[arg(long, value_name = "N", default_value_t = MEMBERS_PAGE, value_parser = clap::value_parser!(u32).range(1..=i64::from(MEMBERS_PAGE_MAX)))]
        limit: u32,
        /// Show only members whose ids are greater than this one.
        #[arg(long, value_name = "ID", value_parser = node_id)]
        after: Option<String>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Remove a group that no grant names.
    Rm {
        /// Name of the group.
        name: Name,
        #[command(flatten)]
        api: ApiArgs,
    },
}

#[derive(Serialize)]
struct Removed<'a> {
    removed: &'a str,
}

/// The definition of a group as one text.
fn definition(selector: Option<&String>, listed: Option<u64>) -> String {
    selector.cloned().unwrap_or_else(|| format!("{} listed nodes", listed.unwrap_or(0)))
}

/// Refuses a selector that selects no node or every node, which is mostly a mistake.
async fn check(api: &Api, selector: &Selector) -> anyhow::Result<()> {
    let list = api.nodes().await.map_err(Failure::from)?;
    let nodes: Vec<_> = list.nodes.iter().filter(|node| node.revoked.is_none()).collect();
    let selected = nodes.iter().filter(|node| is_selected(node, selector)).count();
    let what = match (selected, nodes.len()) {
        (_, 0) => "selects nothing, since the realm has no nodes".to_owned(),
        (0, all) => format!("selects none of the {all} nodes"),
        (selected, all) if selected == all => format!("selects every node, {all} in all"),
        _ => return Ok(()),
    };
    let error = anyhow!("the selector {selector} {what}");
    let next = "compare the labels with distd node ls, or repeat the command with --yes";
    Err(Failure::new(Code::Usage, error).next(next).into())
}

fn unknown(error: distd_client::api::ApiError) -> Failure {
    match error.is_not_found() {
        true => Failure::from(error).next("list the groups: distd group ls"),
        false => Failure::from(error),
    }
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Set { name, selector, nodes, yes, api } => {
            let api = context.api(&api)?;
            if let Some(selector) = selector.as_ref().filter(|_| !yes) {
                check(&api, selector).await?;
            }
            let group = match selector {
                Some(selector) => NewGroup { selector: Some(selector.to_string()), nodes: None },
                None => NewGroup { selector: None, nodes: Some(nodes) },
            };
            let done = api.put_group(name.as_str(), &group).await.map_err(Failure::from)?;
            context.output().result(&done, |done| {
                let GroupSelection { name, selector, listed, selected, of } = done;
                let definition = definition(selector.as_ref(), *listed);
                format!("group {name} is {definition}: {selected} of {of} nodes now")
            })?;
            context.output().note(&format!("next: distd grant add {name} PRODUCT:CHANNEL"));
            Ok(())
        }
        Command::Ls { api } => {
            let list = context.api(&api)?.groups().await.map_err(Failure::from)?;
            context.output().result(&list, |list| {
                let mut rows = vec![["NAME", "NODES", "GRANTS"].map(str::to_owned).to_vec()];
                rows.extend(list.groups.iter().map(|group| {
                    let Group { name, selector, listed, grants } = group;
                    let definition = definition(selector.as_ref(), *listed);
                    vec![name.clone(), definition, joined(grants, ",")]
                }));
                table(&rows)
            })
        }
        Command::Show { name, limit, after, api } => {
            let api = context.api(&api)?;
            let group = api.group(name.as_str(), after.as_deref(), limit).await.map_err(unknown)?;
            context.output().result(&group, |group| {
                let GroupMembers { name, selector, listed, selected, of, nodes, .. } = group;
                let definition = definition(selector.as_ref(), *listed);
                let head = format!("group {name} is {definition}: {selected} of {of} nodes now");
                [&[head], &nodes[..]].concat().join("\n")
            })?;
            if let Some(after) = &group.after {
                context.output().note(&format!(
                    "there are more members; next: distd group show {name} --limit {limit} --after {after}"
                ));
            }
            Ok(())
        }
        Command::Rm { name, api } => {
            let done = context.api(&api)?.remove_group(name.as_str()).await;
            done.map_err(|error| match error.code() {
                code::IN_USE => Failure::from(error).next("remove these grants first: distd grant rm ID"),
                _ => unknown(error),
            })?;
            let removed = Removed { removed: name.as_str() };
            context.output().result(&removed, |done| format!("group {} is removed", done.removed))
        }
    }
}
