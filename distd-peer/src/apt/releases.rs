//! `Release` files, which change at their address: when they are asked for again, how their
//! signatures are checked, and which are kept for when no mirror answers.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::error::Chain;
use http::{HeaderMap, Method, StatusCode, header};
use serde::{Deserialize, Serialize};

use super::address::Address;
use super::counters::count;
use super::flight::Failure;
use super::index::{self, Sha256, Sum};
use super::library::{Library, package_roots};
use super::mirror::{Answer, MirrorError};
use super::reach::{Silence, Unreachable};
use super::reading::Reading;
use super::reply::{Described, date_of};
use super::signatures::{self, Signatures, Verdict};
use super::store::{Store, Stored, sha256};
use super::{Asker, Proxy};
use crate::clock::unix_now;
use crate::gateway::FileBytes;

/// Largest `Release` file. The largest of Debian has 200 KB.
const RELEASE_BYTES_MAX: u64 = 16 << 20;

/// Largest detached signature.
const SIGNATURE_BYTES_MAX: u64 = 1 << 20;

/// Time for which an answer of the mirror is good: the machines of a site that update at once cost
/// one question.
const FRESH: Duration = Duration::from_secs(10);

/// Time after which a program is given the last file, though a relay or a mirror may still answer.
/// apt gives up after 30 s.
const STALE_AFTER: Duration = Duration::from_secs(20);

/// Likewise for a node, which asks the mirror itself when the relay has nothing.
const STALE_AFTER_FOR_NODES: Duration = Duration::from_secs(10);

/// Longest time for the relay's answer when an earlier file is here.
const RELAY_ANSWER: Duration = Duration::from_secs(12);

/// Most addresses that are remembered.
const KNOWN_MAX: usize = 4096;

/// Largest file about one address.
const KNOWN_BYTES_MAX: u64 = 16 << 10;

/// Last answer of a mirror about a `Release` file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    address: String,
    sha256: String,
    bytes: u64,
    /// `Last-Modified`, unix seconds; by the hash where the mirror gives none.
    pub(super) modified: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    /// Whether the mirror gave the date.
    is_dated: bool,
    /// Whether a key of this machine has signed it.
    is_verified: bool,
    /// When the mirror was last asked, unix seconds.
    #[serde(skip)]
    checked: u64,
}

impl Known {
    pub(super) fn sum(&self) -> Option<Sum> {
        Some(Sum { sha256: hex::decode(&self.sha256).ok()?.try_into().ok()?, bytes: self.bytes })
    }
}

/// Last answers, in memory and on disk.
#[derive(Debug)]
pub(super) struct Releases {
    dir: PathBuf,
    known: Mutex<HashMap<String, Known>>,
    /// Directories of suites whose clients were last given an unverified file beside a verified
    /// one.
    contested: Mutex<HashSet<String>>,
    /// Mirrors that did not say in time whether a file is new.
    silence: Silence,
}

