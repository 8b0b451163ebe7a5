//! Turns: the origin's word that a device may begin now, where a rollout lets only some begin at
//! once (docs/rollouts.md, "Turns").
//!
//! This module knows the bytes and the rules. The caller checks the signature, since the core has
//! no cryptography for it.

use super::conditions::{Conditions, GroupBudget};
use super::waves::RolloutId;
use crate::NodeId;

/// Domain separation of the signature.
const DOMAIN: &[u8] = b"distd-turn-v1\0";

/// Bytes of a nonce, by which a device knows an answer as the one to its question.
pub const NONCE_BYTES: usize = 16;

/// Longest time for which the origin believes that a device which has a turn and has said nothing
/// since has not begun, seconds, beside the time-out of an attempt.
pub const BEGIN_WITHIN: u64 = 900;

/// Time after which a device that waits for the other devices of its group asks again, seconds.
const WAIT_FOR_GROUP: u64 = 30;

/// Time after which a device that waits for all others asks again, seconds.
const WAIT_FOR_ALL: u64 = 300;

/// Returns the bytes that the CA's key signs to give a node its turn in a rollout.
pub fn turn_message(node: &NodeId, rollout: &RolloutId, nonce: &[u8; NONCE_BYTES]) -> Vec<u8> {
    [DOMAIN, &node.0[..], &rollout.0[..], &nonce[..]].concat()
}

/// Whether a message that the CA's key is to sign is a [`turn_message`].
pub fn is_turn_message(message: &[u8]) -> bool {
    message.strip_prefix(DOMAIN).is_some_and(|body| body.len() == 16 + 16 + NONCE_BYTES)
}

/// The origin's knowledge of a device that has been given a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnSeen {
    /// Time at which the turn was given, unix seconds.
    pub granted: u64,
    /// Number of the attempt that it is for, from 1.
    pub number: u32,
    /// Number of the device's newest attempt, and whether and how that ended.
    pub attempt: Option<(u32, Ended)>,
    /// Time at which the device's newest report came, unix seconds.
    pub heard: Option<u64>,
    /// Whether the device has been revoked.
    pub is_revoked: bool,
}

/// End of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is under way.
    No,
    /// The device or the origin waited too long for its end.
    TimedOut,
    /// The device reported its end.
    Yes,
}

/// Whether a turn is over at `now` (unix seconds), so that another device may begin. `timeout` is
/// that of an attempt, seconds. With `is_strict` a device that fell silent stays under way: it may
/// be the one that is not available.
pub fn is_over(seen: &TurnSeen, timeout: u64, is_strict: bool, now: u64) -> bool {
    let late = seen.granted.saturating_add(timeout);
    let silent = late.saturating_add(BEGIN_WITHIN);
    if seen.is_revoked || (!is_strict && now > silent) {
        return true;
    }
    match seen.attempt.filter(|(number, _)| *number >= seen.number) {
        Some((_, Ended::Yes)) => true,
        // The origin ends attempts by itself; a device that has been heard of since is there.
        Some((_, Ended::TimedOut)) => seen.heard.is_some_and(|heard| heard > late),
        Some((_, Ended::No)) => false,
        // A report that has no such attempt says that none was begun.
        None => seen.heard.is_some_and(|heard| heard > silent),
    }
}

/// Numbers of devices with a turn, without the one that asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnCounts {
    /// Turns that are not over.
    pub under_way: u64,
    /// Turns of the asker's group that are not over.
    pub of_group: u64,
    /// Turns that were given within the period of the rate.
    pub recent: u64,
}

/// Answer to a device that asks for a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnAnswer {
    /// It may begin.
    Begin,
    /// It asks again after this time, seconds.
    Wait(u64),
}

