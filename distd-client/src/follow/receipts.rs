//! Receipts of this device: what it signed about the releases that it ran, until each is known to
//! be in the realm's log (docs/receipts.md, "A device").

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use distd_core::ManifestId;
use distd_core::error::Chain;
use distd_core::fleet::receipts::{Entry, Receipt, SignedHead, SignedReceipt};
use distd_core::fleet::report::{LogReport, REPORT_RECEIPTS_MAX};
use distd_core::fleet::rollout::RolloutId;
use distd_core::names::Name;
use distd_peer::parents::Parents;
use distd_peer::trust::receipts::Witness;
use distd_peer::trust::report::ReportSigner;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::disk::side;

/// Name of the file in the state directory.
const FILE_NAME: &str = "receipts.json";

/// Largest file read, bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Most receipts that wait to be in the log. A device that is away for longer drops the first ones;
/// the numbers of the others tell.
const WAITING_MAX: usize = 16;

/// Release that runs, as far as a receipt is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ran {
    pub(super) product: Name,
    pub(super) version: Name,
    pub(super) manifest: Option<ManifestId>,
    pub(super) slot: Option<Name>,
    pub(super) rollout: Option<RolloutId>,
}

/// A receipt that is not known to be in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    /// The entry of the log, hexadecimal.
    entry: String,
    /// Time at which a parent said that it keeps the report with the receipt, unix seconds.
    kept: Option<u64>,
    /// Whether the receipt was missing once, and was sent again.
    again: bool,
    /// Whether it was missing twice.
    hidden: bool,
}

