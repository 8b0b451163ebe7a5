//! Signed reports of devices. A relay keeps and forwards a report, and can neither make nor change
//! one (docs/rollouts.md, "Reports").

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use bytes::Bytes;
use distd_core::NodeId;
use distd_core::fleet::receipts::{Receipt, SignedReceipt, node_of_key, receipt_message};
use distd_core::fleet::report::{REPORT_BYTES_MAX, Report, ReportError, sequence_of};
use distd_core::lru::Lru;
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use serde_bytes::ByteBuf;

use super::identity::{IdentityError, NodeIdentity};
use super::tuf::wire::{Answer, Query};

/// Domain separation: the node's key signs these bytes before the report.
const DOMAIN: &[u8] = b"distd-report-v1\0";

const KEY_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;

/// Longest signed report, bytes.
pub const SIGNED_REPORT_BYTES_MAX: usize = KEY_BYTES + SIGNATURE_BYTES + REPORT_BYTES_MAX;

/// Bytes of signed reports in one question at most; a question has 16 KiB.
pub const REPORTS_BYTES_MAX: usize = 12 << 10;

/// Most reports in one question.
pub const REPORTS_MAX: usize = 64;

/// A report with its proof. On the wire: key (32 bytes), signature (64), report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedReport {
    /// Node that signed it.
    pub node: NodeId,
    /// The report.
    pub report: Report,
    /// The bytes as they travel.
    pub bytes: Bytes,
}

/// Reason why bytes are no report of a node.
#[derive(Debug, thiserror::Error)]
pub enum ReportRefused {
    /// There are too few or too many bytes.
    #[error("a signed report has the wrong length")]
    Length,
    /// The signature is not that of the key.
    #[error("the report is not signed by its node")]
    Signature,
    /// The report itself is not usable.
    #[error(transparent)]
    Report(#[from] ReportError),
}

/// Signer of this node's reports.
pub struct ReportSigner {
    key: KeyPair,
    node: NodeId,
}

impl ReportSigner {
    /// Creates a signer with the key of `identity`.
    ///
    /// # Errors
    /// [`IdentityError::Key`], which cannot happen with a key that a certificate was made for.
    pub fn new(identity: &NodeIdentity) -> Result<Self, IdentityError> {
        let key = KeyPair::try_from(identity.private_key().secret_der())
            .map_err(|e| IdentityError::Key("node.key".into(), e))?;
        Ok(Self { key, node: identity.node_id() })
    }

    /// Signs a receipt of this node.
    ///
    /// # Errors
    /// [`IdentityError::Request`] if the key cannot sign.
    pub fn sign_receipt(&self, receipt: Receipt) -> Result<SignedReceipt, IdentityError> {
        let (key, signature) = self.sign_message(&receipt_message(&receipt.encode()))?;
        Ok(SignedReceipt { key, signature, receipt })
    }

    /// Signs bytes that begin with a domain of their own; returns the key and the signature.
    ///
    /// # Errors
    /// [`IdentityError::Request`] if the key cannot sign.
    pub(crate) fn sign_message(&self, message: &[u8]) -> Result<([u8; 32], [u8; 64]), IdentityError> {
        let signature = self.key.sign(message).map_err(IdentityError::Request)?;
        let key = self.key.der_bytes().try_into().expect("an Ed25519 key has 32 bytes");
        Ok((key, signature.as_slice().try_into().expect("an Ed25519 signature has 64 bytes")))
    }

    /// Node whose key signs.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Signs a report.
    ///
    /// # Errors
    /// [`IdentityError::Request`] if the key cannot sign.
    pub fn sign(&self, report: Report) -> Result<SignedReport, IdentityError> {
        let body = report.encode();
        let (key, signature) = self.sign_message(&message(&body))?;
        let bytes = [&key[..], &signature, &body].concat();
        Ok(SignedReport { node: self.node, report, bytes: bytes.into() })
    }
}

/// Checks the signature of a report and returns the node, and the bytes of the report itself.
fn verified(bytes: &Bytes) -> Result<(NodeId, &[u8]), ReportRefused> {
    if bytes.len() > SIGNED_REPORT_BYTES_MAX {
        return Err(ReportRefused::Length);
    }
    let (key, rest) = bytes.split_first_chunk::<KEY_BYTES>().ok_or(ReportRefused::Length)?;
    let (signature, body) = rest.split_at_checked(SIGNATURE_BYTES).ok_or(ReportRefused::Length)?;
    let verified = UnparsedPublicKey::new(&ED25519, &key[..]).verify(&message(body), signature);
    verified.map_err(|_| ReportRefused::Signature)?;
    Ok((node_of_key(key), body))
}

/// Checks the signature of a report and returns its node and number, for a relay that passes it on:
/// the rest may be of a form that only later releases know.
///
/// # Errors
/// [`ReportRefused`].
pub fn node_and_sequence(bytes: &Bytes) -> Result<(NodeId, u64), ReportRefused> {
    let (node, body) = verified(bytes)?;
    Ok((node, sequence_of(body)?))
}

/// Most reports of one node that are taken within [`PACE_WINDOW`]. An attempt has six states.
const PACE_MAX: u32 = 30;

/// Time in which the reports of a node are counted.
const PACE_WINDOW: Duration = Duration::from_secs(60);

/// Most nodes whose reports are counted.
const PACE_NODES_MAX: u64 = 64 << 10;

/// Counts the reports of each node, so that none of them floods its parent.
pub struct ReportPace(Mutex<Lru<NodeId, (Instant, u32)>>);

impl Default for ReportPace {
    fn default() -> Self {
        Self(Mutex::new(Lru::new(PACE_NODES_MAX)))
    }
}

impl ReportPace {
    /// Counts a report of `node` at `now`; `false` when it is one too many.
    pub fn count(&self, node: NodeId, now: Instant) -> bool {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, count) = match counted.get(&node) {
            Some((since, count)) if now.duration_since(*since) < PACE_WINDOW => (*since, *count),
            _ => (now, 0),
        };
        if count >= PACE_MAX {
            return false;
        }
        counted.put(node, (since, count + 1), 1);
        true
    }
}

