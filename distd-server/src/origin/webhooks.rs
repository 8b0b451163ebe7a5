//! Sending of events to webhooks (docs/webhooks.md): by the form of the Standard Webhooks, at least
//! once, to each webhook in the order of the events.
//!
//! Whoever registers a webhook chooses an address to which this machine sends requests. So only the
//! public Internet is reached, and networks that the operator of the machine has named; never
//! addresses at which a machine or a cloud answers for the machine itself. The address is looked at
//! after the resolver, at each connection, and redirects are not followed.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use distd_core::api::{EventKind, WEBHOOK_URL_BYTES_MAX};
use distd_core::error::Chain;
use distd_core::text::shown;
use distd_peer::apt::{Network, is_public};
use distd_peer::clock::unix_now;
use distd_peer::metrics::{CountersBy, Durations, Scrape};
use distd_peer::trust::tls::public_client;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use reqwest::{Client, redirect};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use url::{Host, Url};

use super::{Origin, signed};
use crate::db::{DbError, Tried, WebhookRow, event_body, message_id};

/// Where Debian and most others keep the authorities of the public web.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Longest time for one try, with its connection and the answer's head.
const TRY: Duration = Duration::from_secs(15);

/// Longest time for a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Most bytes that are read of an answer's body, which says nothing; they are read so that the
/// connection can be used again.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Time between two looks for events that wait.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Time between two removals of old deliveries.
const FORGET_EVERY: Duration = Duration::from_secs(3600);

/// Bytes of a key. The form wants 24 to 64.
pub(crate) const SECRET_BYTES: usize = 32;

/// Longest reason kept for a failed try, characters.
const REASON_MAX: usize = 200;

/// Settings of webhooks.
#[derive(Clone, Debug)]
pub struct WebhookOptions {
    /// Networks besides the public Internet to which webhooks may lead.
    pub networks: Vec<Network>,
    /// File with the authorities that certify receivers, in PEM.
    pub authorities: PathBuf,
}

impl Default for WebhookOptions {
    fn default() -> Self {
        Self { networks: Vec::new(), authorities: AUTHORITIES.into() }
    }
}

/// Error of a webhook's address, or of the settings.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The text is no address.
    #[error("the address is not https://HOST/…, or is longer than {WEBHOOK_URL_BYTES_MAX} bytes")]
    Address,
    /// The address has a name and a password.
    #[error("the address holds a name or a password, which lists would show")]
    Credentials,
    /// Plain HTTP to another machine.
    #[error("plain HTTP is only for receivers on this machine: write https://")]
    Plain,
    /// The address is not one of the public Internet or of the networks that are named.
    #[error("{0} is neither public nor in a network that the setting webhook_network names")]
    Private(IpAddr),
    /// The address is one at which a machine or a cloud answers for the machine itself.
    #[error("{0} is an address of the link or of a cloud's metadata, to which no webhook leads")]
    Forbidden(IpAddr),
    /// HTTP cannot be set up.
    #[error("could not set up the sending of webhooks")]
    Client(#[source] reqwest::Error),
}

/// Addresses outside of the link-local networks at which clouds answer for their machines: Azure's,
/// Alibaba's, Oracle's, and those of Amazon over IPv6.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0);

/// Whether no setting allows an address: link-local, multicast, unspecified, or a cloud's metadata.
fn is_forbidden(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_link_local()
                || v4.is_multicast()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || METADATA_V4.contains(&v4)
        }
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.is_unspecified()
                || v6.segments()[..7] == METADATA_V6.segments()[..7]
        }
    }
}

impl WebhookOptions {
    /// Checks that a webhook may lead to `address`.
    ///
    /// # Errors
    /// [`WebhookError::Private`] and [`WebhookError::Forbidden`].
    fn check(&self, address: IpAddr) -> Result<(), WebhookError> {
        if is_forbidden(address) {
            return Err(WebhookError::Forbidden(address));
        }
        if is_public(address) || self.networks.iter().any(|network| network.has(address)) {
            return Ok(());
        }
        Err(WebhookError::Private(address))
    }

