//! Progress of a rollout: what the origin does next, by what devices reported.

use std::fmt;
use std::str::FromStr;

use super::waves::{Share, WavesError};

/// Number of failures that halts a rollout. As text `2` or `5%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HaltOn {
    /// A number of failures.
    Count(u64),
    /// This share of the devices in open waves.
    Share(Share),
}

impl FromStr for HaltOn {
    type Err = WavesError;

    fn from_str(s: &str) -> Result<Self, WavesError> {
        match s.parse::<u64>() {
            Ok(count) if count > 0 => Ok(Self::Count(count)),
            _ => s.parse().map(Self::Share),
        }
    }
}

impl fmt::Display for HaltOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::Share(share) => share.fmt(f),
        }
    }
}

/// When the next wave opens, and when the rollout halts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Least time for which a wave is open before the next one, seconds.
    pub soak: u64,
    /// Share of a wave's devices that must have succeeded before the next one opens.
    pub success: Share,
    /// Failures that halt the rollout.
    pub halt_on: HaltOn,
}

/// Devices of one wave, without those of the waves before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaveCounts {
    /// Devices in the wave.
    pub members: u64,
    /// Devices that run the release.
    pub succeeded: u64,
    /// Devices whose attempt failed, was rolled back or took too long.
    pub failed: u64,
    /// Devices that have begun an attempt and not ended it.
    pub trying: u64,
}

impl WaveCounts {
    /// Devices that have neither begun nor given up.
    pub fn waiting(&self) -> u64 {
        self.members.saturating_sub(self.succeeded).saturating_sub(self.failed).saturating_sub(self.trying)
    }
}

/// The next step of the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this time, unix seconds; `None`: nothing before the next report.
    Wait(Option<u64>),
    /// Opens the wave of this number, from 0.
    Open(usize),
    /// Halts, because of the failures among the devices in open waves.
    Halt {
        /// Failures.
        failed: u64,
        /// Devices in open waves.
        members: u64,
    },
    /// Every wave is open and has succeeded, the last has soaked too, and no attempt is under way.
    Complete,
}