/// Decides about a device that asks for a turn. `has_group` says whether it has the label by which
/// devices are grouped: those without it are one group, which may be large.
pub fn may_begin(conditions: &Conditions, counts: &TurnCounts, has_group: bool) -> TurnAnswer {
    let is_full = |limit: Option<u64>, count: u64| limit.is_some_and(|limit| count >= limit);
    if is_full(conditions.at_once, counts.under_way)
        || is_full(conditions.rate.map(|rate| rate.devices), counts.recent)
    {
        return TurnAnswer::Wait(WAIT_FOR_ALL);
    }
    match &conditions.budget {
        Some(GroupBudget { unavailable, .. }) if counts.of_group >= *unavailable => {
            TurnAnswer::Wait(if has_group { WAIT_FOR_GROUP } else { WAIT_FOR_ALL })
        }
        _ => TurnAnswer::Begin,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::conditions::Rate;
    use super::*;

    #[test]
    fn a_turn_is_for_one_node_one_rollout_and_one_question() {
        let message = turn_message(&NodeId([1; 16]), &RolloutId([2; 16]), &[3; 16]);
        assert!(is_turn_message(&message));
        assert!(!is_turn_message(&message[1..]) && !is_turn_message(&message[..message.len() - 1]));
        assert_ne!(message, turn_message(&NodeId([1; 16]), &RolloutId([2; 16]), &[4; 16]));
    }

    const GIVEN: TurnSeen =
        TurnSeen { granted: 1000, number: 2, attempt: None, heard: None, is_revoked: false };

    #[test]
    fn a_turn_ends_with_its_attempt_and_a_silent_device_stays_under_way_in_its_group() {
        let over = |seen: TurnSeen, now| is_over(&seen, 100, true, now);
        assert!(!over(GIVEN, u64::MAX), "silent");
        assert!(is_over(&GIVEN, 100, false, 2001) && !is_over(&GIVEN, 100, false, 2000));
        assert!(over(TurnSeen { is_revoked: true, ..GIVEN }, 1001));
        let tried =
            |number, ended, heard| TurnSeen { attempt: Some((number, ended)), heard: Some(heard), ..GIVEN };
        assert!(over(tried(2, Ended::Yes, 1001), 1001));
        assert!(!over(tried(2, Ended::No, 9000), 9000));
        assert!(!over(tried(1, Ended::Yes, 1001), 1001), "an earlier attempt");
        assert!(over(tried(1, Ended::Yes, 2001), 2001), "none was begun");
        assert!(!over(tried(2, Ended::TimedOut, 1001), 9000), "nobody knows where it is");
        assert!(over(tried(2, Ended::TimedOut, 1101), 9000));
    }

    proptest! {
        /// Whatever the order in which devices ask, no group has more devices under way than its
        /// budget, and the fleet no more than its own limits.
        #[test]
        fn no_group_loses_more_than_its_budget(
            limits in (1u64..4, 1u64..9, 1u64..9),
            asks in proptest::collection::vec((0usize..4, any::<bool>()), 1..200),
        ) {
            let (unavailable, at_once, devices) = limits;
            let conditions = Conditions {
                at_once: Some(at_once),
                budget: Some(GroupBudget { by: "site".to_owned(), unavailable }),
                rate: Some(Rate { devices, period: 10 }),
                ..Conditions::default()
            };
            let (mut groups, mut begins) = ([0u64; 4], Vec::new());
            for (time, (group, ends)) in asks.into_iter().enumerate() {
                if ends {
                    groups[group] = groups[group].saturating_sub(1);
                    continue;
                }
                let recent = begins.iter().filter(|at| time - **at < 10).count() as u64;
                let counts = TurnCounts { under_way: groups.iter().sum(), of_group: groups[group], recent };
                if may_begin(&conditions, &counts, true) == TurnAnswer::Begin {
                    groups[group] += 1;
                    begins.push(time);
                }
                prop_assert!(groups.iter().all(|under_way| *under_way <= unavailable));
                prop_assert!(groups.iter().sum::<u64>() <= at_once);
                let last = begins.iter().filter(|at| time - **at < 10).count() as u64;
                prop_assert!(last <= devices);
            }
        }
    }
}