impl Releases {
    /// Reads what is known from `dir`.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut known = HashMap::new();
        for entry in fs::read_dir(dir)?.flatten().take(KNOWN_MAX) {
            let is_short = entry.metadata().is_ok_and(|meta| meta.len() <= KNOWN_BYTES_MAX);
            let read = is_short.then(|| fs::read(entry.path()).ok()).flatten();
            match read.and_then(|bytes| serde_json::from_slice::<Known>(&bytes).ok()) {
                Some(one) => drop(known.insert(one.address.clone(), one)),
                // It is learnt again at the next request.
                None => drop(fs::remove_file(entry.path())),
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            known: Mutex::new(known),
            contested: Mutex::default(),
            silence: Silence::default(),
        })
    }

    fn path(&self, address: &str) -> PathBuf {
        self.dir.join(format!("{}.json", blake3::hash(address.as_bytes()).to_hex()))
    }

    pub(super) fn get(&self, address: &Address) -> Option<Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&address.to_string()).cloned()
    }

    /// Sums of all files that are known.
    pub(super) fn sums(&self) -> Vec<Sum> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().filter_map(Known::sum).collect()
    }

    /// The kept `Release` file whose names count for the suite in the directory `suite`: of the two
    /// that a suite may have, the one that was verified.
    fn best(&self, suite: &Address, store: &Store) -> Option<(Address, Known)> {
        let of_name = |name: &str| {
            let address = suite.with_path(format!("{}{name}", suite.path));
            let known = self.get(&address)?;
            known.sum().is_some_and(|sum| store.still_has(&sum.sha256)).then_some((address, known))
        };
        let both = ["Release", "InRelease"].into_iter().filter_map(of_name);
        both.max_by_key(|(_, known)| known.is_verified)
    }

    /// Whether a verified `Release` file of the suite in the directory `suite` is kept.
    fn has_verified(&self, suite: &Address, store: &Store) -> bool {
        self.best(suite, store).is_some_and(|(_, known)| known.is_verified)
    }

    /// Notes whether clients have another `Release` file of a suite than the one whose names count.
    fn contest(&self, suite: &Address, is_contested: bool) {
        let mut contested = self.contested.lock().unwrap_or_else(PoisonError::into_inner);
        match is_contested {
            true if contested.len() < KNOWN_MAX => drop(contested.insert(suite.to_string())),
            true => {}
            false => drop(contested.remove(&suite.to_string())),
        }
    }

    /// Whether the file at `address` may be another than the names say, because clients were given
    /// an unverified `Release` of its suite. A name in `by-hash` cannot be.
    pub(super) fn is_contested(&self, address: &Address) -> bool {
        let text = address.to_string();
        let contested = self.contested.lock().unwrap_or_else(PoisonError::into_inner);
        !text.contains("/by-hash/") && contested.iter().any(|suite| text.starts_with(suite.as_str()))
    }

    /// Directories of the suites that may name the file at `address`, directly or by their indexes.
    fn suites_for(&self, address: &Address) -> Vec<Address> {
        let text = address.to_string();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut suites: Vec<Address> = known
            .keys()
            .filter_map(|release| {
                let release = Address::parse(release).ok().filter(|at| at.name() != "Release.gpg")?;
                let suite = release.directory_address();
                let roots = package_roots(&suite.to_string());
                roots.iter().any(|root| text.starts_with(root.as_str())).then_some(suite)
            })
            .collect();
        suites.sort();
        suites.dedup();
        suites
    }

    /// Remembers an answer. Returns the one before.
    fn put(&self, known: Known) -> Option<Known> {
        let path = self.path(&known.address);
        let text = serde_json::to_vec(&known).unwrap_or_default();
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
            file.write_all(&text)?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::warn!(error = %Chain(&error), "a Release file is not remembered after a restart");
        }
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KNOWN_MAX && !all.contains_key(&known.address) {
            let oldest = all.values().min_by_key(|known| known.checked).map(|known| known.address.clone());
            if let Some(oldest) = oldest {
                all.remove(&oldest);
                // One that stays is known again after the next start, no more.
                let _ = fs::remove_file(self.path(&oldest));
            }
        }
        all.insert(known.address.clone(), known)
    }

    fn was_checked(&self, address: &Address) {
        if let Some(known) =
            self.known.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&address.to_string())
        {
            known.checked = unix_now();
        }
    }
}

/// A `Release` file for a client.
pub(super) struct Release {
    pub(super) described: Described,
    pub(super) file: Arc<dyn FileBytes>,
}

impl Release {
    fn of(stored: Arc<Stored>, is_stale: bool) -> Self {
        let described = Described { sum: stored.sum, modified: stored.modified, is_stale };
        Self { described, file: Arc::new(stored) }
    }
}

/// A file that could not be kept.
struct InMemory(Bytes);

#[async_trait]
impl FileBytes for InMemory {
    async fn read(&self, range: Range<u64>, _part: bool) -> io::Result<Bytes> {
        let range = usize::try_from(range.start).map_err(io::Error::other)?..self.0.len();
        Ok(self.0.slice(range))
    }

