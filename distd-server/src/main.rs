//! `distd-server`: the origin.

use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use distd_peer::service::ServiceManager;
use distd_peer::settings::{Table, TableArgs, TableOptions};
use distd_peer::trust::files::create_secret;
use distd_server::config::{self, ENV_CONFIG, Settings, parse_bundle_validity, parse_validity};
use distd_server::init;
use distd_server::offline::{self, FsckOptions, RootOrder};
use distd_server::origin::{OwnerError, Places};
use distd_server::replica::{CHANGE, Replica};
use distd_server::run::{self, Overtaken, Running, STOP};
use distd_server::signer;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The origin of distd: takes releases in, signs them, serves them.
#[derive(Parser)]
#[command(name = "distd-server", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the settings of this origin, after questions on the terminal or by options alone.
    ///
    /// Each option is written to the file; all else in it stays. The difference is shown first, and
    /// nothing is written without consent.
    Init(Box<InitArgs>),
    /// Serve until stopped. A new data directory is set up first.
    ///
    /// Ends with 3 when another distd-server has taken the database or the store over.
    Serve(Box<ServeArgs>),
    /// Make patch sets for origins on other machines, which share their PostgreSQL database and
    /// their bucket, until stopped. Any number of workers can run.
    Work(Box<WorkArgs>),
    /// Compare store, database and signed metadata. Nothing is changed without --repair. The origin
    /// must not run.
    ///
    /// Ends with 0 when everything is sound, with 1 when something is wrong.
    Fsck(FsckArgs),
    /// Say what keeps this origin from its work, and how to mend it: rights of secrets, disk,
    /// names, certificates, database, store, signed metadata, clock, UDP, webhooks. Changes
    /// nothing.
    ///
    /// Ends with 0 when nothing is found, else with 1. For a health check, ask with --answers.
    Doctor(DoctorArgs),
    /// Copy the whole origin to a new directory, while it runs or not.
    Backup {
        /// A new or empty directory.
        #[arg(value_name = "DIR")]
        to: PathBuf,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Make an origin again from a backup, in a new data directory.
    Restore {
        /// The directory that backup has written.
        #[arg(value_name = "DIR")]
        from: PathBuf,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Change TUF keys, renew the CA's certificate, or hand the keys on to a further origin.
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Change the TUF root where its keys are kept away from the origin.
    Root {
        #[command(subcommand)]
        command: RootCommand,
    },
    /// Sign for the origin, with keys that it does not hold itself, until it closes the socket on
    /// standard input.
    ///
    /// `serve` starts a signer of its own. A systemd socket unit starts one that runs as another
    /// user.
    Signer {
        /// Directory of the CA's key (realm/) and the TUF keys (tuf-keys/).
        #[arg(long, value_name = "DIR")]
        keys: PathBuf,
        /// Longest validity of a node's certificate, as in 24h; the origin's setting of that name
        /// is at most this.
        #[arg(long, value_name = "DURATION", default_value = "24h")]
        cert_validity: String,
        /// Longest validity of the metadata in a bundle; the origin's setting of that name is at
        /// most this.
        #[arg(long, value_name = "DURATION", default_value = "0")]
        bundle_validity: String,
    },
    /// Print the realm's public OpenPGP key, with which update clients such as systemd-sysupdate
    /// verify SHA256SUMS. The key is made at the first need. The origin may run.
    OpenpgpKey {
        /// Print text in place of packets.
        #[arg(long)]
        armor: bool,
        /// Print the key that is to sign later, so that devices know it before it does.
        #[arg(long)]
        next: bool,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Make an admin token, when the last one is lost. The origin may run.
    AdminToken {
        /// Write it to this new file, readable by its owner alone, instead of printing it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Name that operators see.
        #[arg(long, default_value = "admin, made on the origin")]
        label: String,
        #[command(flatten)]
        places: PlaceArgs,
    },
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Give roles new keys. The origin must not run.
    Rotate {
        /// Roles: root, targets, snapshot, timestamp; repeat or separate by commas.
        #[arg(long, required = true, value_delimiter = ',')]
        role: Vec<String>,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Make a new certificate of the CA's key, valid for ten years from now, and put it into
    /// realm/ca.pem. Nodes and tokens stay as they are. The origin may run.
    RenewCa {
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Print the realm's private keys as one file, for a further origin of the same database and
    /// store. Whoever has the file signs for the realm. The origin may run.
    Export {
        /// Write it to this new file, readable by its owner alone, instead of printing it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Take the keys of such a file over, before the origin is started for the first time.
    ///
    /// A data directory that has keys of that realm stays as it is.
    Import {
        /// The file.
        #[arg(value_name = "FILE")]
        from: PathBuf,
        #[command(flatten)]
        places: PlaceArgs,
    },
}

#[derive(Subcommand)]
enum RootCommand {
    /// Make a root key, on a machine of your choice: FILE, and FILE.pub for the origin.
    NewKey {
        /// A new file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Show the root in force, and the one that waits for signatures; or the root in a file, before
    /// it is signed.
    Show {
        /// A root, as `root prepare` writes it; no origin is needed here.
        #[arg(value_name = "FILE", conflicts_with_all = ["data", "db", "store"])]
        file: Option<PathBuf>,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Write the next root to root-next.json in the data directory, for the root keys to sign. The
    /// origin may run.
    Prepare {
        /// Public root key to list, the .pub file of new-key; repeat for more.
        #[arg(long, value_name = "FILE")]
        add: Vec<PathBuf>,
        /// Id of a root key to list no more, or its beginning; repeat for more.
        #[arg(long, value_name = "ID")]
        remove: Vec<String>,
        /// Number of root keys that must sign from now on [default: as before]
        #[arg(long, value_name = "N")]
        threshold: Option<NonZeroU64>,
        /// Roles that get new keys: targets, snapshot, timestamp; repeat or separate by commas.
        #[arg(long, value_name = "ROLE", value_delimiter = ',')]
        rotate: Vec<String>,
        /// Give up a proposal that waits for signatures.
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Sign a root, where the keys are.
    Sign {
        /// The file that prepare has written, or the first start of an origin; it is changed.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Root key; repeat for more.
        #[arg(long, value_name = "FILE", required = true)]
        key: Vec<PathBuf>,
    },
    /// Hand signed copies in. The origin takes the root over within a minute, or when it starts.
    Install {
        /// Copies of root-next.json that were signed.
        #[arg(value_name = "FILE", required = true)]
        file: Vec<PathBuf>,
        #[command(flatten)]
        places: PlaceArgs,
    },
}

#[derive(Args)]
struct FsckArgs {
    /// Mend what can be mended: rows made again from the store, releases listed again.
    #[arg(long)]
    repair: bool,
    /// With --repair: delete packs and manifests that no row names, however many.
    #[arg(long)]
    delete_unknown: bool,
    /// Read every pack; with --repair those that are damaged are put aside.
    #[arg(long)]
    check_data: bool,
    /// End with one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: PlaceArgs,
}

#[derive(Args)]
struct DoctorArgs {
    /// Check only that the origin answers, over TCP and UDP: for the health check of a container.
    #[arg(long)]
    answers: bool,
    /// End with one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingArgs<DoctorOptions>,
}

/// Settings that say where an origin is and answers.
enum DoctorOptions {}

impl TableOptions for DoctorOptions {
    type Values = config::Values;
    const TABLE: Table<config::Values> = config::TABLE;

    fn has(key: &str) -> bool {
        config::PLACE_KEYS.contains(&key) || matches!(key, "http" | "quic" | "http_plain" | "name")
    }
}

/// All settings of an origin.
enum AllOptions {}

impl TableOptions for AllOptions {
    type Values = config::Values;
    const TABLE: Table<config::Values> = config::TABLE;
}

/// Settings that say where an origin is.
enum PlaceOptions {}

impl TableOptions for PlaceOptions {
    type Values = config::Values;
    const TABLE: Table<config::Values> = config::TABLE;

    fn has(key: &str) -> bool {
        config::PLACE_KEYS.contains(&key)
    }
}

/// Settings of a worker.
enum WorkOptions {}

impl TableOptions for WorkOptions {
    type Values = config::Values;
    const TABLE: Table<config::Values> = config::TABLE;

    fn has(key: &str) -> bool {
        [
            "data",
            "db",
            "store",
            "zstd_level",
            "solid_sets",
            "patch_threads",
            "patch_level",
            "patch_memory_mib",
        ]
        .contains(&key)
    }
}

/// Settings on the command line. Each can also be set in the environment or in the --config file.
#[derive(Args)]
struct SettingArgs<T: TableOptions> {
    #[command(flatten)]
    options: TableArgs<T>,
    /// TOML file with the same settings; an option --a-b is the key a_b and the variable
    /// DISTD_SERVER_A_B.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

type PlaceArgs = SettingArgs<PlaceOptions>;

impl<T: TableOptions> SettingArgs<T> {
    /// File of the settings.
    fn file(&self) -> Option<PathBuf> {
        self.config.clone().or_else(|| std::env::var_os(ENV_CONFIG).map(PathBuf::from))
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        let file = self.file();
        Ok(Settings::resolve(&self.options.line, |name| std::env::var(name).ok(), file.as_deref())?)
    }

    fn places(&self) -> anyhow::Result<Places> {
        Ok(self.settings()?.places())
    }
}

#[derive(Args)]
struct InitArgs {
    #[command(flatten)]
    options: TableArgs<AllOptions>,
    /// TOML file to write.
    #[arg(long, value_name = "FILE", default_value = init::CONFIG)]
    config: PathBuf,
    /// Ask nothing, and write the file.
    #[arg(long)]
    yes: bool,
    /// Start the origin's systemd unit, now and at each boot.
    #[arg(long)]
    start: bool,
}

#[derive(Args)]
struct ServeArgs {
    #[command(flatten)]
    settings: SettingArgs<AllOptions>,
    /// Show each setting and where it comes from, and end.
    #[arg(long)]
    effective: bool,
}

#[derive(Args)]
struct WorkArgs {
    #[command(flatten)]
    settings: SettingArgs<WorkOptions>,
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
        writeln!(out, "  distd grant add everyone os")?;
        writeln!(out, "  distd token join --role relay")?;
    }
    out.flush()
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '=');
    if path.chars().all(plain) { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

async fn fsck(args: FsckArgs) -> anyhow::Result<ExitCode> {
    let FsckArgs { repair, delete_unknown, check_data, json, places } = args;
    let options = FsckOptions { repair, delete_unknown, check_data };
    let report = offline::fsck(&places.places()?, options).await?;
    let text = if json { serde_json::to_string(&report)? } else { report.to_string() };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn doctor(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let settings = args.settings.settings()?;
    let found = if args.answers {
        offline::answers(&settings).await
    } else {
        offline::doctor(&settings, args.settings.file().as_deref()).await
    };
    let text = if args.json { serde_json::to_string(&found)? } else { found.to_string() };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(if found.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints the realm's keys, or writes them to a new file.
fn export_keys(places: &Places, out: Option<&Path>) -> anyhow::Result<()> {
    if out.is_none() && std::io::stdout().is_terminal() {
        anyhow::bail!("private keys are not shown on a terminal: name a file with --out, or pipe them on");
    }
    let text = offline::export_keys(places)?;
    match out {
        None => writeln!(std::io::stdout(), "{text}")?,
        Some(path) if create_secret(path, text.as_bytes())? => {
            writeln!(
                std::io::stdout(),
                "the realm's keys: {}; delete the file when they are where they belong",
                quoted(path)
            )?;
        }
        Some(path) => anyhow::bail!("{} is there already: name a new file", path.display()),
    }
    Ok(())
}

async fn backup(to: &Path, places: &Places) -> anyhow::Result<()> {
    let backed = offline::backup(places, to).await?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} releases backed up to {}", backed.releases, quoted(to))?;
    if !backed.database {
        writeln!(out, "not in it: the PostgreSQL database; next: pg_dump it, now")?;
    }
    if !backed.objects {
        writeln!(out, "not in it: the objects in {}; next: copy the bucket, now", places.store)?;
    }
    Ok(())
}

async fn restore(from: &Path, places: &Places) -> anyhow::Result<()> {
    let restored = offline::restore(places, from).await?;
    let data = quoted(&places.data);
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} releases restored to {data}", restored.backup.releases)?;
    if let Some(error) = restored.keys {
        out.flush()?;
        let error = anyhow::Error::from(error);
        anyhow::bail!(
            "everything is restored, but devices that saw later metadata will refuse it until the keys of snapshot and \
             timestamp are changed: {error:#}\nnext: distd-server keys rotate --data {data} --role snapshot,timestamp"
        );
    }
    writeln!(out, "the keys of snapshot and timestamp are new: devices take this origin's metadata again")?;
    writeln!(out, "next: distd-server serve --data {data}")?;
    Ok(())
}

async fn root(command: RootCommand) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    match command {
        RootCommand::NewKey { file } => {
            let id = offline::new_root_key(&file)?;
            let path = quoted(&file);
            writeln!(out, "root key {id}")?;
            writeln!(out, "keep {path} to yourself; next: distd-server serve --offline-root {path}.pub, or")?;
            writeln!(out, "distd-server root prepare --add {path}.pub")?;
        }
        RootCommand::Show { file: Some(file), .. } => {
            writeln!(out, "{}", offline::show_root_file(&file)?.join("\n  "))?;
        }
        RootCommand::Show { file: None, places } => {
            let shown = offline::show_root(&places.places()?).await?;
            writeln!(out, "in force: {}", shown.in_force.join("\n  "))?;
            if let Some((waiting, missing)) = shown.waiting {
                writeln!(out, "waiting: {}", waiting.join("\n  "))?;
                writeln!(out, "{missing}")?;
            }
        }
        RootCommand::Prepare { add, remove, threshold, rotate, replace, places } => {
            let order = RootOrder { add, remove, threshold, rotate, replace };
            let (path, missing) = offline::prepare_root(&places.places()?, &order).await?;
            writeln!(out, "written to {}: {missing}", quoted(&path))?;
            if !missing.is_none() {
                writeln!(
                    out,
                    "next: take the file to the keys; there, distd-server root show FILE shows the root and \
                     distd-server root sign FILE --key KEY signs it"
                )?;
            }
        }
        RootCommand::Sign { file, key } => {
            let (said, unlisted) = offline::sign_root(&file, &key)?;
            writeln!(out, "signed: {}", said.join("\n  "))?;
            for id in unlisted {
                writeln!(
                    out,
                    "note: this root does not list {id}; its signature counts if the root before it does"
                )?;
            }
            writeln!(out, "next: bring the file back, and there: distd-server root install FILE --data DIR")?;
        }
        RootCommand::Install { file, places } => {
            match offline::install_root(&places.places()?, &file).await? {
                Some(missing) if missing.is_none() => {
                    writeln!(out, "{missing}; the origin takes it over within a minute, or when it starts")?;
                }
                Some(missing) => writeln!(out, "{missing}")?,
                None => writeln!(out, "next: start the origin with the same settings as before")?,
            }
        }
    }
    Ok(())
}

async fn run_command(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => serve(*args).await?,
        Command::Work(args) => work(*args).await?,
        Command::Init(args) => {
            let InitArgs { options, config, yes, start } = *args;
            init::init(init::InitOrder { line: options.line, config, yes, start })?;
        }
        Command::Fsck(args) => return fsck(args).await,
        Command::Doctor(args) => return doctor(args).await,
        Command::Backup { to, places } => backup(&to, &places.places()?).await?,
        Command::Restore { from, places } => restore(&from, &places.places()?).await?,
        Command::Keys { command: KeysCommand::Rotate { role, places } } => {
            offline::rotate(&places.places()?, &role).await?;
            writeln!(std::io::stdout(), "new keys: {}", role.join(", "))?;
        }
        Command::Keys { command: KeysCommand::RenewCa { places } } => {
            let (path, end) = offline::renew_ca(&places.places()?)?;
            let end = i64::try_from(end).ok().and_then(|end| jiff::Timestamp::from_second(end).ok());
            let end = end.map(|end| end.to_string()).unwrap_or_default();
            writeln!(std::io::stdout(), "{}: the CA's certificate is valid until {end}", quoted(&path))?;
            writeln!(std::io::stdout(), "next: give the file to those who use the HTTP API with --cacert")?;
        }
        Command::Keys { command: KeysCommand::Export { out, places } } => {
            export_keys(&places.places()?, out.as_deref())?;
        }
        Command::Keys { command: KeysCommand::Import { from, places } } => {
            let places = places.places()?;
            let done = if offline::import_keys(&places, &from)? { "has the keys now" } else { "had them" };
            writeln!(std::io::stdout(), "{} {done}", quoted(&places.data))?;
        }
        Command::Root { command } => root(command).await?,
        Command::Signer { .. } => unreachable!("main answers it before there is a runtime"),
        Command::OpenpgpKey { armor, next, places } => {
            let key = offline::openpgp_key(&places.places()?, next)?;
            let mut out = std::io::stdout().lock();
            if armor {
                out.write_all(key.armored().as_bytes())?;
            } else {
                out.write_all(&key.packets)?;
            }
            out.flush()?;
        }
        Command::AdminToken { out, label, places } => {
            match (offline::admin_token(&places.places()?, &label, out.as_deref()).await?, out) {
                (Some(token), _) => writeln!(std::io::stdout(), "{token}")?,
                (None, Some(path)) => writeln!(std::io::stdout(), "token written to {}", quoted(&path))?,
                (None, None) => {}
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let settings = args.settings.settings()?;
    if args.effective {
        print!("{}", settings.effective());
        return Ok(());
    }
    let mut terminate = signal(SignalKind::terminate()).context("could not listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for signals")?;
    let program = std::env::current_exe().context("could not find this program, which is the signer too")?;
    let places = settings.places_with_signer(program);
    if settings.replica {
        return serve_among_replicas(settings, places, terminate, interrupt).await;
    }
    let started = tokio::select! {
        started = run::start_at(&settings, &places) => started,
        // Nothing was promised to anyone yet.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let running = started?;
    announce(&running).context("could not write to standard output")?;
    let manager = ServiceManager::of_environment();
    manager.ready(&format!("listening on {} for HTTPS, {} for nodes", running.http, running.quic));
    let overtaken = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        overtaken = running.overtaken() => Some(overtaken),
        () = manager.watched(|| running.serves()) => None,
    };
    manager.stopping();
    match &overtaken {
        Some(overtaken) => tracing::error!("{overtaken}"),
        None => tracing::info!("stopping"),
    }
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
    overtaken.map_or(Ok(()), |overtaken| Err(overtaken.into()))
}

/// Makes patch sets until a signal comes.
async fn work(args: WorkArgs) -> anyhow::Result<()> {
    let settings = args.settings.settings()?;
    let mut terminate = signal(SignalKind::terminate()).context("could not listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for signals")?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
    });
    let ready = |id: &str| {
        // A reader that is gone has no use for the line.
        let _ = writeln!(std::io::stdout(), "worker {id} makes patch sets");
    };
    Ok(distd_server::work::work(&settings, &stop, ready).await?)
}

/// Serves as one of several origins, which leads or follows by turns.
async fn serve_among_replicas(
    settings: Settings,
    places: Places,
    mut terminate: Signal,
    mut interrupt: Signal,
) -> anyhow::Result<()> {
    let manager = ServiceManager::of_environment();
    let mut replica = Replica::join(settings, places).await?;
    loop {
        let running = tokio::select! {
            running = replica.start() => running?,
            // A database that is away for minutes is no fault of this process.
            () = manager.watched(|| true) => break,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        announce(&running).context("could not write to standard output")?;
        let part = if running.origin.follows() { "follows" } else { "leads" };
        manager
            .ready(&format!("{part}, listening on {} for HTTPS, {} for nodes", running.http, running.quic));
        let ended = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            changed = replica.changes(&running) => Some(changed),
            () = manager.watched(|| running.serves()) => None,
        };
        let Some(changed) = ended else {
            tracing::info!("stopping");
            manager.stopping();
            tokio::select! {
                _ = running.stop(STOP) => {}
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            break;
        };
        running.stop(CHANGE).await;
        if let Err(overtaken) = changed {
            replica.leave().await;
            return Err(overtaken.into());
        }
    }
    replica.leave().await;
    Ok(())
}

/// Runs as the signer, in one thread.
fn sign(keys: &Path, cert_validity: &str, bundle_validity: &str) -> anyhow::Result<()> {
    // No other process of this user may read the keys out of this one's memory, and no core file
    // may hold them.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .context("could not keep the keys out of core files")?;
    let nodes = parse_validity(cert_validity).map_err(anyhow::Error::msg)?;
    let bundles = parse_bundle_validity(bundle_validity).map_err(anyhow::Error::msg)?;
    let validity = signer::Validity { node_seconds: nodes.as_secs(), bundle_seconds: bundles.as_secs() };
    Ok(signer::run(keys, validity)?)
}

fn main() -> ExitCode {
    distd_peer::process::bound_arenas();
    distd_peer::process::raise_open_files();
    // Keys, tokens and contents are for their owner alone, whatever the shell says.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let cli = Cli::parse();
    distd_peer::process::start_log("info");
    if let Command::Signer { keys, cert_validity, bundle_validity } = &cli.command {
        return match sign(keys, cert_validity, bundle_validity) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: could not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run_command(cli.command));
    // A blocking read of a dead disk would hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            exit_code(&error)
        }
    }
}

/// Exit code of a process that another one has overtaken. The unit in deploy/ does not start an
/// origin again that ended with it: two origins would take the store from each other for ever.
const EXIT_OVERTAKEN: u8 = 3;

/// Exit code of a command that failed.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    let is_overtaken = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<Overtaken>() || matches!(cause.downcast_ref(), Some(OwnerError::Overtaken))
    };
    if error.chain().any(is_overtaken) { ExitCode::from(EXIT_OVERTAKEN) } else { ExitCode::FAILURE }
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