impl Waiting {
    fn receipt(&self) -> Option<SignedReceipt> {
        match Entry::decode(&hex::decode(&self.entry).ok()?) {
            Ok(Entry::Receipt(signed)) => Some(signed),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Contents {
    /// Number of the last receipt.
    #[serde(default)]
    number: u64,
    /// Contents of the last receipt.
    #[serde(default)]
    last: Option<Ran>,
    /// The last receipt, as [`Waiting::entry`]: a log that lost entries gets it again.
    #[serde(default)]
    last_entry: Option<String>,
    #[serde(default)]
    waiting: Vec<Waiting>,
}

/// Receipts of the device, and its watch over their log.
pub(super) struct Receipts {
    path: PathBuf,
    contents: Contents,
    witness: Witness,
    /// Time after which a receipt that a parent kept must be in the log.
    bound: Duration,
}

impl Receipts {
    /// Reads what the last process left in the state directory `data`. A damaged file counts as
    /// empty: the numbers begin again, and the log shows that.
    pub(super) fn load(data: &Path, ca: CertificateDer<'static>, bound: Duration) -> Self {
        let path = data.join(FILE_NAME);
        let contents = side::read_json(&path, FILE_BYTES_MAX);
        Self { path, contents, witness: Witness::load(data, ca), bound }
    }

    fn write(&self) -> io::Result<()> {
        side::write_json(&self.path, &self.contents)
    }

    /// Signs a receipt when the release that runs has changed. The receipt is on the disk before it
    /// is sent.
    ///
    /// # Errors
    /// When it cannot be signed or written.
    pub(super) fn note(
        &mut self,
        signer: &ReportSigner,
        ran: Ran,
        wave: u8,
        (boot, at): ([u8; 16], u64),
    ) -> anyhow::Result<()> {
        if self.contents.last.as_ref() == Some(&ran) {
            return Ok(());
        }
        let number = self.contents.number.saturating_add(1);
        let Ran { product, version, manifest, slot, rollout } = ran.clone();
        let wave = if rollout.is_some() { wave } else { 0 };
        let receipt = Receipt { number, at, boot, manifest, rollout, wave, product, version, slot };
        let entry = hex::encode(signer.sign_receipt(receipt)?.entry());
        let before = self.contents.clone();
        self.contents.number = number;
        self.contents.last = Some(ran);
        self.contents.last_entry = Some(entry.clone());
        self.contents.waiting.push(Waiting { entry, kept: None, again: false, hidden: false });
        while self.contents.waiting.len() > WAITING_MAX {
            self.contents.waiting.remove(0);
        }
        if let Err(error) = self.write() {
            self.contents = before;
            return Err(error.into());
        }
        Ok(())
    }

    /// Receipts of the next report, by their places: those that no parent keeps yet come first, and
    /// hidden ones last, so that one which is refused does not hold the others up.
    fn next(&self) -> Vec<usize> {
        let mut places: Vec<usize> = (0..self.contents.waiting.len()).collect();
        places.sort_by_key(|at| {
            let waiting = &self.contents.waiting[*at];
            (waiting.hidden, waiting.kept.is_some())
        });
        places.truncate(REPORT_RECEIPTS_MAX);
        places.sort_unstable();
        places
    }

    /// The part of a report about the log, at `now` (unix seconds).
    pub(super) fn report(&self, now: u64) -> LogReport {
        let receipts = self.next().into_iter().filter_map(|at| self.contents.waiting[at].receipt());
        let receipts = receipts.map(|signed| ByteBuf::from(signed.for_report()));
        let hidden = self.contents.waiting.iter().filter(|waiting| waiting.hidden).count();
        LogReport {
            receipts: receipts.collect(),
            head: self.witness.seen(),
            fault: self.witness.fault(now),
            hidden: u32::try_from(hidden).unwrap_or(u32::MAX),
        }
    }

    /// Whether a receipt is in no report that a parent keeps.
    pub(super) fn is_unsent(&self) -> bool {
        self.contents.waiting.iter().any(|waiting| waiting.kept.is_none())
    }

    /// Remembers that a parent keeps the report with the receipts that wait.
    pub(super) fn kept(&mut self, now: u64) {
        if !self.is_unsent() {
            return;
        }
        for at in self.next() {
            self.contents.waiting[at].kept.get_or_insert(now);
        }
        self.write_or_warn();
    }

    /// Sends the last receipt again: the log lost entries, maybe this one. A log that has it stays
    /// as it is.
    fn send_again(&mut self) {
        let Some(entry) = self.contents.last_entry.clone() else { return };
        if self.contents.waiting.iter().all(|waiting| waiting.entry != entry) {
            self.contents.waiting.push(Waiting { entry, kept: None, again: false, hidden: false });
            self.write_or_warn();
        }
    }

    fn write_or_warn(&self) {
        if let Err(error) = self.write() {
            tracing::warn!(error = %Chain(&error), "{FILE_NAME} cannot be written");
        }
    }

    /// Looks at the log: whether its head continues the head that the device keeps, and whether the
    /// receipts that were sent are in it.
    pub(super) async fn look(&mut self, parents: &Parents, now: u64) {
        // Hidden receipts must not keep the others from being asked for.
        let sent = self.contents.waiting.iter().filter(|waiting| waiting.kept.is_some());
        let mut asked: Vec<Waiting> = sent.cloned().collect();
        asked.sort_by_key(|waiting| waiting.hidden);
        asked.truncate(REPORT_RECEIPTS_MAX);
        if asked.is_empty() {
            self.look_for(parents, None, now).await;
        }
        for waiting in asked {
            if !self.look_for(parents, Some(&waiting), now).await {
                return;
            }
        }
    }

    /// Asks for the newest head and the place of one receipt; `false` when no parent has a head.
    async fn look_for(&mut self, parents: &Parents, waiting: Option<&Waiting>, now: u64) -> bool {
        let leaf = waiting.and_then(Waiting::receipt).map(|signed| signed.leaf());
        let ask = async |question| {
            let link = parents.any_link().await?;
            Ok::<_, distd_peer::parents::ParentsError>(link.metadata(question).await?)
        };
        let log = |head: Option<SignedHead>| head.map(|signed| signed.head.log);
        let before = log(self.witness.head());
        let Some(looked) = self.witness.look(leaf, now, ask).await else { return false };
        if before.is_some() && before != log(self.witness.head()) {
            self.send_again();
        }
        let Some(waiting) = waiting else { return true };
        let Some(at) = self.contents.waiting.iter().position(|known| known.entry == waiting.entry) else {
            return true;
        };
        if looked.includes {
            self.contents.waiting.remove(at);
            self.write_or_warn();
        } else if let Some(kept) = waiting.kept
            && looked.head.at > kept.saturating_add(self.bound.as_secs())
            && !waiting.hidden
        {
            let known = &mut self.contents.waiting[at];
            if waiting.again {
                known.hidden = true;
                tracing::error!(
                    seconds = self.bound.as_secs(),
                    "the realm's log hides a receipt of this device: it was sent twice and is not in a later head"
                );
            } else {
                // A relay may have lost the report, or passed the head on before it.
                *known = Waiting { kept: None, again: true, ..waiting.clone() };
            }
            self.write_or_warn();
        }
        true
    }
}
