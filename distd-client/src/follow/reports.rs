//! Reports to the realm. The journal holds all that they say, so a report that reached nobody is
//! made again later, with what is true then.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use distd_core::error::Chain;
use distd_core::fleet::report::{Attempt, REPORT_ATTEMPTS_MAX, REPORT_BYTES_MAX, Report, Running};
use distd_peer::clock::unix_now;
use distd_peer::parents::Parents;
use distd_peer::trust::identity::NodeIdentity;
use distd_peer::trust::report::{self, ReportSigner};

use super::REPORT_EVERY;
use super::journal::Journal;
use super::restart::BootId;

/// Sender of this device's reports.
pub(super) struct Reporter {
    signer: ReportSigner,
    parents: Arc<Parents>,
    boot: Vec<u8>,
    /// The contents of the last report that was sent, without number and time, and when it was.
    sent: Option<(Running, Vec<Attempt>, Instant)>,
}

impl Reporter {
    /// Creates a sender that signs with the key of `identity`.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub(super) fn open(identity: &NodeIdentity, parents: Arc<Parents>) -> anyhow::Result<Self> {
        let signer = ReportSigner::new(identity).context("this device cannot sign reports")?;
        Ok(Self { signer, parents, boot: BootId::current().0.to_vec(), sent: None })
    }

    /// Sends a report, when it says something new or the last one is old.
    pub(super) async fn send(&mut self, running: Running, journal: &mut Journal) {
        let attempts: Vec<Attempt> = journal.attempts().take(REPORT_ATTEMPTS_MAX).cloned().collect();
        let is_known = self.sent.as_ref().is_some_and(|(ran, tried, at)| {
            *ran == running && *tried == attempts && at.elapsed() < REPORT_EVERY
        });
        if is_known {
            return;
        }
        match self.try_to_send(running.clone(), attempts.clone(), journal).await {
            Ok(true) => self.sent = Some((running, attempts, Instant::now())),
            Ok(false) => tracing::debug!("the report reached nobody; trying again"),
            Err(error) => tracing::warn!(error = %Chain(error.as_ref()), "no report can be made"),
        }
    }

    /// Makes and signs a report; returns whether a parent keeps it.
    async fn try_to_send(
        &self,
        running: Running,
        attempts: Vec<Attempt>,
        journal: &mut Journal,
    ) -> anyhow::Result<bool> {
        let sequence = journal.next_sequence()?;
        let boot = self.boot.clone();
        let mut report = Report { sequence, at: unix_now(), boot, running: vec![running], attempts };
        // The oldest attempts give way to long names and texts.
        while report.encode().len() > REPORT_BYTES_MAX && !report.attempts.is_empty() {
            report.attempts.pop();
        }
        let signed = self.signer.sign(report)?;
        let question = report::question([&signed.bytes]);
        Ok(self.parents.hand_over(&question).await)
    }
}