    async fn lengths(&self) -> io::Result<Vec<u32>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Whether a file with this name changes at its address, and is looked at by the proxy.
pub(super) fn is_release(name: &str) -> bool {
    matches!(name, "InRelease" | "Release" | "Release.gpg")
}

/// Takes note of what a `Release` file lists, which lies in the directory `suite` under `name`.
/// Blocks.
fn learn(library: &Library, suite: &Address, name: &str, body: &[u8], sha256: &Sha256) -> io::Result<()> {
    let signed = match name {
        // A text that is not signed, or not only signed text, lists nothing.
        "InRelease" => index::signed_text(body),
        "Release" => Some(body.to_vec()),
        _ => None,
    };
    match signed {
        Some(signed) => library.adopt_release(suite, &index::release(&signed)?, sha256),
        None => Ok(()),
    }
}

impl Proxy {
    /// Reads the kept `Release` file of a suite again, if what it lists was forgotten: its table
    /// made room for others, or was damaged. A mirror that says that nothing changed sends no
    /// names.
    async fn recall(self: &Arc<Self>, suite: &Address) {
        if self.library.has_release(suite) {
            return;
        }
        let Some((address, known)) = self.releases.best(suite, &self.store) else { return };
        let Some(sum) = known.sum() else { return };
        let Some(stored) = self.cached(&sum).await.filter(|stored| stored.sum.bytes <= RELEASE_BYTES_MAX)
        else {
            return;
        };
        let (library, at) = (self.library.clone(), suite.clone());
        let work = move || {
            learn(&library, &at, address.name(), &stored.bytes()?, &stored.sum.sha256)?;
            let nothing = || io::Error::new(io::ErrorKind::InvalidData, "it lists nothing");
            library.has_release(&at).then_some(()).ok_or_else(nothing)
        };
        let what = Reading { sha256: sum.sha256, index: None };
        if let Err(error) = self.readers.read(what, || self.library.has_release(suite), work).await {
            tracing::warn!(error = %Chain(&error), "a Release file of the cache cannot be read");
        }
    }

    /// Recalls what the suites list that may name the file at `address`.
    pub(super) async fn recall_for(self: &Arc<Self>, address: &Address) {
        for suite in self.releases.suites_for(address) {
            self.recall(&suite).await;
        }
    }

    /// Gets a `Release` file: the one that the mirror has now, or the last one when no mirror
    /// answers.
    pub(super) async fn release(
        self: &Arc<Self>,
        address: &Address,
        asker: Asker,
    ) -> Result<Release, Failure> {
        // One request asks the mirror; those at the same time wait for it.
        let lock = self.lock(address.directory_address());
        let _held = lock.lock().await;
        let known = self.releases.get(address);
        let stored = match known.as_ref().and_then(Known::sum) {
            Some(sum) => self.cached(&sum).await,
            None => None,
        };
        let known = known.zip(stored);
        if known.is_some() {
            self.recall(&address.directory_address()).await;
        }
        if let Some((known, stored)) = &known
            && unix_now().abs_diff(known.checked) < FRESH.as_secs()
        {
            count(&self.counters.hits);
            return Ok(self.kept(address, known, stored.clone(), false));
        }
        let newest = self.newest(address, known.as_ref());
        let newest = match (&known, asker) {
            (None, _) => newest.await,
            (Some(_), Asker::Program) => self.in_time(address, newest, STALE_AFTER).await,
            (Some(_), _) => self.in_time(address, newest, STALE_AFTER_FOR_NODES).await,
        };
        let failure = match newest {
            Ok(release) => return Ok(release),
            Err(failure) => failure,
        };
        let is_absence = match &failure {
            Failure::Unreachable(_) => true,
            // Any other status says that the mirror does not have the file any more.
            Failure::Status(status) => status.is_server_error(),
            _ => false,
        };
        match known.filter(|_| is_absence) {
            Some((known, stored)) => {
                tracing::info!(%address, %failure, "no mirror answers: the last Release file is given");
                count(&self.counters.stale);
                Ok(self.kept(address, &known, stored, true))
            }
            None => Err(failure),
        }
    }

