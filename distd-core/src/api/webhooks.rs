//! Webhooks: addresses to which the origin sends events.

use serde::{Deserialize, Serialize};

use super::Word;

/// Most webhooks of a realm.
pub const WEBHOOKS_MAX: u64 = 20;

/// Longest address of a webhook, bytes.
pub const WEBHOOK_URL_BYTES_MAX: usize = 2048;

/// Most deliveries that an answer lists.
pub const DELIVERIES_MAX: u32 = 100;

/// Kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum EventKind {
    /// A release can be installed.
    #[serde(rename = "release.published")]
    ReleasePublished,
    /// A release is published no more; its bytes stay.
    #[serde(rename = "release.withdrawn")]
    ReleaseWithdrawn,
    /// A withdrawn release is published again.
    #[serde(rename = "release.restored")]
    ReleaseRestored,
    /// A release is published no more, and its bytes go.
    #[serde(rename = "release.removed")]
    ReleaseRemoved,
    /// A rollout began.
    #[serde(rename = "rollout.started")]
    RolloutStarted,
    /// A wave of a rollout is open.
    #[serde(rename = "rollout.wave_opened")]
    RolloutWaveOpened,
    /// An operator stopped a rollout for a while.
    #[serde(rename = "rollout.paused")]
    RolloutPaused,
    /// A rollout goes on.
    #[serde(rename = "rollout.resumed")]
    RolloutResumed,
    /// A rollout stands still because of failures, or by an order.
    #[serde(rename = "rollout.halted")]
    RolloutHalted,
    /// Every wave of a rollout succeeded.
    #[serde(rename = "rollout.finished")]
    RolloutFinished,
    /// The devices of a rollout were ordered back.
    #[serde(rename = "rollout.rolled_back")]
    RolloutRolledBack,
    /// Another rollout, or an order about the channel, took the place of a rollout.
    #[serde(rename = "rollout.superseded")]
    RolloutSuperseded,
    /// A node was let in.
    #[serde(rename = "node.enrolled")]
    NodeEnrolled,
    /// A node was revoked.
    #[serde(rename = "node.revoked")]
    NodeRevoked,
    /// An attempt of a node at a rollout failed.
    #[serde(rename = "node.update_failed")]
    NodeUpdateFailed,
    /// More than nine tenths of a quota are taken.
    #[serde(rename = "quota.nearly_full")]
    QuotaNearlyFull,
    /// An operator tries a webhook.
    #[serde(rename = "webhook.test")]
    WebhookTest,
}

impl EventKind {
    /// Every kind that a webhook can ask for.
    pub const ALL: [Self; 16] = [
        Self::ReleasePublished,
        Self::ReleaseWithdrawn,
        Self::ReleaseRestored,
        Self::ReleaseRemoved,
        Self::RolloutStarted,
        Self::RolloutWaveOpened,
        Self::RolloutPaused,
        Self::RolloutResumed,
        Self::RolloutHalted,
        Self::RolloutFinished,
        Self::RolloutRolledBack,
        Self::RolloutSuperseded,
        Self::NodeEnrolled,
        Self::NodeRevoked,
        Self::NodeUpdateFailed,
        Self::QuotaNearlyFull,
    ];

    /// The kind as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReleasePublished => "release.published",
            Self::ReleaseWithdrawn => "release.withdrawn",
            Self::ReleaseRestored => "release.restored",
            Self::ReleaseRemoved => "release.removed",
            Self::RolloutStarted => "rollout.started",
            Self::RolloutWaveOpened => "rollout.wave_opened",
            Self::RolloutPaused => "rollout.paused",
            Self::RolloutResumed => "rollout.resumed",
            Self::RolloutHalted => "rollout.halted",
            Self::RolloutFinished => "rollout.finished",
            Self::RolloutRolledBack => "rollout.rolled_back",
            Self::RolloutSuperseded => "rollout.superseded",
            Self::NodeEnrolled => "node.enrolled",
            Self::NodeRevoked => "node.revoked",
            Self::NodeUpdateFailed => "node.update_failed",
            Self::QuotaNearlyFull => "quota.nearly_full",
            Self::WebhookTest => "webhook.test",
        }
    }
}

