//! `distd node`: lists and revokes the nodes of a realm.

use clap::Subcommand;
use distd_core::text::shown;
use serde::Serialize;

use super::parse::node_id;
use crate::context::{ApiArgs, Context};
use distd_client::failure::Failure;
use distd_client::text::table;
use distd_client::text::time;
use distd_core::api::Node;

/// Longest label shown, in characters.
const LABEL_SHOWN: usize = 40;

/// List or revoke nodes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the relays and devices of the realm.
    Ls {
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

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Ls { api } => {
            let list = context.api(&api)?.nodes().await.map_err(Failure::from)?;
            context.output().result(&list, |list| {
                let head = ["ID", "ROLE", "LABEL", "ENROLLED", "CERTIFICATE UNTIL", "STATE"];
                let mut rows = vec![head.map(str::to_owned).to_vec()];
                rows.extend(list.nodes.iter().map(|node| {
                    let Node { id, role, label, enrolled, cert_expires, revoked } = node.clone();
                    let label = shown(&label, LABEL_SHOWN);
                    let state = if revoked.is_some() { "revoked" } else { "" };
                    vec![id, role.to_string(), label, time(enrolled), time(cert_expires), state.to_owned()]
                }));
                table(&rows)
            })
        }
        Command::Revoke { id, with_token, api } => {
            let api = context.api(&api)?;
            let revoked = match with_token {
                true => api.revoke_node_and_tokens(&id).await.map(|done| Some(done.join_tokens)),
                false => api.revoke_node(&id).await.map(|()| None),
            };
            let join_tokens = revoked.map_err(|error| match error.is_not_found() {
                true => Failure::from(error).next("list the nodes: distd node ls"),
                false => Failure::from(error),
            })?;
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
