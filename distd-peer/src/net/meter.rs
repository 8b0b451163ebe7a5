//! Counters of received traffic, updated where streams are read.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of the connections that share the meter. They only grow.
#[derive(Debug, Default)]
pub struct Meter {
    bytes_in: AtomicU64,
    requests: AtomicU64,
    round_trips: AtomicU64,
    unknown_frames: AtomicU64,
}

/// Values of a [`Meter`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeterReading {
    /// Bytes received on streams: frames with their headers. Excludes the overhead of QUIC or
    /// HTTP/2, TLS and TCP.
    pub bytes_in: u64,
    /// Number of requests, that is, of streams opened.
    pub requests: u64,
    /// Number of times the asker had to wait for an answer before it could ask for the next thing.
    pub round_trips: u64,
    /// Number of frames of a type that this build does not know.
    pub unknown_frames: u64,
}

impl Meter {
    pub(crate) fn received(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn unknown_frame(&self) {
        self.unknown_frames.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one wait for an answer.
    pub fn round_trip(&self) {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the present values.
    pub fn read(&self) -> MeterReading {
        MeterReading {
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            round_trips: self.round_trips.load(Ordering::Relaxed),
            unknown_frames: self.unknown_frames.load(Ordering::Relaxed),
        }
    }
}
