//! Tests of [`Follow`] on a simulated link with a rate, a queue, a delay and random losses. Senders
//! spread their window as QUIC does.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::follow::Follow;

const PACKET: u64 = 1452;
const STEP: Duration = Duration::from_micros(20);

struct Bottleneck {
    /// Bytes a second.
    rate: f64,
    delay: Duration,
    /// Longest wait in the queue before packets are dropped.
    queue: Duration,
    lost_per_thousand: u64,
}

struct Packet {
    number: u64,
    sent: Duration,
    /// Time at which its acknowledgement arrives; `None` if it never does.
    acked: Option<Duration>,
}

struct Sender {
    follow: Follow,
    on_their_way: VecDeque<Packet>,
    next: u64,
    tokens: f64,
    round_trip: Duration,
    arrived: u64,
    lost: u64,
    sent: u64,
    starts: Duration,
}

impl Sender {
    fn new(start: Instant, starts: Duration) -> Self {
        Self {
            follow: Follow::new(start, PACKET as u16),
            on_their_way: VecDeque::new(),
            next: 0,
            tokens: 0.0,
            round_trip: Duration::from_millis(100),
            arrived: 0,
            lost: 0,
            sent: 0,
            starts,
        }
    }

    fn in_flight(&self) -> u64 {
        self.on_their_way.len() as u64 * PACKET
    }

    fn take_acknowledgements(&mut self, start: Instant, now: Duration) {
        let mut largest = None;
        // In order: an acknowledgement that arrives before an earlier one has overtaken a lost
        // packet.
        while let Some(back) =
            self.on_their_way.iter().position(|packet| packet.acked.is_some_and(|at| at <= now))
        {
            let packet = self.on_their_way.remove(back).expect("was found");
            self.round_trip = (self.round_trip * 7 + (now - packet.sent)) / 8;
            self.follow.handle_acked(start + packet.sent, PACKET);
            self.arrived += PACKET;
            largest = largest.max(Some(packet.number));
        }
        let Some(largest) = largest else { return };
        let mut lost = 0;
        self.on_their_way.retain(|packet| {
            let gone = packet.acked.is_none() && packet.number + 3 <= largest;
            lost += u64::from(gone);
            !gone
        });
        if lost > 0 {
            self.lost += lost;
            self.follow.handle_lost(lost * PACKET, false);
        }
        self.follow.handle_acks_end(start + now, self.in_flight(), false, Some(largest));
    }
}

/// Measurements of a run.
struct Outcome {
    /// Each sender's part of the link's rate, over the last three quarters of the time.
    shares: Vec<f64>,
    /// Lost part of the sent packets in percent, over the whole time.
    lost_percent: f64,
    /// Mean wait in the queue, over the last three quarters of the time.
    waited: Duration,
}

fn run(link: &Bottleneck, starts: &[Duration], lasts: Duration) -> Outcome {
    let start = Instant::now();
    let mut senders: Vec<Sender> = starts.iter().map(|at| Sender::new(start, *at)).collect();
    let mut free_at = Duration::ZERO;
    let mut now = Duration::ZERO;
    let mut random: u64 = 7;
    let (mut waits, mut waited) = (0u32, Duration::ZERO);
    let from = lasts / 4;
    let mut before = vec![0; senders.len()];
    while now < lasts {
        if now < from {
            before = senders.iter().map(|sender| sender.arrived).collect();
        }
        for sender in &mut senders {
            if now < sender.starts {
                continue;
            }
            sender.take_acknowledgements(start, now);
            let window = sender.follow.window();
            let rate = window as f64 * 1.25 / sender.round_trip.as_secs_f64();
            let burst = (rate * 0.002).max(10.0 * PACKET as f64);
            sender.tokens = (sender.tokens + rate * STEP.as_secs_f64()).min(burst);
            while sender.tokens >= PACKET as f64 && sender.in_flight() + PACKET <= window {
                sender.tokens -= PACKET as f64;
                sender.sent += 1;
                sender.follow.handle_sent(sender.next);
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let wait = free_at.saturating_sub(now);
                let dropped = wait > link.queue || (random >> 33) % 1000 < link.lost_per_thousand;
                let acked = (!dropped).then(|| {
                    free_at = free_at.max(now) + Duration::from_secs_f64(PACKET as f64 / link.rate);
                    free_at + link.delay * 2
                });
                if now >= from {
                    (waits, waited) = (waits + 1, waited + wait);
                }
                sender.on_their_way.push_back(Packet { number: sender.next, sent: now, acked });
                sender.next += 1;
            }
        }
        now += STEP;
    }
    let carried = link.rate * (lasts - from).as_secs_f64();
    let (lost, sent) = senders.iter().fold((0, 0), |(lost, sent), s| (lost + s.lost, sent + s.sent));
    Outcome {
        shares: senders.iter().zip(before).map(|(s, b)| (s.arrived - b) as f64 / carried).collect(),
        lost_percent: lost as f64 * 100.0 / sent as f64,
        waited: waited / waits.max(1),
    }
}

