//! A Debian repository that a test makes and signs, a mirror that can misbehave, and the real apt
//! in a directory of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::lab::{Outcome, run};

/// Name of the suite of a repository.
pub const SUITE: &str = "stable";

/// Runs a shell script, which must succeed.
///
/// # Panics
/// When it fails.
fn sh(dir: &Path, script: &str) {
    let mut command = Command::new("sh");
    command.current_dir(dir).args(["-ec", script]).env("LC_ALL", "C");
    let outcome = run(&mut command);
    assert_eq!(outcome.code, 0, "{script}: {}", outcome.stderr);
}

/// A repository on disk, with a key of its own.
#[derive(Debug)]
pub struct Repository {
    /// Directory that a mirror serves.
    pub root: PathBuf,
    /// Keyring with the public key.
    pub keyring: PathBuf,
    home: PathBuf,
    work: PathBuf,
    /// Date of the files that are signed next. Mirrors tell files apart by dates in seconds.
    date: AtomicU64,
}

impl Repository {
    /// Makes an empty repository in `dir`. `None`, with a line that says so, where a tool is
    /// missing.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(dir: &Path) -> Option<Self> {
        for tool in ["apt-get", "dpkg-deb", "gpg", "gpgv", "xz", "bzip2"] {
            if run(Command::new("sh").args(["-c", &format!("command -v {tool}")])).code != 0 {
                eprintln!("NOT RUN: {tool} is missing");
                return None;
            }
        }
        let this = Self {
            root: dir.join("mirror"),
            keyring: dir.join("key.gpg"),
            home: dir.join("gnupg"),
            work: dir.join("work"),
            date: AtomicU64::new(1_700_000_000),
        };
        for path in [&this.root, &this.home, &this.work] {
            fs::create_dir_all(path).expect("a directory");
        }
        sh(dir, "chmod 700 gnupg");
        this.gpg("--quick-generate-key 'Test <test@example.org>' ed25519 sign never");
        this.gpg(&format!("--export > '{}'", this.keyring.display()));
        Some(this)
    }

    fn gpg(&self, args: &str) {
        let home = self.home.display();
        sh(
            &self.work,
            &format!(
                "gpg --homedir '{home}' --batch --quiet --passphrase '' --pinentry-mode loopback {args}"
            ),
        );
    }

    /// Adds a package with a file of `content` to the pool. Returns its path below the root.
    ///
    /// # Panics
    /// When dpkg-deb fails.
    pub fn package(&self, name: &str, version: &str, content: &[u8]) -> String {
        self.package_at(&format!("pool/main/{}/{name}", &name[..1]), name, version, content)
    }

    fn package_at(&self, directory: &str, name: &str, version: &str, content: &[u8]) -> String {
        let tree = self.work.join("tree");
        let _ = fs::remove_dir_all(&tree);
        fs::create_dir_all(tree.join("DEBIAN")).expect("a directory");
        fs::create_dir_all(tree.join("usr/share")).expect("a directory");
        fs::write(tree.join("usr/share").join(name), content).expect("write");
        let control = format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: Test <test@example.org>\n\
             Description: test\n"
        );
        fs::write(tree.join("DEBIAN/control"), control).expect("write");
        fs::create_dir_all(self.root.join(directory)).expect("a directory");
        let path = format!("{directory}/{name}_{version}_amd64.deb");
        // Nothing is packed: the content is noise, and speed counts.
        sh(
            &self.work,
            &format!("dpkg-deb --root-owner-group -Znone -b tree '{}'", self.root.join(&path).display()),
        );
        path
    }

    /// Adds a source package; returns the path of its directory below the root.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn source(&self, name: &str, content: &[u8]) -> String {
        let directory = format!("pool/main/{}/{name}", &name[..1]);
        let dir = self.root.join(&directory);
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(dir.join(format!("{name}_1.tar.xz")), content).expect("write");
        sh(
            &dir,
            &format!(
                "m=$(md5sum {name}_1.tar.xz | cut -d' ' -f1) s=$(sha256sum {name}_1.tar.xz | cut -d' ' -f1) \
                 n=$(stat -c %s {name}_1.tar.xz); printf 'Format: 3.0 (native)\\nSource: {name}\\nBinary: {name}\\n\
                 Architecture: any\\nVersion: 1\\nMaintainer: T <t@example.org>\\nChecksums-Sha256:\\n %s %s \
                 {name}_1.tar.xz\\nFiles:\\n %s %s {name}_1.tar.xz\\n' $s $n $m $n >{name}_1.dsc"
            ),
        );
        directory
    }

    /// Writes and signs the indexes, with these packings of `Packages` (commands such as `xz`).
    ///
    /// # Panics
    /// When a tool fails.
    pub fn publish(&self, packings: &[&str], by_hash: bool) {
        let dists = format!("dists/{SUITE}");
        let script = format!(
            "d={dists}/main/binary-amd64 s={dists}/main/source; rm -rf {dists}; mkdir -p $d $s
             for f in $(find pool -name '*.deb' | sort); do
               dpkg-deb -f $f; echo Filename: $f; echo Size: $(stat -c %s $f)
               echo SHA256: $(sha256sum $f | cut -d' ' -f1); echo; done >$d/Packages
             cat '{}' >>$d/Packages 2>/dev/null || true
             for f in $(find pool -name '*.dsc' | sort); do n=$(basename $f)
               sed -e 's/^Source:/Package:/' -e \"s,^Files:,Directory: $(dirname $f)\\nFiles:,\" \\
                 -e \"/^Checksums-Sha256:/a\\ $(sha256sum $f | cut -d' ' -f1) $(stat -c %s $f) $n\" \\
                 -e \"/^Files:/a\\ $(md5sum $f | cut -d' ' -f1) $(stat -c %s $f) $n\" $f
               echo; done >$s/Sources",
            self.work.join("extra").display()
        );
        sh(&self.root, &script);
        for packing in packings {
            sh(&self.root, &format!("{packing} -k {dists}/main/binary-amd64/Packages"));
        }
        sh(&self.root, &format!("xz -k {dists}/main/source/Sources"));
        // A mirror need not have the plain file.
        sh(&self.root, &format!("cd {dists}; find main -type f | sort >../files"));
        self.sign(&dists, by_hash);
    }

    /// Publishes again, with a patch from the index that is there. The index has many packages, so
    /// that a patch is shorter.
    ///
    /// # Panics
    /// When a tool fails.
    pub fn publish_patch(&self) {
        let packages = format!("dists/{SUITE}/main/binary-amd64/Packages");
        fs::copy(self.root.join(&packages), self.work.join("Packages")).expect("copy");
        self.publish(&["xz"], true);
        let old = self.work.join("Packages").display().to_string();
        let script = format!(
            "mkdir {packages}.diff; cd {packages}.diff
             diff --ed '{old}' ../Packages >T1 || true
             line() {{ echo \" $(sha256sum \"$1\" | cut -d' ' -f1) $(stat -c %s \"$1\") $2\"; }}
             {{ echo SHA256-Current:$(line ../Packages); echo SHA256-History:; line '{old}' T1
             echo SHA256-Patches:; line T1 T1; gzip T1; echo SHA256-Download:; line T1.gz T1.gz; }} >Index"
        );
        sh(&self.root, &script);
        self.sign(&format!("dists/{SUITE}"), true);
    }

    /// Adds packages to the index whose files are nowhere.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn fill(&self, packages: usize) {
        let stanza = |n: usize| {
            let sum = format!("{n:064x}");
            format!(
                "Package: filler{n}\nVersion: 1\nArchitecture: amd64\nMaintainer: T <t@example.org>\nDescription: x\n\
                 Filename: pool/f{n}.deb\nSize: 1\nSHA256: {sum}\n\n"
            )
        };
        let text: String = (0..packages).map(stanza).collect();
        fs::write(self.work.join("extra"), text).expect("write");
    }

    /// Writes and signs the `Release` in a directory below the root. `InRelease` and `Release.gpg`
    /// are both made.
    fn sign(&self, directory: &str, by_hash: bool) {
        let hashes = if by_hash { "yes" } else { "no" };
        let script = format!(
            "cd {directory}; rm -f Release InRelease Release.gpg
             {{ echo Origin: Test; echo Suite: {SUITE}; echo Codename: {SUITE}; echo Architectures: amd64
             echo Components: main; echo Date: $(date -u -R); echo Acquire-By-Hash: {hashes}; echo SHA256:
             for f in $(find . -type f ! -path '*/by-hash/*' ! -name '*.deb' ! -name Release.tmp | sed 's,^./,,' | sort); do
               echo \" $(sha256sum $f | cut -d' ' -f1) $(stat -c %s $f) $f\"; done; }} >../Release.tmp
             mv ../Release.tmp Release
             if [ {hashes} = yes ]; then for f in $(find main -type f ! -path '*/by-hash/*'); do
               mkdir -p $(dirname $f)/by-hash/SHA256
               cp $f $(dirname $f)/by-hash/SHA256/$(sha256sum $f | cut -d' ' -f1); done; fi"
        );
        sh(&self.root, &script);
        let dir = self.root.join(directory);
        let (release, clear) = (dir.join("Release"), dir.join("InRelease"));
        self.gpg(&format!("--clearsign -o '{}' '{}'", clear.display(), release.display()));
        self.gpg(&format!("--detach-sign -a -o '{}.gpg' '{}'", release.display(), release.display()));
        for name in ["InRelease", "Release", "Release.gpg"] {
            self.date_anew(&dir.join(name));
        }
    }

    fn date_anew(&self, path: &Path) {
        let date = Duration::from_secs(self.date.fetch_add(10, Ordering::Relaxed));
        let file = fs::File::options().append(true).open(path).expect("open");
        file.set_modified(SystemTime::UNIX_EPOCH + date).expect("a date");
    }

    /// Replaces a file below the root; its date is later than all before.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn replace(&self, path: &str, bytes: &[u8]) {
        fs::write(self.root.join(path), bytes).expect("write");
        self.date_anew(&self.root.join(path));
    }

    /// Makes a flat repository with one package in `directory` below the root.
    ///
    /// # Panics
    /// When a tool fails.
    pub fn flat(&self, directory: &str, name: &str, content: &[u8]) {
        self.package_at(directory, name, "1", content);
        let script = format!(
            "cd {directory}; for f in *.deb; do dpkg-deb -f $f; echo Filename: ./$f; echo Size: $(stat -c %s $f)
             echo SHA256: $(sha256sum $f | cut -d' ' -f1); echo; done >Packages; gzip -k Packages"
        );
        sh(&self.root, &script);
        self.sign(directory, false);
    }
}

/// How a mirror behaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Conduct {
    /// As it should.
    #[default]
    Good,
    /// Connections are closed at once.
    Dead,
    /// Requests are read and never answered.
    Silent,
    /// Files of the pool have other bytes of the same length.
    Lies,
    /// Files of the pool are a page of HTML.
    Html,
    /// Files of the pool lie at this address.
    Redirects(String),
    /// The first answers for files of the pool end after this many bytes, this many times.
    ClosesEarly(u64, u64),
    /// Nothing is sent after this many bytes of a file of the pool.
    Stalls(u64),
    /// Files of the pool come at this many bytes a second.
    Slow(u64),
}

