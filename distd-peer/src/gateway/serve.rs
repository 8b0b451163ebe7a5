//! Connections of a gateway: TLS or plain on loopback, HTTP/1.1 and HTTP/2, bounds in time and
//! number.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use distd_core::error::Chain;
use http::uri::Authority;
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::{Address, Body, Caller, Refusal, Releases, Remembered, Tokens, answer, shown_token};
use crate::listener::{Authenticated, ConnectionServer, Unstalled, accept, secured, serve_until};

/// Longest time for a request's head, which is also how long an idle connection stays open.
const HEAD: Duration = Duration::from_secs(60);

/// Largest head of a request, and bytes read at once.
const BUFFER_BYTES: usize = 16 << 10;

/// Most requests at once on one connection of HTTP/2.
const STREAMS_MAX: u32 = 8;

/// Bytes of answers that wait for the caller on one stream of HTTP/2.
const SEND_BUFFER_BYTES: usize = 128 << 10;

/// Time that downloads have to end when the gateway stops.
const GRACE: Duration = Duration::from_secs(2);

/// Callers that a gateway answers.
#[derive(Debug)]
pub enum Access {
    /// Anyone who reaches it: every program of the machine, on a loopback address.
    Anyone,
    /// Callers with a token.
    Tokens(Mutex<Tokens>),
}

/// Counters of a gateway.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests.
    pub requests: AtomicU64,
    /// Requests that were answered with a status of 400 or above.
    pub refused: AtomicU64,
    /// Bytes of bodies that were handed to callers.
    pub sent_bytes: AtomicU64,
    /// Connections that were refused because too many were open.
    pub connections_refused: AtomicU64,
}

/// A gateway: releases, and who may have them.
pub struct Gateway {
    releases: Arc<dyn Releases>,
    access: Access,
    remembered: Remembered,
    /// Counters of requests and bytes.
    pub counters: Arc<Counters>,
}

impl Gateway {
    /// Offers `releases` to those whom `access` lets in.
    pub fn new(releases: Arc<dyn Releases>, access: Access) -> Arc<Self> {
        Arc::new(Self { releases, access, remembered: Remembered::default(), counters: Arc::default() })
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        from: SocketAddr,
        authenticated: &Authenticated,
    ) -> Response<Body> {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let response = match self.admitted(&request, authenticated) {
            Err(refusal) => refusal.into_response(),
            Ok(address) => {
                let caller = Caller { address: from.ip().to_canonical(), remembered: &self.remembered };
                answer(&*self.releases, request.method(), &address, request.headers(), caller).await
            }
        };
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
        }
        // The path may have a token in it, so it is not logged.
        tracing::debug!(%from, method = %request.method(), status = status.as_u16(), "answered");
        let counters = self.counters.clone();
        response.map(|body| {
            body.counted(Arc::new(move |bytes| {
                counters.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
            }))
        })
    }

    /// Returns the address of a request, if its caller may ask.
    fn admitted(
        &self,
        request: &Request<Incoming>,
        authenticated: &Authenticated,
    ) -> Result<Address, Refusal> {
        let parsed = Address::of_path(request.uri().path());
        if matches!(self.access, Access::Anyone) && !names_loopback(request) {
            let message = "without tokens a gateway is asked by the name localhost or a loopback address";
            let next = "use http://127.0.0.1, or make a token: distd gateway token add LABEL";
            return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, message, next));
        }
        if let Access::Tokens(tokens) = &self.access {
            let in_path = parsed.as_ref().ok().and_then(|(_, token)| token.clone());
            let shown = shown_token(request.headers()).or(in_path);
            let mut tokens = tokens.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = tokens.read_again() {
                tracing::warn!(error = %Chain(&error), "the tokens of the gateway are as before");
            }
            if !shown.is_some_and(|shown| tokens.has(&shown)) {
                let message = "this gateway needs a token of its own";
                let next = "make one where the gateway runs: distd gateway token add LABEL; send it as \
                            \"Authorization: Bearer TOKEN\", as a password, or before the path as /t/TOKEN/r/...";
                return Err(Refusal::new(StatusCode::UNAUTHORIZED, message, next));
            }
            authenticated.set();
        }
        let (address, _) = parsed.map_err(|error| {
            let next = "the manual has examples: docs/gateway.md";
            Refusal::not_found(error.to_string(), next)
        })?;
        Ok(address)
    }
}

