//! Measured pace of a peer.

use std::time::Duration;

use crate::time::Timestamp;

/// Shortest time over which a pace is measured. In less time, one late wake-up of this side would
/// count as the peer's.
const SAMPLE_MIN: Duration = Duration::from_millis(2);

/// Pace of a peer as this side sees it, reduced by the share that other askers take.
#[derive(Debug, Default)]
pub(super) struct Capacity {
    /// Chunks a second, smoothed over about four samples; `None` until the first sample.
    rate: Option<f64>,
    /// Start of the current sample, and its number of chunks.
    from: Timestamp,
    chunks: u64,
    /// Something other than the peer was slow during the current sample.
    spoilt: bool,
}

impl Capacity {
    /// A request was sent to an idle peer and a sample begins. The peer's time to begin counts.
    pub(super) fn begin(&mut self, now: Timestamp) {
        (self.from, self.chunks, self.spoilt) = (now, 0, false);
    }

    /// A chunk came.
    pub(super) fn chunk(&mut self) {
        self.chunks += 1;
    }

    /// The current sample says nothing about the peer.
    pub(super) fn spoil(&mut self) {
        self.spoilt = true;
    }

    /// A batch ended. The sample is complete if it is long enough.
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

    /// Returns the chunks a second, if known; never zero.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate.map(|rate| rate.max(1e-3))
    }

    /// Returns the time that `chunks` chunks take, if the pace is known; at most an hour.
    pub(super) fn time_for(&self, chunks: u64) -> Option<Duration> {
        Some(Duration::from_secs_f64((chunks as f64 / self.rate()?).min(3600.0)))
    }
}