/// Decides the next step at `now` (unix seconds). `opened` has the time at which each open wave was
/// opened, in order, and `counts` the devices of every wave.
///
/// Only devices in open waves count: a device that installed the release by hand neither helps nor
/// halts. `forgiven` is the number of failures for which the rollout halted before and was resumed:
/// only those beyond it halt again.
pub fn next_step(gate: &Gate, forgiven: u64, opened: &[u64], counts: &[WaveCounts], now: u64) -> Step {
    let open = &counts[..opened.len().min(counts.len())];
    let (failed, members) =
        open.iter().fold((0, 0), |(failed, members), wave| (failed + wave.failed, members + wave.members));
    let new = failed.saturating_sub(forgiven);
    let halts = match gate.halt_on {
        HaltOn::Count(count) => new >= count,
        HaltOn::Share(share) => new > 0 && share.is_reached(new, members),
    };
    if halts {
        return Step::Halt { failed, members };
    }
    let (Some(last), Some(at)) = (open.last(), opened.last()) else {
        return if counts.is_empty() { Step::Complete } else { Step::Open(0) };
    };
    if !gate.success.is_reached(last.succeeded, last.members) {
        return Step::Wait(None);
    }
    // A wave without devices soaks too: its devices may have fallen silent.
    let soaked = at.saturating_add(gate.soak);
    if now < soaked {
        return Step::Wait(Some(soaked));
    }
    match open.len() == counts.len() {
        // After the end no failure halts, so attempts that have begun are waited for.
        true if open.iter().any(|wave| wave.trying > 0) => Step::Wait(None),
        true => Step::Complete,
        false => Step::Open(open.len()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gate(halt_on: &str) -> Gate {
        Gate {
            soak: 100,
            success: "90%".parse().expect("a share"),
            halt_on: halt_on.parse().expect("a limit"),
        }
    }

    fn wave(members: u64, succeeded: u64, failed: u64) -> WaveCounts {
        WaveCounts { members, succeeded, failed, trying: 0 }
    }

    #[test]
    fn the_next_wave_opens_after_soaking_and_success() {
        let gate = gate("2");
        let counts = |succeeded| [wave(10, succeeded, 0), wave(90, 0, 0)];
        assert_eq!(next_step(&gate, 0, &[], &counts(0), 0), Step::Open(0));
        assert_eq!(next_step(&gate, 0, &[1000], &counts(8), 5000), Step::Wait(None));
        assert_eq!(next_step(&gate, 0, &[1000], &counts(9), 1099), Step::Wait(Some(1100)));
        assert_eq!(next_step(&gate, 0, &[1000], &counts(9), 1100), Step::Open(1));
        let done = [wave(10, 10, 0), wave(90, 81, 0)];
        assert_eq!(next_step(&gate, 0, &[1000, 1100], &done, 1199), Step::Wait(Some(1200)));
        assert_eq!(next_step(&gate, 0, &[1000, 1100], &done, 1200), Step::Complete);
        let trying = [done[0], WaveCounts { trying: 1, ..done[1] }];
        assert_eq!(next_step(&gate, 0, &[1000, 1100], &trying, 1200), Step::Wait(None));
    }

    #[test]
    fn the_second_failure_halts_and_failures_outside_open_waves_do_not() {
        let gate = gate("2");
        let counts = |failed| [wave(10, 5, failed), wave(90, 0, 50)];
        assert_eq!(next_step(&gate, 0, &[0], &counts(1), 10), Step::Wait(None));
        assert_eq!(next_step(&gate, 0, &[0], &counts(2), 10), Step::Halt { failed: 2, members: 10 });
    }

    #[test]
    fn a_share_of_failures_is_of_the_devices_in_open_waves() {
        let gate = gate("5%");
        let counts = |failed| [wave(100, 99 - failed, failed), wave(900, 0, 0)];
        assert!(matches!(next_step(&gate, 0, &[0], &counts(4), 10), Step::Wait(_)));
        assert_eq!(next_step(&gate, 0, &[0], &counts(5), 10), Step::Halt { failed: 5, members: 100 });
        assert_eq!("5%".parse::<HaltOn>().expect("a limit").to_string(), "5%");
        assert!("0".parse::<HaltOn>().is_err() && "-1".parse::<HaltOn>().is_err());
    }

    #[test]
    fn failures_that_were_forgiven_halt_no_more() {
        let gate = gate("2");
        let counts = |failed| [wave(10, 5, failed), wave(90, 0, 0)];
        let halt = |failed| Step::Halt { failed, members: 10 };
        assert_eq!(next_step(&gate, 2, &[0], &counts(2), 10), Step::Wait(None));
        assert_eq!(next_step(&gate, 2, &[0], &counts(3), 10), Step::Wait(None));
        assert_eq!(next_step(&gate, 2, &[0], &counts(4), 10), halt(4));
    }

    #[test]
    fn an_empty_wave_soaks_and_then_holds_nothing_up() {
        let (gate, counts) = (gate("1"), [wave(0, 0, 0), wave(1, 0, 0)]);
        assert_eq!(next_step(&gate, 0, &[1000], &counts, 1099), Step::Wait(Some(1100)));
        assert_eq!(next_step(&gate, 0, &[1000], &counts, 1100), Step::Open(1));
    }

    proptest! {
        #[test]
        fn no_wave_opens_with_too_many_failures_or_before_its_time(
            members in proptest::collection::vec((0_u64..50, 0_u64..50, 0_u64..50), 1..6),
            opened in 0_usize..6, now in 0_u64..1000, limit in 1_u64..5, soak in 0_u64..500,
        ) {
            let counts: Vec<_> = members
                .iter()
                .map(|(members, succeeded, failed)| {
                    let succeeded = (*succeeded).min(*members);
                    wave(*members, succeeded, (*failed).min(members - succeeded))
                })
                .collect();
            let opened: Vec<u64> = (0..opened.min(counts.len()) as u64).map(|n| n * 10).collect();
            let gate = Gate { soak, ..gate(&limit.to_string()) };
            let failed: u64 = counts[..opened.len()].iter().map(|wave| wave.failed).sum();
            match next_step(&gate, 0, &opened, &counts, now) {
                Step::Open(wave) => {
                    prop_assert_eq!(wave, opened.len());
                    prop_assert!(failed < limit);
                    if let Some(last) = counts[..wave].last() {
                        prop_assert!(gate.success.is_reached(last.succeeded, last.members));
                        prop_assert!(now >= opened[wave - 1] + soak);
                    }
                }
                Step::Halt { failed: said, .. } => prop_assert!(said == failed && failed >= limit),
                Step::Complete => prop_assert!(opened.len() == counts.len() && failed < limit),
                Step::Wait(until) => prop_assert!(failed < limit && until.is_none_or(|until| until > now)),
            }
        }
    }
}
