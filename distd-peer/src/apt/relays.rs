//! The relay of a device as a parent of its proxy: requests go to the relay's TCP port over mutual
//! TLS, under an ALPN of their own (docs/decisions/0022).

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
use super::index::Sum;
use super::mirror::{Answer, Client, MirrorError, Wire};
use super::reach::Unreachable;
use crate::net::resolve;
use crate::trust::identity::PARENT_NAME;
use crate::trust::tls::ALPN_APT;

/// Header with the SHA-256 of the file that a device asks a relay for, and its length.
pub(super) const SUM: HeaderName = HeaderName::from_static("distd-sum");

/// Longest time for a connection to a relay: it is near.
const CONNECT: Duration = Duration::from_secs(3);

/// Time for which a relay that did not answer is not asked again.
const AWAY: Duration = Duration::from_secs(30);

/// Time for which a relay that sent wrong bytes is not asked again.
const WRONG: Duration = Duration::from_secs(3600);

/// Text of a sum in the header.
fn sum_text(sum: &Sum) -> String {
    format!("{} {}", hex::encode(sum.sha256), sum.bytes)
}

/// The sum in a request of a device; `None` when it has none.
pub(super) fn sum_in(headers: &HeaderMap) -> Option<Sum> {
    let (sha256, bytes) = headers.get(SUM)?.to_str().ok()?.split_once(' ')?;
    Some(Sum { sha256: hex::decode(sha256).ok()?.try_into().ok()?, bytes: bytes.parse().ok()? })
}

/// The relays of a device, nearest first.
pub struct Relays {
    addresses: Vec<String>,
    tls: TlsConnector,
    client: Client,
    /// Relays that are not asked, until when.
    away: Mutex<HashMap<String, Instant>>,
}

impl Relays {
    /// The relays at `addresses`, `HOST:PORT`, dialled with `tls` and silent for `stall` at most.
    pub fn new(addresses: Vec<String>, mut tls: rustls::ClientConfig, stall: Duration) -> Self {
        tls.alpn_protocols = vec![ALPN_APT.to_vec()];
        let tls = TlsConnector::from(Arc::new(tls));
        Self { addresses, tls, client: Client::new(stall), away: Mutex::default() }
    }

    /// Bytes of bodies that relays have sent.
    pub fn received(&self) -> u64 {
        self.client.received.load(Ordering::Relaxed)
    }

    fn is_away(&self, relay: &str) -> bool {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        away.get(relay).is_some_and(|until| Instant::now() < *until)
    }

    fn leave(&self, relay: &str, time: Duration) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        away.insert(relay.to_owned(), Instant::now() + time);
    }

    /// Whether no relay would be asked now.
    pub fn is_none(&self) -> bool {
        self.addresses.iter().all(|relay| self.is_away(relay))
    }

    /// Asks no relay again for an hour: one of them sent wrong bytes, and they are few.
    pub fn sent_wrong_bytes(&self) {
        for relay in &self.addresses {
            self.leave(relay, WRONG);
        }
    }

    /// Asks the relays for a file, one after the other; `None` when none of them helps.
    pub async fn get(&self, address: &Address, headers: &HeaderMap, sum: Option<Sum>) -> Option<Answer> {
        for relay in &self.addresses {
            if self.is_away(relay) {
                continue;
            }
            match self.get_from(relay, address, headers, sum).await {
                Ok(answer) if answer.status.is_success() || answer.status == StatusCode::NOT_MODIFIED => {
                    return Some(answer);
                }
                // Its mirror does not have the file, or the relay may not ask the mirror.
                Ok(answer) => {
                    tracing::debug!(relay, %address, status = %answer.status, "a relay has no file")
                }
                Err(error) => {
                    let error = distd_core::error::Chain(&error).to_string();
                    tracing::debug!(relay, error, "a relay does not answer for apt");
                    self.leave(relay, AWAY);
                }
            }
        }
        None
    }

    async fn get_from(
        &self,
        relay: &str,
        address: &Address,
        headers: &HeaderMap,
        sum: Option<Sum>,
    ) -> Result<Answer, MirrorError> {
        let broken = |error: http::Error| MirrorError::Broken(relay.to_owned(), error.into());
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
        self.client.send(relay, request, || self.connect(relay)).await
    }

    async fn connect(&self, relay: &str) -> Result<Box<dyn Wire>, MirrorError> {
        let failed = |error| MirrorError::Unreachable(Unreachable::Connect(relay.to_owned(), error));
        let connecting = async {
            let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
            for address in resolve(relay).await? {
                match TcpStream::connect(address).await {
                    Ok(stream) => {
                        // A socket that refuses the option is about to fail anyway.
                        let _ = stream.set_nodelay(true);
                        let name = ServerName::try_from(PARENT_NAME).expect("the role's name is a DNS name");
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
