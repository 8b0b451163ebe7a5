//! Mark of a release in its first boot, which a timer of the system looks at.

use distd_core::error::Chain;
use distd_core::fleet::report::AttemptState;

use super::step::Step;
use crate::disk::side;

/// File in the state directory that is there while a release is in its first boot.
const TRYING: &str = "trying";

/// File beside it in which the timer counts its restarts.
const TRYING_COUNT: &str = "trying.count";

impl Step {
    /// Keeps a mark in the state directory while a release is on its way through its first boot:
    /// the id of the boot in which it was ordered. A timer of the system restarts a device on which
    /// no agent removes the mark (docs/slots.md, "A release whose agent does not come up").
    pub(super) fn mark_trying(&self) {
        let Some(entry) = self.journal.under_way().filter(|_| self.place.booted_slot().is_some()) else {
            return self.unmark_trying();
        };
        match (entry.attempt.state, &entry.boot) {
            (AttemptState::Restarting | AttemptState::Checking, Some(boot)) => {
                let path = self.request.data.join(TRYING);
                if std::fs::read_to_string(&path).is_ok_and(|marked| marked.trim() == boot) {
                    return;
                }
                if let Err(error) = side::write_atomic(&path, format!("{boot}\n").as_bytes()) {
                    tracing::warn!(error = %Chain(&error), "the mark of a release's first boot is not written");
                }
            }
            _ => self.unmark_trying(),
        }
    }

    fn unmark_trying(&self) {
        for name in [TRYING, TRYING_COUNT] {
            if let Err(error) = side::remove(&self.request.data.join(name)) {
                tracing::warn!(error = %Chain(&error), "the mark of a release's first boot stays");
            }
        }
    }
}
