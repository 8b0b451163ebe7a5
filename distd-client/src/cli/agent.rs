//! `distd agent`: serves the artifacts installed on this device to its neighbours, and follows a
//! channel.

use distd_peer::service::ServiceManager;
use distd_peer::settings::{Table, TableArgs, TableOptions};

use super::context::Context;
use crate::config;
use crate::follow::FollowRequest;
use crate::gateway::GatewayRequest;
use crate::share::Sharing;
use crate::share::agent::{Agent, AgentRequest};

/// Serve the artifacts installed on this device to the neighbours of its site, and install the
/// releases of a channel if told to, until stopped.
///
/// With --follow the agent installs each release that the channel brings to this device, in waves
/// where a rollout is under way, makes it the current one, runs the check of the hooks directory,
/// goes back if that fails, and reports. Each pull records where it installed an artifact; the
/// agent serves the newest 16 of these. It also renews the device's certificate.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: TableArgs<AgentOptions>,
    /// Show each setting of this device and where it comes from, and end.
    #[arg(long)]
    effective: bool,
}

/// Settings of an agent: all but those of the origin's HTTP API.
enum AgentOptions {}

impl TableOptions for AgentOptions {
    type Values = config::Values;
    const TABLE: Table<config::Values> = config::TABLE;

    fn has(key: &str) -> bool {
        key != "server"
    }
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let settings = context.settings(&args.settings.line)?;
    if args.effective {
        print!("{}", settings.effective());
        return Ok(());
    }
    let sharing = Sharing::of(&settings);
    let outbound = settings.outbound(sharing.connectivity)?;
    let request = AgentRequest {
        data: context.data().to_owned(),
        parents: settings.parents.clone(),
        listen: settings.listen,
        metrics: settings.metrics,
        sharing,
        outbound,
        follow: FollowRequest::of(&settings, context.data())?,
        gateway: GatewayRequest::of(&settings, context.data())?,
        apt: settings.apt().cloned(),
    };
    let manager = ServiceManager::of_environment();
    let agent = manager.patiently(Agent::start(request)).await?;
    println!("agent listening on {}", agent.address);
    if let Some(gateway) = &agent.gateway {
        let scheme = if gateway.is_tls { "https" } else { "http" };
        println!("gateway on {scheme}://{}/r/", gateway.address);
    }
    if let Some(address) = agent.apt.as_ref().and_then(|apt| apt.address) {
        println!("proxy for apt on http://{address}");
    }
    if let Some(at) = agent.metrics {
        println!("metrics on http://{at}/metrics");
    }
    agent.run(&manager).await
}
