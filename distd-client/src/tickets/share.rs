//! A share that is being served: its sockets, its ticket, and what becomes of it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use distd_core::ManifestId;
use distd_core::bounds::TICKET_ADDRESSES_MAX;
use distd_core::manifest::{Kind, Manifest};
use distd_core::proto::close::CloseCode;
use distd_core::swarm::SiteRule;
use distd_core::ticket::{Audience, SharedKind, SharedName, SignedTicket, Ticket, TicketId, is_address};
use distd_peer::clock::unix_now;
use distd_peer::net::{close_code, everywhere_ipv4, is_without_ipv6, parent_sockets};
use distd_peer::random;
use distd_peer::rates::Throttle;
use distd_peer::serve::{ServeConfig, Server, Sites};
use distd_peer::share::{Holdings, Manifests, ShareCounters, SharedSwarm};
use distd_peer::table::ChunkTable;
use distd_peer::tickets::{Members, ShareContent};
use distd_peer::trust::share_realm::ShareRealm;
use distd_peer::trust::ticket::ShareSigner;
use distd_peer::trust::tls::{https_parent, quic_server};
use quinn::Endpoint;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::LocalArtifact;
use crate::failure::{Code, Failure};

/// Interval of looks at the counters of a share.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Time in which fetchers are told that a share ended, before its sockets close.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Largest number of fetchers connected at once.
const FETCHERS_MAX: usize = 256;

/// Longest validity of a ticket: 400 days.
pub const TTL_MAX: Duration = Duration::from_secs(400 * 24 * 3600);

/// A request to share an artifact.
pub struct ShareRequest {
    /// Path of the artifact, for messages and for its name.
    pub path: PathBuf,
    /// Address to listen at; port 0 takes a free port.
    pub listen: SocketAddr,
    /// Addresses to put into the ticket before those of this machine, `HOST:PORT`; one without a
    /// port gets the port of the share.
    pub addresses: Vec<String>,
    /// End of the share, unix seconds.
    pub not_after: u64,
    /// Whether the share ends with the first completed fetch.
    pub once: bool,
    /// Nodes that the share is for.
    pub audience: Audience,
    /// The nodes of the audience by id; `None` when anyone may fetch.
    pub members: Option<Members>,
    /// Key of the share.
    pub signer: ShareSigner,
    /// Ticket that was made before, for a share that is served again.
    pub ticket: Option<SignedTicket>,
    /// Limit of the upload.
    pub upload: Option<Arc<Throttle>>,
}

/// Event of a running share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareEvent {
    /// Number of certificates that fetchers were given so far.
    Admitted(u64),
    /// Number of fetchers that have the whole artifact.
    Completed(u64),
    /// Number of chunks that no longer match and are not served.
    Changed(u64),
}

/// Reason why a share ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its time was over.
    Expired,
    /// It was for one fetch.
    Once,
    /// It was told to end.
    Told,
}

/// A running share.
pub struct Share {
    ticket: SignedTicket,
    content: Arc<ShareContent>,
    server: Arc<Server>,
    counters: Arc<ShareCounters>,
    endpoint: Endpoint,
    tcp: JoinHandle<()>,
    /// Address that the share listens at.
    pub address: SocketAddr,
}

/// A share knows no manifest but its own.
struct NoOthers;

impl Manifests for NoOthers {
    fn manifest(&self, _id: &ManifestId) -> Option<Arc<Manifest>> {
        None
    }
}

