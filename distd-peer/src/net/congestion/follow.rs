//! Congestion control that follows the rate at which bytes arrive.
//!
//! The model is that of BBR (draft-ietf-ccwg-bbr): what is in flight is the largest rate of the last round trips times the shortest round
//! trip of the last seconds, and a little more. Losses alone change nothing; more than a few in a hundred are taken for a
//! full queue. QUIC here spreads a window and a quarter over a round trip, so that the window alone decides.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::rate::{Deliveries, MaxOfRounds};

/// Bytes in flight before anything is known.
pub(super) const INITIAL_WINDOW: u64 = 32 * 1200;

/// Packets that may always be in flight.
const MIN_PACKETS: u64 = 4;

/// Packets beyond what the model says: senders that share a link come to equal parts by them, whatever each has measured.
const EXTRA_PACKETS: u64 = 4;

/// The shortest round trip that counts. What is in flight in a shorter one is a packet or two, sent one by one, and the work for each is more than that for
/// its bytes. A queue grows by as much at most, whatever the link's rate.
const ROUND_TRIP_MIN: Duration = Duration::from_millis(1);

/// How long the shortest round trip counts before it is measured again.
const ROUND_TRIP_VALID: Duration = Duration::from_secs(10);

/// How long less is in flight for that.
const PROBE_ROUND_TRIP: Duration = Duration::from_millis(200);

/// Rounds in a row without a quarter more, after which the link is taken to be full.
const FULL_ROUNDS: u32 = 3;

/// Lost bytes of a round, in percent, above which they are the queue's doing.
const LOSS_MAX_PERCENT: u64 = 3;

/// Lost packets of a round below which nothing follows from them.
const LOSS_MIN_PACKETS: u64 = 4;

/// Parts of the rate times the round trip that are in flight, in hundredths.
mod gain {
    pub(super) const CRUISE: u64 = 125;
    /// One round to see whether there is more.
    pub(super) const UP: u64 = 150;
    /// One round to let go of what that put into the queue.
    pub(super) const DOWN: u64 = 90;
    pub(super) const DRAIN: u64 = 100;
    pub(super) const PROBE_ROUND_TRIP: u64 = 50;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Twice as much each round trip, until no more arrives.
    Startup,
    /// Until what that put into the queue is gone.
    Drain,
    Up,
    Down,
    /// For so many rounds.
    Cruise(u32),
    /// Until then.
    ProbeRoundTrip(Instant),
}

/// The shortest round trip of late.
#[derive(Clone, Copy)]
struct ShortestRoundTrip {
    is: Duration,
    at: Instant,
}

/// One connection's state.
#[derive(Clone)]
pub(super) struct Follow {
    mtu: u64,
    mode: Mode,
    window: u64,
    /// Most in flight while too much was lost.
    ceiling: Option<u64>,
    deliveries: Deliveries,
    rate: MaxOfRounds,
    round_trip: Option<ShortestRoundTrip>,
    /// Bytes acknowledged before this acknowledgement.
    delivered_before: u64,
    last_sent: u64,
    /// The round is over when this packet is acknowledged.
    round_ends: u64,
    /// Bytes acknowledged when it began.
    round_delivered: u64,
    round_lost: u64,
    /// The rate that startup last found to be a quarter more.
    full_rate: u64,
    full_rounds: u32,
    /// Spreads the rounds in which connections look for more.
    dice: u64,
}

/// Connections made so far: each throws other dice.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

impl Follow {
    pub(super) fn new(now: Instant, mtu: u16) -> Self {
        Self {
            mtu: u64::from(mtu),
            mode: Mode::Startup,
            window: INITIAL_WINDOW,
            ceiling: None,
            deliveries: Deliveries::new(now),
            rate: MaxOfRounds::default(),
            round_trip: None,
            delivered_before: 0,
            last_sent: 0,
            round_ends: 0,
            round_delivered: 0,
            round_lost: 0,
            full_rate: 0,
            full_rounds: 0,
            dice: CONNECTIONS.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        }
    }

    pub(super) fn window(&self) -> u64 {
        self.window.max(self.min_window())
    }

    fn min_window(&self) -> u64 {
        MIN_PACKETS * self.mtu
    }

