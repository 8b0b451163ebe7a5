//! Measures the state of a large fleet: fills a new database with devices that have reported, and
//! times sums, pages and the taking of reports (docs/benchmarks.md, "Fleet").
//!
//! `cargo run --release -p distd-server --example fleet-state -- [DEVICES [postgres://…]]`: 100 000
//! devices in SQLite, or in an empty database of PostgreSQL.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use distd_core::ManifestId;
use distd_core::fleet::receipts::Receipt;
use distd_core::fleet::report::{Attempt, AttemptState, LogReport, Report, Running, SourceBytes};
use distd_core::fleet::rollout::RolloutId;
use distd_core::fleet::state::UpdateState;
use distd_core::fleet::{EVERYONE, Grant, ReleasePattern, Rights};
use distd_core::names::Name;
use distd_core::role::Role;
use distd_peer::trust::identity::NodeIdentity;
use distd_peer::trust::report::{REPORTS_MAX, ReportSigner};
use distd_peer::trust::tls::PeerIdentity;
use distd_server::origin::{FleetFilter, FleetSelection, Origin, Places, Tuning};
use serde_bytes::ByteBuf;
use sqlx::{AnyPool, AssertSqlSafe, Row};

/// Sites, by a label of each device.
const SITES: usize = 1000;

/// Devices whose reports are signed and taken, and reports of each.
const REPORTERS: usize = 500;
const REPORTS: u64 = 10;

/// Entries in the log of receipts for each device: those of some releases.
const RECEIPTS: usize = 3;

/// Rows of one statement.
const ROWS: usize = 500;

