//! One batch of chunks, answered.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use distd_core::proto::Frame;
use distd_core::proto::batch::BatchAnswer;
use distd_core::proto::close::CloseCode;
use distd_core::proto::frame::{Choke, DontHave, DontHaveReason, Ranges};
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::rules::CROWD;
use tokio::sync::{SemaphorePermit, mpsc};

use super::connection::Peer;
use super::streams::{flush, send, wire};
use super::{ChunkAnswer, Server};
use crate::net::{FrameReader, FrameWriter};

/// Answers queued between reading chunks and writing them to the stream. A few keep the stream full; each may be a
/// megabyte.
const ANSWER_QUEUE: usize = 8;

pub(super) async fn answer(
    peer: &Peer,
    control: u64,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
) -> Result<(), CloseCode> {
    let mut asked = BatchAnswer::default();
    while let Some(frame) = reader.next().await.map_err(wire)? {
        asked.handle_frame(frame).map_err(|_| CloseCode::Protocol)?;
    }
    let mut wanted = asked.finish().map_err(|_| CloseCode::Protocol)?;
    let swarm = peer.swarms.wait(control).await?;
    let counters = &peer.server.counters;
    if let Some(member) = &swarm.member {
        let crowd = peer.server.active() >= CROWD;
        let (granted, left) = member.left_lately(wanted, crowd, swarm.content.fetches_upstream());
        counters.leased.fetch_add(left.len(), Ordering::Relaxed);
        refuse(peer, writer, &left, DontHaveReason::Leased).await?;
        if granted.is_empty() {
            return Ok(());
        }
        wanted = granted;
    }
    let _slot = match slot(peer).await {
        Ok(slot) => slot,
        Err(retry_after) => {
            counters.choked.fetch_add(1, Ordering::Relaxed);
            let choke = Choke { retry_after, alternates: Vec::new() };
            return writer.send(&Frame::Choke(choke)).await.map_err(wire);
        }
    };
    let mut lease = None;
    if let Some((taken, granted, left)) = swarm.member.as_ref().and_then(|member| member.lease(&wanted)) {
        counters.leased.fetch_add(left.len(), Ordering::Relaxed);
        refuse(peer, writer, &left, DontHaveReason::Leased).await?;
        (lease, wanted) = (Some(taken), granted);
    }
    let (tx, mut answers) = mpsc::channel(ANSWER_QUEUE);
    let answering = async {
        if !wanted.is_empty() {
            swarm.content.chunks(wanted, tx).await;
        }
    };
    // Owns the receiver: when sending fails it is dropped, and `chunks` notices that nobody listens.
    let sending = async move {
        let mut ready = Vec::with_capacity(ANSWER_QUEUE);
        let mut sent = Vec::with_capacity(ANSWER_QUEUE);
        loop {
            let count = tokio::select! {
                count = answers.recv_many(&mut ready, ANSWER_QUEUE) => count,
                // Nobody waits any more for what is still on its way from upstream.
                gone = writer.stopped() => return Err(wire(gone)),
            };
            if count == 0 {
                return Ok(());
            }
            for answer in ready.drain(..) {
                let data = match answer {
                    ChunkAnswer::Data(data) => data,
                    ChunkAnswer::DontHave(chunks, reason) => {
                        refuse(peer, writer, &chunks, reason).await?;
                        continue;
                    }
                };
                counters.chunks.fetch_add(1, Ordering::Relaxed);
                counters.chunk_bytes.fetch_add(data.bytes.len() as u64, Ordering::Relaxed);
                sent.push(data.id);
                let frame = Frame::Data(data);
                match &peer.server.config.upload {
                    Some(limit) => {
                        let (node, stall) = (peer.identity.node_id, peer.server.config.stall);
                        writer.send_limited(&frame, limit, node, stall).await.map_err(wire)?;
                    }
                    None if writer.gather(&frame) => flush(peer, writer).await?,
                    None => {}
                }
            }
            flush(peer, writer).await?;
            for id in sent.drain(..) {
                if let Some(lease) = &lease {
                    lease.sent(id);
                }
            }
        }
    };
    let ((), result) = tokio::join!(answering, sending);
    counters.batches.fetch_add(1, Ordering::Relaxed);
    result
}

/// An upload slot, while it is held.
struct Slot<'p> {
    _own: SemaphorePermit<'p>,
    _of_all: SemaphorePermit<'p>,
    server: &'p Server,
    since: Instant,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.server.pace().handle_freed(self.since.elapsed());
    }
}

/// One of those who wait for a slot.
struct Waiting<'p>(&'p Server);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A slot for the peer, waited for as long as that pays; otherwise when to come again.
async fn slot(peer: &Peer) -> Result<Slot<'_>, Duration> {
    let server = &*peer.server;
    let held = |own, of_all| Slot { _own: own, _of_all: of_all, server, since: Instant::now() };
    if let (Ok(own), Ok(of_all)) = (peer.slots.try_acquire(), server.slots.try_acquire()) {
        return Ok(held(own, of_all));
    }
    let before = server.waiting.fetch_add(1, Ordering::Relaxed);
    let _waiting = Waiting(server);
    if let Some(retry_after) = server.pace().choke(before) {
        return Err(retry_after);
    }
    let both = async { (peer.slots.acquire().await, server.slots.acquire().await) };
    match tokio::time::timeout(server.config.upload_slot_wait, both).await {
        Ok((Ok(own), Ok(of_all))) => Ok(held(own, of_all)),
        _ => Err(server.pace().retry_after(before)),
    }
}

async fn refuse(
    peer: &Peer,
    writer: &mut FrameWriter,
    chunks: &ChunkRanges,
    reason: DontHaveReason,
) -> Result<(), CloseCode> {
    for ranges in Ranges::split(chunks) {
        send(peer, writer, &Frame::DontHave(DontHave { reason, ranges })).await?;
    }
    Ok(())
}
