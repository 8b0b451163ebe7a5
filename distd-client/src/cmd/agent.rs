//! `distd agent`: serve what is installed on this device to its neighbours.

use std::net::SocketAddr;

use super::parse;
use crate::context::{Context, TransportArgs};
use crate::share::agent::{self, AgentRequest};

/// Serve what this device has installed to the neighbours of its site, until stopped.
///
/// Pulls remember what they put in place; the agent serves it and keeps the device's certificate fresh.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address to listen on (QUIC, UDP). Default: `share.listen` of client.toml, else `[::]:4434`.
    #[arg(long, value_name = "ADDR:PORT", env = "DISTD_AGENT_LISTEN")]
    listen: Option<SocketAddr>,
    /// Loopback address to give metrics on, as Prometheus asks for them: http://ADDR:PORT/metrics.
    #[arg(long, value_name = "ADDR:PORT", env = "DISTD_AGENT_METRICS")]
    metrics: Option<SocketAddr>,
    /// A relay or origin to ask; repeat for more, nearest first. Default: the one enrolled with.
    #[arg(long, value_name = "HOST:PORT", env = "DISTD_PARENT", value_parser = parse::parent)]
    parent: Vec<String>,
    #[command(flatten)]
    transport: TransportArgs,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let parents = if args.parent.is_empty() { context.parents() } else { args.parent };
    let sharing = context.sharing();
    let listen = args.listen.unwrap_or(sharing.agent_listen);
    let outbound = context.outbound(&args.transport, sharing.connectivity)?;
    let (data, metrics) = (context.data().to_owned(), args.metrics);
    agent::run(AgentRequest { data, parents, listen, metrics, sharing, outbound }).await
}
