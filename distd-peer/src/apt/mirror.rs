//! Requests to mirrors and to the relay: connections that are used again, redirects, and a time
//! limit for each pause.
//!
//! A limit bounds the silence of a server, never the whole of a download: a slow line is no fault.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::address::{Address, AddressError};
use super::reach::{Reach, Silence, Unreachable};

/// Most redirects of one request.
const REDIRECTS_MAX: usize = 5;

/// Largest head of a response, bytes.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// Time for which an idle connection is kept, and most of them for one host.
const IDLE: Duration = Duration::from_secs(10);
const IDLE_MAX: usize = 8;

/// Most hosts with idle connections.
const HOSTS_MAX: usize = 64;

/// Longest wait for a place among the requests to one server. The mirror is asked instead, before
/// apt gives up.
const PLACE_WAIT: Duration = Duration::from_secs(10);

/// Certificates of the authorities that the system trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Reason why a mirror gave no answer, or no whole one.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The host may not be asked, or cannot be reached.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// A redirect leads to no address.
    #[error("{0} redirects to an unusable address")]
    Redirect(String, #[source] AddressError),
    /// Redirects lead to redirects.
    #[error("{0} redirects more than 5 times")]
    Redirects(String),
    /// The connection broke, or the answer is no HTTP.
    #[error("the connection to {0} broke off")]
    Broken(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// No bytes came for too long.
    #[error("{0} sent nothing for {1} s")]
    Stalled(String, u64),
    /// All places for requests to a node are taken.
    #[error("too many requests to {0} are under way")]
    Busy(String),
    /// TLS failed.
    #[error("no TLS with {0}")]
    Tls(String, #[source] io::Error),
}

impl MirrorError {
    /// Whether the proxy itself refused, so that another try changes nothing.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Redirect(..)
                | Self::Redirects(_)
                | Self::Unreachable(Unreachable::Host(_) | Unreachable::Private(..))
        )
    }

    /// Whether nothing came in time.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, Self::Stalled(..) | Self::Unreachable(Unreachable::Silent(..)))
    }
}

/// Connection of HTTP/1.1, whatever is below it.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// An idle connection, and since when it is.
type Idle = (SendRequest<String>, Instant);

/// Idle connections by the name of their host.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<HashMap<String, Vec<Idle>>>);

impl Pool {
    fn take(&self, host: &str) -> Option<SendRequest<String>> {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = hosts.get_mut(host)?;
        while let Some((sender, since)) = idle.pop() {
            if since.elapsed() < IDLE && !sender.is_closed() {
                return Some(sender);
            }
        }
        hosts.remove(host);
        None
    }

    fn put(&self, host: &str, sender: SendRequest<String>) {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= HOSTS_MAX {
            hosts.retain(|_, idle| idle.iter().any(|(_, since)| since.elapsed() < IDLE));
        }
        if hosts.len() < HOSTS_MAX || hosts.contains_key(host) {
            let idle = hosts.entry(host.to_owned()).or_default();
            if idle.len() < IDLE_MAX {
                idle.push((sender, Instant::now()));
            }
        }
    }
}

/// Answer of a server. Its body is read with [`Answer::next`].
#[derive(Debug)]
pub(super) struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Header fields.
    pub headers: HeaderMap,
    body: Incoming,
    /// Connection to give back when the body was read.
    sender: Option<SendRequest<String>>,
    /// Place of the request among those to the server, taken until then.
    place: Option<OwnedSemaphorePermit>,
    pool: Arc<Pool>,
    host: String,
    /// Longest silence.
    pub(super) stall: Duration,
    received: Arc<AtomicU64>,
}

impl Answer {
    /// Reads the next bytes of the body; `None` at its end.
    ///
    /// # Errors
    /// [`MirrorError::Broken`] when the body ends before its length, [`MirrorError::Stalled`].
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, MirrorError> {
        loop {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx));
            let frame = tokio::time::timeout(self.stall, frame).await.map_err(|_| self.stalled())?;
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => {
                        self.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        return Ok(Some(bytes));
                    }
                    _ => {}
                },
                Some(Err(error)) => return Err(MirrorError::Broken(self.host.clone(), error.into())),
                None => {
                    if let Some(sender) = self.sender.take() {
                        self.pool.put(&self.host, sender);
                    }
                    // The next request finds the connection idle.
                    self.place = None;
                    return Ok(None);
                }
            }
        }
    }

    /// The error of a silence that was too long.
    pub(super) fn stalled(&self) -> MirrorError {
        MirrorError::Stalled(self.host.clone(), self.stall.as_secs())
    }

    /// Reads a body of at most `most` bytes; `None` for a longer one.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub(super) async fn all(&mut self, most: u64) -> Result<Option<Vec<u8>>, MirrorError> {
        let mut out = Vec::new();
        while let Some(bytes) = self.next().await? {
            if out.len() as u64 + bytes.len() as u64 > most {
                return Ok(None);
            }
            out.extend_from_slice(&bytes);
        }
        Ok(Some(out))
    }

    /// Length that the header states, bytes.
    pub(super) fn length(&self) -> Option<u64> {
        self.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// `Last-Modified`, unix seconds.
    pub(super) fn modified(&self) -> Option<u64> {
        let text = self.headers.get(header::LAST_MODIFIED)?.to_str().ok()?;
        let time = httpdate::parse_http_date(text).ok()?;
        time.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_secs())
    }
}

