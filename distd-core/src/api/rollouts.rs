//! Rollouts of releases to channels, in waves.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Word;
use crate::fleet::report::AttemptState;
use crate::fleet::rollout::{AfterHalt, Conditions, RolloutState};

/// Most failures that the answer about a rollout lists.
pub const ROLLOUT_FAILURES_MAX: usize = 100;

/// Most turns that the answer about a rollout lists.
pub const ROLLOUT_TURNS_MAX: usize = 100;

/// Most rollouts of a channel that are listed.
pub const ROLLOUTS_MAX: u32 = 100;

/// Longest reason of an order about a rollout, bytes.
pub const ROLLOUT_REASON_MAX: usize = 200;

/// A rollout to begin. What is absent has the default of the origin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewRollout {
    /// Version that it leads to.
    pub version: String,
    /// Sizes of the waves, each with all waves before it, as `1%,10%,50%,100%` or `5,100%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waves: Option<String>,
    /// Least time for which a wave is open before the next one, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soak: Option<u64>,
    /// Share of a wave's devices that must have succeeded before the next one opens, as `95%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<String>,
    /// Failures that halt the rollout: a number, or a share of the devices in open waves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halt_on: Option<String>,
    /// Consequence of a halt for devices that have the release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_halt: Option<AfterHalt>,
    /// Number of attempts after which a device gives up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Time after which an attempt has failed, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// Time before which no wave opens, unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<u64>,
    /// Selector of the devices that take part; all when absent.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Versions of which one must run before; a device with another version installs the first of
    /// them before. At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// Longest time for which the first wave waits for patches to the release, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch_wait: Option<u64>,
    /// Conditions beside the waves.
    #[serde(default)]
    pub conditions: Conditions,
}

/// An order about the rollout of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum RolloutVerb {
    /// No device begins until the rollout is resumed.
    Pause,
    /// Goes on after a pause or a halt.
    Resume,
    /// No device begins, as after too many failures.
    Halt,
    /// Ends the rollout; devices that have the release go back to the one of the channel.
    Rollback,
    /// Lets the first wave open, where the channel wants a second token for that.
    Approve,
}

/// Whether a rollout waits for the approval of a second token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Approval {
    /// It needs none.
    #[default]
    None,
    /// No wave opens before it.
    Wanted,
    /// It was given.
    Given,
}

impl FromStr for Approval {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        match s {
            "none" => Ok(Self::None),
            "wanted" => Ok(Self::Wanted),
            "given" => Ok(Self::Given),
            _ => Err(()),
        }
    }
}

/// Order about the rollout of a channel, with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RolloutOrder {
    /// The order.
    pub order: RolloutVerb,
    /// Id of the rollout that the order is about, if another one may have begun meanwhile; an
    /// approval names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<String>,
    /// Reason, for the history; at most 200 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// State of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum RolloutStage {
    /// Waves open one after the other.
    Open,
    /// An operator stopped it for a while.
    Paused,
    /// It was stopped because of failures, or by an operator.
    Halted,
    /// Every wave succeeded, and the channel points to the release.
    Complete,
    /// Devices were ordered back to the release of the channel.
    RolledBack,
    /// The channel was set or removed, or another rollout began.
    Superseded,
}

impl RolloutStage {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::Open, Self::Paused, Self::Halted, Self::Complete, Self::RolledBack, Self::Superseded];

    /// Word for the state in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Paused => "paused",
            Self::Halted => "halted",
            Self::Complete => "complete",
            Self::RolledBack => "rolled_back",
            Self::Superseded => "superseded",
        }
    }

    /// The state as devices see it; `None` for a rollout that has ended.
    pub fn as_seen(self) -> Option<RolloutState> {
        match self {
            Self::Open => Some(RolloutState::Open),
            Self::Paused => Some(RolloutState::Paused),
            Self::Halted => Some(RolloutState::Halted),
            Self::Complete | Self::RolledBack | Self::Superseded => None,
        }
    }
}

impl FromStr for RolloutStage {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|stage| stage.as_str() == s).ok_or(())
    }
}

