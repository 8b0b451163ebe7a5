//! The answer to one batch of chunks.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use distd_core::proto::Frame;
use distd_core::proto::batch::BatchAnswer;
use distd_core::proto::close::CloseCode;
use distd_core::proto::frame::{Choke, DontHave, DontHaveReason, Ranges};
use distd_core::ranges::ChunkRanges;
use tokio::sync::mpsc;

use super::ChunkAnswer;
use super::connection::{OpenSwarm, Peer};
use super::slots::Slot;
use super::streams::{send, wire};
use crate::net::{FrameReader, FrameWriter, WireError};
use crate::rates::LIMITED_PIECE;

/// Number of answers queued between reading chunks and writing them to the stream. A few keep the
/// stream full; each one may be a megabyte.
const ANSWER_QUEUE: usize = 8;

/// How long a batch whose asker reads nothing keeps its upload slot while other batches wait.
const UNREAD_MAX: Duration = Duration::from_secs(2);

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
    let wanted = asked.finish().map_err(|_| CloseCode::Protocol)?;
    let swarm = peer.swarms.wait(control).await?;
    swarm.while_permitted(answer_swarm(peer, &swarm, wanted, writer)).await
}

async fn answer_swarm(
    peer: &Peer,
    swarm: &OpenSwarm,
    mut wanted: ChunkRanges,
    writer: &mut FrameWriter,
) -> Result<(), CloseCode> {
    let counters = &peer.server.counters;
    if let Some(member) = &swarm.member {
        let suppressing = peer.server.slots.suppresses_duplicates();
        let (granted, left) =
            member.left_after_duplicates(wanted, suppressing, swarm.content.fetches_upstream());
        counters.leased.fetch_add(left.len(), Ordering::Relaxed);
        refuse(peer, writer, &left, DontHaveReason::Leased).await?;
        if granted.is_empty() {
            return Ok(());
        }
        wanted = granted;
    }
    let node = peer.identity.node_id;
    let mut slot = match peer.server.slots.take(node, peer.server.config.upload_slot_wait).await {
        Ok(slot) => slot,
        Err(retry_after) => {
            counters.choked.fetch_add(1, Ordering::Relaxed);
            let choke = Choke { retry_after, alternates: Vec::new() };
            return writer.send(&Frame::Choke(choke)).await.map_err(wire);
        }
    };
    let mut lease = None;
    if let Some(member) = &swarm.member {
        let (taken, granted, left) = member.lease(&wanted);
        counters.leased.fetch_add(left.len(), Ordering::Relaxed);
        (lease, wanted) = (taken, granted);
        refuse(peer, writer, &left, DontHaveReason::Leased).await?;
    }
    let began = Instant::now();
    let (tx, mut answers) = mpsc::channel(ANSWER_QUEUE);
    let answering = async {
        if !wanted.is_empty() {
            swarm.content.chunks(&peer.budget, wanted, tx).await;
        }
    };
    // Owns the receiver. If sending fails, the receiver is dropped and `chunks` notices that nobody
    // listens.
    let sending = async move {
        let mut ready = Vec::with_capacity(ANSWER_QUEUE);
        let mut sent = Vec::with_capacity(ANSWER_QUEUE);
        let mut sent_bytes = 0;
        loop {
            let count = tokio::select! {
                count = answers.recv_many(&mut ready, ANSWER_QUEUE) => count,
                // The asker no longer waits for chunks still on their way from the parent.
                gone = writer.stopped() => return Err(wire(gone)),
            };
            if count == 0 {
                return Ok(());
            }
            for answer in ready.drain(..) {
                let data = match answer {
                    ChunkAnswer::Data(data) => data,
                    ChunkAnswer::DontHave(chunks, reason) => {
                        for frame in refusals(&chunks, reason) {
                            writer.gather(&frame);
                            flush_in_turn(peer, writer, &mut slot).await?;
                        }
                        continue;
                    }
                };
                counters.chunks.fetch_add(1, Ordering::Relaxed);
                counters.chunk_bytes.fetch_add(data.bytes.len() as u64, Ordering::Relaxed);
                sent.push(data.id);
                sent_bytes += data.bytes.len() as u64;
                let frame = Frame::Data(data);
                match &peer.server.config.upload {
                    Some(limit) => {
                        let mut bytes = frame.encode();
                        while !bytes.is_empty() {
                            let piece = bytes.split_to(bytes.len().min(LIMITED_PIECE));
                            // The wait for the limit must not count against the reader.
                            limit.pass(node, piece.len()).await;
                            in_turn(peer, writer.write_piece(piece), &mut slot).await?;
                        }
                    }
                    None if writer.gather(&frame) => flush_in_turn(peer, writer, &mut slot).await?,
                    None => {}
                }
            }
            flush_in_turn(peer, writer, &mut slot).await?;
            let elapsed = began.elapsed();
            for id in sent.drain(..) {
                counters.chunk_seconds.observe(elapsed);
                if let Some(lease) = &lease {
                    lease.sent(id);
                }
            }
            peer.budget.give_back(std::mem::take(&mut sent_bytes));
        }
    };
    let ((), result) = tokio::join!(answering, sending);
    counters.batches.fetch_add(1, Ordering::Relaxed);
    counters.batch_seconds.observe(began.elapsed());
    result
}

/// Writes the coalesced frames.
async fn flush_in_turn(peer: &Peer, writer: &mut FrameWriter, slot: &mut Slot) -> Result<(), CloseCode> {
    in_turn(peer, writer.flush(), slot).await
}

/// Writes to the asker. If the asker reads nothing while other batches wait, they get its slot, and
/// this batch gets one again in its turn. The memory that such batches of one node hold meanwhile
/// is bounded: beyond the bound the batch ends.
async fn in_turn(
    peer: &Peer,
    writing: impl Future<Output = Result<(), WireError>>,
    slot: &mut Slot,
) -> Result<(), CloseCode> {
    // An asker that reads nothing for longer than `stall` is given up.
    let mut writing = std::pin::pin!(tokio::time::timeout(peer.server.config.stall, writing));
    let mut lent = None;
    let written = loop {
        match tokio::time::timeout(UNREAD_MAX, &mut writing).await {
            Ok(written) => break written,
            Err(_) if slot.is_wanted() => {
                lent = Some(peer.budget.lend().ok_or(CloseCode::Stalled)?);
                slot.lend();
            }
            Err(_) => {}
        }
    };
    written.map_err(|_| CloseCode::Stalled)?.map_err(wire)?;
    if lent.is_some() {
        slot.reclaim().await;
    }
    Ok(())
}

fn refusals(chunks: &ChunkRanges, reason: DontHaveReason) -> impl Iterator<Item = Frame> {
    Ranges::split(chunks).map(move |ranges| Frame::DontHave(DontHave { reason, ranges }))
}

async fn refuse(
    peer: &Peer,
    writer: &mut FrameWriter,
    chunks: &ChunkRanges,
    reason: DontHaveReason,
) -> Result<(), CloseCode> {
    for frame in refusals(chunks, reason) {
        send(peer, writer, &frame).await?;
    }
    Ok(())
}
