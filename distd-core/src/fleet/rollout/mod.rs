//! Rollouts: which devices install a release when (docs/rollouts.md). The waves of a rollout are
//! worked out by each device; the origin opens them one after the other.

mod document;
mod policy;
mod progress;
mod waves;

pub use document::{
    ATTEMPTS_MAX, Decision, Device, Held, ROLLOUT_FORM, RolloutDoc, RolloutState, Threshold, ThresholdError,
};
pub use policy::{
    AfterHalt, NOT_BEFORE_MAX, PATCH_WAIT_MAX, Policy, PolicyError, SOAK_MAX, TIMEOUT_MAX, TIMEOUT_MIN,
};
pub use progress::{Gate, HaltOn, Step, WaveCounts, next_step};
pub use waves::{RolloutId, RolloutIdError, Share, Size, WAVES_MAX, Waves, WavesError, point, wave_of};
