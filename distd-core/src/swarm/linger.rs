//! [`Linger`]: how long a finished pull stays to serve the neighbours that fetch from it.

use std::time::Duration;

use crate::time::Timestamp;

/// Shortest bound. The pull may be the only holder at its site of the chunks it got last, and
/// without it they would cross the uplink again. The time covers several hops between neighbours,
/// each with the delay of coalesced announcements.
const SHORTEST: Duration = Duration::from_millis(500);

/// Interval at which the pull checks whether a neighbour still fetches from it.
const LOOK: Duration = Duration::from_millis(100);

/// A pull that has every chunk and lingers.
#[derive(Clone, Copy, Debug)]
pub struct Linger {
    until: Timestamp,
}

impl Linger {
    /// A pull that finished at `now` and lingers for at most `most`, but not less than half a
    /// second. A neighbour that is not done by then asks another node.
    pub fn new(now: Timestamp, most: Duration) -> Self {
        Self { until: now + most.max(SHORTEST) }
    }

    /// Returns when to look again, given the number of exchanging nodes that have the swarm open at
    /// this node. `None`: the pull may leave.
    pub fn poll(&self, now: Timestamp, askers: usize) -> Option<Timestamp> {
        (askers > 0 && now < self.until).then(|| self.until.min(now + LOOK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Timestamp = Timestamp(1_000_000);

    #[test]
    fn a_pull_leaves_when_nobody_fetches_from_it_or_its_time_is_over() {
        let linger = Linger::new(T0, Duration::from_secs(5));
        assert_eq!(linger.poll(T0, 0), None);
        assert_eq!(linger.poll(T0, 1), Some(T0 + LOOK));
        assert_eq!(linger.poll(T0 + Duration::from_secs(5), 1), None);
    }

    #[test]
    fn a_pull_stays_for_the_last_hop_whatever_its_bound() {
        let linger = Linger::new(T0, Duration::ZERO);
        assert!(linger.poll(T0 + SHORTEST / 2, 1).is_some());
        assert_eq!(linger.poll(T0 + SHORTEST, 1), None);
    }
}
