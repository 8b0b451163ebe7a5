//! Reports of devices that a relay keeps until a parent has taken them: one of each device, the
//! newest, also across restarts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use distd_core::NodeId;
use distd_core::error::Chain;
use distd_core::role::Role;
use tokio::sync::Notify;

use crate::trust::files;
use crate::trust::report::{self, REPORTS_BYTES_MAX, REPORTS_MAX, ReportPace};
use crate::trust::tls::PeerIdentity;

/// Most devices of which a relay keeps a report. At 4 KiB each that is 64 MiB; a usual report has
/// 500 bytes.
const KEPT_MAX: usize = 16 << 10;

/// Reason why a report was not kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    /// The relay keeps as many reports as it can.
    #[error("{KEPT_MAX} reports wait for a parent: no other device's is kept until one answers")]
    Full,
    /// The device reports too often.
    #[error("a device reports too often; its report waits")]
    TooOften,
    /// The directory cannot be written.
    #[error(transparent)]
    File(#[from] files::FileError),
}

struct Kept {
    sequence: u64,
    bytes: Bytes,
}

/// The reports that wait for a parent.
pub(super) struct Reports {
    dir: PathBuf,
    waiting: Mutex<BTreeMap<NodeId, Kept>>,
    /// Held while files are changed, so that file and memory agree.
    turn: Mutex<()>,
    pace: ReportPace,
    /// Signalled when a report has come.
    news: Notify,
}

