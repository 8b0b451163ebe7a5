//! The answering side of one swarm's control stream: runs the core's [`Control`] and
//! [`AnswererGossip`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::fleet::Right;
use distd_core::proto::Frame;
use distd_core::proto::close::CloseCode;
use distd_core::proto::control::{Control, ControlEvent, Side};
use distd_core::proto::frame::Handshake;
use distd_core::swarm::{Advertise, AnswererGossip, AnswererNews};
use tokio::sync::watch;

use super::ServeError;
use super::connection::{OpenSwarm, PERMIT_LOOK, Peer, SwarmState};
use super::news;
use super::streams::{refuse, send, wire};
use crate::capabilities::Permit;
use crate::changes::{changed, seen};
use crate::clock::{monotonic_now, unix_now};
use crate::net::{FrameReader, FrameWriter, WireError};
use crate::news::Passed;
use crate::random;

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
    let shown = theirs.capability.clone();
    let permit = peer.server.content.permit(&peer.identity, &peer.budget, manifest, &shown).await;
    let permit = permit.map_err(|e| refuse(peer, "swarm", &e))?;
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
            let may_seed = permit.rights.has(Right::Seed);
            member = sites.join(peer.identity.node_id, peer.observed, manifest, own, may_seed);
        }
    }
    peer.remember_swarm(&content);
    let swarm = Arc::new(OpenSwarm { content, member, permitted_until: watch::Sender::new(permit.until) });
    peer.swarms.set(id, SwarmState::Open(swarm.clone()));
    let (gossip, growth) = (AnswererGossip::new(monotonic_now()), swarm.content.growth());
    let site = swarm.member.as_ref().map(|member| member.changes());
    let passed = peer.server.config.news.as_deref().map(Passed::from_now).unwrap_or_default();
    let (looked, due) = (Instant::now(), permit_due(permit.until));
    let watch = PermitWatch { manifest, shown, permit, looked, due };
    let result = Answerer { peer, swarm: &swarm, control, gossip, growth, site, watch, passed }
        .run(writer, reader)
        .await;
    // Nobody extends the permit any more.
    swarm.permitted_until.send_replace(0);
    result
}

/// Longest wait for the answer to whether a permit that has ended is extended.
const PERMIT_ANSWER: Duration = Duration::from_secs(2);

/// Shortest time between two looks at the permit of one peer.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Longest delay between a change of permits and the look at one of them.
const CHANGE_SPREAD: Duration = Duration::from_secs(1);

/// The peer's permit for the swarm, and when to look at it again.
struct PermitWatch {
    manifest: ManifestId,
    /// Capability that the peer showed last.
    shown: Bytes,
    permit: Permit,
    /// When the permit was last looked at.
    looked: Instant,
    /// When to look at it again.
    due: Instant,
}

/// Returns when to look at a permit again: halfway to its end, so that a permit which is extended
/// never ends in between.
fn permit_due(until: u64) -> Instant {
    let left = until.saturating_sub(unix_now());
    Instant::now() + Duration::from_secs(left.div_ceil(2)).min(PERMIT_LOOK)
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
    watch: PermitWatch,
    /// Halt notices that the stream has carried.
    passed: Passed,
}

impl Answerer<'_> {
    async fn run(&mut self, writer: &mut FrameWriter, reader: &mut FrameReader) -> Result<(), CloseCode> {
        let mut permits = self.peer.server.content.permit_changes();
        let room = self.peer.server.config.news.clone();
        let mut notices = room.as_ref().map(|room| room.changes());
        loop {
            // First, so that no number of other events puts it off.
            if self.watch.due <= Instant::now() {
                self.check_permit().await?;
            }
            while let Some(news) = self.gossip.poll(monotonic_now()) {
                match news {
                    AnswererNews::Announce => self.announce().await?,
                    AnswererNews::Advertise(why) => self.advertise(why),
                }
            }
            while let Some(frame) = self.control.poll_transmit() {
                // An asker that does not read must not keep its permit from being looked at.
                send(self.peer, writer, &frame).await?;
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
                () = tokio::time::sleep_until(self.watch.due.into()) => {}
                () = changed(&mut permits) => {
                    // All swarms learn of a change at once, and one question each is enough.
                    tokio::time::sleep(CHANGE_SPREAD.mul_f64(random::fraction())).await;
                    seen(&mut permits);
                    self.check_permit().await?;
                }
                () = changed(&mut notices) => {
                    let due = room.as_deref().map(|room| self.passed.due(room)).unwrap_or_default();
                    due.into_iter().for_each(|notice| self.control.pass_halt(notice));
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

    /// Asks again whether the peer may have the swarm, and with that extends its permit. The answer
    /// may come from a parent or a database. Nothing but the control stream waits for it when the
    /// permit has ended.
    async fn check_permit(&mut self) -> Result<(), CloseCode> {
        self.watch.looked = Instant::now();
        let PermitWatch { manifest, shown, permit, due, .. } = &mut self.watch;
        let asking =
            self.peer.server.content.permit(&self.peer.identity, &self.peer.budget, *manifest, shown);
        let left = Duration::from_secs(permit.until.saturating_sub(unix_now()));
        let answer = match tokio::time::timeout(left.max(PERMIT_ANSWER), asking).await {
            Ok(answer) => answer,
            Err(_) if !left.is_zero() => {
                *due = Instant::now();
                return Ok(());
            }
            // Nobody said yes or no. The asker may come again.
            Err(_) => Err(ServeError::Upstream("no answer before the permit ended".into())),
        };
        match answer {
            // The asker may come again, and is then not advertised any more.
            Ok(newer) if permit.rights.has(Right::Seed) && !newer.rights.has(Right::Seed) => {
                return Err(CloseCode::Unauthorised);
            }
            Ok(newer) => *permit = newer,
            // Nobody said no, so the permit holds until its end.
            Err(ServeError::Internal(_) | ServeError::Upstream(_)) if unix_now() < permit.until => {}
            Err(error) => return Err(refuse(self.peer, "swarm", &error)),
        }
        *due = permit_due(permit.until).max(Instant::now() + LOOK_AGAIN);
        self.swarm.permitted_until.send_replace(permit.until);
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
            Some(ControlEvent::Capability(newer)) => {
                let is_news = newer != self.watch.shown;
                self.watch.shown = newer;
                // One look in a while: a peer may send any number of them.
                if is_news {
                    self.watch.due = self.watch.due.min(self.watch.looked + LOOK_AGAIN);
                }
            }
            Some(ControlEvent::Halt(notice)) => {
                if let Some(room) = &self.peer.server.config.news {
                    let taken = room.take(&notice, news::from(self.peer));
                    let (signed, judged) = taken.map_err(|_| CloseCode::Protocol)?;
                    self.passed.note(&signed.notice, judged);
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
