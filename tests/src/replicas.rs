//! Several origins on one PostgreSQL database and one S3 bucket, each with its own way to both.

use std::fs;
use std::path::{Path as FsPath, PathBuf};
use std::process::Command;

use sqlx::{AnyConnection, Connection, Executor};

use crate::Rng;
use crate::forward::{Forwarder, Path};
use crate::lab::{Daemon, Outcome, Running, binary, run, wait_until};

/// The servers that `tests/run.sh` names; `None` without them.
fn servers() -> Option<(String, String)> {
    let named = |variable: &str| {
        let value = std::env::var(variable).ok();
        if value.is_none() {
            eprintln!("NOT RUN: set {variable} to run this test (tests/run.sh does)");
        }
        value
    };
    Some((named("DISTD_TEST_POSTGRES_URL")?, named("DISTD_TEST_S3_URL")?))
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

/// `HOST:PORT` of an address such as `postgres://me@HOST:PORT/name` or `http://HOST:PORT`.
fn host_of(address: &str) -> String {
    let after = address.split("://").last().expect("an address");
    let host = after.split(['/', '?']).next().expect("a host");
    host.rsplit('@').next().expect("a host").to_owned()
}

/// One origin or worker: its process, and its ways to database and store.
pub struct Member {
    /// Name of its data directory.
    pub name: String,
    /// The running process.
    pub daemon: Option<Daemon>,
    /// Way to the database.
    pub database: Forwarder,
    /// Way to the store.
    pub store: Forwarder,
    http: String,
    quic: String,
}

impl Member {
    /// `HOST:PORT` of its HTTPS side.
    pub fn http(&self) -> &str {
        &self.http
    }

    /// `HOST:PORT` of its QUIC side.
    pub fn quic(&self) -> &str {
        &self.quic
    }

    /// Sends its process a signal.
    ///
    /// # Panics
    /// When there is no process.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = self.daemon.as_ref().expect("it runs").id();
        let id = rustix::process::Pid::from_raw(id as i32).expect("a process id");
        rustix::process::kill_process(id, signal).expect("the process is there");
    }

    /// Whether both ways are open and the process, if there is one, may run.
    pub fn mend(&self) {
        self.database.set(Path::Open);
        self.store.set(Path::Open);
        if self.daemon.is_some() {
            self.signal(rustix::process::Signal::CONT);
        }
    }
}

/// Origins on one database and bucket, and a release engineer.
pub struct Replicas {
    dir: tempfile::TempDir,
    server: String,
    database: String,
    bucket: String,
    prefix: String,
    args: Vec<String>,
    /// The origins.
    pub members: Vec<Member>,
}

impl Replicas {
    /// Starts `count` origins, each with `args`; `None` without the servers for it.
    ///
    /// # Panics
    /// When one does not start.
    pub fn start(count: usize, args: &[&str]) -> Option<Self> {
        let (server, bucket) = servers()?;
        let dir = tempfile::tempdir().expect("temporary directory");
        let unique = dir.path().file_name().expect("a name").to_string_lossy().to_lowercase();
        let unique: String = unique.chars().filter(char::is_ascii_alphanumeric).collect();
        let unique = format!("replicas_{}_{unique}", std::process::id());
        sqlx::any::install_default_drivers();
        block_on(async {
            let mut admin = AnyConnection::connect(&server).await.expect("PostgreSQL server");
            let sql = format!("CREATE DATABASE {unique}");
            admin.execute(sqlx::AssertSqlSafe(sql)).await.expect("create database");
        });
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let (database, prefix) = (unique.clone(), unique);
        let mut this = Self { dir, server, database, bucket, prefix, args, members: Vec::new() };
        for number in 0..count {
            let name = format!("origin{number}");
            if number > 0 {
                this.copy_keys(&name);
            }
            let member = this.member(&name);
            this.members.push(member);
            this.start_member(number);
            if number == 0 {
                let token = this.path("origin0/admin.token");
                let server = format!("https://{}", this.members[0].http);
                this.admin(0, &["login", "--server", &server, "--token-file", &token.display().to_string()])
                    .ok();
                this.admin(0, &["grant", "add", "everyone", "*", "--by-certificate"]).ok();
            }
        }
        Some(this)
    }

    /// A path in the directory of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Gives a member the keys of the first one.
    fn copy_keys(&self, name: &str) {
        let copy = |from: &FsPath, to: &FsPath| {
            fs::create_dir_all(to.parent().expect("a directory")).expect("mkdir");
            fs::copy(from, to).expect("copy a key");
        };
        for file in ["realm/ca.key", "realm/ca.pem"] {
            copy(&self.path("origin0").join(file), &self.path(name).join(file));
        }
        for key in fs::read_dir(self.path("origin0/tuf-keys")).expect("keys") {
            let key = key.expect("a key").path();
            copy(&key, &self.path(name).join("tuf-keys").join(key.file_name().expect("a name")));
        }
        use std::os::unix::fs::PermissionsExt;
        for directory in ["", "realm", "tuf-keys"] {
            let path = self.path(name).join(directory);
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("chmod");
        }
    }