    /// Reads the address of a webhook. A name is looked up when an event is sent.
    ///
    /// # Errors
    /// [`WebhookError`].
    pub fn address(&self, text: &str) -> Result<Url, WebhookError> {
        let url = Url::parse(text).ok().filter(|_| text.len() <= WEBHOOK_URL_BYTES_MAX);
        let url = url.ok_or(WebhookError::Address)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(WebhookError::Credentials);
        }
        let literal = match url.host().ok_or(WebhookError::Address)? {
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
            Host::Domain(_) => None,
        };
        let is_here = literal.is_some_and(|address| address.to_canonical().is_loopback());
        match url.scheme() {
            "https" => {}
            "http" if is_here => {}
            "http" => return Err(WebhookError::Plain),
            _ => return Err(WebhookError::Address),
        }
        if let Some(address) = literal {
            self.check(address)?;
        }
        Ok(url)
    }
}

/// Resolver that gives only addresses to which webhooks may lead.
struct Guarded(WebhookOptions);

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let options = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let mut refused = None;
            let mut allowed = Vec::new();
            for address in found {
                match options.check(address.ip()) {
                    Ok(()) => allowed.push(address),
                    Err(error) => refused = Some(error),
                }
            }
            match refused.filter(|_| allowed.is_empty()) {
                Some(error) => Err(io::Error::other(error).into()),
                None => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

/// Text of a key, as the Standard Webhooks write it.
pub(crate) fn secret_text(secret: &[u8]) -> String {
    format!("whsec_{}", STANDARD.encode(secret))
}

/// Value of the header `webhook-signature`.
fn signature(secret: &[u8], message: &str, timestamp: u64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = hmac::sign(&key, format!("{message}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(tag))
}

/// The sending side.
pub(super) struct Sender {
    pub(super) options: WebhookOptions,
    client: Client,
    tries: CountersBy,
    seconds: Durations,
}

impl Sender {
    pub(super) fn new(options: WebhookOptions) -> Result<Self, WebhookError> {
        let mut roots = RootCertStore::empty();
        match CertificateDer::pem_file_iter(&options.authorities) {
            Ok(found) => {
                roots.add_parsable_certificates(found.flatten());
            }
            // An origin without webhooks needs no authorities.
            Err(error) => tracing::debug!(
                path = %options.authorities.display(),
                error = %Chain(&error),
                "no authorities: webhooks with https will fail"
            ),
        }
        let client = Client::builder()
            .tls_backend_preconfigured(public_client(roots))
            .redirect(redirect::Policy::none())
            // A proxy would look names up itself, and so lead anywhere.
            .no_proxy()
            .dns_resolver(Arc::new(Guarded(options.clone())))
            .connect_timeout(CONNECT)
            .timeout(TRY)
            .pool_max_idle_per_host(1)
            .build()
            .map_err(WebhookError::Client)?;
        Ok(Self { options, client, tries: CountersBy::default(), seconds: Durations::short() })
    }

    /// Sends one event.
    async fn send(&self, hook: &WebhookRow, message: &str, body: &str) -> Tried {
        let began = Instant::now();
        let tried = self.try_once(hook, message, body).await;
        self.seconds.observe(began.elapsed());
        let result = match &tried {
            Tried::Taken(_) => "taken",
            Tried::Refused(_) => "refused",
            Tried::Away(_) => "away",
        };
        self.tries.add(&vec![("result", result.into())], 1);
        tried
    }

    async fn try_once(&self, hook: &WebhookRow, message: &str, body: &str) -> Tried {
        // The settings may have changed since the webhook was registered.
        let url = match self.options.address(&hook.url) {
            Ok(url) => url,
            Err(error) => return Tried::Away(error.to_string()),
        };
        let timestamp = unix_now();
        let mut headers = HeaderMap::new();
        let signature = signature(&hook.secret, message, timestamp, body);
        for (name, value) in [
            ("webhook-id", message),
            ("webhook-timestamp", &timestamp.to_string()),
            ("webhook-signature", &signature),
        ] {
            headers.insert(name, HeaderValue::from_str(value).expect("plain characters"));
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let agent = concat!("distd-server/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        let answer = self.client.post(url).headers(headers).body(body.to_owned()).send().await;
        let mut answer = match answer {
            Ok(answer) => answer,
            // The address may be secret; `without_url` leaves it out.
            Err(error) => return Tried::Away(shown(&Chain(&error.without_url()).to_string(), REASON_MAX)),
        };
        let status = answer.status();
        let mut read = 0;
        while read < ANSWER_BYTES_MAX {
            match answer.chunk().await {
                Ok(Some(piece)) => read += piece.len(),
                Ok(None) | Err(_) => break,
            }
        }
        let text = format!("status {status}");
        let waits = answer.headers().contains_key(RETRY_AFTER);
        match status.as_u16() {
            200..300 => Tried::Taken(text),
            300..400 => Tried::Refused(format!("{text}: a redirect, which is not followed")),
            408 | 425 | 429 | 500.. => Tried::Away(text),
            _ if waits => Tried::Away(text),
            _ => Tried::Refused(text),
        }
    }

    /// Adds the metrics of webhooks to a scrape.
    pub(super) fn measure(&self, out: &mut Scrape) {
        out.counted_by("distd_webhook_tries_total", "Tries to send an event, by result.", &self.tries);
        out.durations(
            "distd_webhook_try_seconds",
            "Time of a try to send an event, until the answer was read, seconds.",
            &self.seconds,
        );
    }
}

impl Origin {
    /// Checks the address of a webhook.
    ///
    /// # Errors
    /// [`WebhookError`].
    pub fn webhook_address(&self, text: &str) -> Result<Url, WebhookError> {
        self.webhooks.options.address(text)
    }

    /// Sends a test to a webhook now; returns what came of it. It is not tried again.
    pub async fn test_webhook(&self, hook: &WebhookRow) -> Tried {
        let body = event_body(EventKind::WebhookTest, signed(unix_now()), &json!({"webhook": hook.id}));
        self.webhooks.send(hook, &message_id(), &body).await
    }

    /// Adds the metrics of webhooks to a scrape.
    pub fn measure_webhooks(&self, out: &mut Scrape) {
        self.webhooks.measure(out);
    }

    /// Sends events to webhooks for as long as the origin runs. Each webhook has a task of its own,
    /// so a slow receiver holds no other one up.
    pub async fn deliver_webhooks(self: Arc<Self>) {
        let mut sending = JoinSet::new();
        let mut busy = HashSet::new();
        let (ended, mut ends) = mpsc::unbounded_channel::<String>();
        let mut forgotten: Option<Instant> = None;
        loop {
            while let Ok(id) = ends.try_recv() {
                busy.remove(&id);
            }
            while sending.try_join_next().is_some() {}
            match self.db.webhooks_due(signed(unix_now())).await {
                Ok(due) => {
                    for id in due {
                        if busy.insert(id.clone()) {
                            let (origin, ended) = (self.clone(), ended.clone());
                            sending.spawn(async move {
                                if let Err(error) = origin.deliver_to(&id).await {
                                    tracing::warn!(webhook = id, error = %Chain(&error), "events wait");
                                }
                                // The receiver lives as long as this task's owner.
                                let _ = ended.send(id);
                            });
                        }
                    }
                }
                Err(error) => tracing::warn!(error = %Chain(&error), "events for webhooks wait"),
            }
            if forgotten.is_none_or(|last| last.elapsed() >= FORGET_EVERY) {
                forgotten = Some(Instant::now());
                if let Err(error) = self.db.forget_deliveries(signed(unix_now())).await {
                    tracing::warn!(error = %Chain(&error), "old deliveries stay");
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Sends the events that wait for one webhook, until none is due.
    async fn deliver_to(&self, id: &str) -> Result<(), DbError> {
        loop {
            // An overtaken process sends nothing.
            if self.owner.check().await.is_err() {
                return Ok(());
            }
            let Some(delivery) = self.db.next_delivery(id, signed(unix_now())).await? else { return Ok(()) };
            let Some(hook) = self.db.webhook(id).await? else { return Ok(()) };
            let tried = self.webhooks.send(&hook, &delivery.message, &delivery.body).await;
            let state = self.db.record_try(id, &delivery, &tried, signed(unix_now())).await?;
            match &tried {
                Tried::Taken(_) => tracing::debug!(webhook = id, message = delivery.message, "event taken"),
                Tried::Refused(reason) | Tried::Away(reason) => {
                    let (event, state, tries) = (&delivery.event, state.as_str(), delivery.tries + 1);
                    tracing::warn!(webhook = id, %event, tries, state, reason, "event not taken");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_standards_own_example() {
        // The example of the Standard Webhooks' specification.
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("base64");
        let signed =
            signature(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, "{\"test\": 2432232314}");
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(secret_text(&secret), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    }

    #[test]
    fn webhooks_lead_to_public_hosts_and_to_networks_that_are_named() {
        let none = WebhookOptions::default();
        let networks = ["10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "fd00::/8", "100.64.0.0/10"];
        let networks = networks.map(|text| text.parse().expect("a network")).to_vec();
        let named = WebhookOptions { networks, ..WebhookOptions::default() };
        for url in ["https://hooks.example.com/x", "https://8.8.8.8/", "https://[2a04:4e42::644]:8443/x?y=z"]
        {
            assert!(none.address(url).is_ok(), "{url}");
        }
        for url in [
            "https://10.1.2.3/",
            "http://127.0.0.1:9/x",
            "https://127.0.0.1/",
            "https://0x7f.1/",
            "https://2130706433/",
            "https://[::ffff:10.0.0.1]/",
        ] {
            assert!(matches!(none.address(url), Err(WebhookError::Private(_))), "{url}");
            assert!(named.address(url).is_ok(), "{url}");
        }
        for url in [
            "https://169.254.169.254/latest/meta-data",
            "https://[fe80::1]/",
            "https://[fd00:ec2::254]/",
            "https://168.63.129.16/",
            "https://100.100.100.200/",
            "https://[::ffff:169.254.169.254]/",
            "https://0.0.0.0/",
            "https://224.0.0.1/",
        ] {
            assert!(matches!(named.address(url), Err(WebhookError::Forbidden(_))), "{url}");
        }
        for url in ["http://hooks.example.com/", "http://10.1.2.3/", "http://localhost/"] {
            assert!(matches!(named.address(url), Err(WebhookError::Plain)), "{url}");
        }
        let long = format!("https://a/{}", "x".repeat(WEBHOOK_URL_BYTES_MAX));
        for url in ["ftp://a/", "file:///etc/passwd", "not an address", &long] {
            assert!(matches!(named.address(url), Err(WebhookError::Address)), "{url}");
        }
        assert!(matches!(named.address("https://a:b@example.com/"), Err(WebhookError::Credentials)));
    }

    #[tokio::test]
    async fn a_name_that_leads_to_a_private_address_is_not_connected_to() {
        let guarded = |options| Guarded(options).resolve("localhost".parse().expect("a name"));
        let refused = guarded(WebhookOptions::default()).await.err().expect("a private address");
        assert!(refused.to_string().contains("webhook_network"), "{refused}");
        let networks = ["127.0.0.0/8", "::1/128"].map(|text| text.parse().expect("a network")).to_vec();
        let named = WebhookOptions { networks, ..WebhookOptions::default() };
        assert!(guarded(named).await.expect("allowed").next().is_some());
    }
}
