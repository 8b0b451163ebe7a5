//! Reports to the realm. The journal holds all that they say, so a report that reached nobody is
//! made again later, with what is true then.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use distd_core::error::Chain;
use distd_core::fleet::report::{
    Attempt, AttemptState, LogReport, REPORT_ATTEMPTS_MAX, REPORT_BYTES_MAX, Report, Running,
};
use distd_core::fleet::rollout::RolloutId;
use distd_peer::clock::unix_now;
use distd_peer::parents::Parents;
use distd_peer::trust::identity::NodeIdentity;
use distd_peer::trust::report::{self, ReportSigner};

use super::REPORT_EVERY;
use super::journal::Journal;
use super::receipts::{Ran, Receipts};
use super::restart::BootId;

/// Contents of a report, without number and time, by which one that says something new is known.
#[derive(PartialEq)]
struct Said {
    running: Running,
    attempts: Vec<Attempt>,
    /// Fault of the log, and number of receipts that it hides.
    log: (String, u32),
}

/// Sender of this device's reports.
pub(super) struct Reporter {
    signer: ReportSigner,
    parents: Arc<Parents>,
    boot: [u8; 16],
    receipts: Receipts,
    /// The newest rollout that the device saw, and its wave there, from 1.
    wave: Option<(RolloutId, u8)>,
    /// The last report that was sent, and when it was.
    sent: Option<(Said, Instant)>,
}

impl Reporter {
    /// Creates a sender that signs with the key of `identity`, for the state directory `data`. A
    /// receipt must be in the log within `bound`.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub(super) fn open(
        identity: &NodeIdentity,
        parents: Arc<Parents>,
        data: &Path,
        bound: Duration,
    ) -> anyhow::Result<Self> {
        let signer = ReportSigner::new(identity).context("this device cannot sign reports")?;
        let ca = identity.ca_der().context("this device is not enrolled")?.clone();
        let receipts = Receipts::load(data, ca, bound);
        Ok(Self { signer, parents, boot: BootId::current().0, receipts, wave: None, sent: None })
    }

    /// Remembers the device's wave in the rollout of its channel, from 0.
    pub(super) fn saw(&mut self, rollout: Option<RolloutId>, wave: Option<usize>) {
        let wave = wave.and_then(|wave| u8::try_from(wave.saturating_add(1)).ok());
        if let (Some(id), Some(wave)) = (rollout, wave) {
            self.wave = Some((id, wave));
        }
    }

    /// Signs a receipt for the release that runs, when it is another than before.
    pub(super) fn ran(&mut self, ran: Ran) {
        let wave = self.wave.filter(|(id, _)| Some(*id) == ran.rollout).map_or(0, |(_, wave)| wave);
        if let Err(error) = self.receipts.note(&self.signer, ran, wave, (self.boot, unix_now())) {
            tracing::warn!(error = %Chain(error.as_ref()), "no receipt can be made; trying again");
        }
    }

    /// Looks at the log of receipts.
    pub(super) async fn look_at_log(&mut self) {
        self.receipts.look(&self.parents, unix_now()).await;
    }

    /// Sends a report, when it says something new or the last one is old.
    pub(super) async fn send(&mut self, running: Running, journal: &mut Journal) {
        let attempts: Vec<Attempt> = journal.attempts().take(REPORT_ATTEMPTS_MAX).cloned().collect();
        let log = self.receipts.report(unix_now());
        let said = Said { running, attempts, log: (log.fault.clone(), log.hidden) };
        let is_known =
            self.sent.as_ref().is_some_and(|(before, at)| *before == said && at.elapsed() < REPORT_EVERY);
        if is_known && !self.receipts.is_unsent() {
            return;
        }
        match self.try_to_send(&said, log, journal).await {
            Ok(true) => {
                self.receipts.kept(unix_now());
                self.sent = Some((said, Instant::now()));
            }
            Ok(false) => tracing::debug!("the report reached nobody; trying again"),
            Err(error) => tracing::warn!(error = %Chain(error.as_ref()), "no report can be made"),
        }
    }

    /// Makes and signs a report; returns whether a parent keeps it.
    async fn try_to_send(&self, said: &Said, log: LogReport, journal: &mut Journal) -> anyhow::Result<bool> {
        let mut report = Report {
            sequence: journal.next_sequence()?,
            at: unix_now(),
            boot: self.boot.to_vec(),
            running: vec![said.running.clone()],
            attempts: said.attempts.clone(),
            log,
        };
        // The oldest attempts give way to long names and texts.
        while report.encode().len() > REPORT_BYTES_MAX && !report.attempts.is_empty() {
            report.attempts.pop();
        }
        let signed = self.signer.sign(report)?;
        let question = report::question([&signed.bytes]);
        Ok(self.parents.hand_over(&question).await)
    }
}

/// Rollout by which a device came to run a release: that of the newest attempt at the release that
/// did not fail.
pub(super) fn rollout_of(journal: &Journal, version: &distd_core::names::Name) -> Option<RolloutId> {
    let brought = |attempt: &&Attempt| {
        attempt.version == *version && !matches!(attempt.state, AttemptState::Failed | AttemptState::Fetching)
    };
    journal.attempts().find(brought).and_then(|attempt| attempt.rollout)
}
