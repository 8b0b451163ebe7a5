//! A proxy for `apt`, with a cache: packages cross the uplink of a site once (docs/apt.md).
//!
//! Goals: `apt` uses it as it is. Every file that a signed index names is verified before a client
//! has all of it. A site whose mirror is away installs what one of its machines had before. No
//! client reaches a private address through it.
//!
//! Non-goals: the proxy decides nothing that `apt` decides: which key is right, how old an index
//! may be, which version is installed. It looks into no package.
//!
//! [`Address`] is what a request asks for, [`Library`] knows the hashes of the files that indexes
//! name, [`Store`] keeps files, a [`Flight`] is a download that many read. `releases` treats the
//! files that change at their address, `fetch` those that do not. [`serve()`] has the connections.
//!
//! # Example
//!
//! ```text
//! GET http://deb.debian.org/debian/dists/trixie/InRelease
//!   release  the mirror has a newer one; gpgv finds a key of /etc/apt; its 800 names are a table
//! GET …/main/binary-amd64/by-hash/SHA256/6f…
//!   listed   9 MB with the hash 6f…, downloaded, verified, read: 64 000 packages are a table
//! GET …/pool/main/h/hello/hello_2.10-5_amd64.deb
//!   listed   56 KB with the hash 1c…: from the cache, the relay, or the mirror
//! ```

mod address;
mod counters;
mod fetch;
mod flight;
mod index;
mod library;
mod marks;
mod mirror;
mod names;
mod nodes;
mod reach;
mod reading;
mod releases;
mod reply;
mod serve;
mod settings;
mod shelf;
mod signatures;
mod store;
mod tunnel;
mod unpack;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use distd_core::error::Chain;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::sync::Semaphore;

pub use address::{Address, AddressError};
pub use counters::Counters;
pub use flight::{Failure, Flight};
pub use library::Library;
pub use marks::Marks;
pub use nodes::{Find, Nodes};
pub use reach::{HostPattern, Reach, is_public};
pub use reply::Reply;
pub use serve::{DETECT_PATH, serve, serve_neighbours, serve_node};
pub use settings::{AptSettings, LISTEN, Network, SECTION};
pub use shelf::{Import, Item, Shelf};
pub use signatures::Signatures;
pub use store::{Bounds, Store, StoreCounters};

use self::counters::count;
use self::fetch::Given;
use self::index::{Kind, Sha256, Sum};
use self::mirror::Mirrors;
use self::names::Named;
use self::reading::{Readers, Reading};
use self::releases::{Releases, is_release};
use self::reply::Described;
use self::unpack::Packing;
use crate::gateway::Refusal;

/// Most downloads at once; more wait.
const DOWNLOADS_MAX: usize = 64;

/// Most tunnels at once.
const TUNNELS_MAX: usize = 64;

/// Most files of which it is remembered that wrong bytes were given.
const WRONG_MAX: usize = 1024;

/// The side that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A program such as apt.
    Program,
    /// A node below this relay, which names the hash that it wants.
    Node,
    /// A neighbour of this device, which names the hash that it wants and gets what is here.
    Neighbour,
}

/// A proxy for apt.
pub struct Proxy {
    settings: AptSettings,
    store: Arc<Store>,
    library: Arc<Library>,
    releases: Releases,
    mirrors: Mirrors,
    relays: Option<Nodes>,
    neighbours: Option<Nodes>,
    flights: Mutex<HashMap<Sha256, Arc<Flight>>>,
    locks: Mutex<HashMap<Address, Weak<tokio::sync::Mutex<()>>>>,
    /// How often wrong bytes of a file were given. Its date changes each time, so that apt does not
    /// put right bytes behind wrong ones.
    wrong: Mutex<HashMap<Sha256, u64>>,
    downloads: Semaphore,
    readers: Arc<Readers>,
    tunnels: Arc<Semaphore>,
    /// Name in the field `Via`, by which a circle is noticed.
    name: String,
    /// Counters.
    pub counters: Arc<Counters>,
}

impl Proxy {
    /// Opens the cache of a proxy in `directory`. Blocks.
    ///
    /// # Errors
    /// Those of the file system; `WouldBlock` when another process has the cache.
    pub fn open(
        settings: AptSettings,
        directory: &Path,
        relays: Option<Nodes>,
        neighbours: Option<Nodes>,
    ) -> io::Result<Arc<Self>> {
        let store = Arc::new(Store::open(directory, settings.bounds)?);
        let library = Arc::new(Library::open(&directory.join("names"))?);
        let releases = Releases::open(&directory.join("releases"))?;
        for sum in releases.sums() {
            store.pin(&sum.sha256, true);
        }
        let reach = Reach::new(&settings.hosts, &settings.private_hosts);
        let mirrors = Mirrors::new(reach, settings.stall, settings.asks_mirrors);
        Ok(Arc::new(Self {
            store,
            library,
            releases,
            mirrors,
            relays: relays.filter(|_| settings.use_relay),
            neighbours: neighbours.filter(|_| settings.use_neighbours),
            settings,
            flights: Mutex::default(),
            locks: Mutex::default(),
            wrong: Mutex::default(),
            downloads: Semaphore::new(DOWNLOADS_MAX),
            readers: Arc::default(),
            tunnels: Arc::new(Semaphore::new(TUNNELS_MAX)),
            name: format!("distd-{:016x}", crate::random::number()),
            counters: Arc::default(),
        }))
    }