fn mbit(rate: f64) -> f64 {
    rate * 1e6 / 8.0
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_sender_fills_the_link_but_not_its_queue() {
    for rate in [2.0, 20.0, 100.0] {
        let link = Bottleneck { rate: mbit(rate), delay: 20 * MS, queue: 100 * MS, lost_per_thousand: 0 };
        let outcome = run(&link, &[Duration::ZERO], 20_000 * MS);
        assert!(outcome.shares[0] > 0.9, "{rate} Mbit/s: {:?} of it", outcome.shares);
        assert!(outcome.waited < 25 * MS, "{rate} Mbit/s: waits {:?}", outcome.waited);
        assert!(outcome.lost_percent < 2.0, "{rate} Mbit/s: {} % lost", outcome.lost_percent);
    }
}

#[test]
fn random_losses_cost_only_what_was_lost() {
    for (lost, least) in [(10, 0.85), (50, 0.7)] {
        let link = Bottleneck { rate: mbit(100.0), delay: 20 * MS, queue: 40 * MS, lost_per_thousand: lost };
        let outcome = run(&link, &[Duration::ZERO], 8_000 * MS);
        assert!(outcome.shares[0] > least, "{lost} in 1000: {:?} of it", outcome.shares);
    }
}

#[test]
fn a_short_queue_loses_little() {
    let link = Bottleneck { rate: mbit(100.0), delay: 20 * MS, queue: 4 * MS, lost_per_thousand: 0 };
    let outcome = run(&link, &[Duration::ZERO], 8_000 * MS);
    assert!(outcome.shares[0] > 0.85, "{:?} of it", outcome.shares);
    assert!(outcome.lost_percent < 5.0, "{} % lost", outcome.lost_percent);
}

#[test]
fn senders_share_a_link() {
    let link = Bottleneck { rate: mbit(100.0), delay: 10 * MS, queue: 60 * MS, lost_per_thousand: 0 };
    let outcome = run(&link, &[Duration::ZERO, 2000 * MS, 4000 * MS, 4000 * MS], 30_000 * MS);
    let (least, most) = outcome.shares.iter().fold((1.0f64, 0.0f64), |(l, m), s| (l.min(*s), m.max(*s)));
    assert!(outcome.shares.iter().sum::<f64>() > 0.9, "{:?}", outcome.shares);
    assert!(most < 2.0 * least, "{:?}", outcome.shares);
    assert!(outcome.lost_percent < 3.0, "{} % lost", outcome.lost_percent);
}

#[test]
fn a_very_short_path_counts_as_a_millisecond() {
    let link = Bottleneck {
        rate: mbit(1000.0),
        delay: Duration::from_micros(20),
        queue: 20 * MS,
        lost_per_thousand: 0,
    };
    let outcome = run(&link, &[Duration::ZERO], 2_000 * MS);
    assert!(outcome.shares[0] > 0.9, "{:?}", outcome.shares);
    // Enough for a batch of packets at a time, and no more.
    assert!(outcome.waited < 2 * MS, "waits {:?}", outcome.waited);
}
