//! Tunnels through an HTTP proxy with CONNECT. TLS inside runs from end to end.

use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{Request, StatusCode, Uri};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Maximum size of the head of a proxy's answer, bytes.
const HEAD_MAX: usize = 16 << 10;

/// Reason why there is no tunnel through a proxy. Names in it never contain credentials.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The setting is not the URL of a proxy.
    #[error("the proxy's URL is unusable: write it as http://USER:PASSWORD@HOST:PORT")]
    Url,
    /// The proxy is of an unsupported kind; only HTTP proxies are supported.
    #[error("a proxy of the kind {0:?} is not supported: use one of the form http://HOST:PORT")]
    Scheme(String),
    /// The proxy itself cannot be reached.
    #[error("could not connect to the proxy {0}: check its address")]
    Connect(String, #[source] std::io::Error),
    /// The proxy answered with status 407, or with the 401 that some send for wrong credentials.
    #[error(
        "the proxy {0} refused the credentials or requires some: set them in proxy_url or HTTPS_PROXY as \
         http://USER:PASSWORD@HOST:PORT"
    )]
    Credentials(String),
    /// The proxy answered with any other status.
    #[error(
        "the proxy {proxy} refused to connect to {parent} (HTTP status {status}): configure the proxy to allow CONNECT to it"
    )]
    Refused {
        /// Name of the proxy.
        proxy: String,
        /// Address of the parent to connect to.
        parent: String,
        /// HTTP status of the answer.
        status: u16,
    },
    /// The proxy does not speak HTTP, or broke off.
    #[error("the connection to the proxy {0} broke off")]
    Broken(String, #[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Choice of the proxy for each parent.
#[derive(Debug)]
pub struct Proxies {
    matcher: Matcher,
    /// Whether the proxy also applies to loopback addresses. Those of the environment never do.
    loopback: bool,
}

impl Proxies {
    /// Reads `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` from the environment.
    pub fn of_environment() -> Self {
        Self { matcher: Matcher::from_env(), loopback: false }
    }

    /// Uses no proxy at all.
    pub fn none() -> Self {
        Self { matcher: Matcher::builder().build(), loopback: false }
    }

    /// Uses one proxy, `http://[USER:PASSWORD@]HOST:PORT`, for every parent that `NO_PROXY` does
    /// not list.
    ///
    /// # Errors
    /// [`ProxyError::Url`] or [`ProxyError::Scheme`].
    pub fn fixed(url: &str) -> Result<Self, ProxyError> {
        let listed = ["NO_PROXY", "no_proxy"].into_iter().find_map(|name| std::env::var(name).ok());
        Self::fixed_but(url, &listed.unwrap_or_default())
    }

    fn fixed_but(url: &str, no_proxy: &str) -> Result<Self, ProxyError> {
        // Check the URL with an empty exception list: the actual list may cover the name used for
        // the check.
        let everywhere = Matcher::builder().all(url).build();
        let anywhere = everywhere.intercept(&Uri::from_static("https://parent.distd.internal:443"));
        usable(&anywhere.ok_or(ProxyError::Url)?)?;
        Ok(Self { matcher: Matcher::builder().all(url).no(no_proxy).build(), loopback: true })
    }

    /// Returns the proxy for the parent at `address` (`HOST:PORT`); `None` to connect directly.
    pub(crate) fn for_parent(&self, address: &str) -> Option<Intercept> {
        let uri: Uri = format!("https://{address}/").parse().ok()?;
        let host = uri.host()?.trim_matches(['[', ']']);
        let near =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
        if near && !self.loopback { None } else { self.matcher.intercept(&uri) }
    }
}

fn usable(proxy: &Intercept) -> Result<(), ProxyError> {
    match proxy.uri().scheme_str() {
        Some("http") => Ok(()),
        other => Err(ProxyError::Scheme(other.unwrap_or_default().to_owned())),
    }
}

/// Opens a tunnel through `proxy` to the parent at `address` (`HOST:PORT`). Also returns the
/// proxy's address.
pub(super) async fn tunnel(
    proxy: &Intercept,
    address: &str,
) -> Result<(TokioIo<Upgraded>, SocketAddr), ProxyError> {
    usable(proxy)?;
    let (host, port) = (proxy.uri().host().unwrap_or_default(), proxy.uri().port_u16().unwrap_or(80));
    let name = format!("{host}:{port}");
    let connect = |e| ProxyError::Connect(name.clone(), e);
    let stream = TcpStream::connect(&name).await.map_err(connect)?;
    let remote = stream.peer_addr().map_err(connect)?;
    // A socket that refuses the option is about to fail anyway.
    let _ = stream.set_nodelay(true);
    let broken = |e: Box<dyn std::error::Error + Send + Sync>| ProxyError::Broken(name.clone(), e);
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_MAX);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|e| broken(e.into()))?;
    // The task ends with the request, or hands the stream over.
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::connect(address).header(HOST, address);
    if let Some(credentials) = proxy.basic_auth() {
        let mut credentials = credentials.clone();
        credentials.set_sensitive(true);
        request = request.header(PROXY_AUTHORIZATION, credentials);
    }
    let request = request.body(String::new()).map_err(|e| broken(e.into()))?;
    let response = sender.send_request(request).await.map_err(|e| broken(e.into()))?;
    match response.status() {
        status if status.is_success() => {}
        StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::UNAUTHORIZED => {
            return Err(ProxyError::Credentials(name));
        }
        status => {
            let (parent, status) = (address.to_owned(), status.as_u16());
            return Err(ProxyError::Refused { proxy: name, parent, status });
        }
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|e| broken(e.into()))?;
    Ok((TokioIo::new(upgraded), remote))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_proxy_applies_to_all_parents_except_those_listed() {
        let proxies = Proxies::fixed_but("http://u:p%40ss@proxy.example:3128", "10.0.0.0/8,near.example")
            .expect("a proxy");
        let at = |address: &str| proxies.for_parent(address).map(|proxy| proxy.uri().to_string());
        assert_eq!(at("203.0.113.5:7444").as_deref(), Some("http://proxy.example:3128/"));
        assert_eq!(at("[2001:db8::1]:7444").as_deref(), Some("http://proxy.example:3128/"));
        assert_eq!(at("127.0.0.1:7444").as_deref(), Some("http://proxy.example:3128/"));
        assert_eq!(at("10.1.2.3:7444"), None);
        assert_eq!(at("relay.near.example:4433"), None);
        let proxy = proxies.for_parent("203.0.113.5:7444").expect("a proxy");
        assert_eq!(proxy.basic_auth().map(|v| v.as_bytes()), Some(&b"Basic dTpwQHNz"[..]));
    }

    #[test]
    fn anything_but_an_http_proxy_is_refused() {
        assert!(matches!(Proxies::fixed_but("", ""), Err(ProxyError::Url)));
        assert!(matches!(Proxies::fixed_but("http://", ""), Err(ProxyError::Url)));
        assert!(matches!(Proxies::fixed_but("socks5://h:1", ""), Err(ProxyError::Scheme(_))));
        assert!(matches!(Proxies::fixed_but("https://h:1", ""), Err(ProxyError::Scheme(_))));
        assert!(Proxies::none().for_parent("203.0.113.5:7444").is_none());
    }
}