    pub(super) fn handle_mtu(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu);
    }

    pub(super) fn handle_sent(&mut self, packet: u64) {
        self.last_sent = self.last_sent.max(packet);
    }

    pub(super) fn handle_acked(&mut self, sent: Instant, bytes: u64) {
        self.deliveries.handle_acked(sent, bytes);
    }

    pub(super) fn handle_lost(&mut self, bytes: u64, persistent: bool) {
        self.round_lost += bytes;
        if persistent {
            // Nothing came for several timeouts (RFC 9002 §7.6): the path is another one.
            self.window = self.min_window();
            self.rate = MaxOfRounds::default();
            self.round_trip = None;
            self.ceiling = None;
            self.begin_startup();
        }
    }

    fn begin_startup(&mut self) {
        self.mode = Mode::Startup;
        (self.full_rate, self.full_rounds) = (0, 0);
    }

    /// All packets of one acknowledgement have been told of.
    pub(super) fn handle_acks_end(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_acked: Option<u64>,
    ) {
        let acked = self.deliveries.delivered() - self.delivered_before;
        self.delivered_before = self.deliveries.delivered();
        if acked > 0 {
            self.measure_round_trip(now);
        }
        if let Some(rate) = self.deliveries.handle_acks_end(now)
            && (!app_limited || rate > self.rate.get())
        {
            self.rate.add(rate);
        }
        if largest_acked.is_some_and(|packet| packet >= self.round_ends) {
            self.end_round(app_limited);
        }
        self.step(now, in_flight);
        self.resize(acked, app_limited);
    }

    fn measure_round_trip(&mut self, now: Instant) {
        let is = now.saturating_duration_since(self.deliveries.newest_sent()).max(ROUND_TRIP_MIN);
        if self.round_trip.is_none_or(|shortest| is <= shortest.is) {
            self.round_trip = Some(ShortestRoundTrip { is, at: now });
        }
    }

    fn end_round(&mut self, app_limited: bool) {
        self.round_ends = self.last_sent + 1;
        let delivered = self.deliveries.delivered() - self.round_delivered;
        self.round_delivered = self.deliveries.delivered();
        let lost = std::mem::take(&mut self.round_lost);
        let congested =
            lost >= LOSS_MIN_PACKETS * self.mtu && lost * 100 > LOSS_MAX_PERCENT * (lost + delivered);
        if congested {
            // What arrived is what the path and its queue hold. Below what the path alone holds losses have another cause.
            self.ceiling = Some((delivered * 95 / 100).max(self.target(gain::DOWN)));
        }
        match self.mode {
            Mode::Startup => {
                if self.rate.get() >= self.full_rate + self.full_rate / 4 {
                    (self.full_rate, self.full_rounds) = (self.rate.get(), 0);
                } else if !app_limited {
                    self.full_rounds += 1;
                }
                if congested || self.full_rounds >= FULL_ROUNDS {
                    self.mode = Mode::Drain;
                }
            }
            Mode::Drain | Mode::ProbeRoundTrip(_) => {}
            Mode::Up => {
                // There was room for more.
                self.ceiling = self.ceiling.filter(|_| congested);
                self.mode = Mode::Down;
            }
            Mode::Down => self.cruise(),
            Mode::Cruise(0) => self.mode = Mode::Up,
            Mode::Cruise(rounds) => self.mode = Mode::Cruise(rounds - 1),
        }
        // While there is nothing to send, what was measured before is the best that is known.
        if !app_limited {
            self.rate.start_round();
        }
    }

    /// Two to nine rounds: never the same as others on the link.
    fn cruise(&mut self) {
        self.dice = self.dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        self.mode = Mode::Cruise(2 + (self.dice >> 61) as u32);
    }

    fn step(&mut self, now: Instant, in_flight: u64) {
        match self.mode {
            Mode::Drain if in_flight <= self.target(gain::DRAIN) => self.cruise(),
            Mode::ProbeRoundTrip(until) if now >= until => self.cruise(),
            Mode::Up | Mode::Down | Mode::Cruise(_) => {
                let old = self.round_trip.filter(|shortest| now - shortest.at > ROUND_TRIP_VALID);
                if let Some(shortest) = old {
                    // A path that is as short as any counts need not be measured again.
                    if shortest.is > ROUND_TRIP_MIN {
                        self.mode = Mode::ProbeRoundTrip(now + PROBE_ROUND_TRIP.max(shortest.is));
                    }
                    self.round_trip = None;
                    self.measure_round_trip(now);
                }
            }
            _ => {}
        }
    }

    /// The rate times the round trip times a gain in hundredths, bytes.
    fn target(&self, gain: u64) -> u64 {
        let round_trip = self.round_trip.map_or(ROUND_TRIP_MIN, |shortest| shortest.is);
        let held = u128::from(self.rate.get()) * round_trip.as_nanos() / 1_000_000_000;
        u64::try_from(held * u128::from(gain) / 100).unwrap_or(u64::MAX)
    }

    fn resize(&mut self, acked: u64, app_limited: bool) {
        let gain = match self.mode {
            Mode::Startup => {
                if !app_limited {
                    self.window += acked;
                }
                return;
            }
            Mode::Drain => gain::DRAIN,
            Mode::Up if self.ceiling.is_none() => gain::UP,
            // Where too much was lost before, a smaller step shows as well that there is room now.
            Mode::Up | Mode::Cruise(_) => gain::CRUISE,
            Mode::Down => gain::DOWN,
            Mode::ProbeRoundTrip(_) => gain::PROBE_ROUND_TRIP,
        };
        let mut target = self.target(gain) + EXTRA_PACKETS * self.mtu;
        if let Some(ceiling) = self.ceiling.filter(|_| self.mode != Mode::Up) {
            target = target.min(ceiling);
        }
        // No faster than what arrives: a burst would be the queue's.
        self.window = if target > self.window { target.min(self.window + acked) } else { target };
    }
}