/// A rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rollout {
    /// 32 hexadecimal digits.
    pub id: String,
    /// Product.
    pub product: String,
    /// Channel.
    pub channel: String,
    /// Version that it leads to.
    pub version: String,
    /// Version that the channel pointed to when it began.
    pub from: String,
    /// State.
    #[cfg_attr(feature = "openapi", schema(value_type = RolloutStage))]
    pub state: Word<RolloutStage>,
    /// Why it is in this state; empty where nothing needs saying.
    pub reason: String,
    /// Sizes of the waves.
    pub waves: String,
    /// Least time for which a wave is open before the next one, seconds.
    pub soak: u64,
    /// Share of a wave's devices that must have succeeded before the next one opens.
    pub success: String,
    /// Failures that halt it.
    pub halt_on: String,
    /// Consequence of a halt for devices that have the release.
    #[cfg_attr(feature = "openapi", schema(value_type = AfterHalt))]
    pub after_halt: Word<AfterHalt>,
    /// Number of attempts after which a device gives up.
    pub attempts: u32,
    /// Time after which an attempt has failed, seconds.
    pub timeout: u64,
    /// Time before which no wave opens, unix seconds; null without one.
    pub not_before: Option<u64>,
    /// Selector of the devices that take part; null for all.
    #[serde(rename = "for")]
    pub selector: Option<String>,
    /// Versions of which one must run before.
    pub requires: Vec<String>,
    /// Longest time for which the first wave waits for patches, seconds.
    pub patch_wait: u64,
    /// Conditions beside the waves.
    #[serde(default)]
    pub conditions: Conditions,
    /// Whether it waits for the approval of a second token.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Approval))]
    pub approval: Word<Approval>,
    /// Time of its begin, unix seconds.
    pub created: i64,
    /// Time of its last change, unix seconds.
    pub updated: i64,
}

/// A wave of a rollout and its devices, without those of the waves before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutWave {
    /// Size, with all waves before it.
    pub size: String,
    /// Time since which it is open, unix seconds; null while it is not.
    pub opened: Option<i64>,
    /// Devices.
    pub devices: u64,
    /// Devices that run the release.
    pub succeeded: u64,
    /// Devices whose last attempt failed.
    pub failed: u64,
    /// Devices that have begun and not ended.
    pub trying: u64,
    /// Bytes of the artifact that its devices had, of ended and unended attempts.
    pub bytes_disk: u64,
    /// Bytes received from neighbours.
    pub bytes_neighbours: u64,
    /// Bytes received from relays.
    pub bytes_relay: u64,
    /// Bytes received from origins.
    pub bytes_origin: u64,
}

/// A device on which an attempt at a rollout failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutFailure {
    /// Node id.
    pub node: String,
    /// Wave of the device, from 1.
    pub wave: usize,
    /// Number of the attempt on the device, from 1.
    pub attempt: u32,
    /// `failed` or `rolled_back`.
    #[cfg_attr(feature = "openapi", schema(value_type = AttemptState))]
    pub state: Word<AttemptState>,
    /// Kind of the failure.
    pub kind: String,
    /// Text of the device about the failure.
    pub detail: String,
}

/// Turn of a device in a rollout that lets only some begin at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutTurn {
    /// Node id.
    pub node: String,
    /// Value of the label that the rollout names; empty without it.
    pub group: String,
    /// Time at which the turn was given, unix seconds.
    pub given: i64,
}

/// One change of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutEvent {
    /// Time of the change, unix seconds.
    pub at: i64,
    /// `started`, `approved`, `opened`, `resumed`, or the state that it entered.
    pub event: String,
    /// Text for people.
    pub detail: String,
    /// Id of the token that made the change; null if the origin made it by itself.
    pub token: Option<String>,
    /// Label of that token.
    pub label: Option<String>,
}

/// A rollout with its waves, failures and changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutDetail {
    /// The rollout.
    pub rollout: Rollout,
    /// The thing that the first wave waits for: `approval`, `time` or `patches`; null when it waits
    /// for none of them.
    pub waits_for: Option<String>,
    /// Its waves, in order.
    pub waves: Vec<RolloutWave>,
    /// Turns that are not over, the first given first; at most 100.
    #[serde(default)]
    pub turns: Vec<RolloutTurn>,
    /// Devices on which it failed, at most 100.
    pub failures: Vec<RolloutFailure>,
    /// Its changes, the first one first.
    pub events: Vec<RolloutEvent>,
}

/// Rollouts of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutList {
    /// Rollouts, the newest first; at most 100.
    pub rollouts: Vec<Rollout>,
}
