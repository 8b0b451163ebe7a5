//! `distd-server`: the origin.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use distd_server::config::{CommandLine, ENV_CONFIG, Settings};
use distd_server::run::{self, Running, STOP};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The origin of distd: takes releases in, signs them, serves them.
#[derive(Parser)]
#[command(name = "distd-server", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until stopped. A new data directory is set up first.
    Serve(ServeArgs),
}

/// Each option can also be set as DISTD_SERVER_OPTION in the environment or in the --config file.
#[derive(Args)]
struct ServeArgs {
    /// Directory for keys, spool and, by default, everything else.
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Database: sqlite:PATH or postgres://USER:PASSWORD@HOST/NAME [default: sqlite in the data directory]
    #[arg(long, value_name = "ADDRESS")]
    db: Option<String>,
    /// Object store: DIR or s3://BUCKET[/PREFIX][?endpoint=URL&region=R] [default: objects/ in the data directory]
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
    /// Address for HTTPS (TCP) [default: [::]:7443]
    #[arg(long, value_name = "ADDR:PORT")]
    http: Option<String>,
    /// Address for nodes: QUIC over UDP, and HTTPS over TCP for those without it [default: [::]:7444]
    #[arg(long, value_name = "ADDR:PORT")]
    quic: Option<String>,
    /// Further host name or address of this origin, for its certificate; repeat for more.
    #[arg(long, value_name = "HOST")]
    name: Vec<String>,
    /// Plain HTTP instead of HTTPS; only on a loopback address.
    #[arg(long)]
    http_plain: bool,
    /// Validity of node certificates, as in 24h [default: 24h]
    #[arg(long, value_name = "DURATION")]
    cert_validity: Option<String>,
    /// zstd level, 1 to 19, for files that the origin cuts [default: 3]
    #[arg(long, value_name = "LEVEL")]
    zstd_level: Option<String>,
    /// Make patches between releases: true or false [default: true]
    #[arg(long, value_name = "BOOL")]
    patches: Option<String>,
    /// Make each release's patch set for devices that hold nothing: true or false [default: true]
    #[arg(long, value_name = "BOOL")]
    solid_sets: Option<String>,
    /// Patches made at once [default: one for each core]
    #[arg(long, value_name = "N")]
    patch_threads: Option<String>,
    /// zstd level within patches, 1 to 22 [default: 12]
    #[arg(long, value_name = "LEVEL")]
    patch_level: Option<String>,
    /// Memory for making patches, MiB [default: 256 for each core]
    #[arg(long, value_name = "MIB")]
    patch_memory_mib: Option<String>,
    /// TOML file with the same settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Show each setting and where it comes from, and end.
    #[arg(long)]
    effective: bool,
}

impl ServeArgs {
    fn settings(&self) -> anyhow::Result<Settings> {
        let mut line = CommandLine::new();
        for (key, value) in [
            ("data", &self.data),
            ("db", &self.db),
            ("store", &self.store),
            ("http", &self.http),
            ("quic", &self.quic),
            ("cert_validity", &self.cert_validity),
            ("zstd_level", &self.zstd_level),
            ("patches", &self.patches),
            ("solid_sets", &self.solid_sets),
            ("patch_threads", &self.patch_threads),
            ("patch_level", &self.patch_level),
            ("patch_memory_mib", &self.patch_memory_mib),
        ] {
            if let Some(value) = value {
                line.insert(key, vec![value.clone()]);
            }
        }
        if !self.name.is_empty() {
            line.insert("name", self.name.clone());
        }
        if self.http_plain {
            line.insert("http_plain", vec!["true".to_owned()]);
        }
        let file = self.config.clone().or_else(|| std::env::var_os(ENV_CONFIG).map(PathBuf::from));
        Ok(Settings::resolve(&line, |name| std::env::var(name).ok(), file.as_deref())?)
    }
}

/// The address under which this machine reaches what listens on `address`.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}

fn announce(running: &Running) -> std::io::Result<()> {
    let scheme = if running.plain { "http" } else { "https" };
    let mut out = std::io::stdout().lock();
    writeln!(out, "origin listening on {scheme}://{} and quic://{}", running.http, running.quic)?;
    if let Some(path) = &running.admin_token {
        let server = reachable(running.http);
        writeln!(out, "next, on this machine:")?;
        writeln!(out, "  distd login --server {scheme}://{server} --token-file {}", quoted(path))?;
        writeln!(out, "  distd push FILE --product os --version 1")?;
        writeln!(out, "  distd token join --role relay")?;
    }
    out.flush()
}

/// A path as a shell takes it.
fn quoted(path: &std::path::Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '=');
    if path.chars().all(plain) { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let settings = args.settings()?;
    if args.effective {
        print!("{}", settings.effective());
        return Ok(());
    }
    let mut terminate = signal(SignalKind::terminate()).context("could not listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for signals")?;
    let started = tokio::select! {
        started = run::start(&settings) => started,
        // Nothing was promised to anyone yet.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let running = started?;
    announce(&running).context("could not write to standard output")?;
    let overtaken = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        () = running.overtaken() => true,
    };
    tracing::info!("stopping");
    // The second signal does not wait.
    tokio::select! {
        in_time = running.stop(STOP) => {
            if !in_time {
                tracing::warn!("requests were cut off: they took longer than {STOP:?}");
            }
        }
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    if overtaken {
        anyhow::bail!("another distd-server has taken the database over: let one of them run");
    }
    Ok(())
}

fn main() -> ExitCode {
    distd_peer::process::bound_arenas();
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("DISTD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: could not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Command::Serve(args) = cli.command;
    let result = runtime.block_on(serve(args));
    // A blocking read of a dead disk would hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
