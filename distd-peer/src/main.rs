//! `distd-peer`: the relay daemon.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use distd_peer::net::Transport;
use distd_peer::relay::{self, RelayConfig, RelayFile};
use distd_peer::serve::ServeConfig;
use distd_peer::store::StoreConfig;
use distd_peer::trust::token::JoinToken;
use tracing_subscriber::EnvFilter;

/// The relay of distd: pulls every byte over its uplink once and serves the whole office.
#[derive(Parser)]
#[command(name = "distd-peer", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve as a relay until stopped.
    Run(RunArgs),
}

#[derive(Args)]
struct RunArgs {
    /// Parent to pull from (origin or another relay); repeat for more, nearest first.
    #[arg(long, value_name = "HOST:PORT")]
    parent: Vec<String>,
    /// Join token, needed the first time only.
    #[arg(long, value_name = "TOKEN", env = "DISTD_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File that holds the join token.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Directory for key, certificate and cache.
    #[arg(long, value_name = "DIR", env = "DISTD_PEER_DATA")]
    data: Option<PathBuf>,
    /// Address to listen on: QUIC over UDP, HTTPS over TCP.
    #[arg(long, value_name = "ADDR:PORT", env = "DISTD_PEER_LISTEN")]
    listen: Option<SocketAddr>,
    /// How to reach parents: auto, quic, or https where UDP is blocked.
    #[arg(long, value_name = "HOW", env = "DISTD_TRANSPORT")]
    transport: Option<Transport>,
    /// Name of this relay that operators see.
    #[arg(long)]
    label: Option<String>,
    /// Maximum size of the cache.
    #[arg(long, value_name = "BYTES")]
    cache_max_bytes: Option<u64>,
    /// Free space the cache leaves on its file system.
    #[arg(long, value_name = "BYTES")]
    cache_min_free_bytes: Option<u64>,
    /// Loopback address to serve Prometheus metrics on: http://ADDR:PORT/metrics.
    #[arg(long, value_name = "ADDR:PORT", env = "DISTD_PEER_METRICS")]
    metrics: Option<SocketAddr>,
    /// TOML file with the same settings.
    #[arg(long, value_name = "FILE", env = "DISTD_PEER_CONFIG")]
    config: Option<PathBuf>,
}

/// Address that relays listen on if none is configured.
const DEFAULT_LISTEN: &str = "[::]:4433";

fn settings(args: RunArgs) -> anyhow::Result<(RelayConfig, Option<JoinToken>)> {
    let file = match &args.config {
        Some(path) => RelayFile::read(path)?,
        None => RelayFile::default(),
    };
    let rates = file.limits()?;
    let cache = file.cache.unwrap_or_default();
    let bounds = StoreConfig::default();
    let limits = ServeConfig::default();
    let token = match (&args.token, &args.token_file) {
        (Some(text), _) => Some(text.clone()),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("could not read the join token from {}", path.display()))?;
            Some(text)
        }
        (None, None) => None,
    };
    let token = token.map(|text| text.trim().parse::<JoinToken>()).transpose()?;
    let listen = args.listen.or(file.listen);
    let config = RelayConfig {
        data: args.data.or(file.data).context("no directory for key and cache: name one with --data DIR")?,
        parents: if args.parent.is_empty() { file.parents.unwrap_or_default() } else { args.parent },
        listen: listen.unwrap_or_else(|| DEFAULT_LISTEN.parse().expect("a constant address")),
        listen_is_default: listen.is_none(),
        transport: args.transport.or(file.transport).unwrap_or_default(),
        proxy_url: file.proxy_url,
        metrics: args.metrics.or(file.metrics),
        label: args.label.or(file.label).unwrap_or_else(|| distd_peer::process::host_name("relay")),
        store: StoreConfig {
            max_bytes: args.cache_max_bytes.or(cache.max_bytes).unwrap_or(bounds.max_bytes),
            min_free_bytes: args
                .cache_min_free_bytes
                .or(cache.min_free_bytes)
                .unwrap_or(bounds.min_free_bytes),
            ..bounds
        },
        download: rates.download.for_class(None),
        serve: ServeConfig {
            upload: rates.upload.for_class(None),
            upload_slots_max: file.upload_slots_max.unwrap_or(limits.upload_slots_max),
            connections_max: file.connections_max.unwrap_or(limits.connections_max),
            ..limits
        },
    };
    Ok((config, token))
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    let (config, token) = settings(args)?;
    let running = relay::start(config, token.as_ref()).await?;
    if running.recovered.tail_chunks > 0 || running.recovered.rebuilt {
        tracing::info!(recovered = ?running.recovered, "store recovered");
    }
    println!("relay listening on {}", running.address);
    if let Some(address) = running.metrics {
        println!("metrics on http://{address}/metrics");
    }
    println!("next: distd pull PRODUCT@VERSION --out FILE --parent {}", running.address);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result?,
        _ = terminate.recv() => {}
    }
    running.stop().await?;
    Ok(())
}

fn main() -> ExitCode {
    distd_peer::process::bound_arenas();
    distd_peer::process::raise_open_files();
    let filter = EnvFilter::try_from_env("DISTD_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: could not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Command::Run(args) = cli.command;
    match runtime.block_on(run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
