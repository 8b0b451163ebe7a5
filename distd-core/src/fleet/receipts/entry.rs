//! Entries of the log: receipts of devices, events of rollouts, and restarts of the log itself
//! (docs/receipts.md, "Entries").

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::super::rollout::{RolloutId, Threshold, WAVES_MAX};
use super::head::SignedHead;
use super::merkle::{TreeHash, leaf_hash};
use crate::names::Name;
use crate::{ManifestId, NodeId};

/// Most bytes of an entry. A rollout of sixteen waves takes some 1 kB.
pub const ENTRY_BYTES_MAX: usize = 2 << 10;

/// Most bytes of the body of a receipt.
pub const RECEIPT_BYTES_MAX: usize = FIXED_BYTES + 3 * (1 + crate::bounds::NAME_BYTES_MAX);

/// Bytes of a receipt before its names.
const FIXED_BYTES: usize = 8 + 8 + 16 + 32 + 16 + 1;

/// Domain separation of a receipt's signature.
const DOMAIN: &[u8] = b"distd-receipt-v1\0";

/// SubjectPublicKeyInfo of an Ed25519 key, up to the key itself (RFC 8410).
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

const RECEIPT: u8 = 1;
const WAVE: u8 = 2;
const RESTART: u8 = 3;

/// Reason why bytes are no entry or receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the entry of the log is malformed")]
pub struct EntryError;

/// Statement of a device about the release that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Number among the receipts of the device, from 1 without gaps.
    pub number: u64,
    /// Time by the device's clock, unix seconds.
    pub at: u64,
    /// Id of the system's boot.
    pub boot: [u8; 16],
    /// Manifest of the release; `None` when the device does not know it.
    pub manifest: Option<ManifestId>,
    /// Rollout that the device followed; `None` for a release of the channel itself.
    pub rollout: Option<RolloutId>,
    /// Wave of the device in that rollout, from 1; 0 when the device does not know it, or without
    /// a rollout.
    pub wave: u8,
    /// Product.
    pub product: Name,
    /// Version.
    pub version: Name,
    /// Slot of the system; `None` in a directory.
    pub slot: Option<Name>,
}

/// Node id that belongs to an Ed25519 key.
pub fn node_of_key(key: &[u8; 32]) -> NodeId {
    let hash = Sha256::new_with_prefix(SPKI_HEAD).chain_update(key).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    NodeId(id)
}

/// Bytes that a node's key signs for the receipt `body`.
pub fn receipt_message(body: &[u8]) -> Vec<u8> {
    [DOMAIN, body].concat()
}

/// Reader of the fields of a receipt.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], EntryError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(EntryError)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EntryError> {
        self.take(N)?.try_into().map_err(|_| EntryError)
    }

    fn text(&mut self) -> Result<&'a str, EntryError> {
        let [length] = self.array()?;
        std::str::from_utf8(self.take(usize::from(length))?).map_err(|_| EntryError)
    }

    fn name(&mut self) -> Result<Name, EntryError> {
        self.text()?.parse().map_err(|_| EntryError)
    }
}

/// `None` for zeros, which stand for nothing.
fn unless_zero<const N: usize>(bytes: [u8; N]) -> Option<[u8; N]> {
    Some(bytes).filter(|bytes| *bytes != [0; N])
}

impl Receipt {
    /// Encodes the receipt: number, time, boot, manifest, rollout, wave, and the three names, each
    /// with its length in one byte before it. Numbers are big-endian; zeros stand for nothing.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(FIXED_BYTES + 32);
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.at.to_be_bytes());
        out.extend_from_slice(&self.boot);
        out.extend_from_slice(&self.manifest.map_or([0; 32], |id| id.0));
        out.extend_from_slice(&self.rollout.map_or([0; 16], |id| id.0));
        out.push(self.wave);
        let slot = self.slot.as_ref().map_or("", Name::as_str);
        for name in [self.product.as_str(), self.version.as_str(), slot] {
            out.push(u8::try_from(name.len()).expect("a name has at most 100 bytes"));
            out.extend_from_slice(name.as_bytes());
        }
        out.into()
    }

    /// Decodes bytes from the network or a file. Each receipt has one encoding.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn decode(body: &[u8]) -> Result<Self, EntryError> {
        if body.len() > RECEIPT_BYTES_MAX {
            return Err(EntryError);
        }
        let mut fields = Fields(body);
        let receipt = Self {
            number: u64::from_be_bytes(fields.array()?),
            at: u64::from_be_bytes(fields.array()?),
            boot: fields.array()?,
            manifest: unless_zero(fields.array()?).map(ManifestId),
            rollout: unless_zero(fields.array()?).map(RolloutId),
            wave: fields.take(1)?[0],
            product: fields.name()?,
            version: fields.name()?,
            slot: match fields.text()? {
                "" => None,
                slot => Some(slot.parse().map_err(|_| EntryError)?),
            },
        };
        let is_in_bounds = receipt.number > 0
            && usize::from(receipt.wave) <= WAVES_MAX
            && (receipt.wave == 0 || receipt.rollout.is_some());
        if fields.0.is_empty() && is_in_bounds { Ok(receipt) } else { Err(EntryError) }
    }
}

