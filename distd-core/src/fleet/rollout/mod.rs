//! Rollouts: which devices install a release when (decisions/0017). The waves of a rollout are
//! worked out by each device; the origin opens them one after the other.

mod progress;
mod waves;

pub use progress::{Gate, HaltOn, Step, WaveCounts, next_step};
pub use waves::{RolloutId, Share, Size, WAVES_MAX, Waves, WavesError, point, wave_of};
