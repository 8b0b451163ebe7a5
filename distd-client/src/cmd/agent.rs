//! `distd agent`: serves the artifacts installed on this device to its neighbours.

use std::net::SocketAddr;

use super::parse;
use crate::context::{Context, TransportArgs};
use distd_client::share::agent::{Agent, AgentRequest};

/// Serve the artifacts installed on this device to the neighbours of its site, until stopped.
///
/// Each pull records where it installed an artifact; the agent serves the newest 16 of these. It
/// also renews the device's certificate.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address to listen on (QUIC, UDP). Default: `share.listen` of client.toml, else `[::]:4434`.
    #[arg(long, value_name = "ADDR:PORT", env = "DISTD_AGENT_LISTEN")]
    listen: Option<SocketAddr>,
    /// Loopback address that serves metrics for Prometheus, at http://ADDR:PORT/metrics. Default:
    /// no metrics.
    #[arg(long, value_name = "ADDR:PORT", env = "DISTD_AGENT_METRICS")]
    metrics: Option<SocketAddr>,
    /// Relay or origin to connect to; repeat for more, nearest first. Default: the parents given to
    /// `distd enroll`.
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
    let request = AgentRequest { data, parents, listen, metrics, sharing, outbound };
    let agent = Agent::start(request).await?;
    println!("agent listening on {}", agent.address);
    if let Some(at) = agent.metrics {
        println!("metrics on http://{at}/metrics");
    }
    agent.run().await
}