/// A receipt and its proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedReceipt {
    /// Ed25519 key of the node.
    pub key: [u8; 32],
    /// Signature over [`receipt_message`].
    pub signature: [u8; 64],
    /// The receipt.
    pub receipt: Receipt,
}

impl SignedReceipt {
    /// Node that the receipt is of, if the signature is right.
    pub fn node(&self) -> NodeId {
        node_of_key(&self.key)
    }

    /// The entry of the log.
    pub fn entry(&self) -> Bytes {
        [&[RECEIPT][..], &self.key, &self.signature, &self.receipt.encode()].concat().into()
    }

    /// Hash of the entry.
    pub fn leaf(&self) -> TreeHash {
        leaf_hash(&self.entry())
    }

    /// Receipt of the node with `key`, as a report carries it: signature and body.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn of_report(key: [u8; 32], bytes: &[u8]) -> Result<Self, EntryError> {
        let mut fields = Fields(bytes);
        let signature = fields.array()?;
        Ok(Self { key, signature, receipt: Receipt::decode(fields.0)? })
    }

    /// Signature and body, for a report, which has the key already.
    pub fn for_report(&self) -> Vec<u8> {
        [&self.signature[..], &self.receipt.encode()].concat()
    }
}

/// State of a rollout, as an origin signed it for devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaveEvent {
    /// Time at the origin, unix seconds.
    pub at: u64,
    /// Rollout.
    pub rollout: RolloutId,
    /// Product.
    pub product: Name,
    /// Channel.
    pub channel: Name,
    /// Release that it leads to.
    pub version: Name,
    /// Manifest of that release.
    pub manifest: ManifestId,
    /// State, a word: `open`, `paused`, `halted`, `rolled_back`, `complete`, `superseded`.
    pub state: String,
    /// Number of waves that are open, the first ones.
    pub open: usize,
    /// Threshold of each wave.
    pub waves: Vec<Threshold>,
    /// Whether devices with certain labels are in the first wave, whatever their points are. The
    /// log does not know labels, so a device that states the first wave is believed then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub first: bool,
    /// SHA-256 of the channel's document with this state, as TUF's `targets` metadata names it.
    pub document: String,
}

/// Beginning of a log that lost entries, because its database was restored to an earlier state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartEvent {
    /// Time at the origin, unix seconds.
    pub at: u64,
    /// New log id.
    pub log: String,
    /// The last head of the log before, [encoded](SignedHead::encode), hexadecimal.
    pub before: String,
}

impl RestartEvent {
    /// The last head of the log before.
    pub fn head(&self) -> Option<SignedHead> {
        SignedHead::decode(&hex::decode(&self.before).ok()?.into()).ok()
    }
}

/// Entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A receipt. Its signature is not checked by decoding.
    Receipt(SignedReceipt),
    /// An event of a rollout.
    Wave(WaveEvent),
    /// The log lost entries here.
    Restart(RestartEvent),
}

impl Entry {
    /// Encodes the entry: a byte for its kind, then the receipt with key and signature, or JSON.
    pub fn encode(&self) -> Bytes {
        let json = |kind: u8, json: serde_json::Result<Vec<u8>>| {
            [vec![kind], json.expect("names and numbers always encode")].concat().into()
        };
        match self {
            Self::Receipt(receipt) => receipt.entry(),
            Self::Wave(event) => json(WAVE, serde_json::to_vec(event)),
            Self::Restart(event) => json(RESTART, serde_json::to_vec(event)),
        }
    }

