//! Task that dials one peer, follows its control stream, and reports when the peer is lost.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::error::Chain;
use distd_core::proto::control::ControlEvent;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{AskerGossip, AskerNews, Neighbour, NewsFrom, PeerId};
use tokio::sync::mpsc;

use super::{Exchange, Message, Problem};
use crate::changes::{changed, seen};
use crate::clock::{monotonic_now, unix_now};
use crate::neighbours::{NeighbourError, Neighbourhood};
use crate::net::{Link, LinkError, SwarmLink, is_shut_out};
use crate::news::Passed;
use crate::parents::{Parents, ParentsError};

/// Longest wait between two looks at the clock, which may be set meanwhile.
const CLOCK_LOOK: Duration = Duration::from_secs(30);

/// Way to a peer.
pub(super) enum Route {
    /// The parent with this index.
    Parent(Arc<Parents>, usize),
    /// A neighbour.
    Neighbour(Arc<Neighbourhood>, Neighbour),
}

/// Reason why a swarm could not be opened.
#[derive(Debug, thiserror::Error)]
enum JoinError {
    #[error(transparent)]
    Parent(#[from] ParentsError),
    #[error(transparent)]
    Neighbour(#[from] NeighbourError),
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// State of one peer's task.
pub(super) struct Caller {
    pub(super) peer: PeerId,
    pub(super) route: Route,
    pub(super) manifest: ManifestId,
    /// Parents of this node, which give it its capabilities.
    pub(super) parents: Arc<Parents>,
    pub(super) exchange: Option<Exchange>,
    /// Chunks that the driver was started for.
    pub(super) wanted: Arc<ChunkRanges>,
    pub(super) tx: mpsc::Sender<Message>,
}

impl Caller {
    pub(super) async fn run(self) {
        let followed = match self.join().await {
            Ok((swarm, capability)) => {
                if self.tx.send(Message::Connected(self.peer, swarm.handle())).await.is_err() {
                    return;
                }
                self.follow(swarm, capability).await.map_err(JoinError::Link)
            }
            Err(error) => Err(error),
        };
        // A neighbour may refuse because it may not serve.
        let is_parent = matches!(self.route, Route::Parent(..));
        let problem = match followed {
            Ok(()) => Problem { text: "the peer left the swarm".to_owned(), is_shut_out: false },
            Err(error) => {
                Problem { text: Chain(&error).to_string(), is_shut_out: is_parent && is_shut_out(&error) }
            }
        };
        // The receiver is gone only if nobody waits for the driver's result.
        let _ = self.tx.send(Message::Lost(self.peer, problem)).await;
    }

    /// Opens the swarm at the peer; returns it with the capability that was shown.
    async fn join(&self) -> Result<(SwarmLink, Bytes), JoinError> {
        let link: Arc<Link> = match &self.route {
            Route::Parent(parents, index) => parents.link(*index).await?,
            Route::Neighbour(neighbourhood, neighbour) => neighbourhood.link(neighbour).await?,
        };
        let capability = self.parents.capability_for(link.role(), self.manifest).await;
        let swarm = match &self.exchange {
            None => link.open_swarm(self.manifest, capability.clone()).await?,
            Some(exchange) => {
                let own = exchange.neighbourhood.own_record(link.remote())?;
                link.open_swarm_exchanging(self.manifest, capability.clone(), own).await?
            }
        };
        Ok((swarm, capability))
    }

    /// Returns the capability that takes the place of `shown`, when there is one: this task asks
    /// for it in time, or another one has.
    async fn renewed(&self, shown: Bytes) -> Bytes {
        let capabilities = self.parents.capabilities();
        let mut changed = capabilities.changes();
        loop {
            let now = unix_now();
            if let Some(held) = capabilities.proof(&self.manifest, now).filter(|held| *held != shown) {
                return held;
            }
            let wait = match capabilities.renew_at(&self.manifest, now) {
                Some(due) if due <= now => {
                    // In a task of its own: this one is not polled while a frame is written.
                    let (parents, manifest) = (self.parents.clone(), self.manifest);
                    let _ = tokio::spawn(async move { parents.renew_capability(manifest).await }).await;
                    // A parent that gave none is asked again later.
                    Duration::from_secs(1)
                }
                Some(due) => Duration::from_secs(due - now),
                None => CLOCK_LOOK,
            };
            tokio::select! {
                () = tokio::time::sleep(wait.min(CLOCK_LOOK)) => {}
                // The sender lives as long as the parents.
                _ = changed.changed() => {}
            }
        }
    }

    /// Follows the control stream until the peer leaves the swarm.
    async fn follow(&self, mut swarm: SwarmLink, shown: Bytes) -> Result<(), LinkError> {
        let mut renewal = std::pin::pin!(self.renewed(shown));
        let Some(exchange) = &self.exchange else {
            loop {
                tokio::select! {
                    event = self.next(&mut swarm) => match event? {
                        Some(event) => self.handle(event).await,
                        None => return Ok(()),
                    },
                    newer = &mut renewal => {
                        swarm.prove(newer.clone()).await?;
                        renewal.set(self.renewed(newer));
                    }
                }
            }
        };
        let neighbourhood = &exchange.neighbourhood;
        let is_parent = matches!(self.route, Route::Parent(..));
        let mut gossip = AskerGossip::new(monotonic_now(), is_parent, neighbourhood.record_seconds());
        let mut growth = Some(exchange.holdings.subscribe());
        let mut shunning = Some(neighbourhood.shunning());
        let room = neighbourhood.news();
        let mut notices = room.map(|room| room.changes());
        let mut passed = room.map(|room| Passed::from_now(room)).unwrap_or_default();
        loop {
            while let Some(news) = gossip.poll(monotonic_now()) {
                match news {
                    AskerNews::Shun => swarm.shun(&neighbourhood.shunned()).await?,
                    AskerNews::Announce => {
                        seen(&mut growth);
                        let held = exchange.holdings.snapshot();
                        swarm.announce(&gossip.announced(held, &self.wanted)).await?;
                    }
                    AskerNews::Record => {
                        if let Ok(own) = neighbourhood.own_record(swarm.handle().link.remote()) {
                            swarm.send_record(own).await?;
                        }
                    }
                }
            }
            let news = tokio::time::sleep(gossip.poll_timeout().since(monotonic_now()));
            tokio::select! {
                event = self.next(&mut swarm) => match event? {
                    Some(ControlEvent::Halt(notice)) => {
                        let from = match &self.route {
                            Route::Parent(..) => NewsFrom::Parent,
                            Route::Neighbour(_, neighbour) => NewsFrom::Neighbour(neighbour.node),
                        };
                        match room.map(|room| room.take(&notice, from)) {
                            Some(Ok((signed, judged))) => passed.note(&signed.notice, judged),
                            // Each costs a check of a signature: the stream ends with the first.
                            Some(Err(error)) => {
                                tracing::info!(error = %Chain(&error), "a peer sent a notice that is not used");
                                let breach = distd_core::proto::DecodeError::Field("HALT", "signature");
                                return Err(swarm.handle().link.wire(crate::net::WireError::Decode(breach)));
                            }
                            None => {}
                        }
                    }
                    Some(event) => self.handle(event).await,
                    None => return Ok(()),
                },
                () = changed(&mut notices) => {
                    let due = room.map(|room| passed.due(room)).unwrap_or_default();
                    swarm.pass_halts(due).await?;
                }
                () = changed(&mut growth), if !gossip.has_growth() => gossip.handle_growth(),
                () = changed(&mut shunning) => gossip.handle_shuns(),
                newer = &mut renewal => {
                    swarm.prove(newer.clone()).await?;
                    renewal.set(self.renewed(newer));
                }
                () = news => {}
            }
        }
    }

    async fn next(&self, swarm: &mut SwarmLink) -> Result<Option<ControlEvent>, LinkError> {
        let event = swarm.next_event().await;
        if let Err(error) = &event
            && error.is_breach()
        {
            let breach = Message::Breach(self.peer, Chain(error).to_string());
            let _ = self.tx.send(breach).await;
        }
        event
    }

    async fn handle(&self, event: ControlEvent) {
        let message = match event {
            ControlEvent::Open(_) => Message::Handshake(self.peer),
            ControlEvent::Choked(choke) => Message::Choked(self.peer, choke.retry_after),
            ControlEvent::Have(chunks) => Message::Have(self.peer, chunks),
            ControlEvent::Peers(records) => Message::Peers(records),
            ControlEvent::Shuns(nodes) => Message::Distrusted(self.peer, nodes),
            ControlEvent::Unchoked
            | ControlEvent::PeersWanted
            | ControlEvent::Capability(_)
            | ControlEvent::Halt(_) => return,
        };
        // The receiver is gone only if nobody waits for the driver's result.
        let _ = self.tx.send(message).await;
    }
}
