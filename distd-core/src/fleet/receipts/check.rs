//! Check of a log from its first entry to its last: who ran what, and whether a device was ahead of
//! its wave (docs/receipts.md, "What a check finds").

use std::collections::BTreeMap;
use std::fmt;

use super::super::rollout::{RolloutId, Threshold, point, point_of};
use super::entry::{Entry, SignedReceipt, WaveEvent};
use crate::names::Name;
use crate::{ManifestId, NodeId};

/// Something that is wrong with a log, or that a reader should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A device ran the release of a rollout before its wave was open.
    Ahead {
        /// The device.
        node: NodeId,
        /// The rollout.
        rollout: RolloutId,
    },
    /// A device states another wave than its own.
    OtherWave {
        /// The device.
        node: NodeId,
        /// The rollout.
        rollout: RolloutId,
    },
    /// An event says that fewer waves are open than an event before it.
    Closed(RolloutId),
    /// An event has other thresholds than an event before it.
    OtherThresholds(RolloutId),
    /// Receipts of a device are missing: the log has none with these numbers.
    Missing {
        /// The device.
        node: NodeId,
        /// The first missing number.
        first: u64,
        /// The last missing number.
        last: u64,
    },
    /// A device began again with an earlier number: it lost its state, or its key is in two places.
    Again(NodeId),
    /// A device ran the release of a rollout outside of the rollout, before its wave was open: by a
    /// pin, or by its version's name.
    Outside {
        /// The device.
        node: NodeId,
        /// The rollout.
        rollout: RolloutId,
    },
    /// A device ran the release of a rollout that the log does not know: it came to run it before
    /// there was a log, or the log lost the rollout when its database was restored.
    Unknown {
        /// The device.
        node: NodeId,
        /// The rollout.
        rollout: RolloutId,
    },
    /// The log lost entries, because its database was restored.
    Restart,
}

impl Finding {
    /// Whether the finding shows a fault; the others are for people to judge.
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::Again(_) | Self::Outside { .. } | Self::Unknown { .. } | Self::Restart)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ahead { node, rollout } => {
                write!(f, "device {node} was ahead of its wave in rollout {rollout}")
            }
            Self::OtherWave { node, rollout } => {
                write!(f, "device {node} states a wave that is not its own in rollout {rollout}")
            }
            Self::Closed(rollout) => write!(f, "rollout {rollout} claims fewer open waves than before"),
            Self::OtherThresholds(rollout) => {
                write!(f, "rollout {rollout} has other thresholds than before")
            }
            Self::Missing { node, first, last } => {
                write!(f, "receipts {first} to {last} of device {node} are missing")
            }
            Self::Again(node) => write!(f, "device {node} began to number its receipts again"),
            Self::Outside { node, rollout } => {
                write!(f, "device {node} ran the release outside of rollout {rollout}, before its wave")
            }
            Self::Unknown { node, rollout } => {
                write!(
                    f,
                    "device {node} came to its release by rollout {rollout}, of which the log lacks the waves"
                )
            }
            Self::Restart => f.write_str("the log lost entries: its database was restored"),
        }
    }
}

struct Rollout {
    manifest: ManifestId,
    waves: Vec<Threshold>,
    open: usize,
    /// Whether labels bring devices into the first wave.
    has_first: bool,
    has_ended: bool,
}

impl Rollout {
    /// Whether the wave of a device with this point is open.
    fn reaches(&self, point: u64) -> bool {
        self.open.checked_sub(1).and_then(|last| self.waves.get(last)).is_some_and(|upto| point <= upto.0)
    }
}

/// Checker of a log, to which all entries are added in order.
#[derive(Default)]
pub struct LogCheck {
    rollouts: BTreeMap<RolloutId, Rollout>,
    last: BTreeMap<NodeId, u64>,
    /// Time of the last new beginning, unix seconds.
    restarted: u64,
    /// Number of receipts by product and version.
    pub releases: BTreeMap<(Name, Name), u64>,
}

