//! Examination of a node: what keeps it from its work, and how that is mended. Nothing is changed.
//!
//! The checks that relays and devices share are here; [`Examination`] is also that of an origin.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distd_core::error::Chain;
use distd_core::proto::close::CloseCode;
use quinn::Endpoint;
use rustix::net::sockopt;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::clock::unix_now;
use crate::filesystem::Space;
use crate::net::{Dialer, Link, LinkError, Outbound, Proxies, Transport, client_endpoint, resolve};
use crate::trust::files;
use crate::trust::identity::{CertInfo, NodeIdentity, certificate_from_pem};
use crate::trust::tls::{Credentials, TrustAnchor, quic_client};
use crate::trust::tuf::wire::{Answer, Query};

/// Name of the file of an answer that says what a parent is.
pub const ABOUT: &str = "about.json";

/// Difference of two clocks that is no finding, seconds.
const CLOCK_SECONDS: u64 = 60;

/// Time for one parent over one transport.
const WAIT: Duration = Duration::from_secs(8);

/// Smallest MTU of a route over which QUIC works: its first packets have 1200 bytes (RFC 9000,
/// section 14), and IPv6 and UDP add 48.
const MTU_MIN: u32 = 1248;

/// Least free bytes of a state directory: metadata, certificates and journals.
const FREE_BYTES_MIN: u64 = 32 << 20;

/// Least free inodes of a state directory.
const INODES_MIN: u64 = 256;

/// Time before its end in which a certificate that renews itself is looked at: the last sixth of
/// its validity. Renewal is due from the last third on.
const LATE_SHARE: u64 = 6;

/// Result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All is well.
    Sound,
    /// Something keeps the node from its work, or will soon.
    Finding,
    /// The check does not apply here, or could not be made.
    Skipped,
}

/// One check and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Name of the check: a word.
    pub check: &'static str,
    /// Result.
    pub verdict: Verdict,
    /// What was seen.
    pub says: String,
    /// How to mend it; absent where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// All checks of one examination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Examination {
    /// Checks in the order in which they were made.
    pub checks: Vec<Check>,
}

impl Examination {
    /// Adds a check that found nothing.
    pub fn sound(&mut self, check: &'static str, says: impl Into<String>) {
        self.checks.push(Check { check, verdict: Verdict::Sound, says: says.into(), mend: None });
    }

    /// Adds a finding with its mend.
    pub fn finding(&mut self, check: &'static str, says: impl Into<String>, mend: impl Into<String>) {
        let (says, mend) = (says.into(), Some(mend.into()));
        self.checks.push(Check { check, verdict: Verdict::Finding, says, mend });
    }

    /// Adds a check that was not made, and why.
    pub fn skipped(&mut self, check: &'static str, says: impl Into<String>) {
        self.checks.push(Check { check, verdict: Verdict::Skipped, says: says.into(), mend: None });
    }

    /// Whether nothing was found.
    pub fn is_sound(&self) -> bool {
        self.checks.iter().all(|check| check.verdict != Verdict::Finding)
    }

    /// Checks that the directories and files that hold secrets are for their owner alone. A file
    /// that is not there is left out.
    pub fn rights(&mut self, secrets: impl IntoIterator<Item = PathBuf>) {
        let mut seen = 0;
        let before = self.checks.len();
        for path in secrets {
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            seen += 1;
            let mode = meta.mode() & 0o7777;
            if mode & 0o077 != 0 {
                let wanted = if meta.is_dir() { "700" } else { "600" };
                self.finding(
                    "rights",
                    format!("{} is open to others (mode {mode:o})", path.display()),
                    format!("chmod {wanted} {}; ask who may have read it", path.display()),
                );
            }
        }
        if self.checks.len() == before {
            self.sound("rights", format!("{seen} files with secrets are for their owner alone"));
        }
    }

