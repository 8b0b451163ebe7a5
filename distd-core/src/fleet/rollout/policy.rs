//! Policy of a rollout: its waves, and when the origin opens the next one or halts.

use serde::{Deserialize, Serialize};

use super::super::selector::Selector;
use super::conditions::{Conditions, ConditionsError};
use super::document::ATTEMPTS_MAX;
use super::progress::{Gate, HaltOn};
use super::waves::{Share, Waves};
use crate::bounds::ROLLOUT_REQUIRES_MAX;
use crate::names::Name;

/// Longest soak time, seconds: 30 days.
pub const SOAK_MAX: u64 = 30 * 24 * 3600;

/// Shortest time-out of an attempt, seconds.
pub const TIMEOUT_MIN: u64 = 10;

/// Longest time-out of an attempt, seconds: 30 days.
pub const TIMEOUT_MAX: u64 = 30 * 24 * 3600;

/// Longest time for which the first wave waits for patches, seconds: 7 days.
pub const PATCH_WAIT_MAX: u64 = 7 * 24 * 3600;

/// Latest time before which a rollout may be told to open no wave, unix seconds.
pub const NOT_BEFORE_MAX: u64 = 1 << 40;

/// Consequence of a halt for devices that have the release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum AfterHalt {
    /// Devices that have the release keep it.
    #[default]
    Stay,
    /// Devices that have the release go back to the release of the channel.
    Back,
}

/// Policy of a rollout, as its operator gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Sizes of the waves.
    pub waves: Waves,
    /// When the next wave opens, and when the rollout halts.
    pub gate: Gate,
    /// Number of attempts after which a device gives up.
    pub attempts: u32,
    /// Time after which an attempt has failed, seconds.
    pub timeout: u64,
    /// Consequence of a halt for devices that have the release.
    pub after_halt: AfterHalt,
    /// Time before which no wave opens, unix seconds.
    pub not_before: Option<u64>,
    /// Devices that take part; all without a selector.
    pub selector: Option<Selector>,
    /// Versions of which one must run before.
    pub requires: Vec<Name>,
    /// Longest time for which the first wave waits for patches to the release, seconds.
    pub patch_wait: u64,
    /// Conditions beside the waves.
    pub conditions: Conditions,
}

/// Reason why a policy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The soak time is too long; seconds.
    #[error("a soak time of {0} s is out of bounds: choose at most 30 days")]
    Soak(u64),
    /// The time-out is out of bounds; seconds.
    #[error("a time-out of {0} s is out of bounds: choose 10 seconds to 30 days")]
    Timeout(u64),
    /// The number of attempts is out of bounds.
    #[error("{0} attempts are out of bounds: choose 1 to {ATTEMPTS_MAX}")]
    Attempts(u32),
    /// The time before which no wave opens is too far away, unix seconds.
    #[error("no wave would open before {0} (unix seconds): choose an earlier time")]
    NotBefore(u64),
    /// The first wave would wait too long for patches; seconds.
    #[error("{0} s are too long to wait for patches: choose at most 7 days")]
    PatchWait(u64),
    /// The selector uses facts.
    #[error("a rollout cannot select by facts, as {0:?} does: give the devices a label")]
    Facts(String),
    /// There are too many required versions.
    #[error("a rollout requires one of at most {ROLLOUT_REQUIRES_MAX} versions, not of {0}")]
    Requires(usize),
    /// The conditions.
    #[error(transparent)]
    Conditions(#[from] ConditionsError),
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            waves: "1%,10%,50%,100%".parse().expect("sizes in order"),
            gate: Gate {
                soak: 3600,
                success: "95%".parse::<Share>().expect("a share"),
                halt_on: "2%".parse::<HaltOn>().expect("a limit"),
            },
            attempts: 1,
            timeout: 3600,
            after_halt: AfterHalt::Stay,
            not_before: None,
            selector: None,
            requires: Vec::new(),
            patch_wait: 1800,
            conditions: Conditions::default(),
        }
    }
}

impl Policy {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn check(&self) -> Result<(), PolicyError> {
        if self.gate.soak > SOAK_MAX {
            return Err(PolicyError::Soak(self.gate.soak));
        }
        if !(TIMEOUT_MIN..=TIMEOUT_MAX).contains(&self.timeout) {
            return Err(PolicyError::Timeout(self.timeout));
        }
        if !(1..=ATTEMPTS_MAX).contains(&self.attempts) {
            return Err(PolicyError::Attempts(self.attempts));
        }
        if let Some(time) = self.not_before.filter(|time| *time > NOT_BEFORE_MAX) {
            return Err(PolicyError::NotBefore(time));
        }
        if self.patch_wait > PATCH_WAIT_MAX {
            return Err(PolicyError::PatchWait(self.patch_wait));
        }
        if let Some(selector) = self.selector.as_ref().filter(|selector| selector.uses_facts()) {
            return Err(PolicyError::Facts(selector.to_string()));
        }
        if self.requires.len() > ROLLOUT_REQUIRES_MAX {
            return Err(PolicyError::Requires(self.requires.len()));
        }
        Ok(self.conditions.check()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_is_within_bounds_and_others_are_refused() {
        let good = Policy::default();
        assert_eq!(good.check(), Ok(()));
        let gate = Gate { soak: SOAK_MAX + 1, ..good.gate };
        assert_eq!(Policy { gate, ..good.clone() }.check(), Err(PolicyError::Soak(SOAK_MAX + 1)));
        assert_eq!(Policy { timeout: 9, ..good.clone() }.check(), Err(PolicyError::Timeout(9)));
        assert_eq!(Policy { attempts: 0, ..good.clone() }.check(), Err(PolicyError::Attempts(0)));
        let patient = Policy { patch_wait: PATCH_WAIT_MAX + 1, ..good.clone() };
        assert_eq!(patient.check(), Err(PolicyError::PatchWait(PATCH_WAIT_MAX + 1)));
        let late = Policy { not_before: Some(u64::MAX), ..good.clone() };
        assert_eq!(late.check(), Err(PolicyError::NotBefore(u64::MAX)));
        let facts = Some("fact.disk=big".parse().expect("a selector"));
        assert!(matches!(Policy { selector: facts, ..good.clone() }.check(), Err(PolicyError::Facts(_))));
        let requires = vec!["1".parse().expect("a name"); 9];
        assert_eq!(Policy { requires, ..good.clone() }.check(), Err(PolicyError::Requires(9)));
        let conditions = Conditions { at_once: Some(0), ..Conditions::default() };
        assert!(matches!(Policy { conditions, ..good }.check(), Err(PolicyError::Conditions(_))));
    }
}
