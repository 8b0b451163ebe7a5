//! `distd-peer`: the relay daemon.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use distd_peer::doctor::{Examination, NodePatient};
use distd_peer::relay::{self, ImportResult, Outcome, RelaySettings};
use distd_peer::service::ServiceManager;
use distd_peer::settings::{Table, TableArgs, TableOptions};
use distd_peer::trust::token::JoinToken;

/// The relay of distd: pulls every byte over its uplink once and serves the whole office.
#[derive(Parser)]
#[command(name = "distd-peer", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the settings of this relay, after questions on the terminal or by options alone.
    ///
    /// Each option is written to the file; all else in it stays. The difference is shown first, and
    /// nothing is written without consent.
    Init(InitArgs),
    /// Serve as a relay until stopped.
    Run(RunArgs),
    /// Say what keeps this relay from its work, and how to mend it: clock, names, UDP, MTU, proxy,
    /// certificate, disk, rights of secrets, version. Changes nothing.
    ///
    /// Ends with 0 when nothing is found, else with 1. For a health check, ask with --answers.
    Doctor(DoctorArgs),
    /// Hand a bundle, made by distd export, over to the relay of this machine.
    Import(ImportArgs),
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    settings: TableArgs<RelayOptions>,
    /// Join token, needed the first time only.
    #[arg(long, value_name = "TOKEN", env = "DISTD_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File that holds the join token.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// TOML file with the same settings.
    #[arg(long, value_name = "FILE", env = "DISTD_PEER_CONFIG")]
    config: Option<PathBuf>,
    /// Show each setting and where it comes from, and end.
    #[arg(long)]
    effective: bool,
}

#[derive(Args)]
struct InitArgs {
    #[command(flatten)]
    settings: TableArgs<RelayOptions>,
    /// File that holds the join token, which the relay takes at its first start.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// TOML file to write.
    #[arg(long, value_name = "FILE", default_value = relay::CONFIG)]
    config: PathBuf,
    /// Ask nothing, and write the file.
    #[arg(long)]
    yes: bool,
    /// Start the relay's systemd unit, now and at each boot.
    #[arg(long)]
    start: bool,
}

#[derive(Args)]
struct ImportArgs {
    /// The bundle. The relay takes a copy.
    bundle: PathBuf,
    #[command(flatten)]
    settings: TableArgs<ImportOptions>,
    /// TOML file of the relay.
    #[arg(long, value_name = "FILE", env = "DISTD_PEER_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Args)]
struct DoctorArgs {
    #[command(flatten)]
    settings: TableArgs<DoctorOptions>,
    /// TOML file of the relay.
    #[arg(long, value_name = "FILE", env = "DISTD_PEER_CONFIG")]
    config: Option<PathBuf>,
    /// Check only that the relay answers, over UDP and TCP: for the health check of a container.
    #[arg(long)]
    answers: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Settings that say where a relay is and whom it asks.
enum DoctorOptions {}

impl TableOptions for DoctorOptions {
    type Values = relay::Values;
    const TABLE: Table<relay::Values> = relay::TABLE;

    fn has(key: &str) -> bool {
        matches!(key, "data" | "parents" | "listen" | "transport" | "cache.min_free_bytes")
    }
}

/// Settings by which a relay's state directory is found.
enum ImportOptions {}

impl TableOptions for ImportOptions {
    type Values = relay::Values;
    const TABLE: Table<relay::Values> = relay::TABLE;