    /// Checks that a node of the realm whose CA certificate is in the file `ca` answers at an
    /// address of this machine, over UDP and over TCP. An address that stands for all of the
    /// machine's is asked on loopback.
    pub async fn answers(&mut self, ca: &Path, mut address: SocketAddr) {
        let pem = files::read(ca).ok().flatten().and_then(|pem| certificate_from_pem(&pem).ok());
        let Some(anchor) = pem.map(TrustAnchor::Ca) else {
            let says = format!("{} holds no certificate of a realm", ca.display());
            return self.finding("certificate", says, "enrol the node, and look at its log");
        };
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        let address = address.to_string();
        for (check, name, transport) in [("udp", "UDP", Transport::Quic), ("tcp", "TCP", Transport::Https)] {
            let dialled = async {
                let dialer = Dialer::enrolling(&anchor, Outbound::direct(transport))
                    .map_err(|e| Chain(&e).to_string())?;
                let dialling = tokio::time::timeout(WAIT, dialer.dial(&address));
                let connection =
                    dialling.await.map_err(|_| format!("nothing within {} s", WAIT.as_secs()))?;
                connection.map_err(|e| Chain(&e).to_string()).map(|it| it.close(CloseCode::Done))
            };
            match dialled.await {
                Ok(()) => self.sound(check, format!("{address} answers over {name}")),
                Err(why) => self.finding(
                    check,
                    format!("{address} does not answer over {name}: {why}"),
                    "look whether it runs and at its log; a relay listens once it has enrolled",
                ),
            }
        }
    }

    /// Checks the free space of a directory's file system: at least `least` bytes.
    pub fn disk(&mut self, directory: &Path, least: u64) {
        match Space::at(directory) {
            Ok(space) if space.free < least => self.finding(
                "disk",
                format!("{} bytes are free at {}, and {least} are needed", space.free, directory.display()),
                "delete what is not needed there, or move the directory to a larger disk",
            ),
            Ok(Space { inodes: Some(inodes), .. }) if inodes < INODES_MIN => self.finding(
                "disk",
                format!("{inodes} inodes are free at {}", directory.display()),
                "delete files that are not needed there: many small ones take all inodes",
            ),
            Ok(space) => {
                self.sound("disk", format!("{} bytes are free at {}", space.free, directory.display()));
            }
            Err(error) => self.finding(
                "disk",
                format!("{} cannot be looked at: {error}", directory.display()),
                "name the right directory with --data, and run this as the user of the program",
            ),
        }
    }

    /// Checks that the host names of addresses (`HOST:PORT`) resolve.
    pub async fn names(&mut self, addresses: &[String]) {
        for address in addresses {
            if address.parse::<SocketAddr>().is_ok() {
                continue;
            }
            match tokio::time::timeout(WAIT, resolve(address)).await {
                Ok(Ok(found)) => self.sound("dns", format!("{address} is {}", found[0].ip())),
                Ok(Err(error)) => self.finding(
                    "dns",
                    format!("{address} does not resolve: {error}"),
                    "correct the name, or the name servers in /etc/resolv.conf",
                ),
                Err(_) => self.finding(
                    "dns",
                    format!("no name server answered for {address} within {} s", WAIT.as_secs()),
                    "check /etc/resolv.conf, and that UDP port 53 reaches the name servers",
                ),
            }
        }
        if addresses.iter().all(|address| address.parse::<SocketAddr>().is_ok()) {
            self.skipped("dns", "all parents are named by address");
        }
    }
}

impl fmt::Display for Examination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let word = match check.verdict {
                Verdict::Sound => "ok     ",
                Verdict::Finding => "FINDING",
                Verdict::Skipped => "-      ",
            };
            writeln!(f, "{word} {:<12} {}", check.check, check.says)?;
            if let Some(mend) = &check.mend {
                writeln!(f, "                     mend: {mend}")?;
            }
        }
        let found = self.checks.iter().filter(|check| check.verdict == Verdict::Finding).count();
        match found {
            0 => f.write_str("nothing found"),
            1 => f.write_str("1 finding"),
            found => write!(f, "{found} findings"),
        }
    }
}

/// What a parent says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Time by its clock, unix seconds.
    pub time: u64,
    /// Version of its program.
    pub version: String,
}

