//! The only two clocks that this crate reads.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use distd_core::time::Timestamp;

/// Seconds since 1970, as used in certificates and TUF metadata. A clock before 1970 reads as 0,
/// which nothing accepts.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Monotonic time for state machines, counted from the first call.
pub fn monotonic_now() -> Timestamp {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = START.get_or_init(Instant::now);
    Timestamp(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX))
}
