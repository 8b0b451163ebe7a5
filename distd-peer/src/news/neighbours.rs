//! Telling neighbours: short connections, each with one news stream on which both sides send what
//! they hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use distd_core::NodeId;
use distd_core::error::Chain;
use distd_core::proto::close::CloseCode;
use distd_core::swarm::{Neighbour, NewsFrom, TELL_WITHIN, Told};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::{NewsEvent, Newsroom, Passed};
use crate::neighbours::{NeighbourError, Neighbourhood};
use crate::net::{Link, LinkError};

/// Most addresses of one node that are dialled at once: that of its agent, and those of pulls that
/// may have ended.
const ADDRESSES_MAX: usize = 3;

/// Calls `look` when the node is to look for newer metadata. If `tells`, also tells neighbours when
/// there is news, and exchanges with them while no parent is connected. Works for as long as the
/// returned future is polled.
pub async fn spread(neighbourhood: Arc<Neighbourhood>, room: Arc<Newsroom>, tells: bool, look: impl Fn()) {
    loop {
        if room.poll_look() {
            look();
        }
        let wants = tells && room.wants_neighbours();
        let known = if wants { known(&neighbourhood, &room) } else { BTreeMap::new() };
        let nodes: Vec<NodeId> = known.keys().copied().collect();
        // An exchange is a telling that counts for nothing.
        let exchange = room.poll_exchange(&nodes);
        let mut chosen: Vec<NodeId> = exchange.into_iter().collect();
        while let Some(node) = room.poll_tell(&nodes) {
            chosen.push(node);
        }
        for node in chosen {
            let addresses = known.get(&node).cloned().unwrap_or_default();
            let (neighbourhood, room) = (neighbourhood.clone(), room.clone());
            tokio::spawn(async move {
                let telling = tell(&neighbourhood, &room, &addresses);
                let told = match tokio::time::timeout(TELL_WITHIN, telling).await {
                    Ok(Ok(told)) => told,
                    Ok(Err(error)) => {
                        tracing::debug!(%node, error = %Chain(&error), "a neighbour was not told");
                        Told::Unreached
                    }
                    Err(_) => Told::Unreached,
                };
                tracing::debug!(%node, ?told, "told a neighbour");
                room.told(node, told);
            });
        }
        room.something_due().await;
    }
}

/// Known nodes of the site with their addresses, the latest first.
fn known(neighbourhood: &Neighbourhood, room: &Newsroom) -> BTreeMap<NodeId, Vec<Neighbour>> {
    let local = neighbourhood.local().borrow().iter().cloned().collect();
    let mut known: BTreeMap<NodeId, Vec<Neighbour>> = BTreeMap::new();
    for neighbour in [room.callers(), local, neighbourhood.residents(), neighbourhood.remembered()].concat() {
        let addresses = known.entry(neighbour.node).or_default();
        if addresses.len() < ADDRESSES_MAX && !addresses.contains(&neighbour) {
            addresses.push(neighbour);
        }
    }
    known.remove(&neighbourhood.node_id());
    known
}

/// Connects to one of the addresses of a node, and exchanges all notices.
async fn tell(
    neighbourhood: &Neighbourhood,
    room: &Arc<Newsroom>,
    addresses: &[Neighbour],
) -> Result<Told, NeighbourError> {
    let mut dialled: FuturesUnordered<_> = addresses.iter().map(|at| neighbourhood.link(at)).collect();
    let mut last = None;
    while let Some(link) = dialled.next().await {
        match link {
            Ok(link) => {
                let told = exchange(&link, room).await;
                // A count of two is the list's and this one: no other task uses the connection.
                if Arc::strong_count(&link) <= 2 {
                    link.close(CloseCode::Done);
                }
                return Ok(told?);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(NeighbourError::Unusable(neighbourhood.node_id())))
}

/// Sends all notices and takes those that the neighbour held before.
async fn exchange(link: &Link, room: &Arc<Newsroom>) -> Result<Told, LinkError> {
    let wire = |error| link.wire(error);
    let mut news = link.open_news().await?;
    let (ours, mut passed, mut theirs) = (room.notices(), Passed::default(), BTreeMap::new());
    news.pass(&mut passed, room).await.map_err(wire)?;
    news.finish();
    while let Some(event) = news.next().await.map_err(wire)? {
        let NewsEvent::Halt(bytes) = event else { continue };
        match room.take(&bytes, NewsFrom::Neighbour(link.node_id())) {
            Ok((signed, _)) => drop(theirs.insert(signed.notice.rollout, signed.notice.counter)),
            Err(error) => {
                tracing::info!(node = %link.node_id(), error = %Chain(&error), "a neighbour sent a notice that is not used");
                break;
            }
        }
    }
    let knew =
        ours.iter().all(|(rollout, counter, _)| theirs.get(rollout).is_some_and(|held| held >= counter));
    Ok(if knew { Told::Knew } else { Told::News })
}