    /// Settings of the proxy.
    pub fn settings(&self) -> &AptSettings {
        &self.settings
    }

    /// The cache.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Sha256, Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lock of its own for `address`.
    fn lock(&self, address: Address) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(&address).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(address, Arc::downgrade(&lock));
        lock
    }

    fn was_wrong(&self, sum: &Sum) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if wrong.len() >= WRONG_MAX {
            wrong.clear();
        }
        *wrong.entry(sum.sha256).or_default() += 1;
    }

    fn described(&self, sum: Sum, modified: u64) -> Described {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        let modified = modified + wrong.get(&sum.sha256).copied().unwrap_or_default();
        Described { sum, modified, is_stale: false }
    }

    /// Answers a request with an absolute address.
    async fn respond(self: &Arc<Self>, request: &Request<Incoming>, asker: Asker) -> Response<Reply> {
        let (method, headers) = (request.method(), request.headers());
        let address = match self.admitted(request) {
            Ok(address) => address,
            Err(refusal) => return refusal.into_response().map(Reply::File),
        };
        if asker == Asker::Neighbour {
            return self.give_neighbour(method, headers).await;
        }
        let answered = if headers.contains_key(header::AUTHORIZATION) {
            // A file that a repository gives to one user is for nobody else.
            self.pass_through(method, &address, headers).await
        } else if is_release(address.name()) {
            self.release(&address, asker).await.map(|release| {
                match reply::is_unmodified(headers, &release.described) {
                    true => {
                        count(&self.counters.not_modified);
                        reply::not_modified(&release.described)
                    }
                    false => reply::give(method, headers, &release.described, release.file),
                }
            })
        } else if asker == Asker::Program && self.releases.is_contested(&address) {
            self.pass_through(method, &address, headers).await
        } else {
            let wanted = (asker == Asker::Node).then(|| nodes::sum_in(headers)).flatten();
            let named = wanted.map(|sum| Named { sum, index: None });
            match named.or_else(|| self.library.find(&address)) {
                Some(named) => self.give_listed(method, &address, headers, named).await,
                None => self.give_unlisted(method, &address, headers).await,
            }
        };
        answered.unwrap_or_else(|failure| {
            if matches!(failure, Failure::Refused(_)) {
                count(&self.counters.hosts_refused);
            }
            reply::failed(&failure)
        })
    }

    /// Returns the address of a request, if the proxy takes it.
    fn admitted(&self, request: &Request<Incoming>) -> Result<Address, Refusal> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET, HEAD and CONNECT are answered",
                "",
            ));
        }
        let address = Address::parse(&request.uri().to_string())
            .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string(), ""))?;
        self.check_host(&address.host, address.port)?;
        let via = request.headers().get_all(header::VIA).iter().filter_map(|via| via.to_str().ok());
        if via.into_iter().any(|via| via.contains(&self.name)) {
            return Err(Refusal::new(StatusCode::LOOP_DETECTED, "the proxy is asked by itself", ""));
        }
        Ok(address)
    }

    /// Refuses a host that is not on the list.
    fn check_host(&self, host: &str, port: u16) -> Result<(), Refusal> {
        if self.mirrors.reach().allows(host, port) {
            return Ok(());
        }
        count(&self.counters.hosts_refused);
        let message = format!("{host}:{port} is not among the hosts that this proxy asks");
        let next = "name it in [apt] of the settings: hosts, or private_hosts for a private network";
        Err(Refusal::new(StatusCode::FORBIDDEN, message, next))
    }

    async fn give_listed(
        self: &Arc<Self>,
        method: &Method,
        address: &Address,
        headers: &HeaderMap,
        named: Named,
    ) -> Result<Response<Reply>, Failure> {
        let sum = named.sum;
        if method == Method::HEAD {
            let date = self.described(sum, reply::date_of(&sum.sha256));
            let mut response = Response::new(Reply::empty());
            reply::describe(response.headers_mut(), &date);
            response.headers_mut().remove(header::LAST_MODIFIED);
            response.headers_mut().insert(header::CONTENT_LENGTH, sum.bytes.into());
            return Ok(response);
        }
        match self.listed(address, sum, named.index.is_some()).await? {
            Given::Whole(stored) => {
                if let Some((kind, packing)) = named.index {
                    self.read_index(kind, packing, address, stored.clone()).await;
                }
                let described = self.described(sum, stored.modified);
                if reply::is_unmodified(headers, &described) {
                    count(&self.counters.not_modified);
                    return Ok(reply::not_modified(&described));
                }
                Ok(reply::give(method, headers, &described, Arc::new(stored)))
            }
            Given::Arriving(flight) => {
                let modified = flight.modified.get().copied().unwrap_or_else(|| reply::date_of(&sum.sha256));
                Ok(reply::give(method, headers, &self.described(sum, modified), flight))
            }
            Given::Passed(answer, relay) => {
                let modified = answer.modified().unwrap_or_else(|| reply::date_of(&sum.sha256));
                let body = fetch::verified(*answer, relay, sum, self.clone());
                let mut response = Response::new(Reply::passed(body, Some(sum.bytes)));
                reply::describe(response.headers_mut(), &self.described(sum, modified));
                // A part cannot be verified, so the whole is sent each time.
                response.headers_mut().remove(header::ACCEPT_RANGES);
                Ok(response)
            }
        }
    }

    /// Gives a neighbour a file that is here, and asks nobody for another.
    async fn give_neighbour(self: &Arc<Self>, method: &Method, headers: &HeaderMap) -> Response<Reply> {
        let stored = match nodes::sum_in(headers) {
            Some(sum) => self.cached(&sum).await,
            None => None,
        };
        match stored {
            Some(stored) => {
                count(&self.counters.neighbours_served);
                reply::give(method, headers, &self.described(stored.sum, stored.modified), Arc::new(stored))
            }
            None => Refusal::not_found("this neighbour does not have the file", "")
                .into_response()
                .map(Reply::File),
        }
    }

    /// Gives a file that no table names: the indexes that may name it are fetched and read, and if
    /// none does the file is passed through.
    async fn give_unlisted(
        self: &Arc<Self>,
        method: &Method,
        address: &Address,
        headers: &HeaderMap,
    ) -> Result<Response<Reply>, Failure> {
        self.recall_for(address).await;
        if let Some(named) = self.library.find(address) {
            return self.give_listed(method, address, headers, named).await;
        }
        let (library, at) = (self.library.clone(), address.clone());
        let missing = tokio::task::spawn_blocking(move || library.missing_for(&at)).await.unwrap_or_default();
        for (index, named) in missing {
            let Some((kind, packing)) = named.index else { continue };
            let lock = self.lock(index.clone());
            let _held = lock.lock().await;
            if !self.library.has_read(kind, &index, &named.sum.sha256)
                && let Ok(Given::Whole(stored)) = self.listed(&index, named.sum, true).await
            {
                count(&self.counters.indexes_fetched);
                self.read_index(kind, packing, &index, stored).await;
            }
            if let Some(named) = self.library.find(address) {
                return self.give_listed(method, address, headers, named).await;
            }
        }
        self.pass_through(method, address, headers).await
    }

    /// Reads an index, once, before the request for it is answered: apt asks for packages next.
    async fn read_index(
        self: &Arc<Self>,
        kind: Kind,
        packing: Packing,
        address: &Address,
        stored: Arc<store::Stored>,
    ) {
        let sha256 = stored.sum.sha256;
        let is_read = || self.library.has_read(kind, address, &sha256);
        if is_read() {
            return;
        }
        let (library, at) = (self.library.clone(), address.clone());
        let what = Reading { sha256, index: Some((kind, packing)) };
        let work = move || library.read(kind, packing, &at, &stored);
        let Err(error) = self.readers.read(what, is_read, work).await else { return };
        count(&self.counters.indexes_unread);
        let error = Chain(&error);
        tracing::warn!(%address, %error, "an index cannot be read: its packages are passed through");
    }

    /// Passes a request and its answer through, and keeps nothing.
    async fn pass_through(
        self: &Arc<Self>,
        method: &Method,
        address: &Address,
        headers: &HeaderMap,
    ) -> Result<Response<Reply>, Failure> {
        count(&self.counters.unlisted);
        let mut asked = self.via();
        for name in [
            header::RANGE,
            header::IF_RANGE,
            header::IF_MODIFIED_SINCE,
            header::IF_NONE_MATCH,
            header::ACCEPT,
            header::AUTHORIZATION,
            header::CACHE_CONTROL,
        ] {
            if let Some(value) = headers.get(&name) {
                asked.insert(name, value.clone());
            }
        }
        let answer = self.mirrors.get(method, address, &asked).await?;
        let mut response = Response::new(Reply::empty());
        *response.status_mut() = answer.status;
        for name in [
            header::CONTENT_TYPE,
            header::CONTENT_LENGTH,
            header::CONTENT_RANGE,
            header::ACCEPT_RANGES,
            header::LAST_MODIFIED,
            header::ETAG,
            header::CACHE_CONTROL,
            header::RETRY_AFTER,
            header::WWW_AUTHENTICATE,
        ] {
            if let Some(value) = answer.headers.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        if method == Method::GET {
            let length = answer.length();
            *response.body_mut() = Reply::passed(fetch::unlisted(answer), length);
        }
        Ok(response)
    }
}
