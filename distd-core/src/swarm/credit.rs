//! [`FetchCredit`]: what one node may make another fetch in vain.

use std::time::Duration;

use crate::time::Timestamp;

/// Bytes that were fetched on a node's behalf and not taken by it: at most `max` at once, and `max` more an
/// hour. What is on its way when the last is spent still comes.
///
/// A node that takes what it asks for never runs out, for what is sent to it is given back. One that asks and
/// leaves has made a relay fetch some `max` bytes, and then waits.
#[derive(Debug)]
pub struct FetchCredit {
    max: u64,
    left: u64,
    at: Timestamp,
}

/// Time in which a spent credit fills by itself.
const FILL: Duration = Duration::from_secs(3600);

impl FetchCredit {
    /// A full credit of `max` bytes at `now`.
    pub fn new(max: u64, now: Timestamp) -> Self {
        Self { max, left: max, at: now }
    }

    /// Whether nothing is left at `now`.
    pub fn is_spent(&mut self, now: Timestamp) -> bool {
        if now.since(self.at) >= FILL {
            (self.left, self.at) = (self.max, now);
        } else if self.max > 0 {
            let filled = u128::from(self.max) * now.since(self.at).as_micros() / FILL.as_micros();
            // The part of a byte that is left goes on to count.
            let used = filled * FILL.as_micros() / u128::from(self.max);
            self.at = self.at + Duration::from_micros(u64::try_from(used).unwrap_or(u64::MAX));
            self.give_back(u64::try_from(filled).unwrap_or(u64::MAX));
        }
        self.left == 0
    }

    /// So many bytes were fetched at `now` and nobody took them.
    pub fn charge(&mut self, now: Timestamp, bytes: u64) {
        // What has filled up until now counts first.
        self.is_spent(now);
        self.left = self.left.saturating_sub(bytes);
    }

    /// So many bytes were sent to the node.
    pub fn give_back(&mut self, bytes: u64) {
        self.left = self.left.saturating_add(bytes).min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wasted_comes_back_by_sending_or_with_time() {
        let at = |seconds: u64| Timestamp(seconds * 1_000_000);
        let mut credit = FetchCredit::new(1000, at(0));
        credit.charge(at(0), 999);
        assert!(!credit.is_spent(at(0)));
        credit.charge(at(0), 5000);
        assert!(credit.is_spent(at(3)) && !credit.is_spent(at(4)), "a byte each 3.6 s");
        credit.give_back(400);
        credit.charge(at(4), 400);
        assert!(!credit.is_spent(at(4)));
        credit.charge(at(4), 1);
        assert!(credit.is_spent(at(4)));
        credit.give_back(5000);
        credit.charge(at(4), 1000);
        assert!(credit.is_spent(at(4)), "never more than full");
        // A caller that looks each second gets no less than one that waits.
        let left = |looks: u64| {
            let mut credit = FetchCredit::new(1000, at(0));
            credit.charge(at(0), 1000);
            (0..looks).for_each(|n| {
                credit.is_spent(at(1800 * n / looks));
            });
            credit.is_spent(at(1800));
            credit.left
        };
        assert_eq!((left(1), left(1800)), (500, 500));
    }
}