/// Sends a request over `sender`, and waits for the head of the answer.
async fn exchange(
    mut sender: SendRequest<String>,
    request: Request<String>,
    host: &str,
    stall: Duration,
) -> Result<(http::Response<Incoming>, SendRequest<String>), MirrorError> {
    let broken = |error: hyper::Error| MirrorError::Broken(host.to_owned(), error.into());
    let answered = async {
        sender.ready().await.map_err(broken)?;
        sender.send_request(request).await.map_err(broken)
    };
    let answered = tokio::time::timeout(stall, answered).await;
    let response =
        answered.unwrap_or_else(|_| Err(MirrorError::Stalled(host.to_owned(), stall.as_secs())))?;
    Ok((response, sender))
}

/// Client of one kind of servers.
pub(super) struct Client {
    pool: Arc<Pool>,
    stall: Duration,
    /// Most requests to one server at once, and so most connections; 0 for no bound.
    places: usize,
    taken: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Bytes of bodies that were received.
    pub(super) received: Arc<AtomicU64>,
}

impl Client {
    /// A client whose servers may be silent for `stall`, and that makes at most `places` requests
    /// to each at once; 0 for no bound.
    pub(super) fn new(stall: Duration, places: usize) -> Self {
        Self { pool: Arc::default(), stall, places, taken: Mutex::default(), received: Arc::default() }
    }

    /// Waits for a place for a request to `host`.
    async fn place(&self, host: &str) -> Result<Option<OwnedSemaphorePermit>, MirrorError> {
        if self.places == 0 {
            return Ok(None);
        }
        let places = {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            if taken.len() >= HOSTS_MAX {
                taken.retain(|_, places| Arc::strong_count(places) > 1);
            }
            let new = || Arc::new(Semaphore::new(self.places));
            taken.entry(host.to_owned()).or_insert_with(new).clone()
        };
        let place = tokio::time::timeout(PLACE_WAIT, places.acquire_owned()).await;
        match place {
            Ok(Ok(place)) => Ok(Some(place)),
            _ => Err(MirrorError::Busy(host.to_owned())),
        }
    }

    /// Sends a request over an idle connection to `host`, or over one that `connect` makes.
    pub(super) async fn send<F>(
        &self,
        host: &str,
        request: Request<()>,
        connect: impl FnOnce() -> F,
    ) -> Result<Answer, MirrorError>
    where
        F: Future<Output = Result<Box<dyn Wire>, MirrorError>>,
    {
        let again = || {
            let mut again = Request::new(String::new());
            *again.method_mut() = request.method().clone();
            *again.uri_mut() = request.uri().clone();
            *again.headers_mut() = request.headers().clone();
            again
        };
        let place = self.place(host).await?;
        if let Some(sender) = self.pool.take(host) {
            match exchange(sender, again(), host, self.stall).await {
                Ok(answered) => return Ok(self.answer(host, answered, place)),
                // The server may have closed an idle connection at any time.
                Err(MirrorError::Broken(..)) => {}
                Err(error) => return Err(error),
            }
        }
        let wire = connect().await?;
        let broken = |error: hyper::Error| MirrorError::Broken(host.to_owned(), error.into());
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_BYTES_MAX);
        let (sender, connection) = builder.handshake(TokioIo::new(wire)).await.map_err(broken)?;
        // The connection ends with its sender, or when the server closes it.
        tokio::spawn(connection);
        let answered = exchange(sender, again(), host, self.stall).await?;
        Ok(self.answer(host, answered, place))
    }

    fn answer(
        &self,
        host: &str,
        answered: (http::Response<Incoming>, SendRequest<String>),
        place: Option<OwnedSemaphorePermit>,
    ) -> Answer {
        let (response, sender) = answered;
        let (parts, body) = response.into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
            sender: Some(sender),
            place,
            pool: self.pool.clone(),
            host: host.to_owned(),
            stall: self.stall,
            received: self.received.clone(),
        }
    }
}

/// Client of the mirrors.
pub(super) struct Mirrors {
    reach: Reach,
    client: Client,
    tls: OnceLock<Option<TlsConnector>>,
    /// Hosts that took no connection.
    silence: Silence,
    /// Whether packets may go to them.
    is_allowed: bool,
}