    /// Decodes bytes from the network or a file.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(EntryError);
        }
        let (kind, body) = bytes.split_first().ok_or(EntryError)?;
        match *kind {
            RECEIPT => {
                let mut fields = Fields(body);
                let key = fields.array()?;
                SignedReceipt::of_report(key, fields.0).map(Self::Receipt)
            }
            WAVE => {
                let event: WaveEvent = serde_json::from_slice(body).map_err(|_| EntryError)?;
                let fits = event.waves.len() <= WAVES_MAX && event.open <= event.waves.len();
                if fits { Ok(Self::Wave(event)) } else { Err(EntryError) }
            }
            RESTART => serde_json::from_slice(body).map(Self::Restart).map_err(|_| EntryError),
            _ => Err(EntryError),
        }
    }

    /// Kind as a word, and the node, rollout or log that the entry is about.
    pub fn about(&self) -> (&'static str, String) {
        match self {
            Self::Receipt(receipt) => ("receipt", receipt.node().to_string()),
            Self::Wave(event) => ("wave", event.rollout.to_string()),
            Self::Restart(event) => ("restart", event.log.clone()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{LogHead, LogId};
    use super::*;

    pub(in super::super) fn receipt() -> Receipt {
        Receipt {
            number: 1,
            at: 2,
            boot: [3; 16],
            manifest: Some(ManifestId([4; 32])),
            rollout: Some(RolloutId([5; 16])),
            wave: 1,
            product: "os".parse().expect("a name"),
            version: "2".parse().expect("a name"),
            slot: Some("a".parse().expect("a name")),
        }
    }

    pub(in super::super) fn wave(open: usize, state: &str) -> WaveEvent {
        WaveEvent {
            at: 9,
            rollout: RolloutId([5; 16]),
            product: "os".parse().expect("a name"),
            channel: "stable".parse().expect("a name"),
            version: "2".parse().expect("a name"),
            manifest: ManifestId([4; 32]),
            state: state.to_owned(),
            open,
            waves: vec![Threshold(1 << 63), Threshold(u64::MAX)],
            first: false,
            document: "00".repeat(32),
        }
    }

    #[test]
    fn the_bytes_of_a_receipt_are_these() {
        let expected = format!(
            "{:016x}{:016x}{}{}{}01026f73013201{}",
            1,
            2,
            "03".repeat(16),
            "04".repeat(32),
            "05".repeat(16),
            "61"
        );
        assert_eq!(hex::encode(receipt().encode()), expected);
        // By another program: the first half of SHA-256 over the SubjectPublicKeyInfo.
        assert_eq!(node_of_key(&[7; 32]).to_string(), "5d2d7a2942537f03ce7c388afb54861f");
    }

    #[test]
    fn entries_survive_their_bytes_and_have_one_encoding() {
        let signed = SignedReceipt { key: [6; 32], signature: [7; 64], receipt: receipt() };
        let head = SignedHead {
            head: LogHead { log: LogId([1; 16]), size: 2, root: TreeHash([3; 32]), at: 4 },
            signature: vec![1; 71].into(),
        };
        let restart = RestartEvent { at: 1, log: "00".repeat(16), before: hex::encode(head.encode()) };
        assert_eq!(restart.head(), Some(head));
        let sparse = Receipt { manifest: None, rollout: None, wave: 0, slot: None, ..receipt() };
        for entry in [
            Entry::Receipt(signed.clone()),
            Entry::Receipt(SignedReceipt { receipt: sparse, ..signed.clone() }),
            Entry::Wave(wave(1, "open")),
            Entry::Restart(restart),
        ] {
            let bytes = entry.encode();
            assert_eq!(Entry::decode(&bytes), Ok(entry.clone()));
            assert!(bytes.len() < 600, "{}", bytes.len());
            assert_eq!(Entry::decode(&[&bytes[..], b"\x01"].concat()), Err(EntryError));
            assert_eq!(Entry::decode(&bytes[..bytes.len() - 1]), Err(EntryError));
        }
        assert_eq!(SignedReceipt::of_report([6; 32], &signed.for_report()), Ok(signed));
        for wrong in [
            Receipt { number: 0, ..receipt() },
            Receipt { wave: 17, ..receipt() },
            Receipt { rollout: None, ..receipt() },
        ] {
            assert_eq!(Receipt::decode(&wrong.encode()), Err(EntryError));
        }
        assert_eq!(Entry::decode(&Entry::Wave(wave(3, "open")).encode()), Err(EntryError));
        assert_eq!(Entry::decode(&[1; ENTRY_BYTES_MAX + 1]), Err(EntryError));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_an_entry_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            if let Ok(Entry::Receipt(signed)) = Entry::decode(&bytes) {
                proptest::prop_assert_eq!(&signed.entry()[..], &bytes[..]);
            }
        }
    }
}
