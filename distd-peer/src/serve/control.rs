//! The answering side of one swarm's control stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use distd_core::NodeId;
use distd_core::proto::Frame;
use distd_core::proto::close::CloseCode;
use distd_core::proto::control::{Control, ControlEvent, Side};
use distd_core::proto::frame::Handshake;
use distd_core::swarm::rules::{GATHER, TOLD_ENOUGH, TOLD_MAX};
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::{OpenSwarm, Peer, SwarmState};
use super::streams::{refuse, wire};
use crate::net::{FrameReader, FrameWriter, WireError};

/// Interval at which new holdings are looked for if the content does not report its growth.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(30);

pub(super) async fn answer(
    peer: &Peer,
    id: u64,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
) -> Result<(), CloseCode> {
    let result = open(peer, id, writer, reader).await;
    if let Err(code) = result {
        // Requests that already wait for this swarm learn why it never opened.
        peer.swarms.set(id, SwarmState::Refused(code));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    peer.swarms.forget(id);
    result
}

async fn open(
    peer: &Peer,
    id: u64,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
) -> Result<(), CloseCode> {
    let Some(Frame::Handshake(theirs)) = reader.next().await.map_err(wire)? else {
        return Err(CloseCode::Protocol);
    };
    let (manifest, exchanges) = (theirs.manifest, theirs.exchanges);
    // Taken before the swarm is opened or anything is answered: a swarm whose handshake was
    // answered has its place.
    let _place = peer.budget.swarm().ok_or(CloseCode::Busy)?;
    let content = peer.server.content.swarm(&peer.identity, &peer.budget, manifest).await;
    let content = content.map_err(|e| refuse(peer, "swarm", &e))?;
    let ours = Handshake { fetches_upstream: content.fetches_upstream(), ..Handshake::new(manifest) };
    let mut control = Control::new(Side::Answerer, ours);
    control.handle_frame(Frame::Handshake(theirs)).map_err(|e| e.close_code())?;
    let mut member = None;
    if exchanges {
        // The record comes before any batch of the swarm is answered, as the batch's chunks may be
        // leased.
        let frame = reader.next().await.map_err(wire)?.ok_or(CloseCode::Protocol)?;
        let Ok(Some(ControlEvent::Peers(records))) = control.handle_frame(frame) else {
            return Err(CloseCode::Protocol);
        };
        if let (Some(sites), Some(own)) = (&peer.server.config.sites, records.into_iter().next()) {
            member = sites.join(peer.identity.node_id, peer.observed, manifest, own);
        }
    }
    peer.remember_swarm(&content);
    let swarm = Arc::new(OpenSwarm { content, member });
    peer.swarms.set(id, SwarmState::Open(swarm.clone()));
    Answerer { peer, swarm: &swarm, control, told: None }.run(writer, reader).await
}

struct Answerer<'a> {
    peer: &'a Peer,
    swarm: &'a OpenSwarm,
    control: Control,
    /// Sequence numbers of the records already advertised to the peer, by node and residency;
    /// `None` until the peer asks for records.
    told: Option<BTreeMap<(NodeId, bool), u64>>,
}

/// Reason to advertise neighbours to a peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Advertise {
    /// The peer asked. It gets an answer even if there are no neighbours.
    Asked,
    /// The site's directory changed. A peer that knows enough neighbours is not told.
    Fresh,
    /// The regular interval has passed.
    More,
}

