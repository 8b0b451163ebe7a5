//! A relay's watch over the log of receipts: the relay keeps the newest head that it has verified,
//! and tells it to its devices with the proofs that they need (docs/receipts.md, "Watching the
//! log"). Devices of one site therefore see one log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use distd_core::fleet::receipts::{LogId, TreeHash};
use tokio::time::Instant;

use super::Relay;
use crate::clock::unix_now;
use crate::trust::receipts::{LogAnswer, LogQuestion, Looked, Witness};

/// Time between two looks at the log.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Least time between two looks that devices cause: one has a head that this relay does not know,
/// or asks for an entry that was added since.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Most consistency proofs that are kept. Devices that look at one time have few different heads.
const PROOFS_MAX: usize = 64;

/// Log of a proof, and the sizes between which it leads.
type Sizes = (LogId, u64, u64);

/// The watch.
pub(super) struct LogWatch {
    witness: Witness,
    /// Time of the last look. Looks take turns.
    looked: tokio::sync::Mutex<Option<Instant>>,
    proofs: Mutex<BTreeMap<Sizes, Vec<TreeHash>>>,
}

impl LogWatch {
    pub(super) fn new(witness: Witness) -> Self {
        Self { witness, looked: tokio::sync::Mutex::default(), proofs: Mutex::default() }
    }

    fn proof(&self, sizes: Sizes) -> Option<Vec<TreeHash>> {
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner).get(&sizes).cloned()
    }

    fn keep(&self, sizes: Sizes, proof: Vec<TreeHash>) {
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        if proofs.len() >= PROOFS_MAX {
            // Proofs to an earlier head are asked for no more.
            proofs.retain(|(log, _, to), _| (*log, *to) == (sizes.0, sizes.2));
        }
        if proofs.len() < PROOFS_MAX {
            proofs.insert(sizes, proof);
        }
    }
}

impl Relay {
    /// Looks at the log, unless the last look was within `pause`.
    async fn look_at_log(&self, pause: Duration) -> Option<Looked> {
        let log = self.log()?;
        let mut looked = log.looked.lock().await;
        if looked.is_some_and(|at| at.elapsed() < pause) {
            return None;
        }
        let found =
            log.witness.look(None, unix_now(), async |question| self.ask_metadata(question).await).await;
        *looked = Some(Instant::now());
        found
    }

    /// Watches the log for as long as the relay runs.
    pub(super) async fn watch_log(&self) {
        loop {
            self.look_at_log(LOOK_EVERY).await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Answers the question of a peer about the log with the head that this relay has, and the
    /// proofs of its parent. Without a proof the answer has no head.
    pub(super) async fn log_of(&self, asked: LogQuestion) -> Bytes {
        let Some(log) = self.log() else { return LogAnswer::default().encode() };
        if asked.to > 0 {
            // A relay below asks for proofs to the head that it has.
            return self.log_proofs(&asked).await.unwrap_or_default().encode();
        }
        if log.witness.accuses(unix_now()) {
            // Devices are to see what this relay has seen.
            return self.ask_metadata(asked.encode()).await.unwrap_or_else(|_| LogAnswer::default().encode());
        }
        let known = log.witness.head().map_or(0, |signed| signed.head.size);
        if asked.leaf.is_some() || asked.from > known || log.witness.head().is_none() {
            self.look_at_log(LOOK_AGAIN).await;
        }
        let Some(signed) = log.witness.head() else { return LogAnswer::default().encode() };
        let (id, to) = (signed.head.log, signed.head.size);
        if asked.from >= to && asked.leaf.is_none() {
            return LogAnswer { head: Some(signed), consistency: Some(Vec::new()), inclusion: None }.encode();
        }
        if asked.leaf.is_none()
            && let Some(proof) = log.proof((id, asked.from, to))
        {
            return LogAnswer { head: Some(signed), consistency: Some(proof), inclusion: None }.encode();
        }
        let wanted = LogQuestion { to, ..asked.clone() };
        match self.log_proofs(&wanted).await {
            Some(answer) if answer.consistency.is_some() || asked.from >= to => {
                if let Some(proof) = &answer.consistency {
                    log.keep((id, asked.from, to), proof.clone());
                }
                LogAnswer { head: Some(signed), ..answer }.encode()
            }
            _ => LogAnswer::default().encode(),
        }
    }

    /// Asks the parent for proofs; `None` when it gives none.
    async fn log_proofs(&self, asked: &LogQuestion) -> Option<LogAnswer> {
        let answer = self.ask_metadata(asked.clone().encode()).await.ok()?;
        LogAnswer::decode(&answer).ok()
    }
}
