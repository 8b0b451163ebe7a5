//! Receipts of devices, and the watch over their log: the question for its head on a metadata
//! stream, and the newest head that a node has verified (docs/receipts.md, "Watching the log").

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use bytes::Bytes;
use distd_core::api::ReceiptsHead;
use distd_core::error::Chain;
use distd_core::fleet::receipts::{
    HeadError, LogHead, PROOF_HASHES_MAX, SignedHead, SignedReceipt, TreeHash, extends, includes,
    receipt_message,
};
use distd_core::fleet::report::HeadSeen;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use super::files::{self, FileError};
use super::report::SignedReport;
use super::seal::{SealError, verify_by_ca};
use super::tuf::wire::{Answer, Query, WireError};

/// Name of the file with the newest head in a state directory.
pub const HEAD_FILE: &str = "log-head.json";

/// Name of the file with heads that contradict each other in a state directory.
pub const EVIDENCE_FILE: &str = "log-evidence.json";

/// Name of the head in an answer.
const HEAD: &str = "log-head";
/// Name of the proof that the head extends that of the question.
const CONSISTENCY: &str = "log-consistency";
/// Name of the number of the entry that was asked for and the proof that the head includes it.
const INCLUSION: &str = "log-inclusion";

/// Most contradictions that are kept, the first ones.
const EVIDENCE_MAX: usize = 4;

/// Time by which a shorter head may be younger than a longer one, seconds: an origin hands out a
/// head that it signed a moment before.
const STALE_SECONDS: u64 = 10;

/// Time for which a node reports that the log continued under another id, seconds. The heads stay
/// in the file.
const RESTART_SECONDS: u64 = 7 * 24 * 3600;

/// Question for the head of the log, part of a [`Query`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogQuestion {
    /// Size of the head that the asker has; 0 for none.
    #[serde(default)]
    pub from: u64,
    /// Size of the head to which proofs are wanted; 0 for the newest head, which the answer then
    /// has.
    #[serde(default)]
    pub to: u64,
    /// Hash of an entry of which the place is wanted.
    #[serde(default)]
    pub leaf: Option<ByteArray<32>>,
}

impl LogQuestion {
    /// Encodes the question.
    pub fn encode(self) -> Bytes {
        Query { log: Some(self), ..Query::default() }.encode().into()
    }

    /// Hash of the entry of which the place is wanted.
    pub fn leaf(&self) -> Option<TreeHash> {
        self.leaf.as_ref().map(|leaf| TreeHash(**leaf))
    }
}

/// Answer to a [`LogQuestion`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogAnswer {
    /// The head; `None` from a parent that has none, and for a question about another size.
    pub head: Option<SignedHead>,
    /// Proof that the head extends that of the question; `None` when there is none.
    pub consistency: Option<Vec<TreeHash>>,
    /// Number of the entry and the proof that the head includes it; `None` when it does not.
    pub inclusion: Option<(u64, Vec<TreeHash>)>,
}

