//! [`FetchCredit`]: a bound on bytes that one node makes another node fetch in vain.

use std::time::Duration;

use crate::time::Timestamp;

/// Credit for bytes that are fetched on a node's behalf and that the node does not take: `max` at
/// once, and `max` more an hour. Chunks that are on their way when the credit is spent still
/// arrive.
///
/// A node that takes the chunks it asks for never runs out, because sent bytes are given back. A
/// node that asks and leaves makes a relay fetch about `max` bytes, and then has to wait.
#[derive(Debug)]
pub struct FetchCredit {
    max: u64,
    left: u64,
    at: Timestamp,
}

/// Time in which a spent credit refills by itself.
const FILL: Duration = Duration::from_secs(3600);

impl FetchCredit {
    /// Returns a full credit of `max` bytes at `now`.
    pub fn new(max: u64, now: Timestamp) -> Self {
        Self { max, left: max, at: now }
    }

    /// Whether no credit is left at `now`.
    pub fn is_spent(&mut self, now: Timestamp) -> bool {
        if now.since(self.at) >= FILL {
            (self.left, self.at) = (self.max, now);
        } else if self.max > 0 {
            let filled = u128::from(self.max) * now.since(self.at).as_micros() / FILL.as_micros();
            // Keep the time of the remaining fraction of a byte.
            let used = filled * FILL.as_micros() / u128::from(self.max);
            self.at = self.at + Duration::from_micros(u64::try_from(used).unwrap_or(u64::MAX));
            self.give_back(u64::try_from(filled).unwrap_or(u64::MAX));
        }
        self.left == 0
    }

    /// `bytes` bytes were fetched at `now` and the node did not take them.
    pub fn charge(&mut self, now: Timestamp, bytes: u64) {
        // Add the refill up to `now` first.
        self.is_spent(now);
        self.left = self.left.saturating_sub(bytes);
    }

    /// `bytes` bytes were sent to the node.
    pub fn give_back(&mut self, bytes: u64) {
        self.left = self.left.saturating_add(bytes).min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spent_credit_comes_back_by_sending_or_with_time() {
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