    fn member(&self, name: &str) -> Member {
        let endpoint = self.bucket.split("endpoint=").nth(1).expect("an endpoint");
        Member {
            name: name.to_owned(),
            daemon: None,
            database: Forwarder::to(&host_of(&self.server)),
            store: Forwarder::to(&host_of(endpoint.split('&').next().expect("an address"))),
            http: "127.0.0.1:0".to_owned(),
            quic: "127.0.0.1:0".to_owned(),
        }
    }

    /// Arguments that name database and store as `member` reaches them.
    fn places(&self, member: &Member) -> Vec<String> {
        let user = self.server.split("://").nth(1).and_then(|rest| rest.split_once('@')).map_or("", |x| x.0);
        let database = format!("postgres://{user}@127.0.0.1:{}/{}", member.database.port, self.database);
        let store = format!(
            "s3://{}/{}?endpoint=http://127.0.0.1:{}&region=us-east-1",
            self.bucket.trim_start_matches("s3://").split('/').next().expect("a bucket"),
            self.prefix,
            member.store.port
        );
        let data = self.path(&member.name).display().to_string();
        ["--data", &data, "--db", &database, "--store", &store].map(str::to_owned).to_vec()
    }

    /// Starts a member's process, at the addresses that it had before.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_member(&mut self, number: usize) {
        let member = &self.members[number];
        let mut command = Command::new(binary("distd-server"));
        command.arg("serve").args(self.places(member)).args(["--replica"]).args(&self.args);
        // A process that begins to lead starts anew at the same addresses: they are chosen before.
        let fixed = |address: &str| match address.ends_with(":0") {
            true => format!("127.0.0.1:{}", free_port()),
            false => address.to_owned(),
        };
        command.args(["--http", &fixed(&member.http), "--quic", &fixed(&member.quic)]);
        if !self.args.iter().any(|arg| arg == "--patches") {
            command.args(["--patches", "false"]);
        }
        let log = self.path(&format!("{}.log", member.name));
        let daemon = Daemon::start(command, &log, "origin listening on ");
        let [http, quic] = &daemon.addresses[..] else { panic!("an origin names two addresses") };
        let member = &mut self.members[number];
        (member.http, member.quic) = (http.clone(), quic.clone());
        member.daemon = Some(daemon);
    }

    /// Starts a worker, as a member of its own that is not among [`members`](Self::members).
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_worker(&self, name: &str, args: &[&str]) -> Member {
        let mut member = self.member(name);
        let mut command = Command::new(binary("distd-server"));
        command.arg("work").args(self.places(&member)).args(args);
        let log = self.path(&format!("{name}.log"));
        member.daemon = Some(Daemon::start(command, &log, "worker "));
        member
    }

    /// Number of the member that leads; `None` while none does.
    pub fn leader(&self) -> Option<usize> {
        let sql = "SELECT address FROM leader WHERE until >= EXTRACT(EPOCH FROM clock_timestamp()) * 1000";
        let address: Option<String> = self.query(sql);
        self.members.iter().position(|member| Some(&member.http) == address.as_ref())
    }

    /// Waits until a member leads; returns its number.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_for_leader(&self) -> usize {
        wait_until("one leads", || self.leader().is_some());
        self.leader().unwrap_or_else(|| self.wait_for_leader())
    }

    /// The first column of the first row of a query, past every forwarder.
    ///
    /// # Panics
    /// When the database does not answer.
    pub fn query(&self, sql: &str) -> Option<String> {
        let (base, _) = self.server.rsplit_once('/').expect("an address");
        let url = format!("{base}/{}", self.database);
        let sql = sqlx::AssertSqlSafe(format!("SELECT CAST(x AS TEXT) FROM ({sql}) AS t(x)"));
        block_on(async {
            let mut connection = AnyConnection::connect(&url).await.expect("the database");
            let row = sqlx::query(sql).fetch_optional(&mut connection).await.expect("a query");
            row.and_then(|row| sqlx::Row::try_get(&row, 0).ok())
        })
    }

    /// Bytes of an object in the store, past every forwarder; `None` when it is not there.
    ///
    /// # Panics
    /// When curl is missing.
    pub fn object(&self, name: &str) -> Option<Vec<u8>> {
        let endpoint = self.bucket.split("endpoint=").nth(1).and_then(|rest| rest.split('&').next());
        let bucket = self.bucket.trim_start_matches("s3://").split('/').next().expect("a bucket");
        let url = format!("{}/{bucket}/{}/{name}", endpoint.expect("an endpoint"), self.prefix);
        let signed = ["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", "test:test"];
        let output = Command::new("curl").arg("-sf").args(signed).arg(&url).output().expect("run curl");
        output.status.success().then_some(output.stdout)
    }

    /// The `distd` command of `name`, to be changed or started by the caller.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(binary("distd"));
        command.arg("--json").arg("--data").arg(self.path(name)).stdin(std::process::Stdio::null());
        command
    }

    /// Runs `distd` as the release engineer, who asks the member `number`.
    pub fn admin(&self, number: usize, args: &[&str]) -> Outcome {
        let mut command = self.command("admin");
        command.args(args);
        if args.first() != Some(&"login") {
            command.args(["--server", &format!("https://{}", self.members[number].http)]);
        }
        run(&mut command)
    }

    /// Pushes a file as `os@VERSION` through the member `number`.
    pub fn push(&self, number: usize, file: &FsPath, version: &str) -> Outcome {
        self.admin(number, &["push", &file.display().to_string(), "--product", "os", "--version", version])
    }

    /// Starts a push, as [`push`](Self::push).
    pub fn start_push(&self, number: usize, file: &FsPath, version: &str) -> Running {
        let mut command = self.command("admin");
        command.args(["push", &file.display().to_string(), "--product", "os", "--version", version]);
        command.args(["--server", &format!("https://{}", self.members[number].http)]);
        Running::start(command)
    }

    /// Enrols a device with the member `number` as its parent, and the others as further ones.
    ///
    /// # Panics
    /// When it is refused.
    pub fn enroll(&self, device: &str, number: usize) {
        let made = self.admin(number, &["token", "join", "--role", "leaf", "--label", device]).ok();
        let token = made.json["token"].as_str().expect("a token").to_owned();
        let mut command = self.command(device);
        command.args(["enroll", "--token", &token]);
        for at in 0..self.members.len() {
            let parent = &self.members[(number + at) % self.members.len()].quic;
            command.args(["--parent", parent]);
        }
        run(&mut command).ok();
        let path = self.path(device).join("client.toml");
        let mut text = fs::read_to_string(&path).expect("client.toml");
        text.push_str("mdns = false\n");
        fs::write(path, text).expect("write client.toml");
    }

    /// Pulls `wanted` as `device` into a file named after it.
    pub fn pull(&self, device: &str, wanted: &str) -> (Outcome, PathBuf) {
        let out = self.path(&format!("{device}-{}", wanted.replace(['@', ':'], "-")));
        let mut command = self.command(device);
        command.arg("pull").arg(wanted).arg("--out").arg(&out);
        (run(&mut command), out)
    }

    /// A file of random bytes.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn file(&self, name: &str, seed: u64, bytes: usize) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, Rng::new(seed).bytes(bytes)).expect("write a file");
        path
    }

    /// Tries to start an origin that works alone on the same database.
    pub fn try_alone(&self) -> Outcome {
        self.try_beside("alone", true, &[])
    }

    /// Tries to start a replica with an empty data directory.
    pub fn try_without_keys(&self) -> Outcome {
        self.try_beside("keyless", false, &["--replica"])
    }

    fn try_beside(&self, name: &str, has_keys: bool, args: &[&str]) -> Outcome {
        if has_keys {
            self.copy_keys(name);
        }
        let member = self.member(name);
        let mut command = Command::new(binary("distd-server"));
        command.arg("serve").args(self.places(&member)).args(args);
        run(command.args(["--http", "127.0.0.1:1", "--quic", "127.0.0.1:2"]))
    }

    /// Stops every member, in good order, and compares database, store and metadata.
    ///
    /// # Panics
    /// When something is wrong.
    pub fn check_at_the_end(&mut self) {
        for member in &mut self.members {
            member.mend();
            if member.daemon.is_some() {
                member.signal(rustix::process::Signal::TERM);
            }
        }
        for member in &mut self.members {
            if let Some(daemon) = &mut member.daemon {
                daemon.wait();
            }
            member.daemon = None;
        }
        let mut command = Command::new(binary("distd-server"));
        command.args(["fsck", "--check-data"]).args(self.places(&self.members[0]));
        let checked = run(&mut command);
        assert_eq!(checked.code, 0, "{}\n{}", checked.stdout, checked.stderr);
    }
}

/// A port that is free now, for TCP and UDP.
fn free_port() -> u16 {
    loop {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        if std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        self.members.clear();
        let sql = format!("DROP DATABASE {} WITH (FORCE)", self.database);
        block_on(async {
            if let Ok(mut admin) = AnyConnection::connect(&self.server).await {
                // A test that failed must not fail again here.
                let _ = admin.execute(sqlx::AssertSqlSafe(sql)).await;
            }
        });
    }
}
