//! Links: each direction of a node's link and of a site's link is a pipe that passes one message at
//! a time; then comes a latency.
//!
//! Small messages (frames of control streams, requests) pass between the large ones, as streams of
//! QUIC do. Loss is a delay by retransmission: nothing on a QUIC stream is lost for good.

use std::time::Duration;

use distd_core::time::Timestamp;

use crate::Rng;

/// A rate in bytes a second.
#[derive(Clone, Copy, Debug)]
pub struct Rate(pub u64);

impl Rate {
    /// A rate from megabits a second.
    pub const fn megabits(n: u64) -> Self {
        Self(n * 125_000)
    }

    pub(super) fn time_for(self, bytes: u64) -> Duration {
        Duration::from_micros(bytes * 1_000_000 / self.0.max(1))
    }
}

/// One direction of one link: store and forward.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pipe {
    pub(super) rate: Rate,
    free_at: Timestamp,
}

impl Pipe {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, free_at: Timestamp(0) }
    }

    /// Passes a message that arrives now behind earlier messages. Returns the time at which it has
    /// passed.
    pub(super) fn pass(&mut self, now: Timestamp, bytes: u64) -> Timestamp {
        self.free_at = self.free_at.max(now) + self.rate.time_for(bytes);
        self.free_at
    }
}

/// The link that joins a site to the others.
#[derive(Clone, Copy, Debug)]
pub struct Wan {
    /// Out of the site.
    pub up: Rate,
    /// Into the site.
    pub down: Rate,
    /// Latency in one direction, to the middle of the network.
    pub latency: Duration,
}

impl Default for Wan {
    /// A branch office: 100 Mbit/s in, 20 out, 10 ms.
    fn default() -> Self {
        Self { up: Rate::megabits(20), down: Rate::megabits(100), latency: Duration::from_millis(10) }
    }
}

/// Latency between two nodes of a site, one way.
pub(super) const LAN_LATENCY: Duration = Duration::from_micros(200);

/// Time until a lost packet is sent again, on top of a round trip.
const RETRANSMIT: Duration = Duration::from_millis(30);

/// Loss and jitter of all networks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    /// Messages in a thousand that are lost once; the second copy may be lost too.
    pub(super) loss_permille: u64,
    /// Upper bound of a random delay of each message: messages of different streams overtake each
    /// other.
    pub(super) jitter: Duration,
}

impl Weather {
    pub(super) fn delay(self, rng: &mut Rng, latency: Duration) -> Duration {
        let mut delay = latency;
        while self.loss_permille > 0 && rng.below(1000) < self.loss_permille.min(900) {
            delay += latency * 2 + RETRANSMIT;
        }
        if !self.jitter.is_zero() {
            delay += Duration::from_micros(rng.below(self.jitter.as_micros() as u64));
        }
        delay
    }
}
