//! Byte rates: token buckets that let through messages of any length.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use distd_core::fleet::window::WeekTime;
use governor::clock::{Clock, MonotonicClock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{NotUntil, Quota, RateLimiter};

use super::schedule::{Schedule, local_time};

/// Bytes that one token stands for: fine enough for 1 KB/s, coarse enough for the bucket's clock at
/// many GB/s.
const TOKEN_BYTES: usize = 1024;

/// Maximum number of tokens taken at once, so that a long frame is spread out and other transfers
/// get their turn in between.
const PIECE_TOKENS: u32 = 16;

/// Bytes written or read between two checks of a limit.
pub(crate) const LIMITED_PIECE: usize = PIECE_TOKENS as usize * TOKEN_BYTES;

/// Time for which a reading of the time of day is reused.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Number of peers' buckets from which on full buckets are searched for and removed.
const PEERS_MAX: usize = 1024;

fn quota(bytes_per_second: u64) -> Quota {
    let tokens = (bytes_per_second / TOKEN_BYTES as u64).clamp(1, u64::from(u32::MAX)) as u32;
    let rate = NonZeroU32::new(tokens).unwrap_or(NonZeroU32::MIN);
    let burst = NonZeroU32::new((tokens / 8).max(PIECE_TOKENS)).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(rate).allow_burst(burst)
}

type Bucket<C> = RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// A rate over the week, shared by all transfers that pass it. Allows bursts of an eighth of a
/// second.
pub(super) struct Rate<C: Clock = MonotonicClock> {
    schedule: Schedule,
    /// One bucket for each rate of the schedule.
    buckets: Vec<(u64, Bucket<C>)>,
    clock: C,
    local: Box<dyn Fn() -> WeekTime + Send + Sync>,
    /// Time of the last reading of the time of day, and the index of the bucket in force since
    /// then.
    looked: Mutex<Option<(C::Instant, Option<usize>)>>,
}

impl Rate {
    pub(super) fn new(schedule: Schedule) -> Self {
        Self::with_clocks(schedule, MonotonicClock, Box::new(|| local_time(None)))
    }
}

impl<C: Clock + Clone> Rate<C> {
    fn with_clocks(schedule: Schedule, clock: C, local: Box<dyn Fn() -> WeekTime + Send + Sync>) -> Self {
        let mut rates: Vec<u64> = schedule.rates().collect();
        rates.sort_unstable();
        rates.dedup();
        let bucket = |rate| (rate, RateLimiter::direct_with_clock(quota(rate), clock.clone()));
        let buckets = rates.into_iter().map(bucket).collect();
        Self { schedule, buckets, clock, local, looked: Mutex::new(None) }
    }

    fn bucket(&self) -> Option<&Bucket<C>> {
        let now = self.clock.now();
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let held = looked.filter(|(at, _)| Duration::from(now.duration_since(*at)) < LOOK_EVERY);
        let (_, index) = *looked.insert(held.unwrap_or_else(|| {
            let rate = self.schedule.rate_at((self.local)());
            (now, rate.and_then(|rate| self.buckets.iter().position(|(of, _)| *of == rate)))
        }));
        index.map(|index| &self.buckets[index].1)
    }

    /// Takes tokens, or returns how long to wait before trying again: at most [`LOOK_EVERY`], since
    /// the time of day may bring another rate by then.
    fn take(&self, tokens: NonZeroU32) -> Result<(), Duration> {
        let Some(bucket) = self.bucket() else { return Ok(()) };
        let wait =
            |not_until: NotUntil<C::Instant>| not_until.wait_time_from(self.clock.now()).min(LOOK_EVERY);
        // A burst is never smaller than a piece.
        bucket.check_n(tokens).unwrap_or(Ok(())).map_err(wait)
    }

    /// Waits until `bytes` may pass.
    pub(super) async fn pass(&self, bytes: usize) {
        pass_in_pieces(bytes, |piece| self.take(piece)).await;
    }
}

/// The same rate for each peer.
pub(super) struct RateOfEach<K: Clone + Eq + Hash, C: Clock = MonotonicClock> {
    buckets: RateLimiter<K, HashMapStateStore<K>, C, NoOpMiddleware<<C as Clock>::Instant>>,
    clock: C,
    /// Number of peers at which the idle ones, whose buckets are full again, are forgotten.
    forget_at: AtomicUsize,
}

impl<K: Clone + Eq + Hash> RateOfEach<K> {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self::with_clock(bytes_per_second, MonotonicClock)
    }
}

impl<K: Clone + Eq + Hash, C: Clock + Clone> RateOfEach<K, C> {
    fn with_clock(bytes_per_second: u64, clock: C) -> Self {
        let store = HashMapStateStore::default();
        let buckets = RateLimiter::new(quota(bytes_per_second), store, clock.clone());
        Self { buckets, clock, forget_at: AtomicUsize::new(PEERS_MAX) }
    }

