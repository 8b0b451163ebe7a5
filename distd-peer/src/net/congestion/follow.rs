//! Congestion control that follows the rate at which bytes arrive.
//!
//! The model is that of BBR (draft-ietf-ccwg-bbr). The window is the largest rate of the last round
//! trips times the shortest round trip of the last seconds, and a little more. Losses alone change
//! nothing; more than a few per cent are taken as a full queue. QUIC spreads a window and a quarter
//! over a round trip here, so the window alone decides.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::rate::{Deliveries, MaxOfRounds};

/// Window before the path has been measured, bytes.
pub(super) const INITIAL_WINDOW: u64 = 32 * 1200;

/// Number of packets that may always be in flight.
const MIN_PACKETS: u64 = 4;

/// Packets beyond the model's window. They bring senders that share a link to equal parts, whatever
/// each has measured.
const EXTRA_PACKETS: u64 = 4;

/// Shortest round trip that counts. In a shorter one only a packet or two would be in flight, sent
/// one by one, and the work for each packet would exceed that for its bytes. The minimum makes a
/// queue at most this much longer, whatever the link's rate.
const ROUND_TRIP_MIN: Duration = Duration::from_millis(1);

/// Time for which a measured shortest round trip is valid.
const ROUND_TRIP_VALID: Duration = Duration::from_secs(10);

/// Time for which fewer bytes are in flight, to measure the round trip again.
const PROBE_ROUND_TRIP: Duration = Duration::from_millis(200);

/// Number of rounds in a row, without a quarter more, after which the link counts as full.
const FULL_ROUNDS: u32 = 3;

/// Loss of a round, in per cent, above which the cause is taken to be the queue.
const LOSS_MAX_PERCENT: u64 = 3;

/// Number of lost packets of a round below which no conclusion is drawn.
const LOSS_MIN_PACKETS: u64 = 4;

/// Window as a part of the rate times the round trip, in hundredths.
mod gain {
    pub(super) const CRUISE: u64 = 125;
    /// Gain of one round, to see whether there is more room.
    pub(super) const UP: u64 = 150;
    /// Gain of one round, to drain the bytes that `UP` put into the queue.
    pub(super) const DOWN: u64 = 90;
    pub(super) const DRAIN: u64 = 100;
    pub(super) const PROBE_ROUND_TRIP: u64 = 50;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Doubles the window each round trip until the rate no longer grows.
    Startup,
    /// Waits until the queue that startup built is gone.
    Drain,
    Up,
    Down,
    /// Lasts for this many more rounds.
    Cruise(u32),
    /// Lasts until this time.
    ProbeRoundTrip(Instant),
}

/// The shortest round trip measured recently.
#[derive(Clone, Copy)]
struct ShortestRoundTrip {
    is: Duration,
    at: Instant,
}

/// State of one connection's controller.
#[derive(Clone)]
pub(super) struct Follow {
    mtu: u64,
    mode: Mode,
    window: u64,
    /// Maximum window after too much was lost, bytes.
    ceiling: Option<u64>,
    deliveries: Deliveries,
    rate: MaxOfRounds,
    round_trip: Option<ShortestRoundTrip>,
    /// Bytes acknowledged before the present acknowledgement.
    delivered_before: u64,
    last_sent: u64,
    /// The round is over when this packet is acknowledged.
    round_ends: u64,
    /// Bytes acknowledged when the round began.
    round_delivered: u64,
    round_lost: u64,
    /// Rate at which startup last found a quarter more.
    full_rate: u64,
    full_rounds: u32,
    /// Random state that varies the rounds in which connections probe for more.
    dice: u64,
}

/// Number of connections so far, so that each starts from another random state.
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
            // Nothing came for several timeouts (RFC 9002 §7.6): the path has changed.
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

    /// Ends one acknowledgement, after [`Self::handle_acked`] was called for all its packets.
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
            // The delivered bytes are what the path and its queue hold. Losses below what the path
            // alone holds have another cause.
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
                // The probe found room for more.
                self.ceiling = self.ceiling.filter(|_| congested);
                self.mode = Mode::Down;
            }
            Mode::Down => self.cruise(),
            Mode::Cruise(0) => self.mode = Mode::Up,
            Mode::Cruise(rounds) => self.mode = Mode::Cruise(rounds - 1),
        }
        // While there is nothing to send, the earlier measurements are the best known.
        if !app_limited {
            self.rate.start_round();
        }
    }

    /// Cruises for two to nine rounds, at random, so that connections on one link do not probe at
    /// the same time.
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
                    // A path as short as [`ROUND_TRIP_MIN`] need not be measured again.
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

    /// Returns the rate times the round trip times a gain in hundredths, bytes.
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
            // After too much was lost, a smaller step is enough to show that there is room again.
            Mode::Up | Mode::Cruise(_) => gain::CRUISE,
            Mode::Down => gain::DOWN,
            Mode::ProbeRoundTrip(_) => gain::PROBE_ROUND_TRIP,
        };
        let mut target = self.target(gain) + EXTRA_PACKETS * self.mtu;
        if let Some(ceiling) = self.ceiling.filter(|_| self.mode != Mode::Up) {
            target = target.min(ceiling);
        }
        // The window grows no faster than bytes arrive: a burst would fill the queue.
        self.window = if target > self.window { target.min(self.window + acked) } else { target };
    }
}