impl Reports {
    /// Loads the reports in `dir`, which is made when it is missing. A file that is no report of
    /// the node that it names is removed.
    pub(super) fn load(dir: &Path) -> Self {
        let mut waiting = BTreeMap::new();
        if let Err(error) = files::create_private_dir(dir) {
            tracing::warn!(error = %Chain(&error), "reports of devices cannot be kept");
        }
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten().take(KEPT_MAX) {
            let path = entry.path();
            let node = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            // Other files are remains of a write that was cut off.
            let kept = node.and_then(|node: NodeId| {
                let bytes = Bytes::from(files::read(&path).ok()??);
                let (signer, sequence) = report::node_and_sequence(&bytes).ok()?;
                (signer == node).then_some((node, Kept { sequence, bytes }))
            });
            match kept {
                Some((node, kept)) => {
                    waiting.insert(node, kept);
                }
                None => drop(files::remove(&path)),
            }
        }
        Self {
            dir: dir.to_owned(),
            waiting: Mutex::new(waiting),
            turn: Mutex::new(()),
            pace: ReportPace::default(),
            news: Notify::new(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<NodeId, Kept>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the reports that `peer` hands over: a device only its own, a relay those of its
    /// devices. What is no report is dropped, because sending it again would change nothing.
    /// Blocks: writes and syncs files.
    ///
    /// # Errors
    /// [`KeepError`]; the peer keeps its reports then.
    pub(super) fn keep(&self, peer: &PeerIdentity, reports: &[Bytes]) -> Result<(), KeepError> {
        // A device has one report to hand over.
        if peer.role != Role::Relay && !self.pace.count(peer.node_id, Instant::now()) {
            return Err(KeepError::TooOften);
        }
        let most = if peer.role == Role::Relay { REPORTS_MAX } else { 1 };
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for bytes in reports.iter().take(most) {
            let (node, sequence) = match report::node_and_sequence(bytes) {
                Ok(signed) if signed.0 == peer.node_id || peer.role == Role::Relay => signed,
                Ok((of, _)) => {
                    tracing::debug!(node = %peer.node_id, %of, "a report of another node is dropped");
                    continue;
                }
                Err(error) => {
                    tracing::debug!(node = %peer.node_id, error = %Chain(&error), "a report is dropped");
                    continue;
                }
            };
            {
                let waiting = self.waiting();
                match waiting.get(&node) {
                    Some(kept) if kept.sequence >= sequence => continue,
                    None if waiting.len() >= KEPT_MAX => return Err(KeepError::Full),
                    Some(_) | None => {}
                }
            }
            files::write_atomic(&self.dir.join(node.to_string()), bytes, 0o600)?;
            self.waiting().insert(node, Kept { sequence, bytes: bytes.clone() });
        }
        self.news.notify_one();
        Ok(())
    }

    /// Waits until a report has come.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Returns reports for one question to a parent, with the node and number of each; none when
    /// none wait.
    pub(super) fn batch(&self) -> Vec<(NodeId, u64, Bytes)> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for (node, kept) in self.waiting().iter() {
            bytes += kept.bytes.len();
            if bytes > REPORTS_BYTES_MAX && !batch.is_empty() || batch.len() == REPORTS_MAX {
                break;
            }
            batch.push((*node, kept.sequence, kept.bytes.clone()));
        }
        batch
    }

    /// Forgets reports that a parent has taken, unless a newer one of the same device has come.
    /// Blocks: removes files.
    pub(super) fn taken(&self, batch: &[(NodeId, u64, Bytes)]) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for (node, sequence, _) in batch {
            let mut waiting = self.waiting();
            if waiting.get(node).is_some_and(|kept| kept.sequence == *sequence) {
                waiting.remove(node);
                if let Err(error) = files::remove(&self.dir.join(node.to_string())) {
                    tracing::warn!(error = %Chain(&error), "a report that was taken is sent again later");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use distd_core::fleet::report::Report;

    use super::*;
    use crate::trust::identity::NodeIdentity;
    use crate::trust::report::ReportSigner;

    struct Device {
        _dir: tempfile::TempDir,
        identity: NodeIdentity,
    }

    impl Device {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("temporary directory");
            let identity = NodeIdentity::load_or_create(&dir.path().join("state")).expect("create");
            Self { _dir: dir, identity }
        }

        fn report(&self, sequence: u64) -> Bytes {
            let report = Report { sequence, at: 2, boot: vec![0; 16], ..Report::default() };
            ReportSigner::new(&self.identity).and_then(|signer| signer.sign(report)).expect("signs").bytes
        }

        fn peer(&self, role: Role) -> PeerIdentity {
            PeerIdentity { node_id: self.identity.node_id(), role, expires: u64::MAX }
        }
    }

    fn numbers(reports: &Reports) -> Vec<(NodeId, u64)> {
        reports.batch().into_iter().map(|(node, sequence, _)| (node, sequence)).collect()
    }

    #[test]
    fn the_newest_report_of_each_device_waits_until_it_is_taken() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("reports");
        let (device, other) = (Device::new(), Device::new());
        let node = device.identity.node_id();
        let reports = Reports::load(&path);
        let leaf = device.peer(Role::Leaf);
        reports.keep(&leaf, &[device.report(5)]).expect("kept");
        reports.keep(&leaf, &[device.report(4)]).expect("older");
        reports.keep(&leaf, &[Bytes::from_static(b"x")]).expect("dropped");
        assert_eq!(numbers(&reports), [(node, 5)]);
        // A device speaks for itself alone, a relay for its devices.
        reports.keep(&leaf, &[other.report(1)]).expect("dropped");
        assert_eq!(numbers(&reports), [(node, 5)]);
        let relay = Device::new().peer(Role::Relay);
        reports.keep(&relay, &[other.report(1)]).expect("kept");
        assert_eq!(reports.batch().len(), 2);
        // A newer report came while the earlier one was on its way.
        let batch = reports.batch();
        reports.keep(&leaf, &[device.report(6)]).expect("kept");
        reports.taken(&batch);
        assert_eq!(numbers(&reports), [(node, 6)]);
        // It waits across a restart; files that are no reports go.
        std::fs::write(path.join("stray"), "x").expect("write");
        std::fs::write(path.join(other.identity.node_id().to_string()), device.report(7)).expect("write");
        let reports = Reports::load(&path);
        assert_eq!(numbers(&reports), [(node, 6)]);
        assert_eq!(std::fs::read_dir(&path).expect("the directory").count(), 1);
        reports.taken(&reports.batch());
        assert!(Reports::load(&path).batch().is_empty());
    }

    #[test]
    fn a_batch_fits_one_question() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let reports = Reports::load(&dir.path().join("reports"));
        let relay = Device::new().peer(Role::Relay);
        for _ in 0..REPORTS_MAX + 1 {
            reports.keep(&relay, &[Device::new().report(1)]).expect("kept");
        }
        let batch = reports.batch();
        assert_eq!(batch.len(), REPORTS_MAX);
        let question = report::question(batch.iter().map(|(_, _, bytes)| bytes));
        let asked = crate::trust::tuf::wire::Query::decode(&question).expect("a question");
        assert_eq!(asked.reports.len(), REPORTS_MAX);
    }
}
