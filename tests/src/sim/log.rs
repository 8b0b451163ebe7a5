//! The log of a run: a hash over every event, and the last of them in words.

use std::collections::VecDeque;

use distd_core::time::Timestamp;

/// Events kept in words, for the message of a failure.
const KEPT: usize = 40;

/// One line: what happened, to which node or connection, and two numbers that depend on it.
#[derive(Clone, Copy, Debug)]
struct Line {
    at: Timestamp,
    what: &'static str,
    who: usize,
    numbers: [u64; 2],
}

#[derive(Debug, Default)]
pub(super) struct Log {
    hasher: blake3::Hasher,
    events: u64,
    last: VecDeque<Line>,
}

impl Log {
    pub(super) fn note(&mut self, at: Timestamp, what: &'static str, who: usize, numbers: [u64; 2]) {
        self.hasher.update(what.as_bytes());
        for number in [at.0, who as u64, numbers[0], numbers[1]] {
            self.hasher.update(&number.to_le_bytes());
        }
        self.events += 1;
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(Line { at, what, who, numbers });
    }

    /// How many events, and the hash over all.
    pub(super) fn digest(&self) -> (u64, String) {
        (self.events, self.hasher.finalize().to_hex().to_string())
    }

    /// The last events, a line each.
    pub(super) fn tail(&self) -> String {
        let line = |l: &Line| {
            format!(
                "  {:>12.6} s  {:<12} {:>4}  {} {}\n",
                l.at.0 as f64 / 1e6,
                l.what,
                l.who,
                l.numbers[0],
                l.numbers[1]
            )
        };
        self.last.iter().map(line).collect()
    }
}
