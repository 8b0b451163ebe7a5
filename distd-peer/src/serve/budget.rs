//! What one node may have open and make this one do, over all its connections.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distd_core::NodeId;
use distd_core::swarm::FetchCredit;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::clock::monotonic_now;
use crate::trust::identity::Role;
use crate::trust::tls::PeerIdentity;

/// Bounds by role.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Swarms open.
    swarms: usize,
    /// Streams open on one connection.
    streams: usize,
    /// Batches that go on without their upload slot, because they are not read.
    lent: usize,
    /// Chunks that come from upstream and were not sent on yet.
    ahead: usize,
    /// Manifests fetched at once.
    openings: usize,
    /// Bytes fetched in vain, each hour.
    credit: u64,
}

/// A device has a release and its patch sets open, twice when an agent runs beside a pull.
const LEAF: Bounds = Bounds { swarms: 24, streams: 128, lent: 8, ahead: 256, openings: 2, credit: 64 << 20 };

/// A relay has on one connection whatever its own askers have.
const RELAY: Bounds =
    Bounds { swarms: 512, streams: 1024, lent: 64, ahead: 8192, openings: 64, credit: 4 << 30 };

/// One node's budget, whatever connections it has.
#[derive(Debug)]
pub struct NodeBudget {
    role: Role,
    bounds: Bounds,
    swarms: AtomicUsize,
    lent: AtomicUsize,
    ahead: Semaphore,
    openings: Semaphore,
    credit: Mutex<FetchCredit>,
}

impl NodeBudget {
    /// That of a node of this role.
    pub fn of(role: Role) -> Arc<Self> {
        let bounds = if role == Role::Leaf { LEAF } else { RELAY };
        Arc::new(Self {
            role,
            bounds,
            swarms: AtomicUsize::new(0),
            lent: AtomicUsize::new(0),
            ahead: Semaphore::new(bounds.ahead),
            openings: Semaphore::new(bounds.openings),
            credit: Mutex::new(FetchCredit::new(bounds.credit, monotonic_now())),
        })
    }

    /// Streams the node may have open on one connection.
    pub(crate) fn streams(&self) -> usize {
        self.bounds.streams
    }

    /// A place for one more swarm, if there is one.
    pub(super) fn swarm(self: &Arc<Self>) -> Option<Counted> {
        Counted::new(self.clone(), |budget| &budget.swarms, self.bounds.swarms)
    }

    /// A place for one more batch that goes on without its slot, if there is one.
    pub(super) fn lend(self: &Arc<Self>) -> Option<Counted> {
        Counted::new(self.clone(), |budget| &budget.lent, self.bounds.lent)
    }

    /// Chunks that may be on their way from upstream for this node and are not sent to it yet.
    pub(crate) fn ahead(&self) -> &Semaphore {
        &self.ahead
    }

    /// Waits until the node may have one more manifest fetched on its behalf.
    pub async fn opening(&self) -> SemaphorePermit<'_> {
        self.openings.acquire().await.expect("nobody closes it")
    }

    /// Whether the node has made this one fetch so much in vain that it fetches no more for it.
    pub fn is_spent(&self) -> bool {
        self.credit().is_spent(monotonic_now())
    }

    /// So many bytes were fetched on the node's behalf and not taken.
    pub fn charge(&self, bytes: u64) {
        self.credit().charge(monotonic_now(), bytes);
    }

    /// So many bytes went to the node.
    pub(crate) fn give_back(&self, bytes: u64) {
        self.credit().give_back(bytes);
    }

    fn credit(&self) -> MutexGuard<'_, FetchCredit> {
        self.credit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of a bounded number; free again when dropped.
pub(super) struct Counted {
    budget: Arc<NodeBudget>,
    counter: fn(&NodeBudget) -> &AtomicUsize,
}

impl Counted {
    fn new(budget: Arc<NodeBudget>, counter: fn(&NodeBudget) -> &AtomicUsize, max: usize) -> Option<Self> {
        let one_more = |count: usize| (count < max).then_some(count + 1);
        counter(&budget).fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Self { budget, counter })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.counter)(&self.budget).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Budgets kept; above it those of nodes that are not connected go.
const REMEMBERED: usize = 8192;

/// The budgets of all nodes that are or were connected. One that left keeps its own, or leaving and coming back
/// would fill its credit.
#[derive(Default)]
pub(super) struct Budgets {
    nodes: Mutex<HashMap<NodeId, Arc<NodeBudget>>>,
}

impl Budgets {
    /// The budget of a node that connects.
    pub(super) fn of(&self, peer: &PeerIdentity) -> Arc<NodeBudget> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() >= REMEMBERED {
            nodes.retain(|_, budget| Arc::strong_count(budget) > 1);
        }
        let known = nodes.get(&peer.node_id).filter(|known| known.role == peer.role).cloned();
        known.unwrap_or_else(|| {
            let fresh = NodeBudget::of(peer.role);
            nodes.insert(peer.node_id, fresh.clone());
            fresh
        })
    }
}
