//! The log of a run: a hash over every event, and the last events as text.

use std::collections::VecDeque;

use distd_core::time::Timestamp;

/// Number of events kept as text, for the message of a failure.
const KEPT: usize = 40;

/// One line: the event, its node or connection, and two numbers that depend on the event.
#[derive(Clone, Copy, Debug)]
struct Line {
    at: Timestamp,
    what: &'static str,
    who: usize,
    numbers: [u64; 2],
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [first, second] = self.numbers;
        let seconds = self.at.0 as f64 / 1e6;
        write!(f, "{seconds:>12.6} s  {:<12} {:>4}  {first} {second}", self.what, self.who)
    }
}

#[derive(Debug)]
pub(super) struct Log {
    hasher: blake3::Hasher,
    events: u64,
    last: VecDeque<Line>,
    /// Whether every event is printed: `DISTD_TEST_SIM_LOG` is set.
    prints: bool,
}

impl Log {
    pub(super) fn new() -> Self {
        let prints = std::env::var_os("DISTD_TEST_SIM_LOG").is_some();
        Self { hasher: blake3::Hasher::new(), events: 0, last: VecDeque::new(), prints }
    }

    pub(super) fn note(&mut self, at: Timestamp, what: &'static str, who: usize, numbers: [u64; 2]) {
        self.hasher.update(what.as_bytes());
        for number in [at.0, who as u64, numbers[0], numbers[1]] {
            self.hasher.update(&number.to_le_bytes());
        }
        self.events += 1;
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        let line = Line { at, what, who, numbers };
        if self.prints {
            println!("{line}");
        }
        self.last.push_back(line);
    }

    /// Number of events, and the hash over all of them.
    pub(super) fn digest(&self) -> (u64, String) {
        (self.events, self.hasher.finalize().to_hex().to_string())
    }

    /// The last events, a line each.
    pub(super) fn tail(&self) -> String {
        self.last.iter().map(|line| format!("  {line}\n")).collect()
    }
}
