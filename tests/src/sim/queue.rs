//! A queue of events in order of time; events of one time stay in the order of insertion.

use std::collections::BTreeMap;
use std::time::Duration;

use distd_core::time::Timestamp;

/// Future events, and the present time.
#[derive(Debug)]
pub(super) struct Queue<E> {
    now: Timestamp,
    next: u64,
    events: BTreeMap<(Timestamp, u64), E>,
}

impl<E> Queue<E> {
    pub(super) fn new() -> Self {
        Self { now: Timestamp(0), next: 0, events: BTreeMap::new() }
    }

    /// Virtual time, microseconds since the start.
    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    /// Inserts an event at a time; if that time is past, the event comes next.
    pub(super) fn at(&mut self, at: Timestamp, event: E) {
        self.events.insert((at.max(self.now), self.next), event);
        self.next += 1;
    }

    pub(super) fn after(&mut self, delay: Duration, event: E) {
        self.at(self.now + delay, event);
    }

    /// Removes the next event, unless it comes after `end`; the time moves to it.
    pub(super) fn pop(&mut self, end: Timestamp) -> Option<E> {
        let entry = self.events.first_entry().filter(|entry| entry.key().0 <= end)?;
        self.now = entry.key().0;
        Some(entry.remove())
    }

    /// Moves the time to `end` when nothing happens until then.
    pub(super) fn rest_until(&mut self, end: Timestamp) {
        self.now = self.now.max(end);
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }
}
