//! An OpenID provider: its settings, its addresses and keys, and what its tokens say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distd_core::api::Scope;
use distd_peer::trust::files::{self, FileError};
use distd_peer::trust::tls::public_client;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use reqwest::{Client, redirect};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{Mutex, Semaphore};
use url::Url;

/// Where Debian and most others keep the authorities of the public web.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Path of the address to which the provider sends people back.
const RETURN_PATH: &str = "/ui/oidc";

/// Longest answer of a provider, bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Longest wait for one answer.
const WAIT: Duration = Duration::from_secs(10);

/// Time for which the provider's addresses and keys are remembered.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Least time between two questions for keys because one is not known.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// Time for which a failure to ask for them is remembered.
const FAILED: Duration = Duration::from_secs(10);

/// Most questions about codes at once.
const CODES_MAX: usize = 4;

/// Difference of clocks that is allowed, seconds.
const LEEWAY_SECONDS: u64 = 60;

/// Signatures that are taken: by keys of which the provider publishes the public half.
const ALGORITHMS: [Algorithm; 8] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Settings of an OpenID provider: the file of the setting `oidc`, in TOML.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderConfig {
    /// Address of the provider, as its tokens name it.
    issuer: String,
    /// Name under which the provider knows this origin.
    client_id: String,
    /// Secret that the origin shows to the provider; none for a public client.
    client_secret: Option<String>,
    /// Address of this origin as browsers reach it.
    url: String,
    /// Scopes of OpenID that are asked for.
    #[serde(default = "default_scopes")]
    scopes: Vec<String>,
    /// Claim that holds a person's groups, a list of texts.
    #[serde(default = "default_groups_claim")]
    groups_claim: String,
    /// Claim that holds a person's name.
    #[serde(default = "default_name_claim")]
    name_claim: String,
    /// File with the authorities, in PEM, that certify the provider.
    #[serde(default = "default_authorities")]
    authorities: PathBuf,
    /// Scopes of the origin for each group of the provider.
    groups: BTreeMap<String, Vec<Scope>>,
}

fn default_scopes() -> Vec<String> {
    ["openid", "profile"].map(str::to_owned).to_vec()
}

fn default_groups_claim() -> String {
    "groups".to_owned()
}

fn default_name_claim() -> String {
    "preferred_username".to_owned()
}

fn default_authorities() -> PathBuf {
    AUTHORITIES.into()
}

/// Error of a provider or its settings.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The file of the settings cannot be read.
    #[error("could not read the file of the setting oidc")]
    File(#[from] FileError),
    /// The settings are wrong.
    #[error("the file {path} of the setting oidc is wrong: {what}")]
    Settings {
        /// The file.
        path: String,
        /// The fault.
        what: String,
    },
    /// No answer.
    #[error("the provider does not answer at {address}")]
    Unreachable {
        /// The address.
        address: String,
        /// The cause.
        #[source]
        cause: reqwest::Error,
    },
    /// The answer is of no use.
    #[error("the answer of {address} cannot be used: {what}")]
    Answer {
        /// The address.
        address: String,
        /// Its fault.
        what: String,
    },
    /// Too many people come back from the provider at once.
    #[error("too many people sign in at once")]
    Busy,
    /// The provider failed a moment ago, and is not asked again yet.
    #[error("the provider failed a moment ago: {0}")]
    FailedBefore(String),
    /// The token is not the provider's, or not for this sign-in.
    #[error("the provider's token is refused: {0}")]
    Token(String),
}

/// A person, as the provider describes them.
pub(super) struct Person {
    /// Name that the provider gives to nobody else.
    pub(super) subject: String,
    pub(super) name: Option<String>,
    pub(super) groups: Vec<String>,
}

/// Addresses of a provider (OpenID Connect Discovery 1.0).
#[derive(Clone, Debug, Deserialize)]
struct Discovery {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
}

#[derive(Clone)]
struct Known {
    discovery: Arc<Discovery>,
    keys: Arc<JwkSet>,
    asked: Instant,
}

/// An OpenID provider.
pub struct Provider {
    config: ProviderConfig,
    client: Client,
    known: Mutex<Remembered>,
    /// Places for questions about codes, which anybody can have asked.
    codes: Semaphore,
}