    fn has(key: &str) -> bool {
        key == "data"
    }
}

/// Options of a relay: its whole table of settings.
enum RelayOptions {}

impl TableOptions for RelayOptions {
    type Values = relay::Values;
    const TABLE: Table<relay::Values> = relay::TABLE;
}

/// Reads the join token from its text or from its file; `None` if neither is given.
fn join_token(text: Option<&str>, file: Option<&Path>) -> anyhow::Result<Option<JoinToken>> {
    let text = match (text, file) {
        (Some(text), _) => text.to_owned(),
        (None, Some(path)) => std::fs::read_to_string(path)
            .with_context(|| format!("could not read the join token from {}", path.display()))?,
        (None, None) => return Ok(None),
    };
    Ok(Some(text.trim().parse()?))
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    let environment = |name: &str| std::env::var(name).ok();
    let settings = RelaySettings::resolve(&args.settings.line, environment, args.config.as_deref())?;
    if args.effective {
        print!("{}", settings.effective());
        return Ok(());
    }
    let token = join_token(args.token.as_deref(), args.token_file.as_deref())?;
    let manager = ServiceManager::of_environment();
    let running = manager.patiently(relay::start(settings.config(), token.as_ref())).await?;
    if running.recovered.tail_chunks > 0 || running.recovered.rebuilt {
        tracing::info!(recovered = ?running.recovered, "store recovered");
    }
    println!("relay listening on {}", running.address);
    if let Some(address) = running.apt {
        println!("proxy for apt on http://{address}");
    }
    if let Some(address) = running.metrics {
        println!("metrics on http://{address}/metrics");
    }
    println!("next: distd pull PRODUCT@VERSION --out FILE --parent {}", running.address);
    manager.ready(&format!("listening on {}", running.address));
    tokio::select! {
        told = distd_peer::process::told_to_end() => told?,
        () = manager.watched(|| running.serves()) => {}
    }
    manager.stopping();
    running.stop().await?;
    Ok(())
}

fn init(args: InitArgs) -> anyhow::Result<()> {
    let InitArgs { settings, token_file, config, yes, start } = args;
    let token = join_token(None, token_file.as_deref())?;
    Ok(relay::init(relay::InitOrder { line: settings.line, config, token, yes, start })?)
}

async fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let environment = |name: &str| std::env::var(name).ok();
    let settings = RelaySettings::resolve(&args.settings.line, environment, args.config.as_deref())?;
    let config = settings.config();
    let mut found = Examination::default();
    if args.answers {
        found.answers(&config.data.join("realm-ca.pem"), config.listen).await;
        return show(&found, args.json);
    }
    let patient = NodePatient {
        data: &config.data,
        parents: &config.parents,
        transport: config.transport,
        proxy_url: config.proxy_url.as_deref(),
        // The file may hold the password of a proxy.
        secrets: args.config.iter().filter(|_| config.proxy_url.is_some()).cloned().collect(),
        program: "distd-peer",
        room: config.store.min_free_bytes,
    };
    patient.examine(&mut found).await;
    show(&found, args.json)
}

/// Prints an examination, and returns the exit code that it ends with.
fn show(found: &Examination, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        println!("{}", serde_json::to_string(found)?);
    } else {
        println!("{found}");
    }
    Ok(if found.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn import(args: &ImportArgs) -> anyhow::Result<()> {
    let environment = |name: &str| std::env::var(name).ok();
    let settings = RelaySettings::resolve(&args.settings.line, environment, args.config.as_deref())?;
    let config = settings.config();
    let handed = relay::hand_over(&args.bundle, &config.data, config.store.min_free_bytes)?;
    match handed.wait().context("could not read what the relay says of the bundle")? {
        Outcome::Done(ImportResult::Imported(done)) => {
            println!(
                "{} imported: {} new chunks, {} that the relay had",
                done.release, done.new_chunks, done.held_chunks
            );
            Ok(())
        }
        Outcome::Done(ImportResult::Refused(reason)) => anyhow::bail!("not imported: {reason}"),
        Outcome::NotTaken => anyhow::bail!(
            "the relay on {} does not take the bundle: look at its log; it is of this version of distd or later?",
            config.data.display()
        ),
        Outcome::NotRunning => {
            println!("no relay runs on {}: it imports the bundle when it is started", config.data.display());
            Ok(())
        }
    }
}

fn main() -> ExitCode {
    distd_peer::process::bound_arenas();
    distd_peer::process::raise_open_files();
    distd_peer::process::start_log("warn");
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: could not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = match cli.command {
        Command::Run(args) => runtime.block_on(run(args)).map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => runtime.block_on(doctor(&args)),
        Command::Init(args) => init(args).map(|()| ExitCode::SUCCESS),
        Command::Import(args) => import(&args).map(|()| ExitCode::SUCCESS),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
#[path = "../../tests/lib/pages.rs"]
mod pages;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn each_command_has_a_page_and_completions() {
        pages::check(Cli::command(), "8");
    }
}