const ROLLOUT: RolloutId = RolloutId([7; 16]);

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// CPU seconds that the processes of this name have used, or this process.
fn cpu_seconds(process: Option<&str>) -> f64 {
    let of = |stat: String| -> Option<(String, f64)> {
        let (head, rest) = stat.rsplit_once(')')?;
        let comm = head.split_once('(')?.1.to_owned();
        let mut fields = rest.split_whitespace().skip(11);
        let ticks: f64 = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
        Some((comm, ticks / 100.0))
    };
    let Some(wanted) = process else {
        return std::fs::read_to_string("/proc/self/stat").ok().and_then(of).map_or(0.0, |found| found.1);
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter_map(of).filter(|(comm, _)| comm == wanted).map(|(_, seconds)| seconds).sum()
}

struct Database {
    pool: AnyPool,
    is_sqlite: bool,
}

impl Database {
    async fn run(&self, sql: String) -> anyhow::Result<()> {
        sqlx::query(AssertSqlSafe(sql)).execute(&self.pool).await.map(drop).context("a statement failed")
    }

    async fn insert(&self, head: &str, rows: Vec<String>) -> anyhow::Result<()> {
        for rows in rows.chunks(ROWS) {
            self.run(format!("INSERT INTO {head} VALUES {}", rows.join(","))).await?;
        }
        Ok(())
    }

    fn blob(&self, byte: u8, len: usize) -> String {
        let hex = hex::encode(vec![byte; len]);
        if self.is_sqlite { format!("x'{hex}'") } else { format!("decode('{hex}', 'hex')") }
    }

    async fn bytes(&self) -> anyhow::Result<i64> {
        let sql = match self.is_sqlite {
            true => "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
            false => "SELECT pg_database_size(current_database())",
        };
        Ok(sqlx::query(sql).fetch_one(&self.pool).await?.try_get(0)?)
    }
}

/// A product with three releases, a channel, and a rollout of the last one.
async fn releases(db: &Database) -> anyhow::Result<()> {
    let hash = db.blob(1, 32);
    db.run("INSERT INTO products (name, cut_min, cut_avg, cut_max, created) VALUES ('os', 4096, 16384, 65536, 1)".to_owned())
        .await?;
    let release = |n: u8| format!("('os', '{n}', {}, {hash}, 1, 1, 'file', {n}, 'ci', {n})", db.blob(n, 32));
    let head = "releases (product, version, manifest, blake3, bytes, chunk_count, kind, created, created_by, sequence)";
    db.insert(head, (1..=3).map(release).collect()).await?;
    db.run(
        "INSERT INTO channels (product, channel, version, counter, updated) VALUES ('os', 'stable', '2', 1, 1)"
            .to_owned(),
    )
    .await?;
    db.run(format!(
        "INSERT INTO rollouts (id, product, channel, version, from_version, state, reason, waves, soak, success, halt_on, \
         attempts, timeout, after_halt, requires, patch_wait, forgiven, unsigned, created, updated) VALUES ('{ROLLOUT}', \
         'os', 'stable', '3', '2', 'paused', '', '50%,100%', 60, '95%', '2%', 1, 3600, 'stay', '', 0, 0, 0, 1, 1)"
    ))
    .await
}

/// Devices, a tenth of which is silent: half on the release of the rollout, some failed, some under
/// way, the others held by a wave.
async fn devices(db: &Database, ids: &[String], now: i64) -> anyhow::Result<()> {
    let all = ids.iter().enumerate();
    let node = |(n, id): (usize, &String)| {
        let key = if db.is_sqlite { format!("x'{id}'") } else { format!("decode('{id}', 'hex')") };
        format!("('{id}', {key}, 'leaf', 'till {n}', 1, 'aa', {now})")
    };
    let head = "nodes (id, public_key, role, label, enrolled, cert_serial, cert_expires)";
    db.insert(head, all.clone().map(node).collect()).await?;
    let labels = all.clone().flat_map(|(n, id)| {
        [("site", (n % SITES).to_string()), ("kind", ["till", "kiosk", "sign"][n % 3].to_owned())]
            .map(|(key, value)| format!("('{id}', 'token', '{key}', '{value}')"))
    });
    db.insert("node_labels (node, source, key, value)", labels.collect()).await?;
    let (mut reports, mut running, mut attempts) = (Vec::new(), Vec::new(), Vec::new());
    for (n, id) in all.filter(|(n, _)| n % 10 != 9) {
        let received = now - (n % 12_000) as i64;
        let boot = hex::encode([n as u8; 16]);
        reports.push(format!("('{id}', 1, {received}, {received}, '{boot}', 1)"));
        let wave = r#"{"reason":"wave","wave":2,"of":2}"#;
        let (version, held, state, failure) = match n % 100 {
            0..50 => ("'3'", None, Some("succeeded"), ""),
            50 => ("'2'", None, Some("rolled_back"), "health"),
            51..54 => ("'2'", None, Some("fetching"), ""),
            54..90 => ("'2'", Some(wave), None, ""),
            _ => ("'1'", Some(wave), None, ""),
        };
        let held = held.map_or("NULL".to_owned(), |held| format!("'{held}'"));
        let attempt = state.map_or("NULL, NULL, NULL, NULL".to_owned(), |state| {
            format!("'{ROLLOUT}', 1, '{state}', '{failure}'")
        });
        running.push(format!("('{id}', 'os', 'stable', {version}, {held}, {received}, {attempt})"));
        if let Some(state) = state {
            attempts.push(format!(
                "('{ROLLOUT}', '{id}', 1, '{state}', '{failure}', '', {received}, 60, 1, 2, 3, 4, {received}, {received})"
            ));
        }
    }
    db.insert("node_reports (node, sequence, reported, received, boot, follows)", reports).await?;
    let head = "node_running (node, product, channel, version, held, received, rollout, attempt, attempt_state, failure)";
    db.insert(head, running).await?;
    let head = "rollout_attempts (rollout, node, number, state, failure, detail, began, seconds, disk, neighbours, relay, \
                origin, first_received, received)";
    db.insert(head, attempts).await?;
    db.run("ANALYZE".to_owned()).await
}

/// The log of receipts of a fleet, and what each device says about it. The entries are of the right
/// size, and their tree is left out: only a proof would read it.
async fn receipts(db: &Database, ids: &[String], now: i64) -> anyhow::Result<()> {
    let sql = "SELECT COUNT(*) AS entries FROM receipt_log";
    let first: i64 = sqlx::query(sql).fetch_one(&db.pool).await?.try_get("entries")?;
    let mut entries = Vec::new();
    for (number, (id, _)) in (first..).zip(ids.iter().flat_map(|id| (0..RECEIPTS).map(move |n| (id, n)))) {
        let mut bytes = [0; 32 + 180];
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
        let blob = |bytes: &[u8]| match db.is_sqlite {
            true => format!("x'{}'", hex::encode(bytes)),
            false => format!("decode('{}', 'hex')", hex::encode(bytes)),
        };
        entries.push(format!(
            "({number}, {}, {now}, 'receipt', '{id}', {})",
            blob(&bytes[..32]),
            blob(&bytes[32..])
        ));
    }
    let count = first + i64::try_from(entries.len())?;
    db.insert("receipt_log (number, hash, at, kind, subject, entry)", entries).await?;
    let logs = ids.iter().map(|id| format!("('{id}', {count}, {now}, '', 0, {now})"));
    db.insert("node_logs (node, size, head_at, fault, hidden, received)", logs.collect()).await?;
    db.run("ANALYZE".to_owned()).await
}

/// Prints the median and the longest of five runs, after one that fills caches.
async fn measure<F: Future<Output = anyhow::Result<u64>>>(
    what: &str,
    run: impl Fn() -> F,
) -> anyhow::Result<()> {
    let found = run().await?;
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        run().await?;
        times.push(begun.elapsed());
    }
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    println!("{what:<44} {:>8.1} {:>8.1}   {found}", ms(times[2]), ms(times[4]));
    Ok(())
}