/// Whether a request is for this machine by its own name. A page of a stranger in a browser here
/// could otherwise read releases: under a name of the stranger's that leads to loopback.
fn names_loopback<B>(request: &Request<B>) -> bool {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = request.uri().authority().map(Authority::as_str).or(host);
    let Some(Ok(authority)) = authority.map(str::parse::<Authority>) else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_loopback = |address: IpAddr| address.to_canonical().is_loopback();
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(is_loopback)
}

/// Serves connections on `listener` until `stop` becomes true or its sender is gone. Without `tls`
/// the gateway speaks plain HTTP.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    gateway: Arc<Gateway>,
    stop: watch::Receiver<bool>,
) {
    let server = Server { gateway, acceptor: tls.map(TlsAcceptor::from) };
    let open = accept(listener, Arc::new(server), stop).await;
    let _ = timeout(GRACE, open.wait()).await;
}

struct Server {
    gateway: Arc<Gateway>,
    acceptor: Option<TlsAcceptor>,
}

impl ConnectionServer for Server {
    fn refused(&self) {
        self.gateway.counters.connections_refused.fetch_add(1, Ordering::Relaxed);
    }

    async fn serve(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        authenticated: Authenticated,
        stop: watch::Receiver<bool>,
    ) {
        let Some(acceptor) = &self.acceptor else {
            return requests(stream, from, &self.gateway, authenticated, stop).await;
        };
        match secured(stream, acceptor).await {
            Ok(stream) => requests(stream, from, &self.gateway, authenticated, stop).await,
            Err(error) => tracing::debug!(%from, error = %Chain(&error), "TLS handshake failed"),
        }
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: SocketAddr,
    gateway: &Arc<Gateway>,
    authenticated: Authenticated,
    mut stop: watch::Receiver<bool>,
) {
    let gateway = gateway.clone();
    let service = service_fn(move |request| {
        let (gateway, authenticated) = (gateway.clone(), authenticated.clone());
        async move { Ok::<_, Infallible>(gateway.respond(request, from, &authenticated).await) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(BUFFER_BYTES);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEAD)
        .max_concurrent_streams(STREAMS_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES);
    let connection = server.serve_connection(TokioIo::new(Unstalled::new(stream)), service);
    let result = serve_until(connection, &mut stop, |connection| connection.graceful_shutdown()).await;
    if let Err(error) = result {
        tracing::debug!(%from, error = %Chain(&*error), "connection of the gateway ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_without_tokens_is_asked_by_a_name_of_this_machine() {
        let asks = |uri: &str, host: Option<&str>| {
            let mut request = Request::builder().uri(uri);
            if let Some(host) = host {
                request = request.header(header::HOST, host);
            }
            names_loopback(&request.body(()).expect("a request"))
        };
        for host in ["127.0.0.1", "127.0.0.1:80", "localhost", "LOCALHOST:7480", "[::1]:80", "127.9.9.9"] {
            assert!(asks("/r/os/1/x", Some(host)), "{host}");
        }
        for host in ["example.org", "127.0.0.1.example.org:7480", "10.0.0.1", "localhost.", "", "a b"] {
            assert!(!asks("/r/os/1/x", Some(host)), "{host}");
        }
        assert!(!asks("/r/os/1/x", None));
        // HTTP/2, and proxies, put the name into the address.
        assert!(asks("http://localhost:80/r/os/1/x", Some("example.org")));
        assert!(!asks("http://example.org/r/os/1/x", Some("localhost")));
    }
}
