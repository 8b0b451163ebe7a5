//! Files whose hash an index lists: from the cache, a download under way, the relay, the mirror.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use distd_core::error::Chain;
use futures::Stream;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::Proxy;
use super::address::Address;
use super::counters::count;
use super::flight::{Failure, Flight, HELD_BACK, Pace, Taken, Writer};
use super::index::Sum;
use super::mirror::{self, Answer, MirrorError};
use super::nodes::Nodes;
use super::reply::{date, date_of};
use super::store::{Stored, finish};

/// Times that a download goes on after a mirror broke off, and the pause before each.
const RESUMED_MAX: u32 = 5;
const RESUME_PAUSE: Duration = Duration::from_millis(500);

/// Pace below which a mirror is left for that of another asker. Alone, it may be as slow as it is.
const MIRROR_PACE: Pace =
    Pace { silence: Duration::from_secs(5), bytes: 320 << 10, window: Duration::from_secs(10) };

/// Most downloads that one request begins or joins: after wrong bytes of another's mirror, and
/// after one that ended as it was joined.
const ROUNDS_MAX: usize = 4;

/// Largest file whose hash is verified before the response begins: a failure then has a status.
const WHOLE_FIRST_BYTES: u64 = 1 << 20;

/// A file that is being given.
pub(super) enum Given {
    /// It is here.
    Whole(Arc<Stored>),
    /// It arrives.
    Arriving(Arc<Flight>),
    /// It is passed on without being kept, as the relay sends it that is named, or a mirror.
    Passed(Box<Answer>, Option<String>),
}

/// Result of joining a download.
enum Joined {
    /// It is under way.
    Flight(Arc<Flight>),
    /// It is under way, and asks no further mirror.
    Ending(Arc<Flight>),
    /// It has ended: the file is in the cache.
    Ended,
    /// There is no room for the file.
    NoRoom,
}

impl Proxy {
    /// Opens a file of the cache.
    pub(super) async fn cached(self: &Arc<Self>, sum: &Sum) -> Option<Arc<Stored>> {
        let (store, sha256) = (self.store.clone(), sum.sha256);
        let stored = tokio::task::spawn_blocking(move || store.get(&sha256)).await.ok().flatten()?;
        (stored.sum == *sum).then_some(stored)
    }

    /// Gets a file that an index lists, or that a device asks for by its hash. With `whole` the
    /// file is complete when it is returned.
    pub(super) async fn listed(
        self: &Arc<Self>,
        address: &Address,
        sum: Sum,
        whole: bool,
    ) -> Result<Given, Failure> {
        if let Some(stored) = self.cached(&sum).await {
            count(&self.counters.hits);
            return Ok(Given::Whole(stored));
        }
        let fits = self.store.may_fit(sum.bytes);
        for round in 0..ROUNDS_MAX {
            // After wrong bytes the mirrors alone are asked.
            let flight = match self.join(address, sum, round > 0, fits) {
                Joined::Flight(flight) => flight,
                Joined::Ending(flight) => {
                    // It has no use for this mirror any more.
                    if let Ok(stored) = flight.ended().await {
                        return Ok(Given::Whole(stored));
                    }
                    continue;
                }
                Joined::Ended => match self.cached(&sum).await {
                    Some(stored) => return Ok(Given::Whole(stored)),
                    None => continue,
                },
                Joined::NoRoom => break,
            };
            let got = match whole || sum.bytes <= WHOLE_FIRST_BYTES {
                true => flight.ended().await.map(Given::Whole),
                false => flight.begun().await.map(|()| Given::Arriving(flight.clone())),
            };
            match got {
                Ok(given) => return Ok(given),
                Err(Failure::Disk) => break,
                Err(failure) => {
                    let failure = flight.failure_for(address, failure);
                    let is_of_nodes = round == 0 && (self.relays.is_some() || self.neighbours.is_some());
                    let may_differ = is_of_nodes || flight.is_of_others(address);
                    if !matches!(failure, Failure::WrongBytes(_)) || !may_differ || round + 1 == ROUNDS_MAX {
                        return Err(failure);
                    }
                }
            }
        }
        self.pass_on(address, sum).await
    }

