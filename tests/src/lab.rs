//! A realm of real processes: `distd-server`, `distd-peer`, `distd`.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::netns::Place;

/// Longest wait for a daemon to start or a condition to hold. Generous: two cores may be busy with
/// other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A binary of this workspace, built by `cargo build --workspace --bins`.
///
/// # Panics
/// When it has not been built.
pub fn binary(name: &str) -> PathBuf {
    let mut dir = std::env::current_exe().expect("the test's own path");
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: run cargo build --workspace --bins first", path.display());
    path
}

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// Address on which the daemon listens: HTTPS and QUIC for an origin, QUIC for a relay.
    pub addresses: Vec<String>,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` and waits until it prints its addresses, on a line that begins with
    /// `marker`.
    ///
    /// # Panics
    /// If the command ends or takes too long.
    pub fn start(mut command: Command, log: &Path, marker: &str) -> Self {
        let out = log.with_extension("out");
        let mut spawn = || {
            let file = File::create(&out).expect("create the output file");
            let errors = File::options().create(true).append(true).open(log).expect("create the log");
            command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn().expect("start the daemon")
        };
        let said_before = fs::read_to_string(log).unwrap_or_default().len();
        let mut daemon = Self { child: spawn(), addresses: Vec::new(), log: log.to_owned() };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&out).unwrap_or_default();
            if let Some(line) = text.lines().find_map(|line| line.strip_prefix(marker)) {
                let parts = line.split(" and ").map(|part| part.trim());
                daemon.addresses = parts.map(|p| p.rsplit('/').next().unwrap_or(p).to_owned()).collect();
                return daemon;
            }
            if let Some(status) = daemon.child.try_wait().expect("look at the daemon") {
                // A daemon that is started again keeps its address, and in between another program
                // may have been given its port for a while.
                let said = daemon.log();
                let is_taken = said.get(said_before..).unwrap_or_default().contains("Address already in use");
                if is_taken && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(100));
                    daemon.child = spawn();
                    continue;
                }
                panic!("daemon ended with {status} before it listened:\n{}", daemon.log());
            }
            assert!(Instant::now() < deadline, "daemon did not listen in time:\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the daemon has written `line` to standard error.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_for(&self, line: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(line) {
            assert!(Instant::now() < deadline, "no {line:?} in time:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Address of the daemon's metrics.
    ///
    /// # Panics
    /// If the daemon gives none.
    pub fn metrics_url(&self) -> String {
        self.said("metrics on ")
    }

    /// Rest of the line of standard output that begins with `prefix`.
    ///
    /// # Panics
    /// If the daemon does not write one in time.
    pub fn said(&self, prefix: &str) -> String {
        let out = self.log.with_extension("out");
        let said = || fs::read_to_string(&out).unwrap_or_default();
        let rest = || said().lines().find_map(|line| line.strip_prefix(prefix).map(str::to_owned));
        wait_until("the daemon says its addresses", || rest().is_some());
        rest().unwrap_or_default()
    }

    /// The value of one of the daemon's metrics; labels summed.
    ///
    /// # Panics
    /// If the daemon does not have it.
    pub fn metric(&self, name: &str) -> u64 {
        let output = Command::new("curl").args(["-sSf", &self.metrics_url()]).output().expect("run curl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(name), "no {name} in\n{text}");
        metric_in(&text, name)
    }

    /// Process id of the daemon.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Text that the daemon wrote to standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills the daemon as a power cut would: no handler runs.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn kill(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        self.child.wait().expect("wait for the daemon");
    }

    /// Waits until the daemon has ended by itself.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().expect("look at the daemon").is_none() {
            assert!(Instant::now() < deadline, "the daemon does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Peak resident memory so far, bytes.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn peak_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// Resident memory now, bytes.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    fn status_bytes(&self, name: &str) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the daemon runs");
        let line = status.lines().find(|l| l.starts_with(name)).expect("the kernel reports it");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number of KiB");
        kib * 1024
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Result of a command that ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// The last line of standard output, if it is JSON.
    pub json: Value,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Result of a command from its output.
    pub fn of(output: Output) -> Self {
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let json = stdout.lines().last().and_then(|l| serde_json::from_str(l).ok()).unwrap_or(Value::Null);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { code: output.status.code().unwrap_or(-1), json, stdout, stderr }
    }

    /// Returns the outcome itself, after checking that the command succeeded.
    ///
    /// # Panics
    /// If the command failed.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "command failed: {}", self.stderr);
        self
    }

    /// A number in the command's JSON.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn number(&self, name: &str) -> u64 {
        self.json[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {}", self.json))
    }
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command) -> Outcome {
    Outcome::of(command.output().expect("run a program"))
}

/// A running command; killed when dropped before [`Running::wait`].
#[derive(Debug)]
pub struct Running(Option<Child>);

impl Running {
    /// Starts `command`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the command");
        Self(Some(child))
    }

    /// Waits for the command to end and returns its result.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn wait(mut self) -> Outcome {
        let child = self.0.take().expect("waited for once");
        Outcome::of(child.wait_with_output().expect("wait for distd"))
    }

    /// Kills the command as a power cut would.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.0.take() {
            // The process may have ended already.
            let _ = child.kill();
            child.wait().expect("wait for distd");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One realm in a temporary directory.
#[derive(Debug)]
pub struct Lab {
    dir: tempfile::TempDir,
    origin: Option<Daemon>,
    origin_args: Vec<String>,
    /// Filter of the origin's log, which is JSON then.
    log: Option<String>,
    /// Namespaces of the origin and the release engineer, if not this one.
    place: Option<Place>,
    /// Addresses kept over restarts, so that nodes find the origin again.
    https: String,
    quic: String,
}

impl Lab {
    /// An origin with nothing but a data directory, and a release engineer who is logged in.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// [`Lab::start`] with more arguments to `distd-server serve`.
    pub fn start_with(args: &[&str]) -> Self {
        Self::open(tempdir(), args, "127.0.0.1", None).granting_everything()
    }

    /// [`Lab::start_with`] with an origin that logs JSON, filtered by `level`.
    pub fn start_logging(args: &[&str], level: &str) -> Self {
        Self::open_logging(tempdir(), args, "127.0.0.1", None, Some(level)).granting_everything()
    }

    /// [`Lab::start_with`] without the grant that lets every node read everything.
    pub fn start_without_grants(args: &[&str]) -> Self {
        Self::open(tempdir(), args, "127.0.0.1", None)
    }

    /// [`Lab::start_with`] in an existing directory.
    pub fn start_on(dir: tempfile::TempDir, args: &[&str]) -> Self {
        Self::open(dir, args, "127.0.0.1", None).granting_everything()
    }

    /// [`Lab::start`] with the origin and the release engineer in a namespace, at `host`.
    pub fn start_at(place: Place, host: &str) -> Self {
        Self::open(tempdir(), &[], host, Some(place)).granting_everything()
    }

    /// Lets every node read, seed and report everything by its certificate alone, as in a realm of
    /// an earlier release.
    fn granting_everything(self) -> Self {
        self.admin(&["grant", "add", "everyone", "*", "--by-certificate"]).ok();
        self
    }

    fn open(dir: tempfile::TempDir, args: &[&str], host: &str, place: Option<Place>) -> Self {
        Self::open_logging(dir, args, host, place, None)
    }

    fn open_logging(
        dir: tempfile::TempDir,
        args: &[&str],
        host: &str,
        place: Option<Place>,
        level: Option<&str>,
    ) -> Self {
        let mut lab = Self {
            dir,
            origin: None,
            origin_args: args.iter().map(|a| (*a).to_owned()).collect(),
            log: level.map(str::to_owned),
            place,
            https: format!("{host}:0"),
            quic: format!("{host}:0"),
        };
        lab.start_origin();
        let token = lab.path("origin/admin.token");
        let server = format!("https://{}", lab.https);
        lab.admin(&["login", "--server", &server, "--token-file", &token.display().to_string()]).ok();
        lab
    }

    /// A path in the lab's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the origin at the addresses it had before.
    ///
    /// # Panics
    /// If the origin does not start.
    pub fn start_origin(&mut self) {
        let mut command = Command::new(binary("distd-server"));
        command.arg("serve").arg("--data").arg(self.path("origin"));
        command.args(["--http", &self.https, "--quic", &self.quic]).args(&self.origin_args);
        // Patches are made in the background at their own time: tests that count bytes ask for
        // them.
        if !self.origin_args.iter().any(|arg| arg == "--patches") {
            command.args(["--patches", "false"]);
        }
        if let Some(level) = &self.log {
            command.env("DISTD_LOG", level).env("DISTD_LOG_FORMAT", "json");
        }
        let origin = Daemon::start(self.placed(command), &self.path("origin.log"), "origin listening on ");
        let [https, quic] = &origin.addresses[..] else { panic!("an origin names two addresses") };
        (self.https, self.quic) = (https.clone(), quic.clone());
        self.origin = Some(origin);
    }

    /// The running origin.
    ///
    /// # Panics
    /// If the origin was stopped.
    pub fn origin(&mut self) -> &mut Daemon {
        self.origin.as_mut().expect("the origin runs")
    }

    /// Kills the origin and starts it again.
    pub fn restart_origin(&mut self) {
        self.origin().kill();
        self.start_origin();
    }

    /// Kills the origin and starts it again with these arguments too.
    pub fn restart_origin_with(&mut self, args: &[&str]) {
        self.origin_args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self.restart_origin();
    }

    /// Whether the origin runs.
    pub fn has_origin(&self) -> bool {
        self.origin.is_some()
    }

    /// Stops the origin.
    pub fn stop_origin(&mut self) {
        self.origin = None;
    }

    /// `HOST:PORT` of the origin's QUIC.
    pub fn quic(&self) -> &str {
        &self.quic
    }

    /// `HOST:PORT` of the origin's HTTP API.
    pub fn https(&self) -> &str {
        &self.https
    }

    /// A join token for `role`.
    ///
    /// # Panics
    /// If the origin gives no token.
    pub fn join_token(&self, role: &str, uses: u32) -> String {
        let made =
            self.admin(&["token", "join", "--role", role, "--uses", &uses.to_string(), "--label", role]).ok();
        made.json["token"].as_str().expect("a token").to_owned()
    }

    /// Starts a relay under `parent`. Its data is kept under `name`, so that it can be started
    /// again.
    pub fn relay(&self, name: &str, parent: &str) -> Daemon {
        self.relay_at(name, parent, "127.0.0.1:0", &[])
    }

    /// [`Lab::relay`] at a given address and with more arguments.
    pub fn relay_at(&self, name: &str, parent: &str, listen: &str, args: &[&str]) -> Daemon {
        let mut command = Command::new(binary("distd-peer"));
        command.args(["run", "--parent", parent, "--listen", listen, "--label", name]).args(args);
        command.arg("--data").arg(self.path(name));
        if !self.path(name).join("node.pem").exists() {
            command.env("DISTD_JOIN_TOKEN", self.join_token("relay", 1));
        }
        Daemon::start(command, &self.path(&format!("{name}.log")), "relay listening on ")
    }

    /// The command of an agent on `device`, not started yet.
    pub fn agent_command(&self, device: &str, listen: &str) -> Command {
        let mut command = self.command(device);
        command.args(["agent", "--listen", listen]).env("DISTD_LOG", "distd_client::share=debug,warn");
        command
    }

    /// Starts an agent on `device`, at a free port of the loopback address.
    pub fn agent(&self, device: &str) -> Daemon {
        let command = self.agent_command(device, "127.0.0.1:0");
        Daemon::start(command, &self.path(&format!("{device}.agent.log")), "agent listening on ")
    }

    /// Adds settings to the `client.toml` of `device`.
    ///
    /// # Panics
    /// If the device is not enrolled yet.
    pub fn configure(&self, device: &str, settings: &str) {
        use std::io::Write;
        let path = self.path(device).join("client.toml");
        let mut file = File::options().append(true).open(path).expect("client.toml of an enrolled device");
        file.write_all(settings.as_bytes()).expect("write client.toml");
    }

    /// Enrols a device with `parent`.
    pub fn enroll(&self, name: &str, parent: &str) {
        self.enroll_at(None, name, parent, &[]);
    }

    /// [`Lab::enroll`] in another namespace, with more arguments.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn enroll_at(&self, place: Option<&Place>, name: &str, parent: &str, args: &[&str]) {
        let token = self.join_token("leaf", 1);
        let mut command = self.command(name);
        command.args(["enroll", "--parent", parent, "--token", &token]).args(args);
        let mut command = place.map(|place| place.run(&command)).unwrap_or(command);
        Outcome::of(command.output().expect("run distd")).ok();
        // Tests stay on the loopback interface, so multicast DNS is off; tests in a namespace turn
        // it on.
        self.configure(name, "mdns = false\n");
    }

    /// The `distd` command with the state of `name`, to be changed or started by the caller.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(binary("distd"));
        command.arg("--json").arg("--data").arg(self.path(name)).stdin(Stdio::null());
        command
    }

    fn placed(&self, command: Command) -> Command {
        self.place.as_ref().map(|place| place.run(&command)).unwrap_or(command)
    }

    /// Runs `distd` as the release engineer.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn admin(&self, args: &[&str]) -> Outcome {
        let mut command = self.command("admin");
        command.args(args);
        Outcome::of(self.placed(command).output().expect("run distd"))
    }

    /// Runs `distd` as a device.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn device(&self, name: &str, args: &[&str]) -> Outcome {
        Outcome::of(self.command(name).args(args).output().expect("run distd"))
    }

    /// Starts a pull of `wanted` into `out`, with more arguments.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_pull(&self, device: &str, wanted: &str, out: &Path, args: &[&str]) -> Running {
        Running::start(self.pull_command(device, wanted, out, args))
    }

    /// The command of a pull of `wanted` into `out`, not started yet.
    pub fn pull_command(&self, device: &str, wanted: &str, out: &Path, args: &[&str]) -> Command {
        let mut command = self.command(device);
        command.arg("pull").arg(wanted).arg("--out").arg(out).args(args);
        command
    }

    /// Pulls `wanted` into `out`, with seeds.
    pub fn pull(&self, device: &str, wanted: &str, out: &Path, seeds: &[&Path]) -> Outcome {
        let mut command = self.command(device);
        command.arg("pull").arg(wanted).arg("--out").arg(out);
        for seed in seeds {
            command.arg("--seed").arg(seed);
        }
        Outcome::of(command.output().expect("run distd"))
    }

    /// Pushes `artifact` as `product@version`.
    pub fn push(&self, artifact: &Path, product: &str, version: &str) -> Outcome {
        self.admin(&["push", &artifact.display().to_string(), "--product", product, "--version", version])
    }

    /// Runs `curl` against the origin's API with the admin token. Returns the status and the body.
    ///
    /// # Panics
    /// When `curl` is missing.
    pub fn curl(&self, path: &str, args: &[&str]) -> (u32, String) {
        let token = fs::read_to_string(self.path("origin/admin.token")).expect("the admin token");
        let config = self.path("curl.config");
        // The token goes through a file: an argument would be readable by every user of the
        // machine.
        fs::write(&config, format!("header = \"Authorization: Bearer {}\"\n", token.trim())).expect("write");
        let mut command = Command::new("curl");
        command.arg("-sS").arg("-K").arg(&config);
        command.arg("--cacert").arg(self.path("origin/realm/ca.pem"));
        // The certificate has this name, whatever the origin's address is.
        command.args(["--connect-to", &format!("::{}", self.https)]);
        command.args(["-w", "\n%{http_code}"]).args(args).arg(format!("https://localhost{path}"));
        let output = self.placed(command).output().expect("run curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or((&text, "0"));
        (status.parse().unwrap_or(0), body.to_owned())
    }

    /// Waits until every patch set of `product` is made and there are at least `count`. Returns
    /// their listing.
    ///
    /// # Panics
    /// If that takes more than three minutes, or one set failed.
    pub fn patches(&self, product: &str, count: usize) -> Value {
        let start = Instant::now();
        loop {
            let (status, body) = self.curl(&format!("/v1/products/{product}/patches"), &[]);
            assert_eq!(status, 200, "{body}");
            let listing: Value = serde_json::from_str(&body).expect("JSON");
            let sets = listing["patches"].as_array().expect("a list");
            assert!(sets.iter().all(|set| set["state"] != "failed"), "{body}");
            if sets.len() >= count && sets.iter().all(|set| set["state"] == "ready") {
                return listing;
            }
            assert!(start.elapsed().as_secs() < 180, "patches take too long: {body}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Bytes that the origin has served over QUIC since it started: chunks, nodes, metadata.
    pub fn served_bytes(&self) -> u64 {
        self.metric("distd_quic_chunk_bytes_total") + self.metric("distd_quic_control_bytes_total")
    }

    /// The value of one of the origin's metrics; labels summed.
    pub fn metric(&self, name: &str) -> u64 {
        metric_in(&self.curl("/metrics", &[]).1, name)
    }
}

fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary directory")
}

/// The value of a metric in Prometheus' text format; labels summed.
fn metric_in(text: &str, name: &str) -> u64 {
    let of_name = |line: &&str| line.starts_with(name) && line[name.len()..].starts_with([' ', '{']);
    let values = text.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum::<f64>() as u64
}

/// Waits until `holds` returns true.
///
/// # Panics
/// When that takes too long.
pub fn wait_until(what: &str, holds: impl Fn() -> bool) {
    wait_within(PATIENCE, Duration::from_millis(20), what, holds);
}

/// Waits until `holds` returns true, at most as long as `patience`, and looks each `every`: a look
/// that runs a command costs much.
///
/// # Panics
/// When that takes too long.
pub fn wait_within(patience: Duration, every: Duration, what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(every);
    }
}

/// Waits until a pull to the file `out` has its manifest and fetches, or has ended. Before that, a
/// pull whose only parent is away ends and says so. Returns whether the pull fetches.
///
/// # Panics
/// When that takes too long.
pub fn wait_until_fetching(pull: &mut Child, out: &Path) -> bool {
    let mut part = out.as_os_str().to_owned();
    part.push(".distd-part-manifest");
    let (part, deadline) = (PathBuf::from(part), Instant::now() + PATIENCE);
    while !part.exists() {
        if pull.try_wait().expect("wait").is_some() {
            return false;
        }
        assert!(Instant::now() < deadline, "not in time: the manifest of {}", out.display());
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Whether two files have the same bytes.
///
/// # Panics
/// When one cannot be read.
pub fn same(a: &Path, b: &Path) -> bool {
    let open = |path: &Path| {
        std::io::BufReader::new(File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    };
    let (mut a, mut b) = (open(a), open(b));
    let (mut left, mut right) = ([0; 65536], [0; 65536]);
    loop {
        let n = read_full(&mut a, &mut left);
        let m = read_full(&mut b, &mut right);
        if n != m || left[..n] != right[..m] {
            return false;
        }
        if n == 0 {
            return true;
        }
    }
}

fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> usize {
    let mut at = 0;
    while at < buffer.len() {
        match reader.read(&mut buffer[at..]).expect("read a file") {
            0 => break,
            n => at += n,
        }
    }
    at
}