/// Answer of a parent to the question what it is.
pub fn about_answer() -> Bytes {
    let about = About { time: unix_now(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let json = serde_json::to_vec(&about).expect("texts and numbers always encode");
    Answer { files: vec![(ABOUT.to_owned(), json.into())] }.encode().into()
}

/// A relay or a device to examine.
pub struct NodePatient<'a> {
    /// State directory.
    pub data: &'a Path,
    /// Parents, `HOST:PORT`.
    pub parents: &'a [String],
    /// How parents are reached.
    pub transport: Transport,
    /// Setting of the proxy; `None` for the environment's.
    pub proxy_url: Option<&'a str>,
    /// Further files that hold secrets.
    pub secrets: Vec<PathBuf>,
    /// Program, for mends: `distd` or `distd-peer`.
    pub program: &'static str,
    /// Free bytes that the node needs besides those of its state.
    pub room: u64,
}

impl NodePatient<'_> {
    /// Makes all checks that relays and devices share.
    pub async fn examine(&self, found: &mut Examination) {
        let version = env!("CARGO_PKG_VERSION");
        found.sound("version", format!("{} {version}", self.program));
        let secrets = ["node.key", "client.toml"].map(|name| self.data.join(name));
        found.rights([self.data.to_owned()].into_iter().chain(secrets).chain(self.secrets.iter().cloned()));
        found.disk(self.data, FREE_BYTES_MIN.max(self.room));
        let identity = self.certificate(found);
        found.names(self.parents).await;
        self.route(found).await;
        if self.parents.is_empty() {
            let mend = format!("enrol the node: {} takes --parent HOST:PORT", self.program);
            found.finding("parent", "no parent is named", mend);
            return;
        }
        let Some(identity) = identity else { return };
        let (Ok(credentials), Some(ca)) = (Credentials::of_node(&identity), identity.ca_der()) else {
            return found.finding("certificate", "key and certificate do not fit", "enrol the node again");
        };
        let proxies = match self.proxy_url {
            Some(url) => match Proxies::fixed(url) {
                Ok(proxies) => proxies,
                Err(error) => {
                    return found.finding("proxy", error.to_string(), "correct proxy_url");
                }
            },
            None => Proxies::of_environment(),
        };
        let proxies = Arc::new(proxies);
        for parent in self.parents {
            self.parent(found, parent, &proxies, &credentials, ca).await;
        }
    }

    /// Checks the certificate; returns the node's identity if it is enrolled. Nothing is created.
    fn certificate(&self, found: &mut Examination) -> Option<NodeIdentity> {
        let enrol = format!(
            "enrol the node with a join token ({})",
            if self.program == "distd" { "distd enroll" } else { "distd-peer run --token-file FILE" }
        );
        let (key, cert) = (self.data.join("node.key"), self.data.join("node.pem"));
        if !key.exists() || !cert.exists() {
            let says = format!("{} has no key and certificate", self.data.display());
            found.finding("certificate", says, enrol);
            return None;
        }
        let parsed = files::read(&cert).ok().flatten().and_then(|pem| certificate_from_pem(&pem).ok());
        let Some(info) = parsed.and_then(|der| CertInfo::parse(&der).ok()) else {
            found.finding("certificate", format!("{} cannot be read", cert.display()), enrol);
            return None;
        };
        let now = unix_now();
        let late = info
            .not_after
            .saturating_sub((info.not_after - info.not_before.min(info.not_after)) / LATE_SHARE);
        let left = info.not_after.saturating_sub(now);
        if info.is_expired(now) {
            found.finding(
                "certificate",
                format!("it ended {} s ago by this machine's clock", now - info.not_after),
                "check the clock; else the node renews it as soon as it reaches a parent, or enrol again",
            );
        } else if now < info.not_before {
            found.finding(
                "certificate",
                format!("it begins in {} s by this machine's clock", info.not_before - now),
                "set the clock",
            );
        } else if now >= late {
            found.finding(
                "certificate",
                format!("it ends in {left} s and was not renewed"),
                format!("look at the parent below; {} renews it by itself when it reaches one", self.program),
            );
        } else {
            found.sound("certificate", format!("valid for {left} s more"));
        }
        match NodeIdentity::load_or_create(self.data) {
            Ok(identity) => Some(identity).filter(|identity| identity.cert().is_some()),
            Err(error) => {
                found.finding("certificate", Chain(&error).to_string(), "enrol the node again");
                None
            }
        }
    }

    /// Checks the MTU of the routes to the parents.
    async fn route(&self, found: &mut Examination) {
        if self.transport == Transport::Https {
            return found.skipped("mtu", "transport = https uses no UDP");
        }
        for parent in self.parents {
            let Ok(Ok(addresses)) = tokio::time::timeout(WAIT, resolve(parent)).await else { continue };
            for address in addresses {
                let Some(mtu) = mtu_of_route(address) else { continue };
                if mtu < MTU_MIN {
                    found.finding(
                        "mtu",
                        format!("the route to {address} takes packets of {mtu} bytes, QUIC needs {MTU_MIN}"),
                        "raise the MTU of the interface or tunnel, or set transport = \"https\"",
                    );
                } else {
                    found.sound("mtu", format!("the route to {address} takes packets of {mtu} bytes"));
                }
            }
        }
    }

    /// Checks one parent: over UDP, over TCP or a proxy, its clock and its version.
    async fn parent(
        &self,
        found: &mut Examination,
        parent: &str,
        proxies: &Arc<Proxies>,
        credentials: &Arc<Credentials>,
        ca: &CertificateDer<'static>,
    ) {
        let is_proxied = proxies.for_parent(parent).is_some();
        let asked = async |transport, with_proxy: bool| {
            let proxies = if !with_proxy {
                Proxies::none()
            } else {
                match self.proxy_url {
                    Some(url) => Proxies::fixed(url).unwrap_or_else(|_| Proxies::none()),
                    None => Proxies::of_environment(),
                }
            };
            ask(parent, transport, proxies, credentials, ca).await
        };
        let over_udp = match self.transport {
            Transport::Https => None,
            _ if is_proxied => None,
            _ => Some(asked(Transport::Quic, false).await),
        };
        let over_tcp = match self.transport {
            Transport::Quic => None,
            _ => Some(asked(Transport::Https, true).await),
        };
        let reached_by_tcp = matches!(over_tcp, Some(Ok(_)));
        match &over_udp {
            None if is_proxied => found.skipped("udp", format!("{parent} is reached through a proxy")),
            None => found.skipped("udp", "transport = https uses no UDP"),
            Some(Ok(_)) => found.sound("udp", format!("{parent} answers over UDP")),
            Some(Err(error)) if reached_by_tcp => found.finding(
                "udp",
                format!("{parent} answers over TCP and not over UDP: {error}"),
                "let UDP to the port of the parent through the firewall; where that cannot be, set \
                 transport = \"https\", which takes more time and has no neighbours",
            ),
            Some(Err(_)) => found.skipped("udp", format!("{parent} does not answer at all")),
        }
        if is_proxied && let Some(tcp) = &over_tcp {
            match tcp {
                Ok(_) => found.sound("proxy", format!("{parent} answers through the proxy")),
                Err(error) => found.finding(
                    "proxy",
                    format!("{parent} does not answer through the proxy: {error}"),
                    "correct proxy_url or HTTPS_PROXY, let the proxy CONNECT to the parent's port, or name the \
                     parent in NO_PROXY",
                ),
            }
        }
        let about = match (over_udp, over_tcp) {
            (Some(Ok(about)), _) | (_, Some(Ok(about))) => about,
            (Some(Err(error)), _) | (None, Some(Err(error))) => {
                return found.finding(
                    "parent",
                    format!("{parent} does not answer: {error}"),
                    format!(
                        "check that it runs and that its port is open; if it refuses this node, it was revoked or is of \
                         another realm: enrol again; then {} doctor once more",
                        self.program
                    ),
                );
            }
            (None, None) => return,
        };
        found.sound("parent", format!("{parent} answers"));
        match about {
            None => {
                found.skipped(
                    "clock",
                    format!("{parent} is of an earlier version and does not tell its time"),
                );
            }
            Some(about) => compare(found, parent, &about, unix_now()),
        }
    }
}

