//! Nodes of the realm that a proxy asks before a mirror: the relays of a device, which get what
//! they do not have, and its neighbours, which give what they have. Requests go to a TCP port over
//! mutual TLS, under an ALPN of their own (docs/decisions/0022).

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::address::Address;
use super::flight::Pace;
use super::index::Sum;
use super::mirror::{Answer, Client, MirrorError, Wire};
use super::reach::Unreachable;
use crate::net::resolve;
use crate::trust::identity::{LEAF_NAME, PARENT_NAME};
use crate::trust::tls::ALPN_APT;

/// Header with the SHA-256 of the file that a node asks another for, and its length.
pub(super) const SUM: HeaderName = HeaderName::from_static("distd-sum");

/// Longest time for a connection to a node: it is near.
const CONNECT: Duration = Duration::from_secs(3);

/// Time for which a node that did not answer is not asked again.
const AWAY: Duration = Duration::from_secs(30);

/// Pace below which a neighbour is left: it reads from its disk, and it is near.
const NEIGHBOUR_PACE: Pace =
    Pace { silence: Duration::from_secs(5), bytes: 320 << 10, window: Duration::from_secs(5) };

/// Time for which a neighbour that was too slow is not asked again.
const SLOW: Duration = Duration::from_secs(300);

/// Fewest bytes of a relay in a time: its own uplink may be slow, and the mirror is behind the
/// same.
const RELAY_BYTES: u64 = 120 << 10;
const RELAY_WINDOW: Duration = Duration::from_secs(30);

/// Time for which a node that sent wrong bytes is not asked again.
const WRONG: Duration = Duration::from_secs(3600);

/// Most requests to one node at once, each on a connection. A relay gives a device 8 connections,
/// of which its agent and its pulls need some; a ninth would end the first.
const REQUESTS_MAX: usize = 4;

/// Most nodes that are asked for one file: absence has to be known soon.
const ASKED_MAX: usize = 4;

/// Most nodes of which it is remembered that they are not asked.
const AWAY_MAX: usize = 256;

/// Finder of the addresses of nodes, `HOST:PORT`, the best first.
pub type Find = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// Text of a sum in the header.
fn sum_text(sum: &Sum) -> String {
    format!("{} {}", hex::encode(sum.sha256), sum.bytes)
}

/// The sum in a request of a device; `None` when it has none.
pub(super) fn sum_in(headers: &HeaderMap) -> Option<Sum> {
    let (sha256, bytes) = headers.get(SUM)?.to_str().ok()?.split_once(' ')?;
    Some(Sum { sha256: hex::decode(sha256).ok()?.try_into().ok()?, bytes: bytes.parse().ok()? })
}

/// Nodes of one kind.
pub struct Nodes {
    find: Find,
    /// Name in the certificates of these nodes.
    name: &'static str,
    tls: TlsConnector,
    client: Client,
    /// Pace below which one is left.
    pace: Pace,
    /// Time for which it is then not asked again.
    slow: Duration,
    /// Nodes that are not asked, until when.
    away: Mutex<HashMap<String, Instant>>,
}

impl Nodes {
    /// The relays at `addresses`, dialled with `tls` and silent for `stall` at most.
    pub fn relays(addresses: Vec<String>, tls: rustls::ClientConfig, stall: Duration) -> Self {
        let pace = Pace { silence: stall, bytes: RELAY_BYTES, window: RELAY_WINDOW };
        Self::new(Box::new(move || addresses.clone()), PARENT_NAME, tls, (stall, pace, AWAY))
    }

    /// The neighbours that `find` returns, dialled likewise.
    pub fn neighbours(find: Find, tls: rustls::ClientConfig, stall: Duration) -> Self {
        let stall = stall.min(NEIGHBOUR_PACE.silence);
        Self::new(find, LEAF_NAME, tls, (stall, NEIGHBOUR_PACE, SLOW))
    }

    fn new(
        find: Find,
        name: &'static str,
        mut tls: rustls::ClientConfig,
        (stall, pace, slow): (Duration, Pace, Duration),
    ) -> Self {
        tls.alpn_protocols = vec![ALPN_APT.to_vec()];
        let tls = TlsConnector::from(Arc::new(tls));
        Self { find, name, tls, client: Client::new(stall, REQUESTS_MAX), pace, slow, away: Mutex::default() }
    }

    /// Bytes of bodies that these nodes have sent.
    pub fn received(&self) -> u64 {
        self.client.received.load(Ordering::Relaxed)
    }

