//! Links: each direction of a node's own and of a site's is a pipe that passes one message at a time; then comes a latency.
//!
//! Small messages (frames of control streams, requests) pass between the large ones, as streams of QUIC do. Loss is a delay by
//! retransmission: nothing on a QUIC stream is lost for good.

use std::time::Duration;

use distd_core::time::Timestamp;

use crate::Rng;

/// Bytes a second.
#[derive(Clone, Copy, Debug)]
pub struct Rate(pub u64);

impl Rate {
    /// So many megabits a second.
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

    /// When a message that comes now has passed, behind those that came before it.
    pub(super) fn pass(&mut self, now: Timestamp, bytes: u64) -> Timestamp {
        self.free_at = self.free_at.max(now) + self.rate.time_for(bytes);
        self.free_at
    }
}

/// What joins a site to the others.
#[derive(Clone, Copy, Debug)]
pub struct Wan {
    /// Out of the site.
    pub up: Rate,
    /// Into it.
    pub down: Rate,
    /// One way, to the middle of the network.
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

/// How long a lost packet takes to be sent again, on top of a round trip.
const RETRANSMIT: Duration = Duration::from_millis(30);

/// What networks do to messages besides taking time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    /// Messages in a thousand that are lost once; the second copy in turn.
    pub(super) loss_permille: u64,
    /// Each message is late by up to this: those of different streams overtake each other.
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
