//! What a peer has shown it can do.

use std::time::Duration;

use crate::time::Timestamp;

/// Shortest time over which a pace is taken: below it one late wake-up of ours would be the peer's.
const SAMPLE_MIN: Duration = Duration::from_millis(2);

/// Pace of a peer as it comes to us, what others take of it included.
#[derive(Debug, Default)]
pub(super) struct Capacity {
    /// Chunks a second, smoothed over some four samples; `None` until the first chunks came.
    rate: Option<f64>,
    /// Since when and how many of the sample that is being taken.
    from: Timestamp,
    chunks: u64,
    /// Something else than the peer was slow meanwhile.
    spoilt: bool,
}

impl Capacity {
    /// The peer is asked, and had nothing to do before: what it takes to begin counts.
    pub(super) fn begin(&mut self, now: Timestamp) {
        (self.from, self.chunks, self.spoilt) = (now, 0, false);
    }

    /// A chunk came.
    pub(super) fn chunk(&mut self) {
        self.chunks += 1;
    }

    /// What is being measured now says nothing about the peer.
    pub(super) fn spoil(&mut self) {
        self.spoilt = true;
    }

    /// A batch ended: a sample is complete, if it is long enough.
    pub(super) fn sample(&mut self, now: Timestamp) {
        let took = now.since(self.from);
        if took < SAMPLE_MIN || self.chunks == 0 {
            return;
        }
        if self.spoilt {
            return self.begin(now);
        }
        let fresh = self.chunks as f64 / took.as_secs_f64();
        self.rate = Some(self.rate.map_or(fresh, |rate| rate * 0.75 + fresh * 0.25));
        self.begin(now);
    }

    /// Chunks a second, if it is known; never zero.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate.map(|rate| rate.max(1e-3))
    }

    /// How long so many chunks take, if that is known.
    pub(super) fn time_for(&self, chunks: u64) -> Option<Duration> {
        Some(Duration::from_secs_f64((chunks as f64 / self.rate()?).min(3600.0)))
    }
}