impl Share {
    /// Starts to serve an artifact.
    ///
    /// # Errors
    /// Failures with [`Code::Network`] when the address cannot be used, [`Code::Usage`] when the
    /// path has no usable name.
    pub async fn start(local: LocalArtifact, request: ShareRequest) -> anyhow::Result<Self> {
        let other = |error: anyhow::Error| Failure::new(Code::Other, error);
        let (now, not_after) = (unix_now(), request.not_after);
        let realm = ShareRealm::new(request.signer, now, not_after).map_err(|e| other(e.into()))?;
        let credentials = realm.credentials().map_err(|e| other(e.into()))?;
        let quic = quic_server(credentials.clone(), realm.ca()).map_err(|e| other(e.into()))?;
        let https = https_parent(credentials, realm.ca()).map_err(|e| other(e.into()))?;
        let open = |address| parent_sockets(address, &quic, &realm.reset_key());
        let opened = match open(request.listen) {
            Err(error) if request.listen.ip().is_unspecified() && is_without_ipv6(&error.cause) => {
                open(everywhere_ipv4(request.listen))
            }
            other => other,
        };
        let (endpoint, listener) = opened.map_err(|e| Failure::new(Code::Network, e.into()))?;
        let address = endpoint.local_addr().context("the socket has no address")?;

        let addresses = hints(&request.addresses, address)?;
        let manifest = local.manifest().clone();
        let root = manifest.root();
        let kind = match root.kind {
            Kind::Tree { .. } => SharedKind::Tree,
            _ => SharedKind::File,
        };
        let made = |name| Ticket {
            key: realm.signer().public(),
            id: TicketId(random::bytes()),
            manifest: manifest.id(),
            kind,
            bytes: root.bytes,
            not_after,
            audience: request.audience.clone(),
            once: request.once,
            name,
            addresses: addresses.clone(),
        };
        let ticket = match request.ticket {
            Some(ticket) => ticket,
            None => realm.signer().sign(made(name_of(&request.path)?)).map_err(|e| other(e.into()))?,
        };

        let table = Arc::new(ChunkTable::of(&manifest));
        let holdings = Arc::new(Holdings::new(table.ids().clone()));
        let counters: Arc<ShareCounters> = Arc::default();
        let swarm = SharedSwarm::new(
            manifest,
            table,
            holdings,
            Arc::new(local),
            Arc::new(NoOthers),
            counters.clone(),
        );
        let sites = Sites::new(realm.ca().clone(), SiteRule::NamedOrNetwork, true);
        let content = ShareContent::new(realm, ticket.clone(), swarm, request.members);
        let config = ServeConfig {
            connections_max: FETCHERS_MAX,
            upload: request.upload,
            sites: Some(sites),
            ..ServeConfig::default()
        };
        let server = Server::new(content.clone(), config);
        tokio::spawn(server.clone().run(endpoint.clone()));
        let tcp = tokio::spawn(server.clone().run_tcp(listener, https));
        Ok(Self { ticket, content, server, counters, endpoint, tcp, address })
    }

    /// The ticket.
    pub fn ticket(&self) -> &SignedTicket {
        &self.ticket
    }

    /// Number of packed chunk bytes sent so far.
    pub fn sent_bytes(&self) -> u64 {
        self.server.counters.chunk_bytes.load(Ordering::Relaxed)
    }

    /// Number of fetchers that have the whole artifact.
    pub fn completed(&self) -> u64 {
        *self.content.completed().borrow()
    }

