//! The file `DIR/deferred.json`: until when somebody at the device has put updates off.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::side;

/// Name of the file in the state directory.
const FILE_NAME: &str = "deferred.json";

/// Largest file read, bytes.
const FILE_BYTES_MAX: u64 = 4 << 10;

/// A deferral. Times are unix seconds by the device's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deferral {
    /// When updates were first put off since the last attempt began.
    since: u64,
    /// End.
    until: u64,
}

impl Deferral {
    /// Reads the deferral of the device whose state directory is `data`. A damaged file counts as
    /// none.
    pub(super) fn load(data: &Path) -> Self {
        side::read_json(&data.join(FILE_NAME), FILE_BYTES_MAX)
    }

    /// End of the deferral, when it holds at `now`. A clock that was set back makes none longer
    /// than `max` seconds.
    pub(super) fn holds(self, now: u64, max: u64) -> Option<u64> {
        (now < self.until && self.until - now <= max).then_some(self.until)
    }

    /// Deferral for `seconds` from `now`, which is never later than `max` seconds after updates
    /// were first put off: whoever asks each day does not put an update off for ever. The file is
    /// removed when an attempt begins or the device is up to date.
    pub(super) fn extended(self, now: u64, seconds: u64, max: u64) -> Self {
        let since = if self.until > 0 && self.since <= now { self.since } else { now };
        Self { since, until: now.saturating_add(seconds).min(since.saturating_add(max)) }
    }

    /// Writes the file durably.
    ///
    /// # Errors
    /// As the system reports.
    pub(super) fn store(self, data: &Path) -> io::Result<()> {
        side::write_json(&data.join(FILE_NAME), &self)
    }

    /// Removes the file: an attempt begins, or the deferral was withdrawn.
    ///
    /// # Errors
    /// As the system reports.
    pub(super) fn remove(data: &Path) -> Result<(), side::SideError> {
        side::remove(&data.join(FILE_NAME))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    #[test]
    fn deferrals_add_up_to_the_bound_and_no_further() {
        let first = Deferral::default().extended(1000, DAY, 7 * DAY);
        assert_eq!((first.holds(1000, 7 * DAY), first.holds(1000 + DAY, 7 * DAY)), (Some(1000 + DAY), None));
        let again = first.extended(1000 + 6 * DAY, 3 * DAY, 7 * DAY);
        assert_eq!(again.holds(1000 + 6 * DAY, 7 * DAY), Some(1000 + 7 * DAY), "cut at a week");
        for late in [1000 + 7 * DAY - 1, 1000 + 30 * DAY] {
            let last = again.extended(late, DAY, 7 * DAY);
            assert_eq!(last.holds(late.max(1000 + 7 * DAY), 7 * DAY), None, "it ends after a week");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_deferral_longer() {
        let made = Deferral::default().extended(100 * DAY, DAY, 7 * DAY);
        assert_eq!(made.holds(DAY, 7 * DAY), None);
        assert_eq!(made.extended(DAY, DAY, 7 * DAY).holds(DAY, 7 * DAY), Some(2 * DAY));
    }

    #[test]
    fn the_file_survives_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let made = Deferral::default().extended(1000, 60, DAY);
        made.store(dir.path()).expect("written");
        assert_eq!(Deferral::load(dir.path()), made);
        std::fs::write(dir.path().join(FILE_NAME), "{").expect("write");
        assert_eq!(Deferral::load(dir.path()), Deferral::default());
        Deferral::remove(dir.path()).expect("removed");
        assert_eq!(Deferral::load(dir.path()), Deferral::default());
    }
}
