//! Budget of one node: what it may have open and make this node do, over all its connections.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distd_core::NodeId;
use distd_core::swarm::FetchCredit;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::clock::monotonic_now;
use crate::trust::tls::PeerIdentity;
use distd_core::role::Role;

/// Bounds of a node, which depend on its role.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Open swarms.
    swarms: usize,
    /// Open streams on one connection.
    streams: usize,
    /// Batches that continue without an upload slot because their asker does not read.
    lent: usize,
    /// News streams.
    news: usize,
    /// Chunks fetched from upstream, or requested there, and not yet sent on.
    ahead: usize,
    /// Manifests fetched at once.
    openings: usize,
    /// Bytes that may be fetched in vain, per hour.
    credit: u64,
}

/// A device has a release and its patch sets open, twice if an agent runs beside a pull.
const LEAF: Bounds =
    Bounds { swarms: 24, streams: 128, lent: 8, news: 4, ahead: 256, openings: 2, credit: 64 << 20 };

/// A relay has on one connection everything that its own askers have.
const RELAY: Bounds =
    Bounds { swarms: 512, streams: 1024, lent: 64, news: 4, ahead: 8192, openings: 64, credit: 4 << 30 };

/// Budget of one node over all its connections.
#[derive(Debug)]
pub struct NodeBudget {
    role: Role,
    bounds: Bounds,
    swarms: AtomicUsize,
    lent: AtomicUsize,
    news: AtomicUsize,
    ahead: Semaphore,
    openings: Semaphore,
    credit: Mutex<FetchCredit>,
}

impl NodeBudget {
    /// Creates the budget of a node with this role.
    pub fn of(role: Role) -> Arc<Self> {
        let bounds = if role == Role::Leaf { LEAF } else { RELAY };
        Arc::new(Self {
            role,
            bounds,
            swarms: AtomicUsize::new(0),
            lent: AtomicUsize::new(0),
            news: AtomicUsize::new(0),
            ahead: Semaphore::new(bounds.ahead),
            openings: Semaphore::new(bounds.openings),
            credit: Mutex::new(FetchCredit::new(bounds.credit, monotonic_now())),
        })
    }

    /// Number of streams that the node may have open on one connection.
    pub(crate) fn streams(&self) -> usize {
        self.bounds.streams
    }

    /// Takes a place for one more swarm; `None` if all are taken.
    pub(super) fn swarm(self: &Arc<Self>) -> Option<Counted> {
        Counted::new(self.clone(), |budget| &budget.swarms, self.bounds.swarms)
    }

    /// Takes a place for one more batch that continues without its slot; `None` if all are taken.
    pub(super) fn lend(self: &Arc<Self>) -> Option<Counted> {
        Counted::new(self.clone(), |budget| &budget.lent, self.bounds.lent)
    }

    /// Takes a place for one more news stream; `None` if all are taken.
    pub(super) fn news(self: &Arc<Self>) -> Option<Counted> {
        Counted::new(self.clone(), |budget| &budget.news, self.bounds.news)
    }

    /// One permit for each chunk that may be on its way from upstream for this node without being
    /// sent to it yet.
    pub(crate) fn ahead(&self) -> &Semaphore {
        &self.ahead
    }

    /// Waits until one more manifest may be fetched on the node's behalf.
    pub async fn opening(&self) -> SemaphorePermit<'_> {
        self.openings.acquire().await.expect("nobody closes it")
    }

    /// Whether so many bytes were fetched in vain for the node that nothing more is fetched for it.
    pub fn is_spent(&self) -> bool {
        self.credit().is_spent(monotonic_now())
    }

    /// Charges bytes that were fetched on the node's behalf and not taken by it.
    pub fn charge(&self, bytes: u64) {
        self.credit().charge(monotonic_now(), bytes);
    }

    /// Credits bytes that were sent to the node.
    pub(crate) fn give_back(&self, bytes: u64) {
        self.credit().give_back(bytes);
    }

    fn credit(&self) -> MutexGuard<'_, FetchCredit> {
        self.credit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of a bounded number of places, freed on drop.
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

/// Number of budgets from which on those of unconnected nodes are dropped.
const REMEMBERED: usize = 8192;

/// The budgets of all nodes that are or were connected. A node keeps its budget when it leaves:
/// otherwise leaving and coming back would restore its credit.
#[derive(Default)]
pub(super) struct Budgets {
    nodes: Mutex<HashMap<NodeId, Arc<NodeBudget>>>,
}

impl Budgets {
    /// Returns the budget of a connecting node.
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