    /// Serves until the share's time is over, until its only fetch is completed, or until `told`.
    /// `on` learns of events.
    pub async fn run(&self, told: impl Future<Output = ()>, on: &(dyn Fn(ShareEvent) + Sync)) -> Ended {
        let mut completed = self.content.completed();
        let mut told = std::pin::pin!(told);
        let (mut seen, mut is_told) = ((0, 0, 0), false);
        loop {
            let now = (
                self.content.admitted.load(Ordering::Relaxed),
                self.counters.misses.load(Ordering::Relaxed),
                *completed.borrow_and_update(),
            );
            if now.0 > seen.0 {
                on(ShareEvent::Admitted(now.0));
            }
            if now.1 > seen.1 {
                on(ShareEvent::Changed(now.1));
            }
            if now.2 > seen.2 {
                on(ShareEvent::Completed(now.2));
            }
            seen = now;
            if now.2 > 0 && self.ticket.ticket.once {
                return Ended::Once;
            }
            if unix_now() >= self.ticket.ticket.not_after {
                return Ended::Expired;
            }
            if is_told {
                return Ended::Told;
            }
            tokio::select! {
                () = &mut told => is_told = true,
                () = changed(&mut completed) => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Ends the share: fetchers are told so, and the sockets close.
    pub async fn end(self) {
        self.content.withdraw();
        tokio::time::sleep(LAST_WORDS).await;
        self.tcp.abort();
        self.endpoint.close(close_code(CloseCode::Unauthorised), b"");
        let _ = tokio::time::timeout(LAST_WORDS, self.endpoint.wait_idle()).await;
    }
}

async fn changed(completed: &mut watch::Receiver<u64>) {
    // The sender lives as long as the share.
    if completed.changed().await.is_err() {
        std::future::pending().await
    }
}

fn name_of(path: &Path) -> anyhow::Result<SharedName> {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    // The name as it was typed, if it has one: a link's own name says more than its target's.
    let named = path.file_name().or_else(|| full.file_name()).and_then(|name| name.to_str());
    named.and_then(SharedName::new).ok_or_else(|| {
        let error = anyhow!("{} has no name that a ticket can carry", path.display());
        let next = "share it under a name in UTF-8 without control characters: mv or ln -s";
        Failure::new(Code::Usage, error).next(next).into()
    })
}

/// Returns the addresses for a ticket: the given ones, then those of this machine.
fn hints(given: &[String], listening: SocketAddr) -> anyhow::Result<Vec<String>> {
    let port = listening.port();
    let mut found: Vec<String> = Vec::new();
    for address in given {
        let full = if is_address(address) { address.clone() } else { format!("{address}:{port}") };
        if !is_address(&full) {
            let error = anyhow!("{address:?} is no address: a ticket holds HOST or HOST:PORT");
            return Err(Failure::new(Code::Usage, error).into());
        }
        found.push(full);
    }
    let own: Vec<IpAddr> =
        if listening.ip().is_unspecified() { of_this_machine() } else { vec![listening.ip()] };
    found.extend(own.into_iter().map(|ip| SocketAddr::new(ip.to_canonical(), port).to_string()));
    let mut unique = Vec::new();
    for address in found {
        if !unique.contains(&address) && unique.len() < TICKET_ADDRESSES_MAX {
            unique.push(address);
        }
    }
    Ok(unique)
}

/// Returns the addresses at which other machines may reach this one; loopback if it has no other.
fn of_this_machine() -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .iter()
        .filter(|interface| !interface.is_loopback() && !interface.is_link_local())
        .map(if_addrs::Interface::ip)
        .collect();
    // IPv4 first: the machine at the other end more often has it.
    found.sort_by_key(IpAddr::is_ipv6);
    if found.is_empty() {
        found.push(std::net::Ipv4Addr::LOCALHOST.into());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ticket_names_given_addresses_first_and_each_once() {
        let at = "192.0.2.1:77".parse().expect("an address");
        let given = ["nas.example".to_owned(), "192.0.2.1:77".to_owned(), "[2001:db8::1]:5".to_owned()];
        let found = hints(&given, at).expect("addresses");
        assert_eq!(found, ["nas.example:77", "192.0.2.1:77", "[2001:db8::1]:5"]);
        assert!(hints(&["no host".to_owned()], at).is_err());
        let many: Vec<String> = (0..20).map(|n| format!("host{n}")).collect();
        assert_eq!(hints(&many, at).expect("addresses").len(), TICKET_ADDRESSES_MAX);
        let own = hints(&[], "0.0.0.0:9".parse().expect("an address")).expect("addresses");
        assert!(!own.is_empty() && own.iter().all(|address| address.ends_with(":9")));
    }

    #[test]
    fn a_path_without_a_plain_name_is_refused() {
        assert_eq!(name_of(Path::new("/etc/hosts")).expect("a name").as_str(), "hosts");
        assert!(name_of(Path::new("/")).is_err());
        assert!(name_of(Path::new("/tmp/a\nb")).is_err());
    }
}