fn report(sequence: u64, signer: &ReportSigner, with_receipt: bool) -> anyhow::Result<Report> {
    let receipt = || -> anyhow::Result<ByteBuf> {
        let receipt = Receipt {
            number: sequence,
            at: sequence,
            boot: [3; 16],
            manifest: Some(ManifestId([3; 32])),
            rollout: None,
            wave: 0,
            product: name("os"),
            version: name("3"),
            slot: None,
        };
        Ok(ByteBuf::from(signer.sign_receipt(receipt)?.for_report()))
    };
    let receipts = if with_receipt { vec![receipt()?] } else { Vec::new() };
    let attempt = Attempt {
        rollout: Some(ROLLOUT),
        product: name("os"),
        version: name("3"),
        number: 1,
        state: AttemptState::Succeeded,
        failure: None,
        began: 1,
        seconds: 60,
        bytes: SourceBytes { disk: 1 << 30, neighbours: 1 << 20, relay: 1 << 20, origin: 0 },
    };
    let runs = Running {
        product: name("os"),
        channel: name("stable"),
        version: Some(name("3")),
        manifest: None,
        held: None,
        held_from: None,
    };
    Ok(Report {
        sequence,
        at: sequence,
        boot: vec![3; 16],
        running: vec![runs],
        attempts: vec![attempt],
        log: LogReport { receipts, ..LogReport::default() },
    })
}

