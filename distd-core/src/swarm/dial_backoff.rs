//! [`DialBackoff`]: nodes that did not answer at the addresses they advertised.
//!
//! A node can advertise any address in the network of its neighbours, and change it often. After a
//! few failed dials the neighbours leave that node alone for a while, whatever address it
//! advertises.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Neighbour, QuarantineList};
use crate::NodeId;
use crate::time::Timestamp;

/// Most dials of a neighbour in a row without success. Other neighbours can serve instead.
pub(super) const NEIGHBOUR_TRIES: u32 = 4;

/// How long a node is not dialled after [`NEIGHBOUR_TRIES`] failed dials in a row. From then on
/// each failed dial starts the pause again.
const PAUSE: Duration = Duration::from_secs(300);

/// Maximum number of nodes remembered. Beyond it the node dialled longest ago is forgotten.
const NODES_MAX: usize = 1024;

/// For each node, the number of dials since its last answer, and the time of the latest dial. Dials
/// in progress count, so a node that advertises many addresses at once is not dialled at all of
/// them.
#[derive(Debug, Default)]
pub struct DialBackoff(BTreeMap<NodeId, (u32, Timestamp)>);

impl DialBackoff {
    /// Records that the node is being dialled.
    pub fn handle_dialled(&mut self, now: Timestamp, node: NodeId) {
        let (times, last) = self.0.entry(node).or_insert((0, now));
        (*times, *last) = (times.saturating_add(1), now);
        if self.0.len() > NODES_MAX {
            let oldest = self.0.iter().min_by_key(|(_, (_, last))| *last).map(|(node, _)| *node);
            oldest.map(|node| self.0.remove(&node));
        }
    }

    /// Records that the node answered.
    pub fn handle_reached(&mut self, node: &NodeId) {
        self.0.remove(node);
    }

    /// Whether the node may be dialled now.
    pub fn allow(&self, now: Timestamp, node: &NodeId) -> bool {
        self.0.get(node).is_none_or(|(times, last)| *times < NEIGHBOUR_TRIES || now.since(*last) >= PAUSE)
    }
}

/// Whether the node `own` may dial a neighbour: the neighbour is another node, did not just fail to
/// answer several dials, and is not in quarantine at `unix` (unix seconds).
pub fn may_dial(
    now: Timestamp,
    unix: u64,
    own: &NodeId,
    neighbour: &Neighbour,
    backoff: &DialBackoff,
    quarantine: &QuarantineList,
) -> bool {
    let node = &neighbour.node;
    node != own && backoff.allow(now, node) && quarantine.until(node, unix).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Timestamp = Timestamp(1_000_000);
    const NODE: NodeId = NodeId([1; 16]);

    #[test]
    fn a_node_that_does_not_answer_is_left_alone_at_every_address() {
        let mut dial_backoff = DialBackoff::default();
        for _ in 0..NEIGHBOUR_TRIES {
            assert!(dial_backoff.allow(T0, &NODE));
            dial_backoff.handle_dialled(T0, NODE);
        }
        assert!(!dial_backoff.allow(T0 + PAUSE / 2, &NODE));
        let later = T0 + PAUSE;
        assert!(dial_backoff.allow(later, &NODE));
        dial_backoff.handle_dialled(later, NODE);
        assert!(!dial_backoff.allow(later, &NODE), "once in a while");
        assert!(dial_backoff.allow(later, &NodeId([2; 16])));
        dial_backoff.handle_reached(&NODE);
        assert!(dial_backoff.allow(later, &NODE));
    }

    #[test]
    fn the_number_of_remembered_nodes_is_bounded() {
        let mut dial_backoff = DialBackoff::default();
        for n in 0..NODES_MAX as u64 + 5 {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_be_bytes());
            dial_backoff.handle_dialled(T0 + Duration::from_secs(n), NodeId(id));
        }
        assert_eq!(dial_backoff.0.len(), NODES_MAX);
        assert!(!dial_backoff.0.contains_key(&NodeId([0; 16])), "the oldest");
    }
}