    /// Waits for `newest` no longer than `time`.
    async fn in_time(
        &self,
        address: &Address,
        newest: impl Future<Output = Result<Release, Failure>>,
        time: Duration,
    ) -> Result<Release, Failure> {
        tokio::time::timeout(time, newest).await.unwrap_or_else(|_| {
            self.releases.silence.note(&address.authority());
            Err(Failure::Unreachable(format!("nobody answered for {} s", time.as_secs())))
        })
    }

    /// Asks the mirror for a small file, unless it was silent a moment ago.
    async fn ask_mirror(&self, address: &Address, headers: &HeaderMap) -> Result<Answer, MirrorError> {
        let (silence, host) = (&self.releases.silence, address.authority());
        if silence.has(&host) {
            return Err(Unreachable::WasSilent(host).into());
        }
        let answered = self.mirrors.get(&Method::GET, address, headers).await;
        if answered.as_ref().is_err_and(MirrorError::is_silence) {
            silence.note(&host);
        }
        answered
    }

    /// Asks the relay for a `Release` file, and the mirror where the relay does not help or sends
    /// what is refused. `before` is the file that is here.
    async fn newest(
        self: &Arc<Self>,
        address: &Address,
        before: Option<&(Known, Arc<Stored>)>,
    ) -> Result<Release, Failure> {
        let headers = match before {
            Some((known, _)) => {
                self.if_changed(known.is_dated.then_some(known.modified), known.etag.as_deref())
            }
            None => self.if_changed(None, None),
        };
        let time = before.map(|_| RELAY_ANSWER);
        if let Some(answer) = self.ask_relays(address, &headers, time).await {
            match self.take_answer(address, answer, before, true).await {
                Ok(release) => return Ok(release),
                Err(failure) if !self.settings.asks_mirrors => return Err(failure),
                Err(failure) => {
                    count(&self.counters.relay_failed);
                    tracing::info!(%address, %failure, "the mirror is asked for a file that the relay has not right");
                }
            }
        }
        let answer = self.ask_mirror(address, &headers).await?;
        self.take_answer(address, answer, before, false).await
    }

    async fn take_answer(
        self: &Arc<Self>,
        address: &Address,
        answer: Answer,
        before: Option<&(Known, Arc<Stored>)>,
        is_of_relay: bool,
    ) -> Result<Release, Failure> {
        match (answer.status, before) {
            (StatusCode::OK, _) => self.take_release(address, answer, is_of_relay).await,
            (StatusCode::NOT_MODIFIED, Some((known, stored))) => {
                self.releases.was_checked(address);
                Ok(self.kept(address, known, stored.clone(), false))
            }
            (StatusCode::NOT_MODIFIED, None) => {
                let text = "the mirror says that nothing changed, and was not asked that";
                Err(Failure::WrongBytes(text.into()))
            }
            (status, _) => Err(Failure::Status(status)),
        }
    }

    /// A kept file for a client.
    fn kept(&self, address: &Address, known: &Known, stored: Arc<Stored>, is_stale: bool) -> Release {
        let suite = address.directory_address();
        if address.name() != "Release.gpg" {
            let is_lesser = !known.is_verified && self.releases.has_verified(&suite, &self.store);
            self.releases.contest(&suite, is_lesser);
        }
        Release::of(stored, is_stale)
    }

    /// Asks the relays for a small file, for no longer than `time`; `None` when none helps.
    async fn ask_relays(
        &self,
        address: &Address,
        headers: &HeaderMap,
        time: Option<Duration>,
    ) -> Option<Answer> {
        let relays = self.relays.as_ref()?;
        let now = relays.now();
        let asked = relays.get(&now, address, headers, None);
        let answered = match time {
            None => asked.await,
            Some(time) => tokio::time::timeout(time, asked).await.unwrap_or_else(|_| {
                now.iter().for_each(|relay| relays.was_silent(relay));
                None
            }),
        };
        if answered.is_none() && !now.is_empty() {
            count(&self.counters.relay_failed);
        }
        answered.map(|(answer, _)| answer)
    }