#[derive(Debug, Default)]
struct Shared {
    conduct: Mutex<Conduct>,
    asked: Mutex<BTreeMap<String, u64>>,
    sent: AtomicU64,
    closed_early: AtomicU64,
    stop: AtomicBool,
}

/// A mirror on loopback.
#[derive(Debug)]
pub struct Mirror {
    /// Address of the mirror.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Mirror {
    /// Serves the files below `root`.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start(root: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::<Shared>::default();
        let (root, serving) = (root.to_owned(), shared.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.stop.load(Ordering::Relaxed) {
                    return;
                }
                let (root, serving) = (root.clone(), serving.clone());
                // A client that goes away ends its thread with an error, which is nobody's concern.
                std::thread::spawn(move || drop(serve(stream, &root, &serving)));
            }
        });
        Self { address, shared }
    }

    /// Address of the repository's root.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes how the mirror behaves.
    pub fn set(&self, conduct: Conduct) {
        self.shared.closed_early.store(0, Ordering::Relaxed);
        *self.shared.conduct.lock().unwrap_or_else(PoisonError::into_inner) = conduct;
    }

    /// Bytes of bodies that were sent.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// How often a path was asked for.
    pub fn asked(&self, path: &str) -> u64 {
        let asked = self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get(path).copied().unwrap_or_default()
    }

    /// Paths that were asked for, with how often.
    pub fn all_asked(&self) -> BTreeMap<String, u64> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets what was sent and asked for.
    pub fn forget(&self) {
        self.shared.sent.store(0, Ordering::Relaxed);
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn unescaped(path: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16)).unwrap_or(0) as u8;
        out.push(if byte == b'%' { digit() << 4 | digit() } else { byte });
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Date of a file as HTTP writes it.
fn http_date(path: &Path) -> String {
    let modified = fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let seconds = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let output = run(Command::new("date").env("LC_ALL", "C").args([
        "-u",
        "-d",
        &format!("@{seconds}"),
        "+%a, %d %b %Y %H:%M:%S GMT",
    ]));
    output.stdout.trim().to_owned()
}