/// Addresses and keys of a provider, and its last failure.
#[derive(Default)]
struct Remembered {
    known: Option<Known>,
    failed: Option<(Instant, String)>,
}

/// An address that keeps secrets: over TLS, or on this machine.
fn secret_keeping(address: &str) -> Result<Url, String> {
    let url = Url::parse(address).map_err(|error| format!("{address:?} is no address: {error}"))?;
    let is_local = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_local => Ok(url),
        _ => Err(format!("{address} does not begin with https://")),
    }
}

impl Provider {
    /// Reads the settings in the file at `path`, a secret that was granted to this process.
    ///
    /// # Errors
    /// [`ProviderError::File`] and [`ProviderError::Settings`].
    pub fn open(path: &Path) -> Result<Self, ProviderError> {
        let wrong = |what: String| ProviderError::Settings { path: path.display().to_string(), what };
        let text = files::read_granted(path)?.ok_or_else(|| wrong("it does not exist".to_owned()))?;
        let text = String::from_utf8(text).map_err(|_| wrong("it is no text".to_owned()))?;
        let mut config: ProviderConfig =
            toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
        secret_keeping(&config.issuer).map_err(wrong)?;
        let url = secret_keeping(&config.url).map_err(wrong)?;
        if url.path() != "/" || url.query().is_some() {
            return Err(wrong(format!("url = {:?} has a path: write https://ORIGIN:PORT", config.url)));
        }
        config.url = config.url.trim_end_matches('/').to_owned();
        if !config.scopes.iter().any(|scope| scope == "openid") {
            return Err(wrong("scopes lack openid".to_owned()));
        }
        let allowed = [Scope::Read, Scope::View, Scope::Channel, Scope::Downgrade];
        // A person holds no token. One with the scope admin would count as the last administrator.
        if let Some(scope) = config.groups.values().flatten().find(|scope| !allowed.contains(scope)) {
            let what = format!(
                "[groups] gives the scope {}: choose of read, view, channel, downgrade",
                scope.as_str()
            );
            return Err(wrong(what));
        }
        if config.groups.values().all(Vec::is_empty) {
            return Err(wrong(
                "no group has a scope, so nobody could sign in: add some to [groups]".to_owned(),
            ));
        }
        let mut roots = RootCertStore::empty();
        let found = CertificateDer::pem_file_iter(&config.authorities);
        let found = found.map_err(|error| wrong(format!("{}: {error}", config.authorities.display())))?;
        roots.add_parsable_certificates(found.flatten());
        let client = Client::builder()
            .tls_backend_preconfigured(public_client(roots))
            .redirect(redirect::Policy::none())
            .timeout(WAIT)
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Self { config, client, known: Mutex::default(), codes: Semaphore::new(CODES_MAX) })
    }

    /// Name of the provider.
    pub(super) fn issuer(&self) -> &str {
        &self.config.issuer
    }

    /// Scopes of a group.
    pub(super) fn scopes(&self, group: &str) -> impl Iterator<Item = Scope> {
        self.config.groups.get(group).into_iter().flatten().copied()
    }

    /// Name of a person among the API tokens. It is the hash of no token, since its input is none.
    pub(super) fn key_of(&self, subject: &str) -> [u8; 32] {
        let person = format!("{}\0{subject}", self.config.issuer);
        blake3::derive_key("distd oidc person 2026-11", person.as_bytes())
    }

    fn return_address(&self) -> String {
        format!("{}{RETURN_PATH}", self.config.url)
    }

    /// Address at the provider to which a person is led.
    ///
    /// # Errors
    /// [`ProviderError::Unreachable`] and [`ProviderError::Answer`].
    pub(super) async fn address(
        &self,
        state: &str,
        nonce: &str,
        challenge: &str,
    ) -> Result<String, ProviderError> {
        let known = self.known(None).await?;
        let mut url = self.endpoint(&known.discovery.authorization_endpoint)?;
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.config.client_id)
            .append_pair("redirect_uri", &self.return_address())
            .append_pair("scope", &self.config.scopes.join(" "))
            .append_pair("state", state)
            .append_pair("nonce", nonce)
            .append_pair("code_challenge", challenge)
            .append_pair("code_challenge_method", "S256");
        Ok(url.into())
    }

    /// The person to whom the provider gave `code`.
    ///
    /// # Errors
    /// [`ProviderError`].
    pub(super) async fn person(
        &self,
        code: &str,
        verifier: &str,
        nonce: &str,
    ) -> Result<Person, ProviderError> {
        #[derive(Deserialize)]
        struct Tokens {
            id_token: String,
        }
        if code.is_empty() {
            return Err(ProviderError::Token("there is no code".to_owned()));
        }
        let _place = self.codes.try_acquire().map_err(|_| ProviderError::Busy)?;
        let known = self.known(None).await?;
        let to = self.endpoint(&known.discovery.token_endpoint)?;
        let return_address = self.return_address();
        let mut fields = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", &return_address),
            ("code_verifier", verifier),
        ];
        let mut request = self.client.post(to.clone());
        match &self.config.client_secret {
            // Both are form-encoded first (RFC 6749, 2.3.1).
            Some(secret) => {
                let encoded = |text: &str| -> String {
                    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
                };
                request = request.basic_auth(encoded(&self.config.client_id), Some(encoded(secret)));
            }
            None => fields.push(("client_id", &self.config.client_id)),
        }
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
        let tokens: Tokens = answer(to.as_str(), request).await?;
        self.read(&tokens.id_token, nonce).await
    }

    /// Checks a token of the provider and reads it.
    async fn read(&self, token: &str, nonce: &str) -> Result<Person, ProviderError> {
        let refused = |error: jsonwebtoken::errors::Error| ProviderError::Token(error.to_string());
        let header = decode_header(token).map_err(refused)?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(ProviderError::Token(format!("{:?} signs with a shared secret", header.alg)));
        }
        let known = self.known(header.kid.as_deref()).await?;
        let key = match &header.kid {
            Some(kid) => known.keys.find(kid),
            None if known.keys.keys.len() == 1 => known.keys.keys.first(),
            None => None,
        };
        let key =
            key.ok_or_else(|| ProviderError::Token("the provider does not publish its key".to_owned()))?;
        let key = DecodingKey::from_jwk(key).map_err(refused)?;
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY_SECONDS;
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_audience(&[&self.config.client_id]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let claims = decode::<BTreeMap<String, Value>>(token, &key, &validation).map_err(refused)?.claims;
        let text = |claim: &str| claims.get(claim).and_then(Value::as_str);
        if text("nonce") != Some(nonce) {
            return Err(ProviderError::Token("it is of another sign-in".to_owned()));
        }
        // With several audiences the provider says for which one it made the token.
        let has_others = claims.get("aud").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
        if has_others && text("azp") != Some(&self.config.client_id) {
            return Err(ProviderError::Token("it was made for another client".to_owned()));
        }
        let subject = text("sub").filter(|subject| !subject.is_empty() && subject.len() <= 255);
        let subject = subject.ok_or_else(|| ProviderError::Token("it names nobody".to_owned()))?;
        let groups = match claims.get(&self.config.groups_claim) {
            Some(Value::Array(groups)) => {
                groups.iter().filter_map(Value::as_str).map(str::to_owned).collect()
            }
            Some(Value::String(group)) => vec![group.clone()],
            _ => Vec::new(),
        };
        let name = text(&self.config.name_claim).map(str::to_owned);
        Ok(Person { subject: subject.to_owned(), name, groups })
    }

    fn endpoint(&self, address: &str) -> Result<Url, ProviderError> {
        secret_keeping(address)
            .map_err(|what| ProviderError::Answer { address: self.config.issuer.clone(), what })
    }

    /// Addresses and keys of the provider; asks it when they are old, or when `kid` is none of the
    /// keys.
    async fn known(&self, kid: Option<&str>) -> Result<Known, ProviderError> {
        // One asks, and those who wait meanwhile have the answer or the failure too.
        let mut remembered = self.known.lock().await;
        if let Some(known) = &remembered.known {
            let age = known.asked.elapsed();
            let has_key = kid.is_none_or(|kid| known.keys.find(kid).is_some());
            if age < REMEMBERED && (has_key || age < ASK_AGAIN) {
                return Ok(known.clone());
            }
        }
        let failed = remembered.failed.take_if(|(at, _)| at.elapsed() < FAILED);
        let asked = match &failed {
            Some((_, what)) => Err(ProviderError::FailedBefore(what.clone())),
            None => self.ask().await,
        };
        match asked {
            Ok(known) => {
                remembered.failed = None;
                Ok(remembered.known.insert(known).clone())
            }
            Err(error) => {
                remembered.failed = failed.or_else(|| Some((Instant::now(), error.to_string())));
                // Addresses and keys of before are better than none.
                remembered.known.clone().ok_or(error)
            }
        }
    }

    /// Asks the provider for its addresses and keys.
    async fn ask(&self) -> Result<Known, ProviderError> {
        let address =
            format!("{}/.well-known/openid-configuration", self.config.issuer.trim_end_matches('/'));
        let discovery: Discovery = answer(&address, self.client.get(&address)).await?;
        if discovery.issuer != self.config.issuer {
            let what = format!("it is of the provider {}", discovery.issuer);
            return Err(ProviderError::Answer { address, what });
        }
        let keys = self.endpoint(&discovery.jwks_uri)?;
        let keys: JwkSet = answer(keys.as_str(), self.client.get(keys.clone())).await?;
        Ok(Known { discovery: Arc::new(discovery), keys: Arc::new(keys), asked: Instant::now() })
    }
}

