//! Upload slots, and the queue of batches that wait for one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use distd_core::NodeId;
use distd_core::swarm::{SlotAsk, SlotTold, UploadSlots, WaitId};
use tokio::sync::oneshot;

/// The upload slots of one answering side, shared by node id over all connections.
pub(super) struct Slots {
    inner: Mutex<Inner>,
}

struct Inner {
    core: UploadSlots<NodeId>,
    waiting: HashMap<WaitId, oneshot::Sender<SlotTold>>,
}

impl Inner {
    /// Notifies the batches whose wait is over.
    fn tell(&mut self) {
        while let Some((id, what)) = self.core.poll_told() {
            if let Some(waiter) = self.waiting.remove(&id) {
                // A waiter that is gone removes itself and gives back a granted slot in
                // `Waiting::drop`.
                let _ = waiter.send(what);
            }
        }
    }
}

impl Slots {
    pub(super) fn new(slots: usize, node_max: usize) -> Arc<Self> {
        let core = UploadSlots::new(slots, node_max);
        Arc::new(Self { inner: Mutex::new(Inner { core, waiting: HashMap::new() }) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether so many batches are answered now that duplicates are suppressed.
    pub(super) fn suppresses_duplicates(&self) -> bool {
        self.lock().core.suppresses_duplicates()
    }

    fn others_wait(&self, node: NodeId) -> bool {
        self.lock().core.others_wait(node)
    }

    fn freed(&self, node: NodeId, held: Duration) {
        let mut inner = self.lock();
        inner.core.handle_freed(node, held);
        inner.tell();
    }

    fn ask(&self, node: NodeId) -> Result<Result<(), Waiting<'_>>, Duration> {
        let mut inner = self.lock();
        let asked = inner.core.handle_ask(node);
        let asked = match asked {
            SlotAsk::Granted => Ok(Ok(())),
            SlotAsk::Choked(retry_after) => Err(retry_after),
            SlotAsk::Waits(id) => {
                let (tell, told) = oneshot::channel();
                inner.waiting.insert(id, tell);
                Ok(Err(Waiting { slots: self, node, id, told: Some(told) }))
            }
        };
        inner.tell();
        asked
    }

    /// Takes a slot for a batch of `node`, after waiting for at most `wait`.
    ///
    /// # Errors
    /// The time after which the asker may ask again.
    pub(super) async fn take(self: &Arc<Self>, node: NodeId, wait: Duration) -> Result<Slot, Duration> {
        if let Err(waiting) = self.ask(node)? {
            waiting.until(wait).await?;
        }
        Ok(Slot { slots: self.clone(), node, since: Some(Instant::now()) })
    }
}

/// A waiting batch; leaves the queue on drop.
struct Waiting<'s> {
    slots: &'s Slots,
    node: NodeId,
    id: WaitId,
    told: Option<oneshot::Receiver<SlotTold>>,
}

impl Waiting<'_> {
    async fn until(mut self, wait: Duration) -> Result<(), Duration> {
        let Some(told) = &mut self.told else { return Ok(()) };
        match tokio::time::timeout(wait, told).await {
            Ok(Ok(SlotTold::Granted)) => {
                self.told = None;
                Ok(())
            }
            Ok(Ok(SlotTold::Choked(retry_after))) => {
                self.told = None;
                Err(retry_after)
            }
            // The wait is over. `leave` gives back a slot that may have been granted this moment.
            Ok(Err(_)) | Err(_) => Err(self.leave()),
        }
    }

    fn leave(&mut self) -> Duration {
        let Some(mut told) = self.told.take() else { return Duration::ZERO };
        let mut inner = self.slots.lock();
        inner.waiting.remove(&self.id);
        if matches!(told.try_recv(), Ok(SlotTold::Granted)) {
            inner.core.handle_freed(self.node, Duration::ZERO);
        }
        let retry_after = inner.core.handle_left(self.node, self.id);
        inner.tell();
        retry_after
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The upload slot of one batch. It is given back on drop, or earlier if the asker reads nothing.
pub(super) struct Slot {
    slots: Arc<Slots>,
    node: NodeId,
    /// When the slot was taken; `None` while it is lent to other batches.
    since: Option<Instant>,
}

impl Slot {
    /// Whether a batch of another node waits for this one.
    pub(super) fn is_wanted(&self) -> bool {
        self.since.is_some() && self.slots.others_wait(self.node)
    }

    /// Gives the slot to other batches for as long as the asker reads nothing.
    pub(super) fn lend(&mut self) {
        if let Some(since) = self.since.take() {
            self.slots.freed(self.node, since.elapsed());
        }
    }

    /// Takes a slot again, in its turn.
    pub(super) async fn reclaim(&mut self) {
        while self.since.is_none() {
            let taken = match self.slots.ask(self.node) {
                Ok(Ok(())) => Ok(()),
                Ok(Err(waiting)) => waiting.until(Duration::MAX).await,
                Err(retry_after) => Err(retry_after),
            };
            match taken {
                Ok(()) => self.since = Some(Instant::now()),
                Err(retry_after) => tokio::time::sleep(retry_after).await,
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.lend();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slot_granted_to_a_waiter_that_left_goes_to_the_next() {
        let slots = Slots::new(1, 1);
        let (a, b) = (NodeId([1; 16]), NodeId([2; 16]));
        let held = slots.take(a, Duration::ZERO).await.expect("free");
        let mut waits = Box::pin(slots.take(b, Duration::from_secs(60)));
        assert!(tokio::time::timeout(Duration::from_millis(5), &mut waits).await.is_err());
        assert!(held.is_wanted());
        drop(held);
        // The slot is granted, and the waiter never looks at it.
        drop(waits);
        assert_eq!(slots.lock().core.held(), 0);
        let held = slots.take(a, Duration::ZERO).await.expect("free again");
        assert!(slots.take(b, Duration::from_millis(5)).await.is_err());
        assert!(!held.is_wanted(), "who waited in vain waits no more");
    }

    #[tokio::test]
    async fn a_lent_slot_is_taken_again_in_its_turn() {
        let slots = Slots::new(1, 1);
        let (a, b) = (NodeId([1; 16]), NodeId([2; 16]));
        let mut lent = slots.take(a, Duration::ZERO).await.expect("free");
        lent.lend();
        let held = slots.take(b, Duration::ZERO).await.expect("lent");
        let mut back = Box::pin(lent.reclaim());
        assert!(tokio::time::timeout(Duration::from_millis(5), &mut back).await.is_err());
        drop(held);
        back.await;
        assert_eq!(slots.lock().core.held(), 1);
    }
}
