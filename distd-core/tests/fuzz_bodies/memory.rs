//! Bounds on memory: what a body allocates through Rust. What C libraries allocate is not counted.

use std::sync::{Mutex, PoisonError};

use peak_alloc::PeakAlloc;

#[global_allocator]
static PEAK: PeakAlloc = PeakAlloc;

/// The peak is the process's: tests in other threads wait.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs `body` alone in its process.
pub fn alone(body: impl FnOnce()) {
    let _guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    body();
}

/// Result of `work`, which may allocate at most `bytes` at any moment.
pub fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let before = PEAK.current_usage();
    PEAK.reset_peak_usage();
    let result = work();
    let used = PEAK.peak_usage().saturating_sub(before);
    assert!(used <= bytes, "{used} bytes allocated where {bytes} are the bound");
    result
}
