//! One batch of chunks, answered.

use std::sync::atomic::Ordering;
use std::time::Duration;

use distd_core::proto::Frame;
use distd_core::proto::batch::BatchAnswer;
use distd_core::proto::close::CloseCode;
use distd_core::proto::frame::{Choke, DontHave, DontHaveReason, Ranges};
use distd_core::ranges::ChunkRanges;
use tokio::sync::mpsc;

use super::ChunkAnswer;
use super::connection::Peer;
use super::streams::{send, wire};
use crate::net::{FrameReader, FrameWriter};

/// Answers queued between reading chunks and writing them to the stream. A few keep the stream full; each may be a
/// megabyte.
const ANSWER_QUEUE: usize = 16;

/// What a choked asker is told to wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

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
    let slots = async { (peer.slots.acquire().await, peer.server.slots.acquire().await) };
    let Ok((Ok(_own), Ok(_slot))) = tokio::time::timeout(peer.server.config.upload_slot_wait, slots).await
    else {
        counters.choked.fetch_add(1, Ordering::Relaxed);
        let choke = Choke { retry_after: RETRY_AFTER, alternates: Vec::new() };
        return writer.send(&Frame::Choke(choke)).await.map_err(wire);
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
        while let Some(answer) = answers.recv().await {
            match answer {
                ChunkAnswer::Data(data) => {
                    let id = data.id;
                    counters.chunks.fetch_add(1, Ordering::Relaxed);
                    counters.chunk_bytes.fetch_add(data.bytes.len() as u64, Ordering::Relaxed);
                    let frame = Frame::Data(data);
                    match &peer.server.config.upload {
                        Some(limit) => {
                            let stall = peer.server.config.stall;
                            writer.send_limited(&frame, limit, stall).await.map_err(wire)?;
                        }
                        None => send(peer, writer, &frame).await?,
                    }
                    if let Some(lease) = &lease {
                        lease.sent(id);
                    }
                }
                ChunkAnswer::DontHave(chunks, reason) => refuse(peer, writer, &chunks, reason).await?,
            }
        }
        Ok(())
    };
    let ((), result) = tokio::join!(answering, sending);
    counters.batches.fetch_add(1, Ordering::Relaxed);
    result
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