/// Reason why an answer says nothing about the log.
#[derive(Debug, thiserror::Error)]
pub enum LogRefused {
    /// The answer does not parse.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The head does not parse.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// A proof does not parse.
    #[error("a proof about the log of receipts is malformed")]
    Proof,
    /// The head is not signed by the realm's CA.
    #[error("the head of the log of receipts is not signed by the realm")]
    Seal(#[from] SealError),
    /// The head contradicts the one that this node has.
    #[error("{0}; both heads are in {EVIDENCE_FILE}")]
    Fault(&'static str),
    /// The head cannot be kept.
    #[error(transparent)]
    File(#[from] FileError),
}

fn hashes(bytes: &[u8]) -> Result<Vec<TreeHash>, LogRefused> {
    let (chunks, rest) = bytes.as_chunks::<32>();
    if !rest.is_empty() || chunks.len() > PROOF_HASHES_MAX {
        return Err(LogRefused::Proof);
    }
    Ok(chunks.iter().map(|hash| TreeHash(*hash)).collect())
}

fn concat(hashes: &[TreeHash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

impl LogAnswer {
    /// Encodes the answer as that of a metadata exchange.
    pub fn encode(&self) -> Bytes {
        let mut files: Vec<(String, Bytes)> = Vec::new();
        if let Some(head) = &self.head {
            files.push((HEAD.to_owned(), head.encode()));
        }
        if let Some(proof) = &self.consistency {
            files.push((CONSISTENCY.to_owned(), concat(proof).into()));
        }
        if let Some((number, proof)) = &self.inclusion {
            files.push((INCLUSION.to_owned(), [&number.to_be_bytes()[..], &concat(proof)].concat().into()));
        }
        Answer { files }.encode().into()
    }

    /// Decodes bytes from the network. Nothing in the answer is verified yet.
    ///
    /// # Errors
    /// [`LogRefused`].
    pub fn decode(bytes: &[u8]) -> Result<Self, LogRefused> {
        let answer = Answer::decode(bytes)?;
        let file = |name: &str| answer.files.iter().find(|(known, _)| known == name).map(|(_, bytes)| bytes);
        let inclusion = |bytes: &Bytes| {
            let (number, proof) = bytes.split_first_chunk().ok_or(LogRefused::Proof)?;
            Ok::<_, LogRefused>((u64::from_be_bytes(*number), hashes(proof)?))
        };
        Ok(Self {
            head: file(HEAD).map(SignedHead::decode).transpose()?,
            consistency: file(CONSISTENCY).map(|bytes| hashes(bytes)).transpose()?,
            inclusion: file(INCLUSION).map(inclusion).transpose()?,
        })
    }
}

/// Receipts in a report whose signatures are those of the report's node.
pub fn open_receipts(report: &SignedReport) -> Vec<SignedReceipt> {
    let Some(key) = report.bytes.first_chunk::<32>() else { return Vec::new() };
    let open = |bytes: &serde_bytes::ByteBuf| {
        let signed = SignedReceipt::of_report(*key, bytes).ok().filter(is_signed);
        if signed.is_none() {
            tracing::info!(node = %report.node, "a receipt is dropped: it is not signed by its node");
        }
        signed
    };
    report.report.log.receipts.iter().filter_map(open).collect()
}

/// Whether the key of a receipt signed it.
pub fn is_signed(signed: &SignedReceipt) -> bool {
    let message = receipt_message(&signed.receipt.encode());
    UnparsedPublicKey::new(&ED25519, &signed.key[..]).verify(&message, &signed.signature).is_ok()
}

/// Checks the signature of a head.
///
/// # Errors
/// [`SealError`].
pub fn verify_head(ca_der: &[u8], signed: &SignedHead) -> Result<(), SealError> {
    verify_by_ca(ca_der, &signed.head.message(), &signed.signature)
}

/// Two heads that the realm signed and that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Evidence {
    fault: String,
    /// Time by this node's clock, unix seconds.
    at: u64,
    kept: ReceiptsHead,
    seen: ReceiptsHead,
    /// Whether a later head continued the kept one: the contradiction was a parent's lie, or it
    /// gave no proof.
    #[serde(default)]
    cleared: bool,
}

/// The log is continued under another id.
const RESTARTED: &str = "the log of receipts was begun anew, so entries may be lost";
const SPLIT: &str = "the origin signed two logs of receipts of one length";
const SHORTER: &str = "the origin signed a log of receipts that is shorter than before";
const REWRITTEN: &str = "a parent showed a log of receipts without proof that it continues the one before";

/// Result of a look at the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// Head that the answer is about.
    pub head: LogHead,
    /// Whether the head includes the entry that was asked for.
    pub includes: bool,
}

#[derive(Default)]
struct State {
    head: Option<SignedHead>,
    evidence: Vec<Evidence>,
}

/// A node's watch over the log: the newest head that it has verified, and contradictions.
pub struct Witness {
    dir: PathBuf,
    ca: CertificateDer<'static>,
    state: Mutex<State>,
}

impl Witness {
    /// Loads what the node kept in the state directory `dir`. Files that are damaged count as
    /// missing.
    pub fn load(dir: &Path, ca: CertificateDer<'static>) -> Self {
        fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
            serde_json::from_slice(&files::read(path).ok()??).ok()
        }
        let head = read::<ReceiptsHead>(&dir.join(HEAD_FILE)).and_then(|head| head.signed());
        let head = head.filter(|head| verify_head(&ca, head).is_ok());
        let evidence = read(&dir.join(EVIDENCE_FILE)).unwrap_or_default();
        Self { dir: dir.to_owned(), ca, state: Mutex::new(State { head, evidence }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest head that the node has verified.
    pub fn head(&self) -> Option<SignedHead> {
        self.state().head.clone()
    }

    /// That head, as a report has it.
    pub fn seen(&self) -> Option<HeadSeen> {
        self.state().head.as_ref().map(|signed| HeadSeen { size: signed.head.size, at: signed.head.at })
    }

    /// The fault that the node found, in words; empty without one. A log that continued under
    /// another id is reported for a week.
    pub fn fault(&self, now: u64) -> String {
        let state = self.state();
        let is_news = |found: &&Evidence| {
            !found.cleared && (found.fault != RESTARTED || now < found.at.saturating_add(RESTART_SECONDS))
        };
        state
            .evidence
            .iter()
            .filter(is_news)
            .max_by_key(|found| found.fault != RESTARTED)
            .map_or_else(String::new, |found| found.fault.clone())
    }

    /// Whether the node holds heads that contradict each other.
    pub fn accuses(&self, now: u64) -> bool {
        let fault = self.fault(now);
        !fault.is_empty() && fault != RESTARTED
    }

    /// The question for the newest head, and for the place of an entry.
    pub fn question(&self, leaf: Option<TreeHash>) -> Bytes {
        let from = self.state().head.as_ref().map_or(0, |signed| signed.head.size);
        LogQuestion { from, to: 0, leaf: leaf.map(|leaf| ByteArray::new(leaf.0)) }.encode()
    }

    /// Takes the answer to a [question](Self::question) at `now` (unix seconds): keeps a head that
    /// extends the one so far. `None` from a parent that has no head, or an older one. Blocks:
    /// writes files.
    ///
    /// # Errors
    /// [`LogRefused`]; the head so far stays, and contradicting heads are kept beside it.
    pub fn take(
        &self,
        answer: &[u8],
        leaf: Option<TreeHash>,
        now: u64,
    ) -> Result<Option<Looked>, LogRefused> {
        let answer = LogAnswer::decode(answer)?;
        let Some(signed) = answer.head else { return Ok(None) };
        verify_head(&self.ca, &signed)?;
        let seen = signed.head;
        let mut state = self.state();
        if let Some(before) = state.head.clone() {
            let kept = before.head;
            let is_younger = seen.at > kept.at.saturating_add(STALE_SECONDS);
            let fault = if seen.log != kept.log {
                if seen.at < kept.at {
                    return Ok(None);
                }
                Some(RESTARTED)
            } else if seen.size == kept.size {
                (seen.root != kept.root).then_some(SPLIT)
            } else if seen.size < kept.size {
                if !is_younger {
                    return Ok(None);
                }
                Some(SHORTER)
            } else {
                let proof = answer.consistency.unwrap_or_default();
                let extends = extends((kept.size, &kept.root), (seen.size, &seen.root), &proof);
                (!extends).then_some(REWRITTEN)
            };
            if let Some(fault) = fault {
                self.keep_evidence(&mut state, fault, &before, &signed, now)?;
                if fault != RESTARTED {
                    return Err(LogRefused::Fault(fault));
                }
            }
            if fault.is_none() && seen.size > kept.size {
                self.clear(&mut state, &seen)?;
            }
            if fault.is_none() && seen.size == kept.size && seen.at < kept.at {
                return Ok(Some(self.looked(&kept, leaf, answer.inclusion)));
            }
        }
        if state.head.as_ref() != Some(&signed) {
            let json = serde_json::to_vec(&ReceiptsHead::from(&signed)).expect("texts and numbers encode");
            files::write_atomic(&self.dir.join(HEAD_FILE), &json, 0o600)?;
            state.head = Some(signed);
        }
        Ok(Some(self.looked(&seen, leaf, answer.inclusion)))
    }

    fn looked(
        &self,
        head: &LogHead,
        leaf: Option<TreeHash>,
        inclusion: Option<(u64, Vec<TreeHash>)>,
    ) -> Looked {
        let includes = leaf
            .zip(inclusion)
            .is_some_and(|(leaf, (number, proof))| includes(leaf, number, head.size, &head.root, &proof));
        Looked { head: *head, includes }
    }

    /// A later head continues the kept one, so what a parent showed without proof proves nothing,
    /// unless the two heads have one length and differ. The heads stay in the file for people.
    fn clear(&self, state: &mut State, now: &LogHead) -> Result<(), LogRefused> {
        let mut is_changed = false;
        for doubt in state.evidence.iter_mut().filter(|found| found.fault == REWRITTEN && !found.cleared) {
            let seen = doubt.seen.signed().map(|signed| signed.head);
            match seen.is_some_and(|seen| seen.size == now.size && seen.root != now.root) {
                true => SPLIT.clone_into(&mut doubt.fault),
                false => doubt.cleared = true,
            }
            is_changed = true;
        }
        if is_changed { self.write_evidence(state) } else { Ok(()) }
    }

    fn write_evidence(&self, state: &State) -> Result<(), LogRefused> {
        let json = serde_json::to_vec_pretty(&state.evidence).expect("texts and numbers encode");
        Ok(files::write_atomic(&self.dir.join(EVIDENCE_FILE), &json, 0o600)?)
    }

    fn keep_evidence(
        &self,
        state: &mut State,
        fault: &'static str,
        kept: &SignedHead,
        seen: &SignedHead,
        now: u64,
    ) -> Result<(), LogRefused> {
        // Each kind has one place. The first contradiction says most, and the last new beginning.
        state.evidence.retain(|known| known.fault != fault || !(known.cleared || fault == RESTARTED));
        if state.evidence.len() >= EVIDENCE_MAX || state.evidence.iter().any(|known| known.fault == fault) {
            return Ok(());
        }
        tracing::error!(
            kept = kept.head.size,
            seen = seen.head.size,
            fault,
            "the log of receipts is not whole"
        );
        let (kept, seen) = (kept.into(), seen.into());
        state.evidence.push(Evidence { fault: fault.to_owned(), at: now, kept, seen, cleared: false });
        self.write_evidence(state)
    }

    /// Looks at the log through `ask`, which sends a question to a parent, and logs what is wrong.
    /// `None` when no parent answered, or the answer says nothing.
    pub async fn look<E: std::error::Error + 'static>(
        &self,
        leaf: Option<TreeHash>,
        now: u64,
        ask: impl AsyncFnOnce(Bytes) -> Result<Bytes, E>,
    ) -> Option<Looked> {
        let taken = match ask(self.question(leaf)).await {
            Ok(answer) => tokio::task::block_in_place(|| self.take(&answer, leaf, now)),
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "no parent tells the head of the log of receipts");
                return None;
            }
        };
        taken.unwrap_or_else(|error| {
            tracing::warn!(error = %Chain(&error), "a head of the log of receipts is refused");
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use distd_core::fleet::receipts::{LogId, consistency, empty_root, inclusion, leaf_hash, root};
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey};

    use super::*;

    /// A log of the entries `0`, `1`, … whose entry `changed` is another one.
    #[derive(Clone, Copy)]
    struct Log {
        id: u8,
        changed: Option<u64>,
    }

    const TRUE: Log = Log { id: 1, changed: None };

    impl Log {
        fn leaf(&self, number: u64) -> TreeHash {
            let text = if self.changed == Some(number) { "x".to_owned() } else { number.to_string() };
            leaf_hash(text.as_bytes())
        }

        fn hash(&self, at: distd_core::fleet::receipts::Subtree) -> TreeHash {
            match at.level {
                0 => self.leaf(at.place),
                level => {
                    let half =
                        |place| self.hash(distd_core::fleet::receipts::Subtree { level: level - 1, place });
                    distd_core::fleet::receipts::node_hash(&half(2 * at.place), &half(2 * at.place + 1))
                }
            }
        }

        fn head(&self, size: u64, at: u64) -> LogHead {
            let root = root(size, &mut |at| self.hash(at));
            LogHead { log: LogId([self.id; 16]), size, root, at }
        }
    }

    struct Realm {
        key: KeyPair,
        ca: CertificateDer<'static>,
    }

    impl Realm {
        fn new() -> Self {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
            let cert = CertificateParams::default().self_signed(&key).expect("a certificate");
            Self { ca: cert.der().clone(), key }
        }

        fn sign(&self, head: LogHead) -> SignedHead {
            SignedHead { head, signature: self.key.sign(&head.message()).expect("signs").into() }
        }

        /// Answer of an honest origin with this log to a question about the head `from`.
        fn answer(&self, log: Log, from: u64, size: u64, at: u64) -> LogAnswer {
            LogAnswer {
                head: Some(self.sign(log.head(size, at))),
                consistency: Some(consistency(from, size, &mut |at| log.hash(at))),
                inclusion: (size > 2).then(|| (2, inclusion(2, size, &mut |at| log.hash(at)))),
            }
        }
    }

    fn taken(witness: &Witness, answer: &LogAnswer) -> Result<Option<u64>, String> {
        let taken = witness.take(&answer.encode(), Some(TRUE.leaf(2)), 1000);
        taken.map(|looked| looked.map(|looked| looked.head.size)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_head_that_continues_the_kept_one_is_kept_across_a_restart() {
        let (dir, realm) = (tempfile::tempdir().expect("temporary directory"), Realm::new());
        let witness = Witness::load(dir.path(), realm.ca.clone());
        assert_eq!(taken(&witness, &LogAnswer::default()), Ok(None));
        assert_eq!(taken(&witness, &realm.answer(TRUE, 0, 0, 90)), Ok(Some(0)));
        assert_eq!(taken(&witness, &realm.answer(TRUE, 0, 5, 100)), Ok(Some(5)));
        let witness = Witness::load(dir.path(), realm.ca.clone());
        assert_eq!(witness.seen(), Some(HeadSeen { size: 5, at: 100 }));
        let answer = realm.answer(TRUE, 5, 9, 200).encode();
        let looked = |leaf| witness.take(&answer, Some(leaf), 1).expect("taken").expect("a head");
        assert!(looked(TRUE.leaf(2)).includes && !looked(TRUE.leaf(3)).includes);
        // A relay that was away hands out an earlier head.
        assert_eq!(taken(&witness, &realm.answer(TRUE, 9, 7, 150)), Ok(None));
        assert_eq!(taken(&witness, &realm.answer(TRUE, 9, 9, 150)), Ok(Some(9)));
        assert_eq!((witness.seen(), witness.fault(0)), (Some(HeadSeen { size: 9, at: 200 }), String::new()));
        assert!(!dir.path().join(EVIDENCE_FILE).exists());
        // A key that is not the realm's proves nothing about the origin.
        let foreign = Realm::new().answer(Log { id: 1, changed: Some(0) }, 9, 12, 300);
        assert!(taken(&witness, &foreign).expect_err("refused").contains("not signed"));
        assert!(!dir.path().join(EVIDENCE_FILE).exists());
    }

    #[test]
    fn a_head_that_does_not_continue_the_kept_one_is_refused_and_both_are_kept() {
        let realm = Realm::new();
        let changed = Log { id: 1, changed: Some(1) };
        let without_proof = LogAnswer { consistency: None, ..realm.answer(TRUE, 5, 9, 200) };
        for (answer, fault, later) in [
            (realm.answer(changed, 5, 9, 200), REWRITTEN, SPLIT),
            // A relay may leave the proof out; that accuses nobody once the log goes on.
            (without_proof, REWRITTEN, ""),
            (realm.answer(changed, 5, 5, 200), SPLIT, SPLIT),
            (realm.answer(TRUE, 5, 4, 200), SHORTER, SHORTER),
        ] {
            let dir = tempfile::tempdir().expect("temporary directory");
            let witness = Witness::load(dir.path(), realm.ca.clone());
            taken(&witness, &realm.answer(TRUE, 0, 5, 100)).expect("kept");
            for _ in 0..3 {
                assert!(taken(&witness, &answer).expect_err("refused").starts_with(fault));
            }
            let witness = Witness::load(dir.path(), realm.ca.clone());
            assert_eq!(
                (witness.seen(), witness.fault(0).as_str()),
                (Some(HeadSeen { size: 5, at: 100 }), fault)
            );
            let evidence = std::fs::read_to_string(dir.path().join(EVIDENCE_FILE)).expect("evidence");
            let found: Vec<Evidence> = serde_json::from_str(&evidence).expect("JSON");
            assert_eq!(found.len(), 1);
            for head in [&found[0].kept, &found[0].seen] {
                verify_head(&realm.ca, &head.signed().expect("a head")).expect("signed by the realm");
            }
            // The honest log goes on.
            assert_eq!(taken(&witness, &realm.answer(TRUE, 5, 9, 300)), Ok(Some(9)));
            assert_eq!((witness.fault(0).as_str(), witness.accuses(0)), (later, !later.is_empty()));
        }
    }

    #[test]
    fn a_log_under_another_id_is_followed_and_reported_for_a_week() {
        let (dir, realm) = (tempfile::tempdir().expect("temporary directory"), Realm::new());
        let witness = Witness::load(dir.path(), realm.ca.clone());
        taken(&witness, &realm.answer(TRUE, 0, 5, 100)).expect("kept");
        let other = Log { id: 2, changed: Some(4) };
        assert_eq!(taken(&witness, &realm.answer(other, 5, 4, 90)), Ok(None));
        assert_eq!(taken(&witness, &realm.answer(other, 5, 4, 200)), Ok(Some(4)));
        assert_eq!(witness.fault(1000), RESTARTED);
        assert_eq!(witness.fault(1000 + RESTART_SECONDS), "");
        assert_eq!(taken(&witness, &realm.answer(other, 4, 8, 210)), Ok(Some(8)));
    }

    #[test]
    fn answers_survive_their_bytes_and_long_ones_are_refused() {
        let realm = Realm::new();
        let answer = realm.answer(TRUE, 5, 9, 200);
        assert_eq!(LogAnswer::decode(&answer.encode()).expect("an answer"), answer);
        assert!(answer.encode().len() < 700, "{}", answer.encode().len());
        let long =
            LogAnswer { consistency: Some(vec![empty_root(); PROOF_HASHES_MAX + 1]), ..LogAnswer::default() };
        assert!(matches!(LogAnswer::decode(&long.encode()), Err(LogRefused::Proof)));
        for (file, length) in [(CONSISTENCY, 31), (INCLUSION, 7), (INCLUSION, 9), (HEAD, 3)] {
            let files = vec![(file.to_owned(), Bytes::from(vec![0; length]))];
            assert!(LogAnswer::decode(&Answer { files }.encode()).is_err(), "{file} {length}");
        }
    }
}
