//! Types of the origin's HTTP API, once for server, client and tests: bodies, upload records,
//! bounds and the error body.
//!
//! docs/http-api.md gives the reasons, docs/openapi.json is the description for programs, which is
//! made from these types (feature `openapi`). The origin refuses a request with an unknown field,
//! because a misspelt field would silently do nothing. A client ignores the unknown fields of an
//! answer, because a newer origin may have more; an unknown word is a [`Word::Other`]. A field that
//! newer origins have, and older clients or origins do not, has a default.

mod audit;
mod bundles;
mod channels;
mod ddi;
mod error;
mod fleet;
mod grants;
mod groups;
mod nodes;
mod patches;
mod products;
mod receipts;
mod releases;
mod rollouts;
mod space;
mod state;
mod tokens;
mod uploads;
mod webhooks;
mod why;
mod word;

pub use audit::{AUDIT_PAGE, AUDIT_PAGE_MAX, AuditEntry, AuditPage};
pub use bundles::{BundleMetadata, NewBundleMetadata};
pub use channels::{
    CHANGES_PAGE, CHANGES_PAGE_MAX, Channel, ChannelApproval, ChannelChange, ChannelHistory, ChannelList,
    Move,
};
pub use ddi::{DdiToken, DdiTokenList, MadeDdiToken, NewDdiToken};
pub use error::{ErrorBody, ErrorDetail, code};
pub use fleet::{
    DEVICES_PAGE, DEVICES_PAGE_MAX, FLEET_RELEASES_MAX, FleetChannel, FleetContacts, FleetCount, FleetDevice,
    FleetNode, FleetPage, FleetRelease, FleetStatus, FleetUpdates, NODE_ATTEMPTS_MAX, NodeAttempt,
};
pub use grants::{GRANT_RELEASES_MAX, GrantInfo, GrantList, GrantState, NewGrants};
pub use groups::{Group, GroupList, GroupMembers, GroupSelection, MEMBERS_PAGE, MEMBERS_PAGE_MAX, NewGroup};
pub use nodes::{
    ChangeLabels, Node, NodeDetail, NodeLabels, NodeList, NodeRunning, Pin, RevokeNode, RevokedNode,
    label_texts,
};
pub use patches::{PatchSet, PatchSetList, PatchSetState, Wanted};
pub use products::{Cut, FileName, NewProduct, Product, ProductList};
pub use receipts::{
    NodeLog, RECEIPTS_PAGE, RECEIPTS_PAGE_MAX, ReceiptsEntry, ReceiptsHead, ReceiptsPage, ReceiptsProof,
};
pub use releases::{Release, ReleaseKind, ReleaseList};
pub use rollouts::{
    Approval, NewRollout, ROLLOUT_FAILURES_MAX, ROLLOUT_REASON_MAX, ROLLOUT_TURNS_MAX, ROLLOUTS_MAX, Rollout,
    RolloutDetail, RolloutEvent, RolloutFailure, RolloutList, RolloutOrder, RolloutStage, RolloutTurn,
    RolloutVerb, RolloutWave,
};
pub use space::{
    CollectNow, GcLot, GcPatchSet, GcRelease, GcReport, KeepReason, Kept, PIN_REASON_MAX, PinRelease,
    QUOTA_BYTES_MAX, Quota, QuotaBounds, QuotaList, REMOVALS, REMOVALS_MAX, RETENTION_MAX, Retention,
    RetentionSet, SetReason,
};
pub use state::{Ready, Version};
pub use tokens::{
    JOIN_USES_MAX, JoinTokenInfo, JoinTokenList, JoinTokenState, MadeJoinToken, MadeToken, NewJoinToken,
    NewToken, Scope, Token, TokenList, TokenState,
};
pub use uploads::{
    ARTIFACT_CHUNKS_MAX, Announced, CHUNKS_BYTES_MAX, Commit, CommitError, HASHES_MAX, LIST_BYTES_MAX,
    OpenUploadInfo, RECORD_HEAD_BYTES, RUN_BYTES, RecordError, RecordHead, Run, Stored, Upload, UploadList,
};
pub use webhooks::{
    DELIVERIES_MAX, DeliveryState, EventKind, MadeWebhook, NewWebhook, WEBHOOK_URL_BYTES_MAX, WEBHOOKS_MAX,
    Webhook, WebhookDelivery, WebhookDeliveryList, WebhookList, WebhookRetry, WebhookState, WebhookTest,
};
pub use word::Word;

#[cfg(test)]
mod golden;