/// Takes signed reports as a relay hands them over, 64 in one question, the first one with this
/// number.
async fn take_reports(
    origin: &Origin,
    signers: &[ReportSigner],
    is_sqlite: bool,
    (first, with_receipt): (u64, bool),
) -> anyhow::Result<()> {
    let relay = PeerIdentity { node_id: distd_core::NodeId([1; 16]), role: Role::Relay, expires: u64::MAX };
    let server = || if is_sqlite { 0.0 } else { cpu_seconds(Some("postgres")) };
    let mut signed = Vec::new();
    for sequence in first..first + REPORTS {
        for signer in signers {
            let report = report(sequence, signer, with_receipt)?;
            signed.push(ByteBuf::from(signer.sign(report)?.bytes.to_vec()));
        }
    }
    let count = signed.len();
    let (begun, cpu, server_cpu) = (Instant::now(), cpu_seconds(None), server());
    for batch in signed.chunks(REPORTS_MAX) {
        origin.take_reports(&relay, batch.to_vec()).await?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let (cpu, server_cpu) = (cpu_seconds(None) - cpu, server() - server_cpu);
    let hourly = 100_000.0 / 3600.0 / count as f64 * (cpu + server_cpu) * 100.0;
    let with = if with_receipt { " with a receipt" } else { "" };
    println!(
        "{count} reports{with}: {:.0}/s; CPU of the origin {:.2} ms, of PostgreSQL {:.2} ms a report; \
         100 000 devices once an hour: {hourly:.1} % of one core",
        count as f64 / seconds,
        cpu * 1000.0 / count as f64,
        server_cpu * 1000.0 / count as f64,
    );
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let count: usize =
        arguments.next().map_or(Ok(100_000), |text| text.parse()).context("a number of devices")?;
    let directory = tempfile::tempdir()?;
    let mut places = Places::in_dir(directory.path());
    let is_sqlite = match arguments.next() {
        Some(url) => {
            places.db = url;
            false
        }
        None => true,
    };
    let origin = Origin::open(&places, Tuning::default()).await?;
    let url = places.db.replace("sqlite:/", "sqlite:///");
    let db = Database { pool: AnyPool::connect(&url).await?, is_sqlite };
    let empty = db.bytes().await?;
    let mut signers = Vec::new();
    let mut ids: Vec<String> = Vec::new();
    for n in 0..REPORTERS.min(count) {
        let identity = NodeIdentity::load_or_create(&directory.path().join(format!("node-{n}")))?;
        ids.push(identity.node_id().to_string());
        signers.push(ReportSigner::new(&identity)?);
    }
    ids.extend((ids.len()..count).map(|n| blake3::hash(&n.to_be_bytes()).to_hex()[..32].to_owned()));
    let now = i64::try_from(distd_peer::clock::unix_now())?;
    releases(&db).await?;
    devices(&db, &ids, now).await?;
    let grant = Grant {
        group: name(EVERYONE),
        rights: Rights::ALL,
        releases: ReleasePattern::all(),
        until: None,
        by_certificate: true,
    };
    origin.db().add_grants(&name(EVERYONE), &[grant], "", now).await?;
    // A device signs a receipt when another release runs, and not once an hour.
    take_reports(&origin, &signers, is_sqlite, (2, true)).await?;
    receipts(&db, &ids[signers.len()..], now).await?;
    println!("{count} devices, {} bytes of database a device", (db.bytes().await? - empty) / count as i64);
    println!("{:<44} {:>8} {:>8}   devices", "", "p50 ms", "max ms");
    let (os, stable, all) = (name("os"), name("stable"), FleetSelection::default());
    let site = FleetSelection { selector: Some("site=7".parse()?), group: None };
    let status = async |product, channel, selection| {
        Ok(origin.fleet_status(product, channel, selection, now).await?.devices)
    };
    measure("fleet status", || status(None, None, &all)).await?;
    measure("fleet status --product os", || status(Some(&os), None, &all)).await?;
    measure("fleet status --product os --channel stable", || status(Some(&os), Some(&stable), &all)).await?;
    measure("fleet status --where site=7", || status(None, None, &site)).await?;
    let page =
        async |filter: FleetFilter| Ok(origin.fleet_page(&filter, "", 100, now).await?.devices.len() as u64);
    measure("fleet ls", || page(FleetFilter::default())).await?;
    let failed = FleetFilter { update: Some(UpdateState::Failed), ..FleetFilter::default() };
    measure("fleet ls --state failed", || page(failed.clone())).await?;
    let none = FleetFilter { update: Some(UpdateState::Outdated), ..FleetFilter::default() };
    measure("fleet ls --state outdated (no such device)", || page(none.clone())).await?;
    let at_site = FleetFilter { selection: site.clone(), ..FleetFilter::default() };
    measure("fleet ls --where site=7", || page(at_site.clone())).await?;
    take_reports(&origin, &signers, is_sqlite, (2 + REPORTS, false)).await
}
