//! The file `DIR/failures.json`: releases that did not work on this device. A rollout does not
//! offer such a release again, whoever pulls.

use std::io;
use std::path::Path;

use distd_core::fleet::rollout::Held;
use distd_core::names::Name;
use serde::{Deserialize, Serialize};

use crate::disk::side;

/// Name of the file in the state directory.
const FILE_NAME: &str = "failures.json";

/// Most releases remembered; the oldest are dropped.
const FAILED_MAX: usize = 64;

/// Largest file read, bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Failed {
    product: Name,
    version: Name,
    times: u32,
    /// Whether somebody at the device took it back from the release.
    #[serde(default)]
    taken_back: bool,
}

/// Releases that did not work, the last one first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Failures(Vec<Failed>);

impl Failures {
    /// Number of attempts at a release that failed on this device; more than any rollout allows for
    /// one that somebody took the device back from.
    pub fn of(&self, product: &Name, version: &Name) -> u32 {
        let failed = self.0.iter().find(|failed| failed.product == *product && failed.version == *version);
        failed.map_or(0, |failed| if failed.taken_back { u32::MAX } else { failed.times })
    }

    /// Why a release that failed `attempts` times is not installed.
    pub(super) fn why(&self, product: &Name, version: &Name, attempts: u32) -> Held {
        let is_taken_back =
            |failed: &Failed| failed.taken_back && failed.product == *product && failed.version == *version;
        if self.0.iter().any(is_taken_back) { Held::TakenBack } else { Held::Failed { attempts } }
    }

    /// Counts a failed attempt.
    pub(super) fn count(&mut self, product: &Name, version: &Name) {
        let times = self.of(product, version).saturating_add(1);
        self.put(product, version, times, times == u32::MAX);
    }

    /// Remembers that somebody took the device back from a release.
    pub(super) fn take_back(&mut self, product: &Name, version: &Name) {
        self.put(product, version, 1, true);
    }

    fn put(&mut self, product: &Name, version: &Name, times: u32, taken_back: bool) {
        self.forget(product, version);
        self.0.insert(0, Failed { product: product.clone(), version: version.clone(), times, taken_back });
        self.0.truncate(FAILED_MAX);
    }

    /// Forgets the failures of a release, because it works.
    pub(super) fn forget(&mut self, product: &Name, version: &Name) {
        self.0.retain(|failed| failed.product != *product || failed.version != *version);
    }

    /// Writes the file durably.
    ///
    /// # Errors
    /// As the system reports.
    pub(super) fn store(&self, data: &Path) -> io::Result<()> {
        side::write_json(&data.join(FILE_NAME), self)
    }
}

/// Reads the failures of the device whose state directory is `data`. A damaged file counts as
/// empty: a release is then tried once more, and its check decides again.
pub fn load(data: &Path) -> Failures {
    let mut failures: Failures = side::read_json(&data.join(FILE_NAME), FILE_BYTES_MAX);
    failures.0.truncate(FAILED_MAX);
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_release_and_kept() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let mut failures = load(dir.path());
        failures.count(&name("os"), &name("2"));
        failures.count(&name("os"), &name("2"));
        failures.count(&name("app"), &name("2"));
        failures.store(dir.path()).expect("written");
        let mut failures = load(dir.path());
        let times = |failures: &Failures, product| failures.of(&name(product), &name("2"));
        assert_eq!((times(&failures, "os"), times(&failures, "app"), times(&failures, "x")), (2, 1, 0));
        failures.forget(&name("os"), &name("2"));
        assert_eq!((times(&failures, "os"), times(&failures, "app")), (0, 1));
        failures.take_back(&name("os"), &name("2"));
        failures.store(dir.path()).expect("written");
        let mut failures = load(dir.path());
        assert_eq!(times(&failures, "os"), u32::MAX);
        let why = |failures: &Failures, version: &str| failures.why(&name("os"), &name(version), 1);
        assert_eq!(why(&failures, "2"), Held::TakenBack);
        assert_eq!(why(&failures, "3"), Held::Failed { attempts: 1 });
        failures.forget(&name("os"), &name("2"));
        assert_eq!(times(&failures, "os"), 0);
        for n in 0..100 {
            failures.count(&name("os"), &name(&n.to_string()));
        }
        assert_eq!(failures.0.len(), FAILED_MAX);
        std::fs::write(dir.path().join(FILE_NAME), "{").expect("write");
        assert_eq!(load(dir.path()), Failures::default());
    }
}
