//! Requests about space: removal of releases, retention, pins, collections and quotas.

use distd_core::api::{
    CollectNow, GcReport, PinRelease, Product, QuotaBounds, QuotaList, Release, ReleaseList, Retention,
    RetentionSet,
};
use reqwest::Method;

use super::{Api, ApiError};

/// The one that a quota is for.
#[derive(Clone, Copy, Debug)]
pub enum QuotaOf<'a> {
    /// A product.
    Product(&'a str),
    /// An API token, by its id.
    Token(&'a str),
}

impl<'a> QuotaOf<'a> {
    fn path(self) -> [&'a str; 4] {
        match self {
            Self::Product(name) => ["v1", "quotas", "product", name],
            Self::Token(id) => ["v1", "quotas", "token", id],
        }
    }
}

impl Api {
    /// Returns the releases of a product, also those that are withdrawn.
    pub async fn every_release(&self, product: &str) -> Result<ReleaseList, ApiError> {
        let path = ["v1", "products", product, "releases"];
        self.send_json(self.request_with(Method::GET, &path, Some("withdrawn=true"))).await
    }

    /// Returns one release, also one that is withdrawn.
    pub async fn release_in_any_state(&self, product: &str, version: &str) -> Result<Release, ApiError> {
        let path = ["v1", "products", product, "releases", version];
        self.send_json(self.request_with(Method::GET, &path, Some("withdrawn=true"))).await
    }

    /// Removes a release. The answer may take minutes when the bytes are to go at once.
    pub async fn remove_release(
        &self,
        product: &str,
        version: &str,
        now: bool,
        force: bool,
    ) -> Result<(), ApiError> {
        let path = ["v1", "products", product, "releases", version];
        let query = format!("now={now}&unless_running={}", !force);
        self.send(self.request_with(Method::DELETE, &path, Some(&query))).await.map(drop)
    }

    /// Withdraws a release; its bytes stay.
    pub async fn withdraw(&self, product: &str, version: &str) -> Result<(), ApiError> {
        let path = ["v1", "products", product, "releases", version, "withdraw"];
        self.send(self.request(Method::POST, &path)).await.map(drop)
    }

    /// Brings a withdrawn release back.
    pub async fn restore(&self, product: &str, version: &str) -> Result<(), ApiError> {
        let path = ["v1", "products", product, "releases", version, "restore"];
        self.send(self.request(Method::POST, &path)).await.map(drop)
    }

    /// Pins a release.
    pub async fn pin_release(&self, product: &str, version: &str, why: &str) -> Result<(), ApiError> {
        let path = ["v1", "products", product, "releases", version, "pin"];
        let body = PinRelease { why: why.to_owned() };
        self.send(self.request(Method::PUT, &path).json(&body)).await.map(drop)
    }

    /// Removes the pin of a release.
    pub async fn unpin_release(&self, product: &str, version: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "products", product, "releases", version, "pin"]).await
    }

    /// Returns one product.
    pub async fn product(&self, product: &str) -> Result<Product, ApiError> {
        self.get(&["v1", "products", product]).await
    }

    /// Sets what a product keeps.
    pub async fn set_retention(
        &self,
        product: &str,
        retention: &Retention,
    ) -> Result<RetentionSet, ApiError> {
        self.with_body(Method::PUT, &["v1", "products", product, "retention"], retention).await
    }

    /// Removes the policy of a product.
    pub async fn remove_retention(&self, product: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "products", product, "retention"]).await
    }

    /// Returns what a collection would do now. The origin reads every manifest before it answers.
    pub async fn gc_report(&self, removals_max: Option<u32>) -> Result<GcReport, ApiError> {
        let query = removals_max.map(|max| format!("removals_max={max}"));
        self.send_json(self.request_with(Method::GET, &["v1", "gc"], query.as_deref())).await
    }

    /// Has the origin collect now.
    pub async fn collect(&self, removals_max: Option<u32>) -> Result<GcReport, ApiError> {
        self.send_json(self.request(Method::POST, &["v1", "gc"]).json(&CollectNow { removals_max })).await
    }

    /// Returns the quotas.
    pub async fn quotas(&self) -> Result<QuotaList, ApiError> {
        self.get(&["v1", "quotas"]).await
    }

    /// Sets a quota.
    pub async fn set_quota(&self, of: QuotaOf<'_>, bounds: QuotaBounds) -> Result<(), ApiError> {
        self.send(self.request(Method::PUT, &of.path()).json(&bounds)).await.map(drop)
    }

    /// Removes a quota.
    pub async fn remove_quota(&self, of: QuotaOf<'_>) -> Result<(), ApiError> {
        self.delete(&of.path()).await
    }
}
