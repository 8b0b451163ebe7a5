//! [`SlotPace`]: whether it pays to wait for an upload slot, and when to come again if not.

use std::time::Duration;

/// Bounds of what a choked asker is told to wait.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// How long batches keep their upload slots, smoothed over some eight of them.
///
/// As many batches may wait as there are slots, so that one waits about as long as one is answered. Further ones are choked at once: what
/// waits here its asker keeps from neighbours that have it meanwhile.
#[derive(Debug)]
pub struct SlotPace {
    slots: usize,
    usual: Duration,
}

impl SlotPace {
    /// Nothing answered yet, with so many slots.
    pub fn new(slots: usize) -> Self {
        Self { slots, usual: RETRY_MIN }
    }

    /// A batch gave its slot back after so long.
    pub fn handle_freed(&mut self, held: Duration) {
        self.usual = (self.usual * 7 + held.min(RETRY_MAX)) / 8;
    }

    /// A batch found no free slot where so many wait: `None` to let it wait too, otherwise after what time to come again.
    pub fn choke(&self, waiting: usize) -> Option<Duration> {
        (waiting >= self.slots).then(|| self.retry_after(waiting))
    }

    /// After what time one comes again who waited in vain, or would have to, behind so many.
    pub fn retry_after(&self, waiting: usize) -> Duration {
        let rounds = 1 + waiting / self.slots.max(1);
        self.usual.saturating_mul(rounds as u32).clamp(RETRY_MIN, RETRY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_wait_as_are_answered_and_the_others_come_again_in_their_time() {
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