    /// Reads, checks and keeps a `Release` file that a mirror sends.
    async fn take_release(
        self: &Arc<Self>,
        address: &Address,
        mut answer: Answer,
        is_of_relay: bool,
    ) -> Result<Release, Failure> {
        let too_long = || Failure::WrongBytes("the mirror sends a Release file that is too long".into());
        let (dated, etag) = (answer.modified(), answer.headers.get(header::ETAG).cloned());
        let body = answer.all(RELEASE_BYTES_MAX).await?.ok_or_else(too_long)?;
        let name = address.name().to_owned();
        let signature = match name.as_str() {
            "Release" => self.detached(address, is_of_relay).await?,
            _ => None,
        };
        let suite = address.directory_address();
        let was_verified = self.releases.has_verified(&suite, &self.store);
        let is_signature = name == "Release.gpg";
        let is_verified = match is_signature {
            true => false,
            false => self.check(address, &body, signature.as_deref(), was_verified).await?,
        };
        let sum = Sum { sha256: sha256(&body), bytes: body.len() as u64 };
        let modified = dated.unwrap_or_else(|| date_of(&sum.sha256));
        let described = Described { sum, modified, is_stale: false };
        let body = Bytes::from(body);
        let file = Arc::new(InMemory(body.clone()));
        if was_verified && !is_verified && !is_signature {
            // The client decides about the file. What was verified stays, and is given offline.
            self.releases.contest(&suite, true);
            tracing::warn!(%address, "a Release file without a right signature changes no names of a verified one");
            return Ok(Release { described, file });
        }
        let (library, store, at) = (self.library.clone(), self.store.clone(), suite.clone());
        let place = self.readers.place().await;
        let kept = tokio::task::spawn_blocking(move || -> io::Result<Option<Arc<Stored>>> {
            let _place = place;
            learn(&library, &at, &name, &body, &sum.sha256)?;
            let Some(partial) = store.begin(sum.bytes) else { return Ok(None) };
            partial.handle()?.write_all(&body)?;
            partial.keep(sum, modified, &name).map(Some)
        });
        match kept.await {
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) | Err(_) => return Ok(Release { described, file }),
            Ok(Err(error)) => {
                tracing::warn!(%address, error = %Chain(&error), "a Release file cannot be kept");
                return Ok(Release { described, file });
            }
        }
        let known = Known {
            address: address.to_string(),
            sha256: hex::encode(sum.sha256),
            bytes: sum.bytes,
            modified,
            etag: etag.and_then(|etag| etag.to_str().ok().map(str::to_owned)).filter(|etag| etag.len() < 256),
            is_dated: dated.is_some(),
            is_verified,
            checked: unix_now(),
        };
        if is_verified {
            self.releases.contest(&suite, false);
        }
        // A Release file stays when packages need room: without it nothing works offline.
        self.store.pin(&sum.sha256, true);
        if let Some(old) = self.releases.put(known).and_then(|old| old.sum())
            && old != sum
        {
            self.store.pin(&old.sha256, false);
        }
        Ok(Release { described, file })
    }

