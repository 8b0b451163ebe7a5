//! `distd node`: who has joined the realm.

use clap::Subcommand;
use serde::Serialize;

use super::parse::{node_id, time};
use crate::api::Node;
use crate::context::{ApiArgs, Context};
use crate::exit::Failure;
use crate::output::table;

/// List nodes, or shut one out.
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
    /// Shut a node out: it gets no further certificate.
    Revoke {
        /// Its id, as listed.
        #[arg(value_parser = node_id)]
        id: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

#[derive(Serialize)]
struct Revoked<'a> {
    revoked: &'a str,
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
                    let state = if revoked.is_some() { "revoked" } else { "" };
                    vec![id, role, label, time(enrolled), time(cert_expires), state.to_owned()]
                }));
                table(&rows)
            })
        }
        Command::Revoke { id, api } => {
            context.api(&api)?.revoke_node(&id).await.map_err(Failure::from)?;
            context.output().result(&Revoked { revoked: &id }, |_| format!("node {id} is revoked"))
        }
    }
}