    fn take(&self, peer: &K, tokens: NonZeroU32) -> Result<(), Duration> {
        if self.buckets.len() >= self.forget_at.load(Ordering::Relaxed) {
            self.buckets.retain_recent();
            // Not again before the number of buckets has doubled.
            self.forget_at.store((self.buckets.len() * 2).max(PEERS_MAX), Ordering::Relaxed);
        }
        let taken = self.buckets.check_key_n(peer, tokens).unwrap_or(Ok(()));
        taken.map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }

    /// Waits until `bytes` may pass to or from `peer`.
    pub(super) async fn pass(&self, peer: &K, bytes: usize) {
        pass_in_pieces(bytes, |piece| self.take(peer, piece)).await;
    }
}

async fn pass_in_pieces(bytes: usize, take: impl Fn(NonZeroU32) -> Result<(), Duration>) {
    let mut tokens = u32::try_from(bytes.div_ceil(TOKEN_BYTES)).unwrap_or(u32::MAX);
    while let Some(piece) = NonZeroU32::new(tokens.min(PIECE_TOKENS)) {
        match take(piece) {
            Ok(()) => tokens -= piece.get(),
            Err(wait) => tokio::time::sleep(wait).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU16;
    use std::time::Instant;

    use governor::clock::FakeRelativeClock;

    use super::super::schedule::RateWindow;
    use super::*;

    const PIECE: NonZeroU32 = NonZeroU32::new(PIECE_TOKENS).expect("not zero");

    /// Returns how many bytes pass in `seconds` of virtual time if taken as fast as possible.
    fn passed(clock: &FakeRelativeClock, seconds: u64, take: impl Fn() -> Result<(), Duration>) -> u64 {
        let (mut left, mut bytes) = (Duration::from_secs(seconds), 0);
        loop {
            match take() {
                Ok(()) => bytes += LIMITED_PIECE as u64,
                Err(wait) => {
                    let wait = wait.max(Duration::from_nanos(1));
                    if wait > left {
                        clock.advance(left);
                        return bytes;
                    }
                    clock.advance(wait);
                    left -= wait;
                }
            }
        }
    }

    fn close_to(bytes: u64, expected: u64) -> bool {
        // A burst comes on top of the rate.
        bytes >= expected * 98 / 100 && bytes <= expected * 102 / 100 + expected / 8
    }

    #[test]
    fn the_rate_follows_the_time_of_day() {
        let (clock, minute) = (FakeRelativeClock::default(), Arc::new(AtomicU16::new(7 * 60)));
        let local = minute.clone();
        let window = RateWindow { when: "08:00-18:00".parse().expect("a window"), rate: 64 << 10 };
        let schedule = Schedule { otherwise: Some(1 << 20), windows: vec![window] };
        let local = Box::new(move || WeekTime { day: 0, minute: local.load(Ordering::Relaxed) });
        let rate = Rate::with_clocks(schedule, clock.clone(), local);
        for (hour, per_second) in [(7, 1 << 20), (8, 64 << 10), (18, 1 << 20)] {
            minute.store(hour * 60, Ordering::Relaxed);
            clock.advance(LOOK_EVERY);
            let bytes = passed(&clock, 60, || rate.take(PIECE));
            assert!(close_to(bytes, 60 * per_second), "{bytes} bytes in a minute at {hour}");
        }
        // Outside of the windows there is no limit, as the schedule names none.
        let schedule = Schedule { otherwise: None, windows: vec![window] };
        let local = Box::new(|| WeekTime { day: 0, minute: 0 });
        let free = Rate::with_clocks(schedule, clock, local);
        assert!((0..10_000).all(|_| free.take(PIECE).is_ok()));
    }

    #[test]
    fn each_peer_has_its_own_bucket() {
        let clock = FakeRelativeClock::default();
        let each = RateOfEach::with_clock(64 << 10, clock.clone());
        for peer in [1u8, 2] {
            let bytes = passed(&clock, 60, || each.take(&peer, PIECE));
            assert!(close_to(bytes, 60 * (64 << 10)), "{bytes}");
        }
        clock.advance(Duration::from_secs(1));
        while each.take(&1, PIECE).is_ok() {}
        assert!(each.take(&2, PIECE).is_ok(), "one that is empty keeps no other waiting");
    }

    #[test]
    fn peers_that_left_are_forgotten() {
        let clock = FakeRelativeClock::default();
        let each = RateOfEach::with_clock(64 << 10, clock.clone());
        for peer in 0..20 * PEERS_MAX {
            assert!(each.take(&peer, PIECE).is_ok());
            clock.advance(Duration::from_millis(10));
            assert!(each.buckets.len() <= PEERS_MAX);
        }
    }

    #[tokio::test]
    async fn any_length_passes_and_bytes_beyond_the_burst_wait() {
        let rate = Rate::new(Schedule { otherwise: Some(1 << 20), windows: Vec::new() });
        rate.pass(0).await;
        rate.pass(1).await;
        let start = Instant::now();
        // The burst is an eighth of a second's worth; the other 384 KiB need three eighths.
        rate.pass(512 << 10).await;
        assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    }
}
