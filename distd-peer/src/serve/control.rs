//! The answering side of one swarm's control stream: runs the core's [`Control`] and
//! [`AnswererGossip`].

use std::sync::Arc;
use std::time::Duration;

use distd_core::proto::Frame;
use distd_core::proto::close::CloseCode;
use distd_core::proto::control::{Control, ControlEvent, Side};
use distd_core::proto::frame::Handshake;
use distd_core::swarm::{Advertise, AnswererGossip, AnswererNews};
use tokio::sync::watch;

use super::connection::{OpenSwarm, Peer, SwarmState};
use super::streams::{refuse, wire};
use crate::changes::{changed, seen};
use crate::clock::monotonic_now;
use crate::net::{FrameReader, FrameWriter, WireError};

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
    let (gossip, growth) = (AnswererGossip::new(monotonic_now()), swarm.content.growth());
    let site = swarm.member.as_ref().map(|member| member.changes());
    Answerer { peer, swarm: &swarm, control, gossip, growth, site }.run(writer, reader).await
}

struct Answerer<'a> {
    peer: &'a Peer,
    swarm: &'a OpenSwarm,
    control: Control,
    gossip: AnswererGossip,
    /// Changes of the chunks that are held; `None` if the content does not report them.
    growth: Option<watch::Receiver<()>>,
    /// Changes of the directory of the peer's site; `None` if the peer takes no part.
    site: Option<watch::Receiver<()>>,
}

impl Answerer<'_> {
    async fn run(&mut self, writer: &mut FrameWriter, reader: &mut FrameReader) -> Result<(), CloseCode> {
        loop {
            while let Some(news) = self.gossip.poll(monotonic_now()) {
                match news {
                    AnswererNews::Announce => self.announce().await?,
                    AnswererNews::Advertise(why) => self.advertise(why),
                }
            }
            while let Some(frame) = self.control.poll_transmit() {
                writer.send(&frame).await.map_err(wire)?;
            }
            let news = tokio::time::sleep(self.gossip.poll_timeout().since(monotonic_now()));
            tokio::select! {
                frame = reader.next() => match frame {
                    Ok(Some(frame)) => self.take(frame)?,
                    Ok(None) => return Ok(()),
                    // Silence on a control stream is no fault.
                    Err(WireError::Stalled(_)) => {}
                    Err(e) => return Err(e.close_code()),
                },
                () = changed(&mut self.growth), if !self.gossip.has_growth() => {
                    self.gossip.handle_growth(monotonic_now());
                }
                () = changed(&mut self.site), if !self.gossip.has_site_change() => {
                    self.gossip.handle_site_change(monotonic_now());
                }
                () = news => {}
            }
        }
    }

    async fn announce(&mut self) -> Result<(), CloseCode> {
        seen(&mut self.growth);
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
            Some(ControlEvent::PeersWanted) => self.gossip.handle_peers_wanted(),
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

    /// Names the nodes that several of the peer's site shun, and advertises neighbours that the
    /// peer does not know yet.
    fn advertise(&mut self, why: Advertise) {
        seen(&mut self.site);
        let member = self.swarm.member.as_ref();
        if let Some(member) = member {
            self.control.shun(&member.distrusted());
        }
        if self.gossip.advertises(why) {
            let ranked = member.map(|member| member.neighbours(&self.swarm.content.ids()));
            if let Some(records) = self.gossip.advertise(why, ranked.unwrap_or_default()) {
                self.control.send_peers(records);
            }
        }
    }
}
