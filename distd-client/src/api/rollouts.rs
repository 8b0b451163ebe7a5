//! Requests about rollouts.

use distd_core::api::{NewRollout, RolloutDetail, RolloutList, RolloutOrder};
use reqwest::Method;

use super::{Api, ApiError};

impl Api {
    /// Begins a rollout.
    pub async fn start_rollout(
        &self,
        product: &str,
        channel: &str,
        new: &NewRollout,
    ) -> Result<RolloutDetail, ApiError> {
        let path = ["v1", "products", product, "channels", channel, "rollouts"];
        // The origin reads releases of a product with a file name before it answers.
        self.send_json(self.request(Method::POST, &path).json(new)).await
    }

    /// Returns the rollout of a channel that is under way, or else the newest.
    pub async fn rollout(&self, product: &str, channel: &str) -> Result<RolloutDetail, ApiError> {
        self.get(&["v1", "products", product, "channels", channel, "rollout"]).await
    }

    /// Gives an order about the rollout of a channel that is under way.
    pub async fn order_rollout(
        &self,
        product: &str,
        channel: &str,
        order: &RolloutOrder,
    ) -> Result<RolloutDetail, ApiError> {
        self.with_body(Method::POST, &["v1", "products", product, "channels", channel, "rollout"], order)
            .await
    }

    /// Returns the newest rollouts of a channel.
    pub async fn rollouts(&self, product: &str, channel: &str) -> Result<RolloutList, ApiError> {
        self.get(&["v1", "products", product, "channels", channel, "rollouts"]).await
    }
}
