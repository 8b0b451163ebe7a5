//! Downloads that are resumed after the channel moved on.
//!
//! Many clients resume with `Range: bytes=N-` alone and would join the end of one release to the
//! beginning of another. A gateway remembers which release it last began to send to a caller, and
//! refuses such a request for another one.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use distd_core::lru::Lru;

use super::Reference;

/// Number of callers and addresses remembered.
const REMEMBERED_MAX: u64 = 4096;

/// Releases that were last sent, by caller and address.
#[derive(Debug)]
pub(super) struct Resumed(Mutex<Lru<(IpAddr, Reference), [u8; 32]>>);

impl Default for Resumed {
    fn default() -> Self {
        Self(Mutex::new(Lru::new(REMEMBERED_MAX)))
    }
}

impl Resumed {
    /// Takes note that `caller` began to read the file with this hash at `reference`.
    pub(super) fn began(&self, caller: IpAddr, reference: &Reference, blake3: [u8; 32]) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.put((caller, reference.clone()), blake3, 1);
    }

    /// Whether a request of `caller` that begins in the middle of the file would join two files.
    pub(super) fn would_join(&self, caller: IpAddr, reference: &Reference, blake3: &[u8; 32]) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.get(&(caller, reference.clone())).is_some_and(|had| had != blake3)
    }
}