/// Sends a request and reads its JSON answer.
async fn answer<T: DeserializeOwned>(
    address: &str,
    request: reqwest::RequestBuilder,
) -> Result<T, ProviderError> {
    let unreachable = |cause: reqwest::Error| ProviderError::Unreachable {
        address: address.to_owned(),
        cause: cause.without_url(),
    };
    let wrong = |what: String| ProviderError::Answer { address: address.to_owned(), what };
    let mut response = request.header("accept", "application/json").send().await.map_err(unreachable)?;
    if !response.status().is_success() {
        return Err(wrong(format!("status {}", response.status())));
    }
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(unreachable)? {
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(wrong(format!("it is longer than {ANSWER_BYTES_MAX} bytes")));
        }
        body.extend_from_slice(&piece);
    }
    // The parser's message may show a part of a token.
    serde_json::from_slice(&body)
        .map_err(|error| wrong(format!("it is not the JSON of OpenID: {:?}", error.classify())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(text: &str) -> Result<Provider, ProviderError> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("oidc.toml");
        files::write_atomic(&path, text.as_bytes(), 0o600).expect("written");
        let authorities = directory.path().join("authorities.pem");
        std::fs::write(&authorities, "").expect("written");
        Provider::open(&path)
    }

    const RIGHT: &str = r#"
        issuer = "https://login.example/realm"
        client_id = "distd"
        url = "https://origin.example:7443/"
        authorities = "/dev/null"
        [groups]
        operators = ["read", "view", "channel"]
    "#;

    #[test]
    fn settings_that_let_secrets_out_or_nobody_in_are_refused() {
        let provider = opened(RIGHT).expect("settings");
        assert_eq!(
            provider.scopes("operators").collect::<Vec<_>>(),
            [Scope::Read, Scope::View, Scope::Channel]
        );
        assert_eq!(provider.scopes("others").count(), 0);
        assert_eq!(provider.return_address(), "https://origin.example:7443/ui/oidc");
        assert_ne!(provider.key_of("a"), provider.key_of("b"));
        for (from, to, says) in [
            ("https://login", "http://login", "does not begin with https://"),
            ("https://origin", "http://origin", "does not begin with https://"),
            (":7443/\"", ":7443/ui\"", "has a path"),
            ("[\"read\", \"view\", \"channel\"]", "[]", "nobody could sign in"),
            ("\"read\"", "\"fly\"", "unknown variant"),
            ("\"read\"", "\"admin\"", "gives the scope admin"),
            ("client_id", "client", "unknown field"),
            ("/dev/null", "/nowhere/authorities", "/nowhere/authorities"),
        ] {
            let error = opened(&RIGHT.replace(from, to)).err().expect("an error").to_string();
            assert!(error.contains(says), "{error}");
        }
        // On this machine plain HTTP reveals nothing to others.
        assert!(opened(&RIGHT.replace("https://login.example", "http://127.0.0.1:8080")).is_ok());
    }
}
