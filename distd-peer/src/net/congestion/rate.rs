//! Delivery rate samples and their maximum (draft-ietf-ccwg-bbr §4.1): the rate at which sent bytes
//! arrive.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Maximum number of past points kept: the acknowledgements of one round trip at 1 Gbit/s and 100
/// ms. Beyond it every second point is dropped.
const POINTS_MAX: usize = 2048;

/// Number of round trips over which the largest sample counts.
const ROUNDS: usize = 10;

#[derive(Clone, Copy)]
struct Point {
    at: Instant,
    /// Bytes acknowledged until `at`.
    delivered: u64,
    /// Time at which the newest packet acknowledged until then was sent.
    newest_sent: Instant,
}

/// Record of the acknowledged bytes, with the times of their acknowledgements.
#[derive(Clone)]
pub(super) struct Deliveries {
    points: VecDeque<Point>,
    delivered: u64,
    /// Time at which the newest packet acknowledged so far was sent.
    newest_sent: Instant,
}

impl Deliveries {
    pub(super) fn new(now: Instant) -> Self {
        let first = Point { at: now, delivered: 0, newest_sent: now };
        Self { points: VecDeque::from([first]), delivered: 0, newest_sent: now }
    }

    /// Number of bytes acknowledged so far.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Time at which the newest packet acknowledged so far was sent.
    pub(super) fn newest_sent(&self) -> Instant {
        self.newest_sent
    }

    pub(super) fn handle_acked(&mut self, sent: Instant, bytes: u64) {
        self.delivered += bytes;
        self.newest_sent = self.newest_sent.max(sent);
    }

    /// Returns the rate since the newest acknowledged packet was sent, bytes a second.
    pub(super) fn handle_acks_end(&mut self, now: Instant) -> Option<u64> {
        // The point that was the latest when that packet was sent.
        let after = self.points.partition_point(|point| point.at <= self.newest_sent);
        // Older points will not be needed again: packets are sent one after the other.
        self.points.drain(..after.saturating_sub(1));
        let then = *self.points.front()?;
        // Acknowledgements that arrive all at once do not show the rate. The packets took at least
        // the time in which they were sent.
        let elapsed =
            now.duration_since(then.at).max(self.newest_sent.saturating_duration_since(then.newest_sent));
        if self.points.len() >= POINTS_MAX {
            let mut keep = false;
            self.points.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.points.push_back(Point { at: now, delivered: self.delivered, newest_sent: self.newest_sent });
        if elapsed < Duration::from_micros(1) {
            return None;
        }
        let bytes = self.delivered - then.delivered;
        u64::try_from(u128::from(bytes) * 1_000_000_000 / elapsed.as_nanos()).ok()
    }
}

/// The largest sample of the last [`ROUNDS`] round trips.
#[derive(Clone, Default)]
pub(super) struct MaxOfRounds {
    rounds: [u64; ROUNDS],
    at: usize,
}

impl MaxOfRounds {
    pub(super) fn start_round(&mut self) {
        self.at = (self.at + 1) % ROUNDS;
        self.rounds[self.at] = 0;
    }

    pub(super) fn add(&mut self, sample: u64) {
        let round = &mut self.rounds[self.at];
        *round = (*round).max(sample);
    }

    pub(super) fn get(&self) -> u64 {
        self.rounds.into_iter().max().unwrap_or(0)
    }
}
