//! [`SlotPace`]: when a choked asker should ask again for an upload slot.

use std::time::Duration;

/// Bounds of the retry-after of a CHOKE.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Time for which batches keep their upload slots, smoothed over about eight of them.
#[derive(Debug)]
pub(super) struct SlotPace {
    slots: usize,
    usual: Duration,
}

impl SlotPace {
    /// Starts with `slots` slots and no batch answered.
    pub(super) fn new(slots: usize) -> Self {
        Self { slots, usual: RETRY_MIN }
    }

    /// A batch kept its slot for `held` and gave it back.
    pub(super) fn handle_freed(&mut self, held: Duration) {
        self.usual = (self.usual * 7 + held.min(RETRY_MAX)) / 8;
    }

    /// Returns the retry-after for a batch that waited in vain, or would have to, behind `waiting`
    /// batches.
    pub(super) fn retry_after(&self, waiting: usize) -> Duration {
        let rounds = 1 + waiting / self.slots.max(1);
        self.usual.saturating_mul(rounds as u32).clamp(RETRY_MIN, RETRY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_retry_after_grows_with_the_waiting_batches_and_their_usual_time() {
        let mut pace = SlotPace::new(4);
        assert_eq!(pace.retry_after(4), RETRY_MIN * 2);
        (0..100).for_each(|_| pace.handle_freed(Duration::from_secs(1)));
        let told = pace.retry_after(4);
        assert!(told > Duration::from_millis(1900) && told <= Duration::from_secs(2), "{told:?}");
        (0..100).for_each(|_| pace.handle_freed(Duration::from_secs(3600)));
        assert_eq!(pace.retry_after(1000), RETRY_MAX);
        assert_eq!(SlotPace::new(0).retry_after(0), RETRY_MIN, "without slots");
    }
}