impl Mirrors {
    /// A client of the hosts in `reach`, which may be silent for `stall`.
    pub(super) fn new(reach: Reach, stall: Duration, is_allowed: bool) -> Self {
        Self {
            reach,
            client: Client::new(stall, 0),
            tls: OnceLock::new(),
            silence: Silence::default(),
            is_allowed,
        }
    }

    /// Hosts that are asked.
    pub(super) fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Bytes of bodies that mirrors have sent.
    pub(super) fn received(&self) -> u64 {
        self.client.received.load(Ordering::Relaxed)
    }

    /// Opens a connection to a host.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub(super) async fn open(&self, host: &str, port: u16) -> Result<TcpStream, Unreachable> {
        if !self.is_allowed {
            return Err(Unreachable::Kept(host.to_owned()));
        }
        let name = format!("{host}:{port}");
        if self.silence.has(&name) {
            return Err(Unreachable::WasSilent(name));
        }
        let opened = self.reach.connect(host, port).await;
        if matches!(opened, Err(Unreachable::Silent(..))) {
            self.silence.note(&name);
        }
        opened
    }

    /// Asks for a file with these header fields, and follows redirects.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub(super) async fn get(
        &self,
        method: &Method,
        address: &Address,
        headers: &HeaderMap,
    ) -> Result<Answer, MirrorError> {
        let mut at = address.clone();
        let mut headers = headers.clone();
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.get_one(method, &at, &headers).await?;
            let location = match answer.status.as_u16() {
                301 | 302 | 303 | 307 | 308 => answer.headers.get(header::LOCATION),
                _ => return Ok(answer),
            };
            let unusable = |error| MirrorError::Redirect(at.to_string(), error);
            let location = location.and_then(|location| location.to_str().ok()).unwrap_or_default();
            let next = at.join(location).map_err(unusable)?;
            if at.is_tls && !next.is_tls {
                return Err(unusable(AddressError::Scheme));
            }
            self.reach.check_redirect(&next)?;
            // A password that one host may know is for no other.
            if (next.is_tls, &next.host, next.port) != (at.is_tls, &at.host, at.port) {
                headers.remove(header::AUTHORIZATION);
            }
            at = next;
        }
        Err(MirrorError::Redirects(address.to_string()))
    }

    async fn get_one(
        &self,
        method: &Method,
        at: &Address,
        headers: &HeaderMap,
    ) -> Result<Answer, MirrorError> {
        let host = format!("{}{}", if at.is_tls { "https://" } else { "" }, at.authority());
        let mut request = Request::new(());
        *request.method_mut() = method.clone();
        let broken =
            |error: Box<dyn std::error::Error + Send + Sync>| MirrorError::Broken(host.clone(), error);
        *request.uri_mut() = at.path.parse().map_err(|error: http::uri::InvalidUri| broken(error.into()))?;
        *request.headers_mut() = headers.clone();
        let name = HeaderValue::try_from(at.authority()).map_err(|error| broken(error.into()))?;
        request.headers_mut().insert(header::HOST, name);
        self.client.send(&host, request, || self.connect(at)).await
    }

    async fn connect(&self, at: &Address) -> Result<Box<dyn Wire>, MirrorError> {
        let stream = self.open(&at.host, at.port).await?;
        if !at.is_tls {
            return Ok(Box::new(stream));
        }
        let failed = |error| MirrorError::Tls(at.authority(), error);
        let connector = self.tls.get_or_init(|| connector(Path::new(AUTHORITIES))).as_ref();
        let connector = connector.ok_or_else(|| {
            failed(io::Error::new(io::ErrorKind::NotFound, format!("{AUTHORITIES} has no certificates")))
        })?;
        let name = ServerName::try_from(at.host.clone()).map_err(|error| failed(io::Error::other(error)))?;
        let connecting = connector.connect(name, stream);
        let connected = tokio::time::timeout(self.client.stall, connecting).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        Ok(Box::new(connected.map_err(failed)?))
    }
}

/// Makes the client of TLS that trusts the authorities in `path`; `None` when it has none.
fn connector(path: &Path) -> Option<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    let found = CertificateDer::pem_file_iter(path).ok()?;
    let (added, _) = roots.add_parsable_certificates(found.flatten());
    (added > 0).then(|| TlsConnector::from(Arc::new(crate::trust::tls::public_client(roots))))
}

