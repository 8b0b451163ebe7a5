//! Helper that runs the same work on all cores.

use std::io;

/// Runs `work` on one thread per core, four at most, until each thread returns; returns the first
/// error. A thread that fails calls `stop` to end the others.
///
/// # Errors
/// The error of `work`; a thread that panics is an error too.
pub(crate) fn on_all_cores(
    work: impl Fn() -> io::Result<()> + Sync,
    stop: impl Fn() + Sync,
) -> io::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let result = work();
                    if result.is_err() {
                        stop();
                    }
                    result
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|w| w.join().unwrap_or_else(|_| Err(io::Error::other("a working thread failed"))))
    })
}
