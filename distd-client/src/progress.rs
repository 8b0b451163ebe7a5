//! Progress of a pull or a push, as the library reports it to the program that embeds it.

use std::fmt;
use std::time::Duration;

/// Interval of reports that no bytes arrive.
const SILENCE_EVERY: Duration = Duration::from_secs(10);

/// Receiver of progress. The library calls it from many threads, so every call is cheap.
pub trait Progress: fmt::Debug + Send + Sync {
    /// Starts to count from zero towards `bytes`; `label` names the release.
    fn begin(&self, bytes: u64, label: &str);

    /// Names the current phase, such as "checking"; an empty text ends the phase.
    fn phase(&self, phase: &str);

    /// Counts `bytes` more.
    fn add(&self, bytes: u64);

    /// Returns the number of bytes counted since [`begin`](Self::begin); `None` if the receiver
    /// counts nothing, which turns reports of silence off.
    fn done(&self) -> Option<u64>;

    /// Takes note that no bytes have arrived for `quiet`, a multiple of ten seconds; zero says that
    /// bytes arrive again.
    fn silent(&self, quiet: Duration);

    /// Ends the count: the artifact is in place, even if the device still serves neighbours.
    fn end(&self);
}

/// Receiver that ignores all progress.
#[derive(Clone, Copy, Debug)]
pub struct Ignored;

impl Progress for Ignored {
    fn begin(&self, _bytes: u64, _label: &str) {}
    fn phase(&self, _phase: &str) {}
    fn add(&self, _bytes: u64) {}
    fn done(&self) -> Option<u64> {
        None
    }
    fn silent(&self, _quiet: Duration) {}
    fn end(&self) {}
}

/// Reports to `progress` every ten seconds for how long no bytes have been counted. The future
/// never ends.
pub async fn watch_for_silence(progress: &dyn Progress) -> std::convert::Infallible {
    let mut before = progress.done();
    let mut quiet = Duration::ZERO;
    loop {
        tokio::time::sleep(SILENCE_EVERY).await;
        let now = progress.done();
        quiet = if now == before { quiet + SILENCE_EVERY } else { Duration::ZERO };
        before = now;
        if now.is_some() {
            progress.silent(quiet);
        }
    }
}