    /// Joins the download of a file, or begins one if it `fits`; with `is_last` from mirrors alone.
    fn join(self: &Arc<Self>, address: &Address, sum: Sum, is_last: bool, fits: bool) -> Joined {
        let mut flights = self.flights();
        if let Some(flight) = flights.get(&sum.sha256)
            && flight.sum == sum
            && !flight.is_over()
        {
            if !flight.offer(address) {
                return Joined::Ending(flight.clone());
            }
            count(&self.counters.joined);
            return Joined::Flight(flight.clone());
        }
        // A download is taken off the list after its file is in the cache, so this look sees one
        // that ended since the cache was asked.
        if self.store.has(&sum.sha256) {
            return Joined::Ended;
        }
        if !fits {
            return Joined::NoRoom;
        }
        let flight = Flight::new(sum);
        flight.offer(address);
        flights.insert(sum.sha256, flight.clone());
        drop(flights);
        count(&self.counters.downloads);
        let (proxy, name, under_way) = (self.clone(), address.name().to_owned(), flight.clone());
        tokio::spawn(async move {
            let end = proxy.download(&under_way, &name, is_last).await;
            if let Err(failure) = &end {
                tracing::info!(name, %failure, "a download failed");
                if matches!(failure, Failure::WrongBytes(_)) {
                    count(&proxy.counters.wrong);
                    proxy.was_wrong(&under_way.sum);
                }
            }
            under_way.end(end);
            let mut flights = proxy.flights();
            if flights.get(&sum.sha256).is_some_and(|flight| Arc::ptr_eq(flight, &under_way)) {
                flights.remove(&sum.sha256);
            }
        });
        Joined::Flight(flight)
    }

    /// Downloads a file into the cache, under a name that commands show.
    async fn download(
        self: &Arc<Self>,
        flight: &Arc<Flight>,
        name: &str,
        is_last: bool,
    ) -> Result<Arc<Stored>, Failure> {
        let Ok(_permit) = self.downloads.acquire().await else {
            return Err(Failure::Unreachable("the proxy stops".into()));
        };
        let mut writer = Writer::new(flight, &self.store);
        let senders = match is_last {
            false => self.download_from_nodes(flight, &mut writer).await?,
            true => Vec::new(),
        };
        if !writer.is_whole() {
            self.download_from_mirrors(flight, &mut writer).await?;
        }
        let Some(partial) = writer.finish() else {
            for (nodes, sender) in senders {
                nodes.sent_wrong_bytes(&sender);
            }
            return Err(Failure::WrongBytes("the bytes are not those that the index lists".into()));
        };
        let modified = *flight.modified.get_or_init(|| date_of(&flight.sum.sha256));
        let (sum, name) = (flight.sum, name.to_owned());
        let kept = tokio::task::spawn_blocking(move || partial.keep(sum, modified, &name)).await;
        match kept {
            Ok(Ok(stored)) => Ok(stored),
            Ok(Err(error)) => {
                tracing::warn!(error = %Chain(&error), "a file cannot be kept");
                Err(Failure::Disk)
            }
            Err(_) => Err(Failure::Disk),
        }
    }