/// Stream of a body that is passed on as it comes.
pub(super) fn stream(answer: Answer) -> impl futures::Stream<Item = io::Result<Bytes>> + Send {
    futures::stream::unfold(Some(answer), |answer| async {
        let mut answer = answer?;
        match answer.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(answer))),
            Ok(None) => None,
            Err(error) => Some((Err(io::Error::other(error)), None)),
        }
    })
    .fuse()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with `answer`, and returns the request.
    async fn answer_one(listener: TcpListener, answer: String) -> String {
        let (stream, _) = listener.accept().await.expect("a connection");
        answer_on(stream, answer).await
    }

    async fn answer_on(mut stream: impl Wire, answer: String) -> String {
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            let mut some = [0; 1000];
            let length = stream.read(&mut some).await.expect("a request");
            request.push_str(&String::from_utf8_lossy(&some[..length]));
        }
        stream.write_all(answer.as_bytes()).await.expect("written");
        stream.flush().await.expect("sent");
        request.to_lowercase()
    }

    #[tokio::test]
    async fn a_password_is_for_the_host_that_was_asked_alone() {
        let bind = || TcpListener::bind("127.0.0.1:0");
        let (first, second) = (bind().await.expect("a listener"), bind().await.expect("a listener"));
        let at = |listener: &TcpListener| listener.local_addr().expect("an address");
        let (asked, other) = (at(&first), at(&second));
        let moved = format!("HTTP/1.1 302 Found\r\nLocation: http://{other}/b\r\nContent-Length: 0\r\n\r\n");
        let first = tokio::spawn(answer_one(first, moved));
        let second = tokio::spawn(answer_one(second, "HTTP/1.1 204 No Content\r\n\r\n".to_owned()));
        let private = [asked, other].map(|at| at.to_string().parse().expect("a pattern"));
        let mirrors = Mirrors::new(Reach::new(&[], &private), Duration::from_secs(10), true);
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic eA=="));
        let address = Address::parse(&format!("http://{asked}/a")).expect("an address");
        let answer = mirrors.get(&Method::GET, &address, &headers).await.expect("an answer");
        assert_eq!(answer.status.as_u16(), 204);
        assert!(first.await.expect("asked").contains("authorization: basic"));
        assert!(!second.await.expect("asked").contains("authorization"));
    }

    /// Configuration of a server with a certificate of its own, and the certificate as PEM.
    fn secured() -> (rustls::ServerConfig, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key =
            rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let chain = vec![made.cert.der().clone()];
        (crate::trust::tls::gateway_server(chain, key).expect("a configuration"), made.cert.pem())
    }

    /// Answers one request over TLS.
    async fn answer_over_tls(listener: TcpListener, tls: rustls::ServerConfig, answer: String) -> String {
        let (stream, _) = listener.accept().await.expect("a connection");
        let Ok(stream) = tokio_rustls::TlsAcceptor::from(Arc::new(tls)).accept(stream).await else {
            return String::new();
        };
        answer_on(stream, answer).await
    }

    #[tokio::test]
    async fn a_redirect_may_lead_to_tls_that_the_system_trusts_and_never_back() {
        let (tls, pem) = secured();
        let (_, other) = secured();
        let away = "HTTP/1.1 302 Found\r\nLocation: http://localhost/c\r\nContent-Length: 0\r\n\r\n";
        let body = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody";
        for (authority, answer) in [(&pem, body), (&pem, away), (&other, body)] {
            let bind = || TcpListener::bind("127.0.0.1:0");
            let (plain, secure) = (bind().await.expect("a listener"), bind().await.expect("a listener"));
            let [from, to] = [&plain, &secure]
                .map(|listener| format!("localhost:{}", listener.local_addr().expect("an address").port()));
            let moved = format!(
                "HTTP/1.1 301 Moved Permanently\r\nLocation: https://{to}/b\r\nContent-Length: 0\r\n\r\n"
            );
            let plain = tokio::spawn(answer_one(plain, moved));
            let secure = tokio::spawn(answer_over_tls(secure, tls.clone(), answer.to_owned()));
            let private = [&from, &to].map(|host| host.parse().expect("a pattern"));
            let mirrors = Mirrors::new(Reach::new(&[], &private), Duration::from_secs(10), true);
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), authority).expect("write");
            assert!(mirrors.tls.set(connector(file.path())).is_ok());
            let address = Address::parse(&format!("http://{from}/a")).expect("an address");
            let answered = mirrors.get(&Method::GET, &address, &HeaderMap::new()).await;
            match answered {
                Ok(mut answer) => {
                    assert_eq!(authority, &pem);
                    assert_eq!(answer.all(10).await.expect("reads").as_deref(), Some(&b"body"[..]));
                }
                Err(MirrorError::Redirect(at, AddressError::Scheme)) => {
                    assert_eq!((authority, at), (&pem, format!("https://{to}/b")));
                }
                Err(MirrorError::Tls(..)) => assert_eq!(authority, &other),
                Err(error) => panic!("{error:?}"),
            }
            assert!(plain.await.expect("asked").starts_with("get /a "));
            let asked = secure.await.expect("asked");
            assert_eq!(asked.starts_with("get /b "), authority == &pem, "{asked}");
        }
        assert!(connector(Path::new("/nowhere")).is_none());
    }
}