impl SignedReport {
    /// Decodes bytes from the network or a file, and checks the signature.
    ///
    /// # Errors
    /// [`ReportRefused`].
    pub fn open(bytes: &Bytes) -> Result<Self, ReportRefused> {
        let (node, body) = verified(bytes)?;
        Ok(Self { node, report: Report::decode(body)?, bytes: bytes.clone() })
    }
}

fn message(body: &[u8]) -> Vec<u8> {
    [DOMAIN, body].concat()
}

/// Makes the question that hands `reports` over. They must be within [`REPORTS_MAX`] and
/// [`REPORTS_BYTES_MAX`].
pub fn question<'a>(reports: impl IntoIterator<Item = &'a Bytes>) -> Bytes {
    let reports = reports.into_iter().map(|bytes| ByteBuf::from(bytes.to_vec())).collect();
    Query { reports, ..Query::default() }.encode().into()
}

/// Name of the empty file in an answer by which a parent says that it keeps the reports.
const KEPT: &str = "reports-kept";

/// Answer of a parent that keeps the reports of a question.
pub fn kept_answer() -> Bytes {
    Answer { files: vec![(KEPT.to_owned(), Bytes::new())] }.encode().into()
}

/// Whether an answer says that the reports are kept. A parent of an earlier release does not say
/// so, and keeps none.
pub fn is_kept(answer: &[u8]) -> bool {
    Answer::decode(answer).is_ok_and(|answer| answer.files.iter().any(|(name, _)| name == KEPT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report { sequence: 1, at: 2, boot: vec![0; 16], ..Report::default() }
    }

    #[test]
    fn a_node_that_reports_too_often_waits_and_no_other_does() {
        let (pace, start) = (ReportPace::default(), Instant::now());
        let (noisy, quiet) = (NodeId([1; 16]), NodeId([2; 16]));
        for _ in 0..PACE_MAX {
            assert!(pace.count(noisy, start));
        }
        assert!(!pace.count(noisy, start) && pace.count(quiet, start));
        assert!(!pace.count(noisy, start + PACE_WINDOW - Duration::from_secs(1)));
        assert!(pace.count(noisy, start + PACE_WINDOW));
    }

    #[test]
    fn a_report_names_the_node_that_signed_it_and_cannot_be_changed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let identity = NodeIdentity::load_or_create(&dir.path().join("state")).expect("create");
        let signed = ReportSigner::new(&identity).and_then(|signer| signer.sign(report())).expect("signs");
        let opened = SignedReport::open(&signed.bytes).expect("opens");
        assert_eq!((opened.node, &opened), (identity.node_id(), &signed));
        for at in [0, KEY_BYTES, KEY_BYTES + SIGNATURE_BYTES, signed.bytes.len() - 1] {
            let mut bytes = signed.bytes.to_vec();
            bytes[at] ^= 1;
            assert!(matches!(SignedReport::open(&bytes.into()), Err(ReportRefused::Signature)), "{at}");
        }
        for bytes in [vec![], vec![0; 95], vec![0; SIGNED_REPORT_BYTES_MAX + 1]] {
            assert!(matches!(SignedReport::open(&bytes.into()), Err(ReportRefused::Length)));
        }
        assert!(is_kept(&kept_answer()) && !is_kept(&Answer::default().encode()) && !is_kept(b"x"));
        let signature_of_nothing = signed.bytes.slice(..96);
        assert!(matches!(SignedReport::open(&signature_of_nothing), Err(ReportRefused::Signature)));
    }
}