/// Compares clock and version with a parent's, at `now` (unix seconds).
fn compare(found: &mut Examination, parent: &str, about: &About, now: u64) {
    let difference = now.abs_diff(about.time);
    if difference > CLOCK_SECONDS {
        let side = if now > about.time { "ahead of" } else { "behind" };
        found.finding(
            "clock",
            format!("this machine's clock is {difference} s {side} that of {parent}"),
            "set the clock and keep it right: timedatectl set-ntp true, or chrony; look at both machines",
        );
    } else {
        found.sound("clock", format!("{difference} s away from that of {parent}"));
    }
    let own = env!("CARGO_PKG_VERSION");
    if is_newer(own, &about.version) {
        found.finding(
            "version",
            format!("this program is {own}, and {parent} is {}", about.version),
            "upgrade the origin first, then relays, then devices",
        );
    } else {
        found.sound("version", format!("{parent} is {}", about.version));
    }
}

/// Whether a version `MAJOR.MINOR.PATCH` is of a later minor release than another. Of a text in
/// another form nothing is known.
fn is_newer(own: &str, other: &str) -> bool {
    let parts = |text: &str| -> Option<(u64, u64)> {
        let mut parts = text.split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    };
    match (parts(own), parts(other)) {
        (Some(own), Some(other)) => own > other,
        _ => false,
    }
}

