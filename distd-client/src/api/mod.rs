//! Client of the origin's HTTP API (docs/http-api.md).

mod error;
mod fleet;
mod rollouts;
mod space;
mod upload;
mod url;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use distd_core::api::{
    BundleMetadata, Channel, ChannelApproval, ChannelHistory, ChannelList, DdiTokenList, FileName,
    JoinTokenList, MadeDdiToken, MadeJoinToken, MadeToken, MadeWebhook, Move, NewBundleMetadata, NewDdiToken,
    NewJoinToken, NewToken, NewWebhook, NodeList, PatchSet, PatchSetList, Product, ProductList, Release,
    RevokeNode, RevokedNode, Token, TokenList, Wanted, WebhookDeliveryList, WebhookList, WebhookRetry,
    WebhookTest,
};
use distd_core::names::Name;
use distd_core::role::Role;
use distd_peer::trust::tls::{TrustAnchor, https_client};
use distd_peer::trust::token::ApiToken;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use error::ApiError;
pub use space::QuotaOf;
pub use upload::{CommitRequest, Upload, persistently};
pub use url::{ServerUrl, ServerUrlError};

/// Time limit for establishing a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Time limit for the answer to a small request.
const ANSWER: Duration = Duration::from_secs(60);

/// Interval of TCP keepalive probes, which detect a dead connection. A limit on the answer's time
/// cannot: the commit of a large artifact is silent for minutes while the origin reads the artifact
/// back.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Largest answer that the client reads, in bytes. Lists of a realm with tens of thousands of nodes
/// fit.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Parameters of a request; one without a value is left out.
pub type Query = [(&'static str, Option<String>)];

/// Client of the origin's HTTP API with one token. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    client: Client,
    server: ServerUrl,
    authorization: Option<HeaderValue>,
}

impl Api {
    /// Makes a client for `server` and `token`; the token's fingerprint says which CA to trust.
    /// Without a token only requests that need none work, and only over plain HTTP.
    ///
    /// # Errors
    /// [`ApiError::Client`].
    pub fn new(server: ServerUrl, token: Option<&ApiToken>) -> Result<Self, ApiError> {
        let anchor = token.map(|token| TrustAnchor::Fingerprint(*token.ca_fingerprint()));
        let authorization = token.map(|token| {
            let text = format!("Bearer {}", token.to_secret_string());
            let mut value = HeaderValue::try_from(text).expect("a token is ASCII without control characters");
            value.set_sensitive(true);
            value
        });
        Self::with_anchor(server, anchor, authorization)
    }

    /// Makes a client for `server` without a token; `anchor` verifies the server's certificate.
    ///
    /// # Errors
    /// [`ApiError::Client`].
    pub fn anonymous(server: ServerUrl, anchor: TrustAnchor) -> Result<Self, ApiError> {
        Self::with_anchor(server, Some(anchor), None)
    }

    fn with_anchor(
        server: ServerUrl,
        anchor: Option<TrustAnchor>,
        authorization: Option<HeaderValue>,
    ) -> Result<Self, ApiError> {
        let mut builder = Client::builder()
            .user_agent(concat!("distd/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            // No redirects: the token goes to the configured server and nowhere else.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE)
            .tcp_keepalive_retries(3)
            .tcp_user_timeout(KEEPALIVE * 4);
        if server.is_loopback() {
            builder = builder.no_proxy();
        }
        // Plain HTTP needs no anchor, but the builder needs a TLS configuration. Use one that
        // trusts nobody.
        let anchor = anchor.unwrap_or(TrustAnchor::Fingerprint([0; 32]));
        let mut tls = https_client(&anchor);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let client = builder.tls_backend_preconfigured(tls).build().map_err(ApiError::Client)?;
        Ok(Self { client, server, authorization })
    }

    /// Returns the URL of the server.
    pub fn server(&self) -> &ServerUrl {
        &self.server
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.request_with(method, path, None)
    }

    fn request_with(&self, method: Method, path: &[&str], query: Option<&str>) -> RequestBuilder {
        let mut url = self.server.join(path);
        url.set_query(query);
        self.to_url(method, url)
    }

    fn to_url(&self, method: Method, url: reqwest::Url) -> RequestBuilder {
        let request = self.client.request(method, url);
        match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value.clone()),
            None => request,
        }
    }

    /// Makes a request for an answer that parameters choose.
    fn asked(&self, path: &[&str], query: &Query) -> RequestBuilder {
        let mut url = self.server.join(path);
        for (name, value) in query {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        self.to_url(Method::GET, url).timeout(ANSWER)
    }

    /// Sends a request and reads the whole answer.
    async fn send(&self, request: RequestBuilder) -> Result<Bytes, ApiError> {
        self.send_for_status(request).await.map(|(_, body)| body)
    }

    /// Like [`send`](Self::send), but also returns the status, for requests with more than one
    /// successful outcome.
    async fn send_for_status(&self, request: RequestBuilder) -> Result<(StatusCode, Bytes), ApiError> {
        let failed = |cause| ApiError::transport(&self.server, cause);
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(failed)? {
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(ApiError::TooLong);
            }
            body.extend_from_slice(&piece);
        }
        if status.is_success() { Ok((status, body.into())) } else { Err(ApiError::answered(status, &body)) }
    }

    async fn send_json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ApiError> {
        serde_json::from_slice(&self.send(request).await?).map_err(ApiError::Unreadable)
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, ApiError> {
        self.send_json(self.request(Method::GET, path).timeout(ANSWER)).await
    }

    async fn with_body<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        self.send_json(self.request(method, path).timeout(ANSWER).json(body)).await
    }

    /// Checks that the server accepts the token. Any answer but a rejection of the token itself
    /// counts as acceptance.
    pub async fn check_token(&self) -> Result<(), ApiError> {
        match self.send(self.request(Method::GET, &["v1", "products"]).timeout(ANSWER)).await {
            // A token without the right to read is valid all the same.
            Err(error) if error.is_forbidden() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Returns one release.
    pub async fn release(&self, product: &str, version: &str) -> Result<Release, ApiError> {
        self.get(&["v1", "products", product, "releases", version]).await
    }

    /// Has metadata signed for a bundle with a release.
    pub async fn sign_for_bundle(
        &self,
        product: &Name,
        version: &Name,
        wanted: &NewBundleMetadata,
    ) -> Result<BundleMetadata, ApiError> {
        let path = ["v1", "products", product.as_str(), "releases", version.as_str(), "bundle"];
        self.with_body(Method::POST, &path, wanted).await
    }

    /// Returns one channel.
    pub async fn channel(&self, product: &str, channel: &str) -> Result<Channel, ApiError> {
        self.get(&["v1", "products", product, "channels", channel]).await
    }

    /// Points a channel at a version. With `downgrade`, devices that have a later version are
    /// ordered back to this one.
    pub async fn set_channel(
        &self,
        product: &str,
        channel: &str,
        version: &str,
        downgrade: bool,
    ) -> Result<Channel, ApiError> {
        let path = ["v1", "products", product, "channels", channel];
        let body = Move { version: version.to_owned(), downgrade };
        // The origin reads a release of a product with a file name before it answers.
        self.send_json(self.request(Method::PUT, &path).json(&body)).await
    }

    /// Has the rollouts of a channel wait for the approval of a second token, or not.
    pub async fn set_approval(
        &self,
        product: &str,
        channel: &str,
        wanted: bool,
    ) -> Result<ChannelApproval, ApiError> {
        let path = ["v1", "products", product, "channels", channel, "approval"];
        self.with_body(Method::PUT, &path, &ChannelApproval { wanted }).await
    }

    /// Returns at most `limit` changes of a channel, newest first, that precede the change
    /// `before`.
    pub async fn channel_history(
        &self,
        product: &str,
        channel: &str,
        before: Option<u64>,
        limit: u32,
    ) -> Result<ChannelHistory, ApiError> {
        let path = ["v1", "products", product, "channels", channel, "history"];
        let mut query = format!("limit={limit}");
        if let Some(before) = before {
            query.push_str(&format!("&before={before}"));
        }
        self.send_json(self.request_with(Method::GET, &path, Some(&query)).timeout(ANSWER)).await
    }

    /// Asks the origin to make the patches to one version from another, or from nothing.
    pub async fn make_patches(
        &self,
        product: &str,
        from: Option<&str>,
        to: &str,
    ) -> Result<PatchSet, ApiError> {
        let path = ["v1", "products", product, "releases", to, "patches"];
        self.with_body(Method::POST, &path, &Wanted { from: from.map(str::to_owned) }).await
    }

    /// Returns the patch sets of a product.
    pub async fn patches(&self, product: &str) -> Result<PatchSetList, ApiError> {
        self.get(&["v1", "products", product, "patches"]).await
    }

    /// Makes an API token. The answer has the token's text, which the origin never shows again.
    pub async fn create_token(
        &self,
        label: &str,
        scopes: &[String],
        products: &[String],
        expires_in: Option<Duration>,
    ) -> Result<MadeToken, ApiError> {
        let body = NewToken {
            label: label.to_owned(),
            scopes: scopes.to_vec(),
            products: (!products.is_empty()).then(|| products.to_vec()),
            expires_in: expires_in.map(|validity| validity.as_secs()),
        };
        self.with_body(Method::POST, &["v1", "tokens"], &body).await
    }

    /// Makes a join token, with the labels that nodes get when they enrol with it.
    pub async fn create_join_token(
        &self,
        role: Role,
        uses: u32,
        expires_in: Duration,
        label: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<MadeJoinToken, ApiError> {
        let expires_in = Some(expires_in.as_secs());
        let body =
            NewJoinToken { role, uses: Some(uses.into()), expires_in, label: label.to_owned(), labels };
        self.with_body(Method::POST, &["v1", "join-tokens"], &body).await
    }

    /// Returns the API tokens, without their secrets.
    pub async fn tokens(&self) -> Result<TokenList, ApiError> {
        self.get(&["v1", "tokens"]).await
    }

    /// Returns the join tokens, without their secrets.
    pub async fn join_tokens(&self) -> Result<JoinTokenList, ApiError> {
        self.get(&["v1", "join-tokens"]).await
    }

    /// Returns the token that this client uses.
    pub async fn own_token(&self) -> Result<Token, ApiError> {
        self.get(&["v1", "token"]).await
    }

    async fn delete(&self, path: &[&str]) -> Result<(), ApiError> {
        self.send(self.request(Method::DELETE, path).timeout(ANSWER)).await.map(drop)
    }

    /// Revokes a join token.
    pub async fn revoke_join_token(&self, id: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "join-tokens", id]).await
    }

    /// Removes a channel.
    pub async fn remove_channel(&self, product: &str, channel: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "products", product, "channels", channel]).await
    }

    /// Returns the channels of a product.
    pub async fn channels(&self, product: &str) -> Result<ChannelList, ApiError> {
        self.get(&["v1", "products", product, "channels"]).await
    }

    /// Makes a token of DDI devices.
    pub async fn make_ddi_token(&self, new: &NewDdiToken) -> Result<MadeDdiToken, ApiError> {
        self.with_body(Method::POST, &["v1", "ddi", "tokens"], new).await
    }

    /// Returns the tokens of DDI devices.
    pub async fn ddi_tokens(&self) -> Result<DdiTokenList, ApiError> {
        self.get(&["v1", "ddi", "tokens"]).await
    }

    /// Revokes a token of DDI devices.
    pub async fn revoke_ddi_token(&self, id: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "ddi", "tokens", id]).await
    }

    /// Sets the file name of a product.
    pub async fn set_file_name(&self, product: &str, name: &str) -> Result<Product, ApiError> {
        let path = ["v1", "products", product, "file-name"];
        // The origin reads the releases of the product's channels before it answers.
        self.send_json(self.request(Method::PUT, &path).json(&FileName { name: name.to_owned() })).await
    }

    /// Removes the file name of a product.
    pub async fn remove_file_name(&self, product: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "products", product, "file-name"]).await
    }

    /// Registers a webhook. The answer has the key of its signatures, which the origin never shows
    /// again.
    pub async fn add_webhook(&self, new: &NewWebhook) -> Result<MadeWebhook, ApiError> {
        self.with_body(Method::POST, &["v1", "webhooks"], new).await
    }

    /// Returns the webhooks and how they fare.
    pub async fn webhooks(&self) -> Result<WebhookList, ApiError> {
        self.get(&["v1", "webhooks"]).await
    }

    /// Removes a webhook.
    pub async fn remove_webhook(&self, id: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "webhooks", id]).await
    }

    /// Returns the newest events of a webhook.
    pub async fn webhook_deliveries(&self, id: &str) -> Result<WebhookDeliveryList, ApiError> {
        self.get(&["v1", "webhooks", id, "deliveries"]).await
    }

    /// Has the origin try a webhook now.
    pub async fn test_webhook(&self, id: &str) -> Result<WebhookTest, ApiError> {
        self.send_json(self.request(Method::POST, &["v1", "webhooks", id, "test"]).timeout(ANSWER)).await
    }

    /// Has the origin try events again.
    pub async fn retry_webhook(&self, id: &str) -> Result<WebhookRetry, ApiError> {
        self.send_json(self.request(Method::POST, &["v1", "webhooks", id, "retry"]).timeout(ANSWER)).await
    }

    /// Returns the products that the token can see.
    pub async fn products(&self) -> Result<ProductList, ApiError> {
        self.get(&["v1", "products"]).await
    }

    /// Revokes an API token.
    pub async fn revoke_token(&self, id: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "tokens", id]).await
    }

    /// Returns the nodes of the realm.
    pub async fn nodes(&self) -> Result<NodeList, ApiError> {
        self.get(&["v1", "nodes"]).await
    }

    /// Revokes a node.
    pub async fn revoke_node(&self, id: &str) -> Result<(), ApiError> {
        self.send(self.request(Method::POST, &["v1", "nodes", id, "revoke"]).timeout(ANSWER)).await.map(drop)
    }

    /// Revokes a node and the join tokens it enrolled with.
    pub async fn revoke_node_and_tokens(&self, id: &str) -> Result<RevokedNode, ApiError> {
        let body = RevokeNode { tokens: true };
        self.with_body(Method::POST, &["v1", "nodes", id, "revoke"], &body).await
    }

    /// Does one enrolment exchange over HTTPS; both bodies are msgpack.
    pub async fn enroll(&self, message: Vec<u8>) -> Result<Bytes, ApiError> {
        let request = self.request(Method::POST, &["v1", "enroll"]).timeout(ANSWER);
        self.send(request.header(CONTENT_TYPE, "application/msgpack").body(message)).await
    }
}