impl LogCheck {
    /// Checks the next entry. The caller checks the signature of a receipt.
    pub fn add(&mut self, entry: &Entry) -> Vec<Finding> {
        match entry {
            Entry::Receipt(receipt) => self.receipt(receipt),
            Entry::Wave(event) => self.wave(event),
            Entry::Restart(event) => {
                self.last.clear();
                self.restarted = event.at;
                vec![Finding::Restart]
            }
        }
    }

    fn wave(&mut self, event: &WaveEvent) -> Vec<Finding> {
        let mut findings = Vec::new();
        let id = event.rollout;
        let known = self.rollouts.entry(id).or_insert_with(|| Rollout {
            manifest: event.manifest,
            waves: event.waves.clone(),
            open: 0,
            has_first: event.first,
            has_ended: false,
        });
        if event.open < known.open {
            findings.push(Finding::Closed(id));
        }
        if event.waves != known.waves || event.manifest != known.manifest {
            findings.push(Finding::OtherThresholds(id));
        }
        known.open = known.open.max(event.open);
        known.has_ended = !["open", "paused", "halted"].contains(&event.state.as_str());
        findings
    }

    fn receipt(&mut self, signed: &SignedReceipt) -> Vec<Finding> {
        let (mut findings, node, receipt) = (Vec::new(), signed.node(), &signed.receipt);
        let last = self.last.insert(node, receipt.number);
        match last {
            Some(last) if receipt.number <= last => findings.push(Finding::Again(node)),
            Some(last) if receipt.number > last + 1 => {
                findings.push(Finding::Missing { node, first: last + 1, last: receipt.number - 1 });
            }
            _ => {}
        }
        *self.releases.entry((receipt.product.clone(), receipt.version.clone())).or_default() += 1;
        match receipt.rollout {
            Some(rollout) => {
                let known = self.rollouts.get(&rollout);
                let comes_first = known.is_some_and(|known| known.has_first) && receipt.wave == 1;
                let point = point_of(&rollout, &node, comes_first);
                if !known.is_some_and(|known| known.reaches(point)) {
                    let is_old = known.is_none() && receipt.number == 1 || receipt.at < self.restarted;
                    findings.push(match is_old {
                        true => Finding::Unknown { node, rollout },
                        false => Finding::Ahead { node, rollout },
                    });
                }
                let own = known.and_then(|known| known.waves.iter().position(|upto| point <= upto.0));
                if receipt.wave != 0 && own.is_some_and(|own| own + 1 != usize::from(receipt.wave)) {
                    findings.push(Finding::OtherWave { node, rollout });
                }
            }
            None => {
                let outside = self.rollouts.iter().find(|(id, known)| {
                    Some(known.manifest) == receipt.manifest
                        && !known.has_ended
                        && !known.reaches(point(id, &node))
                });
                findings.extend(outside.map(|(id, _)| Finding::Outside { node, rollout: *id }));
            }
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::super::Receipt;
    use super::super::entry::RestartEvent;
    use super::super::entry::tests::{receipt, wave};
    use super::*;

    /// Key whose node is in the first or the second half of the rollout of the tests.
    fn key(first: bool) -> [u8; 32] {
        let in_first =
            |key: &[u8; 32]| point(&RolloutId([5; 16]), &super::super::node_of_key(key)) <= 1 << 63;
        (0..=255).map(|n| [n; 32]).find(|key| in_first(key) == first).expect("one of 256")
    }

    fn signed(key: [u8; 32], receipt: Receipt) -> Entry {
        Entry::Receipt(SignedReceipt { key, signature: [0; 64], receipt })
    }

    fn check(entries: &[Entry]) -> Vec<Finding> {
        let mut check = LogCheck::default();
        entries.iter().flat_map(|entry| check.add(entry)).collect()
    }

    #[test]
    fn a_device_is_ahead_when_its_wave_opens_later_in_the_log() {
        let (early, late) = (key(true), key(false));
        let second = Receipt { wave: 2, number: 2, ..receipt() };
        let open = |count| Entry::Wave(wave(count, "open"));
        let (one, two) = (signed(early, receipt()), signed(late, second.clone()));
        assert_eq!(check(&[open(0), open(1), one.clone(), open(2), two.clone()]), []);
        let node = super::super::node_of_key(&late);
        let ahead = Finding::Ahead { node, rollout: RolloutId([5; 16]) };
        assert!(ahead.is_fault() && ahead.to_string().contains(&node.to_string()));
        assert_eq!(check(&[open(1), two.clone(), open(2)]), std::slice::from_ref(&ahead));
        // A rollout that the log does not have.
        assert_eq!(check(std::slice::from_ref(&two)), std::slice::from_ref(&ahead));
        // The first receipt of a device may be about a time before there was a log, and one that is
        // older than a new beginning about waves that were lost.
        let unknown = Finding::Unknown { node, rollout: RolloutId([5; 16]) };
        let first = signed(late, Receipt { number: 1, ..second.clone() });
        assert_eq!(check(std::slice::from_ref(&first)), std::slice::from_ref(&unknown));
        assert_eq!(check(&[open(1), first]), std::slice::from_ref(&ahead));
        let restart = |at| Entry::Restart(RestartEvent { at, log: "0".repeat(32), before: String::new() });
        assert_eq!(check(&[restart(second.at + 1), open(1), two.clone()]), [Finding::Restart, unknown]);
        assert_eq!(check(&[restart(second.at), open(1), two.clone()]), [Finding::Restart, ahead.clone()]);
        // Where labels bring devices into the first wave, a device that states it is believed.
        let first_wave = Entry::Wave(WaveEvent { first: true, ..wave(1, "open") });
        assert_eq!(check(&[first_wave, signed(late, receipt())]), []);
        // A claim about the wave changes nothing.
        let lie = signed(late, receipt());
        let other = Finding::OtherWave { node, rollout: RolloutId([5; 16]) };
        assert_eq!(check(&[open(1), lie]), [ahead, other]);
        // Without a rollout it may be a pin; after the rollout it is the channel's release.
        let bare = Receipt { rollout: None, wave: 0, ..receipt() };
        let outside = Finding::Outside { node, rollout: RolloutId([5; 16]) };
        assert!(!outside.is_fault());
        assert_eq!(check(&[open(1), signed(late, bare.clone())]), [outside]);
        assert_eq!(check(&[open(2), Entry::Wave(wave(2, "complete")), signed(late, bare)]), []);
    }

    /// `deploy/verify_receipts.py` has its own BLAKE3; this is what it gives.
    #[test]
    fn the_outside_verifier_works_out_the_same_points() {
        let hash = blake3::keyed_hash(&[b'k'; 32], &[b'a'; 16]);
        assert_eq!(hash.to_string(), "574bd9c6fd6dc77a131dd62e4a57995b939a761bb06366cf877647a74356fe47");
    }

    #[test]
    fn waves_do_not_close_and_numbers_have_no_gaps() {
        let id = RolloutId([5; 16]);
        let open = |count| Entry::Wave(wave(count, "open"));
        assert_eq!(check(&[open(2), open(1)]), [Finding::Closed(id)]);
        let mut other = wave(2, "open");
        other.waves[0] = Threshold(1);
        assert_eq!(check(&[open(2), Entry::Wave(other)]), [Finding::OtherThresholds(id)]);
        let (key, bare) = (key(true), Receipt { rollout: None, wave: 0, ..receipt() });
        let node = super::super::node_of_key(&key);
        let numbered = |number| signed(key, Receipt { number, ..bare.clone() });
        let gap = Finding::Missing { node, first: 2, last: 3 };
        assert_eq!(check(&[numbered(1), numbered(4), numbered(5)]), [gap]);
        assert_eq!(check(&[numbered(2), numbered(1), numbered(2)]), [Finding::Again(node)]);
    }
}