/// Serves one connection.
fn serve(stream: TcpStream, root: &Path, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim_end().is_empty() {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let conduct = shared.conduct.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if conduct == Conduct::Dead {
            return Ok(());
        }
        let path = unescaped(head[0].split(' ').nth(1).unwrap_or("/"));
        let field = |name: &str| {
            head.iter().find_map(|line| {
                let (field, value) = line.split_once(':')?;
                field.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        {
            let mut asked = shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
            *asked.entry(path.clone()).or_default() += 1;
        }
        if conduct == Conduct::Silent {
            // Until the client goes away.
            std::io::copy(&mut reader, &mut std::io::sink())?;
            return Ok(());
        }
        let file = root.join(path.trim_start_matches('/'));
        let is_package = path.contains(".deb") || path.ends_with(".tar.xz");
        if is_package && let Conduct::Redirects(to) = &conduct {
            write!(out, "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        }
        if is_package && conduct == Conduct::Html {
            let page = "<html><body>Log in to this network</body></html>";
            write!(
                out,
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{page}",
                page.len()
            )?;
            continue;
        }
        let Ok(mut bytes) = fs::read(&file) else {
            write!(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let date = http_date(&file);
        if field("if-modified-since").is_some_and(|since| since == date) {
            write!(out, "HTTP/1.1 304 Not Modified\r\nLast-Modified: {date}\r\n\r\n")?;
            continue;
        }
        if is_package && conduct == Conduct::Lies {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0xff;
        }
        let start = field("range").and_then(|range| {
            let start = range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()?;
            (start < bytes.len()).then_some(start)
        });
        match start {
            Some(start) => {
                let (last, whole) = (bytes.len() - 1, bytes.len());
                write!(
                    out,
                    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{last}/{whole}\r\n"
                )?;
            }
            None => write!(out, "HTTP/1.1 200 OK\r\n")?,
        }
        let body = &bytes[start.unwrap_or(0)..];
        write!(out, "Last-Modified: {date}\r\nContent-Length: {}\r\n\r\n", body.len())?;
        match (&conduct, is_package) {
            (Conduct::ClosesEarly(at, times), true)
                if shared.closed_early.fetch_add(1, Ordering::Relaxed) < *times =>
            {
                let body = &body[..body.len().min(*at as usize)];
                out.write_all(body)?;
                shared.sent.fetch_add(body.len() as u64, Ordering::Relaxed);
                return Ok(());
            }
            (Conduct::Stalls(at), true) => {
                out.write_all(&body[..body.len().min(*at as usize)])?;
                // Until the client goes away.
                std::io::copy(&mut reader, &mut std::io::sink())?;
                return Ok(());
            }
            (Conduct::Slow(rate), true) => {
                for part in body.chunks((*rate / 10).max(1) as usize) {
                    out.write_all(part)?;
                    shared.sent.fetch_add(part.len() as u64, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
            _ => {
                for part in body.chunks(64 << 10) {
                    out.write_all(part)?;
                    shared.sent.fetch_add(part.len() as u64, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Way to a server that can be made slow.
#[derive(Debug)]
pub struct SlowLink {
    /// Address at which the server is reached through it.
    pub address: SocketAddr,
    is_slow: Arc<AtomicBool>,
    connections: Arc<AtomicU64>,
}

impl SlowLink {
    /// Bytes of a second when it is slow.
    const SLOW: usize = 5000;

    /// Carries what is sent to and from the server at `to`.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (is_slow, connections) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (slow, counted) = (is_slow.clone(), connections.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                let Ok(far) = TcpStream::connect(to) else { continue };
                let (Ok(reader), Ok(writer)) = (near.try_clone(), far.try_clone()) else { continue };
                let slow = slow.clone();
                // An end that goes away ends the threads with an error, which is nobody's concern.
                std::thread::spawn(move || drop(carry(reader, writer, &AtomicBool::new(false))));
                std::thread::spawn(move || drop(carry(far, near, &slow)));
            }
        });
        Self { address, is_slow, connections }
    }

    /// Makes the way back slow.
    pub fn slow_down(&self) {
        self.is_slow.store(true, Ordering::Relaxed);
    }

    /// Connections that were made through it.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Carries bytes until an end closes.
fn carry(mut from: TcpStream, mut to: TcpStream, is_slow: &AtomicBool) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let slow = is_slow.load(Ordering::Relaxed);
        let most = if slow { SlowLink::SLOW / 10 } else { buffer.len() };
        let read = from.read(&mut buffer[..most])?;
        if read == 0 {
            return to.shutdown(std::net::Shutdown::Both);
        }
        to.write_all(&buffer[..read])?;
        if slow {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The apt of this machine, in a directory of its own.
#[derive(Debug)]
pub struct Apt {
    root: PathBuf,
}

/// Configuration of an apt whose directory is `root` and which goes through `proxy`.
fn configuration(root: &str, proxy: Option<&str>) -> String {
    let proxy = proxy.map(|proxy| format!("Acquire::http::Proxy \"{proxy}\";\n")).unwrap_or_default();
    format!(
        "Dir \"{root}/\";\nDir::State::status \"{root}/status\";\nAPT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\nAPT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n\
         Acquire::Retries \"0\";\nAPT::Get::Assume-Yes \"true\";\nDebug::NoLocking \"true\";\n{proxy}"
    )
}

impl Apt {
    /// Makes the directory `root` for an apt with these lines of `sources.list`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(root: &Path, sources: &str, proxy: Option<&str>) -> Self {
        for dir in [
            "etc/apt/apt.conf.d",
            "etc/apt/preferences.d",
            "etc/apt/trusted.gpg.d",
            "var/lib/apt/lists/partial",
            "var/cache/apt/archives/partial",
            "var/log/apt",
        ] {
            fs::create_dir_all(root.join(dir)).expect("a directory");
        }
        fs::write(root.join("status"), "").expect("write");
        fs::write(root.join("etc/apt/sources.list"), sources).expect("write");
        let this = Self { root: root.to_owned() };
        this.set_proxy(proxy);
        this
    }

    /// Directory of apt's configuration.
    pub fn etc(&self) -> PathBuf {
        self.root.join("etc/apt")
    }

    /// Changes the proxy.
    ///
    /// # Panics
    /// When the configuration cannot be written.
    pub fn set_proxy(&self, proxy: Option<&str>) {
        let text = configuration(&self.root.display().to_string(), proxy);
        fs::write(self.root.join("apt.conf"), text).expect("write");
    }

    /// The command of a program of apt, such as `apt-get`.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LC_ALL", "C");
        command.env("APT_CONFIG", self.root.join("apt.conf")).args(args).current_dir(&self.root);
        command
    }

    /// Runs `apt-get`.
    pub fn get(&self, args: &[&str]) -> Outcome {
        run(&mut self.command("apt-get", args))
    }

    /// Runs `apt-get update`; a failure of one file is a failure.
    pub fn update(&self) -> Outcome {
        self.get(&["update", "-o", "APT::Update::Error-Mode=any"])
    }

    /// Downloads a package, and returns its bytes.
    ///
    /// # Errors
    /// What apt says.
    pub fn download(&self, name: &str) -> Result<Vec<u8>, String> {
        let outcome = self.get(&["install", "--download-only", name]);
        if outcome.code != 0 {
            return Err(format!("{}{}", outcome.stdout, outcome.stderr));
        }
        let archives = self.root.join("var/cache/apt/archives");
        let prefix = format!("{name}_");
        let found = fs::read_dir(archives).expect("a directory").flatten();
        let found = found.map(|entry| entry.path()).find(|path| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&prefix))
        });
        found.map(|path| fs::read(path).expect("read")).ok_or_else(|| "apt kept no file".to_owned())
    }

    /// Removes downloaded packages, and with `lists` the indexes too.
    ///
    /// # Panics
    /// When they cannot be removed.
    pub fn clean(&self, lists: bool) {
        let mut dirs = vec!["var/cache/apt/archives"];
        if lists {
            dirs.push("var/lib/apt/lists");
        }
        for dir in dirs {
            fs::remove_dir_all(self.root.join(dir)).expect("remove");
            fs::create_dir_all(self.root.join(dir).join("partial")).expect("a directory");
        }
    }
}

/// Configuration for an apt in another root directory, where its files lie in `/apt`.
pub fn configuration_in_root(proxy: &str) -> String {
    configuration("/apt", Some(proxy))
}