/// Asks a parent over one transport what it is; `None` from a parent of an earlier version.
async fn ask(
    parent: &str,
    transport: Transport,
    proxies: Proxies,
    credentials: &Arc<Credentials>,
    ca: &CertificateDer<'static>,
) -> Result<Option<About>, String> {
    let said = |error: &(dyn std::error::Error + 'static)| Chain(error).to_string();
    let quic = || quic_client(credentials.clone(), ca);
    let config = quic().map_err(|e| said(&e))?;
    let endpoint: Endpoint = match client_endpoint(true, config) {
        Ok(endpoint) => endpoint,
        Err(_) => client_endpoint(false, quic().map_err(|e| said(&e))?).map_err(|e| said(&e))?,
    };
    let outbound = Outbound::forgetful(transport, proxies);
    let dialer = Dialer::new(endpoint, credentials.clone(), ca, outbound).map_err(|e| said(&e))?;
    let asking = async {
        let meter = Arc::default();
        let link = Link::connect(&dialer, parent, &meter, &meter, unix_now()).await?;
        let question = Query { about: true, ..Query::default() };
        let answer = link.metadata(question.encode().into()).await?;
        link.close(CloseCode::Done);
        Ok::<_, LinkError>(answer)
    };
    let answer = match tokio::time::timeout(WAIT, asking).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(said(&error)),
        Err(_) => return Err(format!("no answer within {} s", WAIT.as_secs())),
    };
    let answer = Answer::decode(&answer).map_err(|e| said(&e))?;
    let about = answer.files.iter().find(|(name, _)| name == ABOUT);
    Ok(about.and_then(|(_, json)| serde_json::from_slice(json).ok()))
}

/// MTU of the route to an address, as the system knows it; `None` where it cannot tell.
fn mtu_of_route(to: SocketAddr) -> Option<u32> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let any: SocketAddr = any.to_socket_addrs().ok()?.next()?;
    let socket = std::net::UdpSocket::bind(any).ok()?;
    // Nothing is sent: the system only chooses the route.
    socket.connect(to).ok()?;
    match to {
        SocketAddr::V4(_) => sockopt::ip_mtu(socket.as_fd()).ok(),
        SocketAddr::V6(_) => sockopt::ipv6_mtu(socket.as_fd()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_examination_is_sound_without_findings_and_names_every_mend() {
        let mut found = Examination::default();
        found.sound("disk", "room");
        found.skipped("udp", "off");
        assert!(found.is_sound() && found.to_string().ends_with("nothing found"));
        found.finding("clock", "wrong", "set it");
        assert!(!found.is_sound());
        let text = found.to_string();
        assert!(
            text.contains("FINDING clock") && text.contains("mend: set it") && text.ends_with("1 finding")
        );
        let json = serde_json::to_value(&found).expect("JSON");
        assert_eq!(
            (&json["checks"][2]["verdict"], &json["checks"][2]["mend"]),
            (&"finding".into(), &"set it".into())
        );
        assert!(json["checks"][0].get("mend").is_none());
    }

    #[test]
    fn clocks_and_versions_are_compared_with_the_parents() {
        let own = env!("CARGO_PKG_VERSION").to_owned();
        let verdicts = |time, version: &str, now| {
            let mut found = Examination::default();
            compare(&mut found, "relay:1", &About { time, version: version.to_owned() }, now);
            (found.checks[0].verdict, found.checks[1].verdict)
        };
        assert_eq!(verdicts(1000, &own, 1060), (Verdict::Sound, Verdict::Sound));
        assert_eq!(verdicts(1000, &own, 1061).0, Verdict::Finding);
        assert_eq!(verdicts(1061, &own, 1000).0, Verdict::Finding);
        assert_eq!(verdicts(1, "0.0.9", 1).1, Verdict::Finding);
        for version in ["99.0.0", "unknown", ""] {
            assert_eq!(verdicts(1, version, 1).1, Verdict::Sound, "{version}");
        }
    }

    #[test]
    fn files_open_to_others_and_full_disks_are_found() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("node.key");
        std::fs::write(&path, "x").expect("write");
        for (mode, is_sound) in [(0o600, true), (0o640, false), (0o604, false), (0o400, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
            let mut found = Examination::default();
            found.rights([path.clone(), dir.path().join("none")]);
            assert_eq!(found.is_sound(), is_sound, "{mode:o}");
        }
        let mut found = Examination::default();
        found.disk(dir.path(), 0);
        assert!(found.is_sound(), "{found}");
        found.disk(dir.path(), u64::MAX);
        found.disk(&dir.path().join("none"), 0);
        assert_eq!(found.checks.iter().filter(|check| check.verdict == Verdict::Finding).count(), 2);
    }
}