    /// Takes the file, or parts of it, from neighbours and relays, one after the other. Returns
    /// those that sent some of it.
    async fn download_from_nodes(
        &self,
        flight: &Arc<Flight>,
        writer: &mut Writer,
    ) -> Result<Vec<(&Nodes, String)>, Failure> {
        let Some(address) = flight.first_source() else { return Ok(Vec::new()) };
        let mut senders = Vec::new();
        let of_neighbours =
            self.neighbours.as_ref().map(|nodes| (nodes, &self.counters.neighbour_files, None));
        let failed = Some(&self.counters.relay_failed);
        let of_relays = self.relays.as_ref().map(|nodes| (nodes, &self.counters.relay_files, failed));
        // Without a mirror, a slow relay is better than none.
        let (is_mirrored, has_relays) = (self.settings.asks_mirrors, self.relays.is_some());
        for (nodes, files, failed) in of_neighbours.into_iter().chain(of_relays) {
            let now = nodes.now();
            if now.is_empty() {
                continue;
            }
            let may_leave = || is_mirrored || (has_relays && failed.is_none());
            for node in &now {
                let before = writer.written;
                let taken = self.take_from_node(flight, writer, (nodes, node), &address, may_leave).await;
                if writer.written > before || writer.is_whole() {
                    senders.push((nodes, node.clone()));
                }
                match taken {
                    Some(Ok(Taken::Whole)) => {
                        count(files);
                        return Ok(senders);
                    }
                    Some(Ok(Taken::Left)) => {
                        tracing::info!(node, %address, written = writer.written, "a node is too slow");
                        nodes.was_slow(node);
                    }
                    Some(Err(Failure::Disk)) => return Err(Failure::Disk),
                    Some(Err(failure)) => {
                        tracing::info!(node, %address, %failure, "a node broke off");
                        nodes.was_silent(node);
                    }
                    None => {}
                }
            }
            failed.into_iter().for_each(count);
        }
        Ok(senders)
    }

    /// Takes the rest of the file from a node; `None` when it does not have it.
    async fn take_from_node(
        &self,
        flight: &Arc<Flight>,
        writer: &mut Writer,
        (nodes, node): (&Nodes, &str),
        address: &Address,
        may_leave: impl Fn() -> bool,
    ) -> Option<Result<Taken, Failure>> {
        let mut headers = self.via();
        ask_for_rest(&mut headers, writer.written);
        let one = [node.to_owned()];
        let (mut answer, _) = nodes.get(&one, address, &headers, Some(flight.sum)).await?;
        let from = first_byte(&answer, flight.sum.bytes).filter(|from| *from <= writer.written)?;
        if answer.length() != Some(flight.sum.bytes - from) {
            return None;
        }
        self.note_date(flight, &answer);
        Some(writer.take(&mut answer, from, nodes.pace(), may_leave).await)
    }

    /// Takes the rest of the file from the mirrors of those who asked for it, one after the other.
    async fn download_from_mirrors(&self, flight: &Arc<Flight>, writer: &mut Writer) -> Result<(), Failure> {
        let mut last = Failure::Unreachable("no mirror was asked".into());
        while let Some(address) = flight.next_source() {
            match self.download_from_mirror(flight, writer, &address).await {
                Ok(Taken::Whole) => return Ok(()),
                Ok(Taken::Left) => {
                    tracing::info!(%address, written = writer.written, "a mirror is left for another");
                    flight.was_slow(address);
                }
                Err(Failure::Disk) => return Err(Failure::Disk),
                Err(failure) => {
                    tracing::info!(%address, %failure, "a mirror does not give a file");
                    flight.failed_at(&address, failure.clone());
                    last = failure;
                }
            }
        }
        Err(last)
    }

    /// Takes the rest of the file from one mirror.
    async fn download_from_mirror(
        &self,
        flight: &Arc<Flight>,
        writer: &mut Writer,
        address: &Address,
    ) -> Result<Taken, Failure> {
        let mut resumed = 0;
        loop {
            let before = writer.written;
            let failure = match self.take_from_mirror(flight, writer, address).await {
                Ok(taken) => return Ok(taken),
                Err(failure) => failure,
            };
            let may_go_on = matches!(failure, Failure::Unreachable(_)) && writer.written > before;
            if !may_go_on || resumed == RESUMED_MAX {
                return Err(failure);
            }
            if flight.has_untried() {
                return Ok(Taken::Left);
            }
            resumed += 1;
            count(&self.counters.resumed);
            tracing::info!(%address, %failure, written = writer.written, "a download goes on after a failure");
            tokio::time::sleep(RESUME_PAUSE * resumed).await;
        }
    }

