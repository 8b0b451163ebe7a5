//! Bounds on the memory that a body allocates through Rust. Memory of C libraries is not counted.

use std::sync::{Mutex, PoisonError};

use peak_alloc::PeakAlloc;

#[global_allocator]
static PEAK: PeakAlloc = PeakAlloc;

/// The peak is that of the process, so tests in other threads wait.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs `body` while no other body runs in this process.
pub fn alone(body: impl FnOnce()) {
    let _guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    body();
}

/// Returns the result of `work`, which may allocate at most `bytes` at any moment.
pub fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let before = PEAK.current_usage();
    PEAK.reset_peak_usage();
    let result = work();
    let used = PEAK.peak_usage().saturating_sub(before);
    assert!(used <= bytes, "{used} bytes allocated where {bytes} are the bound");
    result
}