    fn leave(&self, node: &str, time: Duration) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if away.len() >= AWAY_MAX {
            away.retain(|_, until| Instant::now() < *until);
        }
        away.insert(node.to_owned(), Instant::now() + time);
    }

    /// Nodes that are asked now.
    pub(super) fn now(&self) -> Vec<String> {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = (self.find)();
        found.retain(|node| away.get(node).is_none_or(|until| *until <= Instant::now()));
        found.truncate(ASKED_MAX);
        found
    }

    /// Pace below which one of these nodes is left.
    pub(super) fn pace(&self) -> Pace {
        self.pace
    }

    /// Asks a node that was too slow no more for some time.
    pub(super) fn was_slow(&self, node: &str) {
        self.leave(node, self.slow);
    }

    /// Asks a node that did not answer no more for some time.
    pub(super) fn was_silent(&self, node: &str) {
        self.leave(node, AWAY);
    }

    /// Asks a node that sent wrong bytes no more for an hour.
    pub(super) fn sent_wrong_bytes(&self, node: &str) {
        self.leave(node, WRONG);
    }

    /// Asks these nodes for a file, one after the other. Returns the answer of the first that
    /// helps, and its address.
    pub(super) async fn get(
        &self,
        nodes: &[String],
        address: &Address,
        headers: &HeaderMap,
        sum: Option<Sum>,
    ) -> Option<(Answer, String)> {
        for node in nodes {
            match self.get_from(node, address, headers, sum).await {
                Ok(answer) if answer.status.is_success() || answer.status == StatusCode::NOT_MODIFIED => {
                    return Some((answer, node.clone()));
                }
                // It does not have the file, its mirror does not, or it may not ask the mirror.
                Ok(answer) => tracing::debug!(node, %address, status = %answer.status, "a node has no file"),
                // Others of this proxy are asking it.
                Err(MirrorError::Busy(_)) => tracing::debug!(node, %address, "no place among the requests"),
                Err(error) => {
                    let text = distd_core::error::Chain(&error).to_string();
                    tracing::debug!(node, error = text, "a node does not answer for apt");
                    self.leave(node, if error.is_silence() { self.slow } else { AWAY });
                }
            }
        }
        None
    }

    async fn get_from(
        &self,
        node: &str,
        address: &Address,
        headers: &HeaderMap,
        sum: Option<Sum>,
    ) -> Result<Answer, MirrorError> {
        let broken = |error: http::Error| MirrorError::Broken(node.to_owned(), error.into());
        let mut request = Request::builder().method(Method::GET).uri(address.to_string());
        if let Some(all) = request.headers_mut() {
            all.extend(headers.clone());
            if let Ok(host) = HeaderValue::try_from(address.authority()) {
                all.insert(header::HOST, host);
            }
            if let Some(Ok(sum)) = sum.map(|sum| HeaderValue::try_from(sum_text(&sum))) {
                all.insert(SUM, sum);
            }
        }
        let request = request.body(()).map_err(broken)?;
        self.client.send(node, request, || self.connect(node)).await
    }

    async fn connect(&self, node: &str) -> Result<Box<dyn Wire>, MirrorError> {
        let failed = |error| MirrorError::Unreachable(Unreachable::Connect(node.to_owned(), error));
        let connecting = async {
            let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
            for address in resolve(node).await? {
                match TcpStream::connect(address).await {
                    Ok(stream) => {
                        // A socket that refuses the option is about to fail anyway.
                        let _ = stream.set_nodelay(true);
                        let name = ServerName::try_from(self.name).expect("the role's name is a DNS name");
                        let stream = self.tls.connect(name, stream).await?;
                        if stream.get_ref().1.alpn_protocol() != Some(ALPN_APT) {
                            return Err(std::io::Error::other("it has no proxy for apt"));
                        }
                        return Ok(stream);
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        let connected = tokio::time::timeout(CONNECT, connecting).await;
        let stream =
            connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(failed)?;
        Ok(Box::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_in_a_header_is_read_back_and_others_are_none() {
        let sum = Sum { sha256: [7; 32], bytes: 9 };
        let headers =
            |text: &str| HeaderMap::from_iter([(SUM, HeaderValue::from_str(text).expect("a value"))]);
        assert_eq!(sum_in(&headers(&sum_text(&sum))), Some(sum));
        for wrong in ["", "07 9", "x", &format!("{} -1", "07".repeat(32)), &"07".repeat(32)] {
            assert_eq!(sum_in(&headers(wrong)), None, "{wrong}");
        }
    }
}
