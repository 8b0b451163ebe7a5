//! [`SlotPace`]: whether a batch should wait for an upload slot, and when a choked asker should ask
//! again.

use std::time::Duration;

/// Bounds of the retry-after of a CHOKE.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// How long batches keep their upload slots, smoothed over about eight of them.
///
/// As many batches may wait as there are slots, so a batch waits about as long as it takes to
/// answer one. Further batches are choked at once: while a batch waits here, its asker does not
/// request the chunks from neighbours that may hold them meanwhile.
#[derive(Debug)]
pub struct SlotPace {
    slots: usize,
    usual: Duration,
}

impl SlotPace {
    /// Starts with `slots` slots and no batch answered.
    pub fn new(slots: usize) -> Self {
        Self { slots, usual: RETRY_MIN }
    }

    /// A batch kept its slot for `held` and gave it back.
    pub fn handle_freed(&mut self, held: Duration) {
        self.usual = (self.usual * 7 + held.min(RETRY_MAX)) / 8;
    }

    /// Decides about a batch that found no free slot while `waiting` batches wait: `None` to let it
    /// wait too, otherwise its retry-after.
    pub fn choke(&self, waiting: usize) -> Option<Duration> {
        (waiting >= self.slots).then(|| self.retry_after(waiting))
    }

    /// Returns the retry-after for a batch that waited in vain, or would have to, behind `waiting`
    /// batches.
    pub fn retry_after(&self, waiting: usize) -> Duration {
        let rounds = 1 + waiting / self.slots.max(1);
        self.usual.saturating_mul(rounds as u32).clamp(RETRY_MIN, RETRY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_batches_wait_as_are_answered_and_further_ones_get_a_retry_after() {
        let mut pace = SlotPace::new(4);
        assert_eq!(pace.choke(3), None);
        assert_eq!(pace.choke(4), Some(RETRY_MIN * 2));
        (0..100).for_each(|_| pace.handle_freed(Duration::from_secs(1)));
        let told = pace.choke(4).expect("choked");
        assert!(told > Duration::from_millis(1900) && told <= Duration::from_secs(2), "{told:?}");
        (0..100).for_each(|_| pace.handle_freed(Duration::from_secs(3600)));
        assert_eq!(pace.choke(1000), Some(RETRY_MAX));
        assert!(SlotPace::new(0).choke(0).is_some(), "who has no slots chokes");
    }
}