    async fn take_from_mirror(
        &self,
        flight: &Arc<Flight>,
        writer: &mut Writer,
        address: &Address,
    ) -> Result<Taken, Failure> {
        let bytes = flight.sum.bytes;
        let mut headers = self.via();
        ask_for_rest(&mut headers, writer.written);
        let Some(mut answer) = self.head_from_mirror(flight, address, &headers).await? else {
            return Ok(Taken::Left);
        };
        if !answer.status.is_success() {
            return Err(Failure::Status(answer.status));
        }
        let from = first_byte(&answer, bytes).filter(|from| *from <= writer.written).ok_or_else(|| {
            Failure::WrongBytes("the mirror sends another part than it was asked for".into())
        })?;
        if let Some(length) = answer.length()
            && length != bytes - from
        {
            let whole = from.saturating_add(length);
            let text = format!("the mirror has another file there: {whole} bytes instead of {bytes}");
            return Err(Failure::WrongBytes(text));
        }
        self.note_date(flight, &answer);
        flight.sends(address);
        writer.take(&mut answer, from, MIRROR_PACE, || flight.has_untried()).await
    }

    /// Asks a mirror for a file; `None` when it is silent and there is another to ask.
    async fn head_from_mirror(
        &self,
        flight: &Flight,
        address: &Address,
        headers: &HeaderMap,
    ) -> Result<Option<Answer>, MirrorError> {
        let asked = self.mirrors.get(&Method::GET, address, headers);
        tokio::pin!(asked);
        let mut waited = MIRROR_PACE.silence;
        loop {
            match tokio::time::timeout(waited, &mut asked).await {
                Ok(answered) => return answered.map(Some),
                Err(_) if flight.has_untried() => return Ok(None),
                // Another may come at any time.
                Err(_) => waited = Duration::from_secs(1),
            }
        }
    }

    /// Settles the date of a file that begins to arrive.
    fn note_date(&self, flight: &Flight, answer: &Answer) {
        let modified = answer.modified().unwrap_or_else(|| date_of(&flight.sum.sha256));
        // Later answers of the same download change nothing.
        let _ = flight.modified.set(modified);
    }

    /// Begins to pass a file on that is not kept.
    async fn pass_on(&self, address: &Address, sum: Sum) -> Result<Given, Failure> {
        count(&self.counters.unstored);
        if let Some(relays) = &self.relays {
            let now = relays.now();
            match relays.get(&now, address, &self.via(), Some(sum)).await {
                Some((answer, relay))
                    if answer.status == StatusCode::OK && answer.length() == Some(sum.bytes) =>
                {
                    return Ok(Given::Passed(Box::new(answer), Some(relay)));
                }
                _ if now.is_empty() => {}
                _ => count(&self.counters.relay_failed),
            }
        }
        let answer = self.mirrors.get(&Method::GET, address, &self.via()).await?;
        match (answer.status, answer.length()) {
            (StatusCode::OK, length) if length.is_none_or(|length| length == sum.bytes) => {
                Ok(Given::Passed(Box::new(answer), None))
            }
            (StatusCode::OK, _) => {
                count(&self.counters.wrong);
                Err(Failure::WrongBytes("the mirror has another file there".into()))
            }
            (status, _) => Err(Failure::Status(status)),
        }
    }