impl Answerer<'_> {
    async fn run(&mut self, writer: &mut FrameWriter, reader: &mut FrameReader) -> Result<(), CloseCode> {
        let mut look = tokio::time::interval(ANNOUNCE_EVERY);
        let mut growth = CoalescedChanges::of(self.swarm.content.growth());
        let mut site = CoalescedChanges::of(self.swarm.member.as_ref().map(|member| member.changes()));
        loop {
            while let Some(frame) = self.control.poll_transmit() {
                writer.send(&frame).await.map_err(wire)?;
            }
            tokio::select! {
                frame = reader.next() => match frame {
                    Ok(Some(frame)) => self.take(frame)?,
                    Ok(None) => return Ok(()),
                    // Silence on a control stream is no fault.
                    Err(WireError::Stalled(_)) => {}
                    Err(e) => return Err(e.close_code()),
                },
                _ = look.tick() => {
                    self.announce().await?;
                    self.advertise_neighbours(Advertise::More);
                }
                () = growth.next() => self.announce().await?,
                () = site.next() => self.advertise_neighbours(Advertise::Fresh),
            }
        }
    }

    async fn announce(&mut self) -> Result<(), CloseCode> {
        let held = self.swarm.content.held().await.map_err(|e| refuse(self.peer, "holdings", &e))?;
        self.control.announce(&held);
        Ok(())
    }

    fn take(&mut self, frame: Frame) -> Result<(), CloseCode> {
        match self.control.handle_frame(frame).map_err(|e| e.close_code())? {
            Some(ControlEvent::Have(chunks)) => {
                if let Some(member) = &self.swarm.member {
                    member.have(&chunks.intersection(&self.swarm.content.ids()));
                }
            }
            Some(ControlEvent::PeersWanted) => {
                self.told = Some(BTreeMap::new());
                self.advertise_neighbours(Advertise::Asked);
            }
            Some(ControlEvent::Peers(records)) => {
                if let (Some(member), Some(own)) = (&self.swarm.member, records.into_iter().next()) {
                    member.refresh(self.peer.observed, own);
                }
            }
            Some(ControlEvent::Shuns(nodes)) => {
                if let Some(member) = &self.swarm.member {
                    member.shuns(nodes);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Advertises neighbours that the peer does not know yet, and sends the nodes that several of
    /// its site shun.
    fn advertise_neighbours(&mut self, why: Advertise) {
        if let Some(member) = &self.swarm.member {
            self.control.shun(&member.distrusted_by_origin());
        }
        let Some(told) = &mut self.told else { return };
        if why == Advertise::Fresh && told.len() >= TOLD_ENOUGH {
            return;
        }
        let mut fresh = Vec::new();
        if let Some(member) = &self.swarm.member {
            fresh = member.neighbours(&self.swarm.content.ids());
            fresh.retain(|(node, record)| {
                told.get(&(*node, record.resident)).is_none_or(|sequence| *sequence < record.sequence)
            });
        }
        while told.len() > TOLD_MAX {
            told.pop_first();
        }
        told.extend(fresh.iter().map(|(node, record)| ((*node, record.resident), record.sequence)));
        if why == Advertise::Asked || !fresh.is_empty() {
            self.control.send_peers(fresh.into_iter().map(|(_, record)| record).collect());
        }
    }
}

/// Changes of one source, of which those that follow each other at once count as one.
struct CoalescedChanges {
    /// The source; `None` if there is none, or if it has ended.
    changes: Option<watch::Receiver<()>>,
    /// Time at which the changes so far are reported; `None` if there was none.
    due: Option<Instant>,
}

impl CoalescedChanges {
    fn of(changes: Option<watch::Receiver<()>>) -> Self {
        Self { changes, due: None }
    }

    /// Waits for a change, and [`GATHER`] more. A caller that drops the future loses no change and
    /// delays none: the time of the report stays what the first change made it.
    async fn next(&mut self) {
        let Some(receiver) = &mut self.changes else { return std::future::pending().await };
        let due = match self.due {
            Some(due) => due,
            None => {
                if receiver.changed().await.is_err() {
                    self.changes = None;
                    return std::future::pending().await;
                }
                *self.due.insert(Instant::now() + GATHER)
            }
        };
        tokio::time::sleep_until(due).await;
        self.due = None;
        receiver.mark_unchanged();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_busy_stream_does_not_delay_a_change() {
        let (source, receiver) = watch::channel(());
        let mut changes = CoalescedChanges::of(Some(receiver));
        source.send_replace(());
        let begun = Instant::now();
        loop {
            tokio::select! {
                () = changes.next() => break,
                // A frame arrives more often than changes are reported.
                () = tokio::time::sleep(GATHER / 5) => {}
            }
            source.send_replace(());
            assert!(begun.elapsed() <= GATHER, "the report is late");
        }
        assert!(
            tokio::time::timeout(GATHER * 2, changes.next()).await.is_err(),
            "one report for all of them"
        );
        source.send_replace(());
        assert!(tokio::time::timeout(GATHER * 2, changes.next()).await.is_ok());
    }
}
