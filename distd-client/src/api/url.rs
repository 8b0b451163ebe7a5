//! URL of the origin: HTTPS, or plain HTTP to this machine.

use std::fmt;
use std::net::IpAddr;

use url::{Host, Url};

/// Reasons why a string is not a server URL.
#[derive(Debug, thiserror::Error)]
pub enum ServerUrlError {
    /// The string is not a URL.
    #[error("{0:?} is no URL; write https://HOST:PORT")]
    Malformed(String, #[source] url::ParseError),
    /// The scheme is neither https nor http, the host is missing, or there is a user, query or
    /// fragment.
    #[error("{0:?} is no server URL; write https://HOST:PORT")]
    Shape(String),
    /// Plain HTTP to another machine.
    #[error("{0:?} is plain HTTP to another machine, where anyone could read the token; use https://")]
    PlainElsewhere(String),
    /// Plain HTTP to this machine without `--plain-http`.
    #[error("{0:?} is plain HTTP; use https://, or add --plain-http for this loopback address")]
    PlainUnasked(String),
}

/// A validated server URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl(Url);

impl ServerUrl {
    /// Parses `text`. Plain HTTP is accepted for loopback hosts only, and only when `plain_http` is
    /// set.
    ///
    /// # Errors
    /// [`ServerUrlError`].
    pub fn parse(text: &str, plain_http: bool) -> Result<Self, ServerUrlError> {
        let shape = || ServerUrlError::Shape(text.to_owned());
        let mut url = Url::parse(text).map_err(|cause| match text.contains("://") {
            true => ServerUrlError::Malformed(text.to_owned(), cause),
            false => shape(),
        })?;
        let bare = url.username().is_empty() && url.password().is_none();
        if !bare || url.query().is_some() || url.fragment().is_some() || !url.has_host() {
            return Err(shape());
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        let this = Self(url);
        match this.0.scheme() {
            "https" => Ok(this),
            "http" if !this.is_loopback() => Err(ServerUrlError::PlainElsewhere(text.to_owned())),
            "http" if !plain_http => Err(ServerUrlError::PlainUnasked(text.to_owned())),
            "http" => Ok(this),
            _ => Err(shape()),
        }
    }

    /// Returns whether the host is a loopback address or `localhost`, the one name that always
    /// means this machine.
    pub fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => IpAddr::V6(ip).to_canonical().is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        }
    }

    /// Returns the URL of `path` on this server; each segment is escaped.
    pub(super) fn join(&self, path: &[&str]) -> Url {
        let mut url = self.0.clone();
        url.path_segments_mut().expect("http URLs have a path").pop_if_empty().extend(path);
        url
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_and_only_when_asked_for() {
        for host in ["127.0.0.1:80", "127.9.9.9", "[::1]:8080", "[::ffff:127.0.0.1]", "localhost:1"] {
            let url = format!("http://{host}");
            assert!(ServerUrl::parse(&url, true).is_ok(), "{url}");
            assert!(matches!(ServerUrl::parse(&url, false), Err(ServerUrlError::PlainUnasked(_))), "{url}");
        }
        for host in ["10.0.0.1", "origin", "localhost.example.org", "[::2]", "127.0.0.1.example.org"] {
            let url = format!("http://{host}");
            assert!(matches!(ServerUrl::parse(&url, true), Err(ServerUrlError::PlainElsewhere(_))), "{url}");
        }
    }

    #[test]
    fn an_invalid_server_url_is_refused() {
        for bad in [
            "",
            "origin:8443",
            "origin",
            "ftp://a",
            "https://u:p@a",
            "https://a?x",
            "https://a#x",
            "https://",
        ] {
            assert!(ServerUrl::parse(bad, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_joined_below_a_prefix_and_escaped() {
        let url = ServerUrl::parse("https://a:1/sub", false).expect("a URL");
        assert_eq!(url.join(&["v1", "a/b c"]).as_str(), "https://a:1/sub/v1/a%2Fb%20c");
        assert_eq!(
            ServerUrl::parse("https://a", false).expect("a URL").join(&["v1"]).as_str(),
            "https://a/v1"
        );
    }
}