    /// Fetches the signature that lies beside a `Release`, from where that came; `None` when there
    /// is none.
    async fn detached(
        self: &Arc<Self>,
        release: &Address,
        is_of_relay: bool,
    ) -> Result<Option<Vec<u8>>, Failure> {
        if self.settings.signatures == Signatures::Off {
            return Ok(None);
        }
        let address = release.with_path(format!("{}.gpg", release.file_path()));
        let headers = self.if_changed(None, None);
        let of_relay = match is_of_relay {
            true => self.ask_relays(&address, &headers, None).await,
            false => None,
        };
        let mut answer = match of_relay {
            Some(answer) => answer,
            None => self.ask_mirror(&address, &headers).await?,
        };
        match answer.status {
            StatusCode::OK => {
                let too_long = || Failure::WrongBytes("the mirror sends a signature that is too long".into());
                Ok(Some(answer.all(SIGNATURE_BYTES_MAX).await?.ok_or_else(too_long)?))
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            status => Err(Failure::Status(status)),
        }
    }

    /// Checks the signature of a `Release` file as the settings say. Returns whether a key of this
    /// machine has signed it.
    async fn check(
        self: &Arc<Self>,
        address: &Address,
        body: &[u8],
        detached: Option<&[u8]>,
        was_verified: bool,
    ) -> Result<bool, Failure> {
        let mode = self.settings.signatures;
        if mode == Signatures::Off {
            return Ok(false);
        }
        let (keys, at) = (self.settings.keys.clone(), address.directory_address());
        let (signed, signature) = (body.to_vec(), detached.map(<[u8]>::to_vec));
        let is_clear = address.name() == "InRelease";
        let place = self.readers.place().await;
        let checked = tokio::task::spawn_blocking(move || {
            let _place = place;
            let keyrings = keys.of(&at);
            let verdict = match (is_clear, &signature) {
                (true, _) if index::signed_text(&signed).is_none() => Verdict::Unsigned,
                (true, _) => signatures::check(&keyrings, &signed, None),
                (false, Some(signature)) => signatures::check(&keyrings, &signed, Some(signature)),
                (false, None) => Verdict::Unsigned,
            };
            (verdict, keyrings.is_named)
        });
        let (verdict, is_named) =
            checked.await.unwrap_or_else(|_| (Verdict::NoProgram("the check was given up".into()), false));
        match judge(mode, &verdict, is_named || was_verified) {
            Judgement::Good => {
                count(&self.counters.signatures_good);
                Ok(true)
            }
            Judgement::Unchecked => {
                count(&self.counters.signatures_unchecked);
                tracing::info!(%address, ?verdict, "a Release file is taken without a right signature");
                Ok(false)
            }
            Judgement::Refused => {
                count(&self.counters.signatures_refused);
                tracing::warn!(%address, ?verdict, "a Release file is refused");
                Err(Failure::WrongBytes(format!("the signature of {address} is not right: {verdict:?}")))
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Good,
    Unchecked,
    Refused,
}

/// Decides about a `Release` file. `has_key` says that its key is on this machine.
fn judge(mode: Signatures, verdict: &Verdict, has_key: bool) -> Judgement {
    match (mode, verdict) {
        (_, Verdict::Good) => Judgement::Good,
        (Signatures::Off | Signatures::Warn, _) => Judgement::Unchecked,
        (Signatures::Enforce, _) | (Signatures::Auto, Verdict::Bad(_)) => Judgement::Refused,
        (Signatures::Auto, Verdict::NoProgram(_)) => Judgement::Unchecked,
        (Signatures::Auto, Verdict::UnknownKey | Verdict::Unsigned) => match has_key {
            true => Judgement::Refused,
            false => Judgement::Unchecked,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modes_decide() {
        use Judgement::{Good, Refused, Unchecked};
        let verdicts = [
            Verdict::Good,
            Verdict::UnknownKey,
            Verdict::Unsigned,
            Verdict::Bad("BADSIG".into()),
            Verdict::NoProgram("gone".into()),
        ];
        for (mode, has_key, expected) in [
            (Signatures::Warn, true, [Good, Unchecked, Unchecked, Unchecked, Unchecked]),
            (Signatures::Auto, false, [Good, Unchecked, Unchecked, Refused, Unchecked]),
            (Signatures::Auto, true, [Good, Refused, Refused, Refused, Unchecked]),
            (Signatures::Enforce, false, [Good, Refused, Refused, Refused, Refused]),
        ] {
            let judged = verdicts.each_ref().map(|verdict| judge(mode, verdict, has_key));
            assert_eq!(judged, expected, "{mode:?}");
        }
    }

    #[test]
    fn what_is_known_is_known_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let releases = Releases::open(dir.path()).expect("opens");
        let address = Address::parse("http://h/dists/x/InRelease").expect("an address");
        let known = Known {
            address: address.to_string(),
            sha256: "07".repeat(32),
            bytes: 5,
            modified: 9,
            etag: None,
            is_dated: true,
            is_verified: true,
            checked: 0,
        };
        assert_eq!(releases.put(known.clone()), None);
        fs::write(dir.path().join("damaged.json"), "{").expect("write");
        let releases = Releases::open(dir.path()).expect("opens");
        assert_eq!(releases.get(&address), Some(known));
        assert_eq!(releases.sums().len(), 1);
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1);
    }
}