    /// Bytes that mirrors, relays and neighbours have sent.
    pub fn received(&self) -> [(&'static str, u64); 3] {
        let of = |nodes: &Option<Nodes>| nodes.as_ref().map_or(0, Nodes::received);
        let mirror = self.mirrors.received();
        [("mirror", mirror), ("relay", of(&self.relays)), ("neighbour", of(&self.neighbours))]
    }

    /// Header fields of every request of this proxy.
    pub(super) fn via(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Ok(via) = HeaderValue::try_from(format!("1.1 {}", self.name)) {
            headers.insert(header::VIA, via);
        }
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("distd/", env!("CARGO_PKG_VERSION"))),
        );
        headers
    }

    /// Header fields of a question whether a file is still the one of that date.
    pub(super) fn if_changed(&self, modified: Option<u64>, etag: Option<&str>) -> HeaderMap {
        let mut headers = self.via();
        if let Some(Ok(since)) = modified.map(|modified| HeaderValue::try_from(date(modified))) {
            headers.insert(header::IF_MODIFIED_SINCE, since);
        }
        if let Some(Ok(etag)) = etag.map(HeaderValue::from_str) {
            headers.insert(header::IF_NONE_MATCH, etag);
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=0"));
        headers
    }
}

/// Makes a request one for the bytes behind the first `written`.
fn ask_for_rest(headers: &mut HeaderMap, written: u64) {
    if written > 0
        && let Ok(range) = HeaderValue::try_from(format!("bytes={written}-"))
    {
        headers.insert(header::RANGE, range);
    }
}

/// Number of the first byte in an answer about a file of `bytes`; `None` for another answer.
fn first_byte(answer: &Answer, bytes: u64) -> Option<u64> {
    match answer.status {
        StatusCode::OK => Some(0),
        StatusCode::PARTIAL_CONTENT => range_start(answer, bytes),
        _ => None,
    }
}

/// Number of the first byte of the part that an answer has, if the whole has `bytes`.
fn range_start(answer: &Answer, bytes: u64) -> Option<u64> {
    let text = answer.headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, whole) = text.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (whole == "*" || whole.parse() == Ok(bytes))
        .then_some(first)
        .filter(|first| *first <= last && last < bytes)
}

/// Stream of a file that is not kept, from a relay if one is named. Its last 64 KiB come when its
/// hash is right; else the stream ends with an error, and the relay is not asked again for a while.
pub(super) fn verified(
    answer: Answer,
    relay: Option<String>,
    sum: Sum,
    proxy: Arc<Proxy>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    struct Passing {
        answer: Option<Answer>,
        context: digest::Context,
        held: BytesMut,
        bytes: u64,
    }
    let context = digest::Context::new(&digest::SHA256);
    let passing = Passing { answer: Some(answer), context, held: BytesMut::new(), bytes: 0 };
    let wrong = move || {
        proxy.counters.wrong.fetch_add(1, Ordering::Relaxed);
        if let (Some(relays), Some(relay)) = (&proxy.relays, &relay) {
            relays.sent_wrong_bytes(relay);
        }
        io::Error::new(io::ErrorKind::InvalidData, "the bytes are not those that the index lists")
    };
    futures::stream::try_unfold((passing, wrong), move |(mut passing, wrong)| async move {
        loop {
            let Some(answer) = &mut passing.answer else { return Ok(None) };
            match answer.next().await.map_err(io::Error::other)? {
                Some(bytes) => {
                    passing.bytes += bytes.len() as u64;
                    if passing.bytes > sum.bytes {
                        return Err(wrong());
                    }
                    passing.context.update(&bytes);
                    passing.held.extend_from_slice(&bytes);
                    let ready = passing.held.len().saturating_sub(HELD_BACK as usize);
                    if ready > 0 {
                        let bytes = passing.held.split_to(ready).freeze();
                        return Ok(Some((bytes, (passing, wrong))));
                    }
                }
                None => {
                    passing.answer = None;
                    if passing.bytes != sum.bytes || finish(passing.context.clone()) != sum.sha256 {
                        return Err(wrong());
                    }
                    let bytes = std::mem::take(&mut passing.held).freeze();
                    if !bytes.is_empty() {
                        return Ok(Some((bytes, (passing, wrong))));
                    }
                }
            }
        }
    })
}

/// Stream of a body that no index lists.
pub(super) fn unlisted(answer: Answer) -> impl Stream<Item = io::Result<Bytes>> + Send {
    mirror::stream(answer)
}