/// Webhook to register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewWebhook {
    /// Address to which events are sent, `https://…`.
    pub url: String,
    /// Kinds of events; every kind when absent or empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<EventKind>))]
    pub events: Vec<String>,
    /// Text for operators.
    #[serde(default)]
    pub label: String,
}

/// Webhook that was registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MadeWebhook {
    /// Its id.
    pub id: String,
    /// Key of the signatures, as the Standard Webhooks write it; only this answer shows it.
    pub secret: String,
}

/// State of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum WebhookState {
    /// The newest try was taken, or there was none yet.
    Healthy,
    /// The newest try failed; it is made again.
    Failing,
    /// Events were given up or lost since the newest one that was taken.
    GivenUp,
}

/// Registered webhook, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Webhook {
    /// Its id.
    pub id: String,
    /// Address; for a token without the scope `admin` without path and query, which may hold a
    /// secret of the receiver.
    pub url: String,
    /// Kinds of events; empty for every kind.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<EventKind>))]
    pub events: Vec<Word<EventKind>>,
    /// Text for operators.
    pub label: String,
    /// Time of its registration, unix seconds.
    pub created: i64,
    /// State.
    #[cfg_attr(feature = "openapi", schema(value_type = WebhookState))]
    pub state: Word<WebhookState>,
    /// Events that wait to be delivered.
    pub waiting: u64,
    /// Events that were given up, of the last 30 days.
    pub given_up: u64,
    /// Events that were not kept because too many waited.
    pub lost: u64,
    /// Time at which an event was taken last, unix seconds; null for never.
    pub delivered: Option<i64>,
    /// Time since which every try has failed, unix seconds; null if the newest one was taken.
    pub failing: Option<i64>,
    /// Reason why the newest try failed; null if it was taken.
    pub error: Option<String>,
}

/// All webhooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookList {
    /// Webhooks, the oldest first.
    pub webhooks: Vec<Webhook>,
}

/// State of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It is tried, or tried again later.
    Waiting,
    /// The receiver took it.
    Delivered,
    /// The receiver did not take it for days.
    GivenUp,
}

impl DeliveryState {
    /// The state as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::GivenUp => "given_up",
        }
    }
}

/// Event on its way to a webhook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookDelivery {
    /// Id of the message, the header `webhook-id`; the same at every try.
    pub message: String,
    /// Kind of the event.
    #[cfg_attr(feature = "openapi", schema(value_type = EventKind))]
    pub event: Word<EventKind>,
    /// Time of the event, unix seconds.
    pub at: i64,
    /// State.
    #[cfg_attr(feature = "openapi", schema(value_type = DeliveryState))]
    pub state: Word<DeliveryState>,
    /// Tries so far.
    pub tries: u64,
    /// Time of the next try, unix seconds; null for none.
    pub next: Option<i64>,
    /// Result of the newest try: status of the answer, or a reason; null before the first.
    pub result: Option<String>,
}

/// Newest deliveries of a webhook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookDeliveryList {
    /// Deliveries, the newest first, at most 100.
    pub deliveries: Vec<WebhookDelivery>,
}

/// Result of a test of a webhook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookTest {
    /// Whether the receiver took the event.
    pub delivered: bool,
    /// Status of the answer, or the reason for which there is none.
    pub result: String,
    /// Time until the answer, milliseconds.
    pub milliseconds: u64,
}

/// Events that are tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookRetry {
    /// Number of events.
    pub events: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_json() {
        for kind in EventKind::ALL.into_iter().chain([EventKind::WebhookTest]) {
            assert_eq!(serde_json::to_value(kind).expect("a word"), kind.as_str());
        }
        for state in [DeliveryState::Waiting, DeliveryState::Delivered, DeliveryState::GivenUp] {
            assert_eq!(serde_json::to_value(state).expect("a word"), state.as_str());
        }
    }
}
