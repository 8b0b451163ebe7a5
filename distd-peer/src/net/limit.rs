//! Byte rates: token buckets that any length may pass.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

/// Bytes a token stands for: fine enough for 1 KB/s, coarse enough for the bucket's clock at many GB/s.
const TOKEN_BYTES: usize = 1024;

/// Most tokens taken at once, so that a long frame is spread out and others get their turn in between.
const PIECE_TOKENS: u32 = 16;

/// Bytes written or read between two looks at a limit.
pub(crate) const LIMITED_PIECE: usize = PIECE_TOKENS as usize * TOKEN_BYTES;

/// A rate in bytes a second, shared by all that pass it.
#[derive(Debug)]
pub struct RateLimit {
    bucket: RateLimiter<NotKeyed, InMemoryState, MonotonicClock, NoOpMiddleware<std::time::Instant>>,
    clock: MonotonicClock,
}

impl RateLimit {
    /// At most `bytes_per_second`, with bursts of an eighth of a second.
    pub fn new(bytes_per_second: u64) -> Self {
        let tokens = (bytes_per_second / TOKEN_BYTES as u64).clamp(1, u64::from(u32::MAX)) as u32;
        let rate = NonZeroU32::new(tokens).unwrap_or(NonZeroU32::MIN);
        let burst = NonZeroU32::new((tokens / 8).max(PIECE_TOKENS)).unwrap_or(NonZeroU32::MIN);
        let clock = MonotonicClock;
        let quota = Quota::per_second(rate).allow_burst(burst);
        Self { bucket: RateLimiter::direct_with_clock(quota, clock.clone()), clock }
    }

    /// Waits until `bytes` may pass.
    pub async fn pass(&self, bytes: usize) {
        let mut tokens = u32::try_from(bytes.div_ceil(TOKEN_BYTES)).unwrap_or(u32::MAX);
        while let Some(piece) = NonZeroU32::new(tokens.min(PIECE_TOKENS)) {
            match self.bucket.check_n(piece) {
                Ok(Ok(())) => tokens -= piece.get(),
                Ok(Err(not_until)) => tokio::time::sleep(not_until.wait_time_from(self.clock.now())).await,
                // The burst is never smaller than a piece.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn any_length_passes_and_what_is_above_the_burst_takes_its_time() {
        let limit = RateLimit::new(1 << 20);
        limit.pass(0).await;
        limit.pass(1).await;
        let start = Instant::now();
        // An eighth of a second's worth is the burst; the other 384 KiB need three eighths.
        limit.pass(512 << 10).await;
        assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    }
}
