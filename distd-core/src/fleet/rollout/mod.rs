//! Rollouts: which devices install a release when (docs/rollouts.md). The waves of a rollout are
//! worked out by each device; the origin opens them one after the other.

mod conditions;
mod document;
mod policy;
mod progress;
mod turn;
mod waves;

pub use conditions::{
    Conditions, ConditionsError, FIRST_MAX, FORCED_FROM_MAX, GroupBudget, RATE_PERIOD_MAX, Rate, Urgency,
    WINDOWS_MAX,
};
pub use document::{
    ATTEMPTS_MAX, Decision, Device, Held, ROLLOUT_FORM, RolloutDoc, RolloutState, Threshold, ThresholdError,
};
pub use policy::{
    AfterHalt, NOT_BEFORE_MAX, PATCH_WAIT_MAX, Policy, PolicyError, SOAK_MAX, TIMEOUT_MAX, TIMEOUT_MIN,
};
pub use progress::{Gate, HaltOn, Step, WaveCounts, next_step};
pub use turn::{
    BEGIN_WITHIN, Ended, NONCE_BYTES, TurnAnswer, TurnCounts, TurnSeen, is_over, is_turn_message, may_begin,
    turn_message,
};
pub use waves::{
    RolloutId, RolloutIdError, Share, Size, WAVES_MAX, Waves, WavesError, point, point_of, wave_of,
};
