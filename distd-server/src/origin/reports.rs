//! Reports of nodes: which of them the origin believes, and what it keeps (docs/rollouts.md,
//! "Reports").

use std::time::Instant;

use bytes::Bytes;
use distd_core::NodeId;
use distd_core::error::Chain;
use distd_core::fleet::Right;
use distd_core::fleet::report::{Attempt, AttemptState, Running};
use distd_core::fleet::rollout::RolloutId;
use distd_core::names::Name;
use distd_core::role::Role;
use distd_peer::clock::unix_now;
use distd_peer::trust::receipts::open_receipts;
use distd_peer::trust::report::{REPORTS_MAX, SignedReport};
use distd_peer::trust::tls::PeerIdentity;
use serde_bytes::ByteBuf;

use super::{Origin, signed};
use crate::db::{DbError, PutReport};

/// Reason why reports are not taken now.
#[derive(Debug, thiserror::Error)]
pub enum TakeReportsError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// A node reports too often.
    #[error("node {0} reports too often; its report waits")]
    TooOften(NodeId),
}

impl Origin {
    /// Takes reports that `peer` hands over: a device only its own, a relay those of its devices.
    /// Bytes that are no report, and reports of a node that is unknown or revoked, are dropped.
    /// Parts of a report that are about channels for which the node has no right `report` are
    /// dropped too.
    ///
    /// # Errors
    /// [`TakeReportsError`]: the peer keeps its reports.
    pub async fn take_reports(
        &self,
        peer: &PeerIdentity,
        reports: Vec<ByteBuf>,
    ) -> Result<(), TakeReportsError> {
        // A device has one report to hand over.
        let is_relay = peer.role == Role::Relay;
        if !is_relay && !self.report_pace.count(peer.node_id, Instant::now()) {
            return Err(TakeReportsError::TooOften(peer.node_id));
        }
        let mut is_news = false;
        for bytes in reports.into_iter().take(if is_relay { REPORTS_MAX } else { 1 }) {
            let signed = match SignedReport::open(&Bytes::from(bytes.into_vec())) {
                Ok(signed) if signed.node == peer.node_id || is_relay => signed,
                Ok(signed) => {
                    tracing::info!(node = %peer.node_id, of = %signed.node, "a report of another node is dropped");
                    continue;
                }
                Err(error) => {
                    tracing::info!(node = %peer.node_id, error = %Chain(&error), "a report is dropped");
                    continue;
                }
            };
            if is_relay && !self.report_pace.count(signed.node, Instant::now()) {
                // The relay must not keep the reports of other devices because of this one.
                tracing::info!(node = %signed.node, "a report is dropped: the node reports too often");
                continue;
            }
            is_news |= self.take_report(&signed).await?;
        }
        if is_news {
            self.rollouts_due.notify_one();
        }
        Ok(())
    }

    /// Records one report; `false` when it says nothing new.
    async fn take_report(&self, signed_report: &SignedReport) -> Result<bool, TakeReportsError> {
        let SignedReport { node, report, .. } = signed_report;
        let mut channels: Vec<(Name, Name)> = Vec::new();
        for runs in &report.running {
            channels.push((runs.product.clone(), runs.channel.clone()));
        }
        let mut rollouts = Vec::new();
        for attempt in &report.attempts {
            let Some(id) = attempt.rollout.filter(|_| attempt.state != AttemptState::Unknown) else {
                continue;
            };
            // An attempt at a rollout of another product, or at none, says nothing.
            let row = self.db.rollout(&id).await?;
            if let Some(row) =
                row.filter(|row| row.product == attempt.product && row.version == attempt.version)
            {
                rollouts.push((id, attempt, channels.len()));
                channels.push((row.product, row.channel));
            }
        }
        let rights = self.rights_on(node, &channels).await?;
        let Some(rights) = rights else {
            tracing::info!(%node, "a report of a node that is unknown or revoked is dropped");
            return Ok(false);
        };
        let may = |at: usize| rights.get(at).is_some_and(|rights| rights.has(Right::Report));
        let running: Vec<&Running> =
            report.running.iter().enumerate().filter(|(at, _)| may(*at)).map(|(_, runs)| runs).collect();
        // The newest attempt at a rollout comes first.
        let mut attempts: Vec<(RolloutId, &Attempt)> = Vec::new();
        for (id, attempt, at) in rollouts {
            if may(at) && attempts.iter().all(|(known, _)| *known != id) {
                attempts.push((id, attempt));
            }
        }
        if running.is_empty() && attempts.is_empty() {
            tracing::debug!(%node, "a report is dropped: the node may not report on what it names");
            return Ok(false);
        }
        let mut receipts = open_receipts(signed_report);
        receipts.retain(|signed| running.iter().any(|runs| runs.product == signed.receipt.product));
        let now = signed(unix_now());
        let put = self.db.put_report_with(node, report, &running, &attempts, receipts, now).await?;
        Ok(put == PutReport::Recorded)
    }
}
