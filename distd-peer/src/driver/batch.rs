//! One batch, asked and taken.

use std::pin::pin;

use distd_core::packing::{PackedChunk, Unpacker};
use distd_core::proto::Frame;
use distd_core::proto::batch::{BatchAsk, BatchEvent};
use distd_core::proto::close::CloseCode;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{BatchId, PeerFault};
use futures::FutureExt;
use tokio::sync::mpsc;

use super::{ChunkSink, Joined, Message, SinkError, chain};
use crate::limits::Throttle;
use crate::net::{Link, LinkError, WireError};
use crate::table::ChunkTable;

/// Why a batch did not come to its end.
pub(super) enum BatchFailure {
    /// The sink failed.
    Sink(SinkError),
    /// The peer did.
    Peer(String, PeerFault),
}

impl From<LinkError> for BatchFailure {
    fn from(error: LinkError) -> Self {
        let fault = if error.is_breach() { PeerFault::Protocol } else { PeerFault::Failed };
        Self::Peer(chain(&error), fault)
    }
}

/// Asks for `chunks` and hands what comes, verified, to the sink. The driver is told of each.
pub(super) async fn run_batch(
    swarm: &Joined,
    batch: BatchId,
    chunks: ChunkRanges,
    table: &ChunkTable,
    sink: &dyn ChunkSink,
    download: Option<&Throttle>,
    tx: &mpsc::Sender<Message>,
) -> Result<(), BatchFailure> {
    let link = &swarm.handle.link;
    let (mut ask, requests) = BatchAsk::new(chunks).expect("the fetch asks for 1 to batch_chunks chunks");
    let (mut writer, mut reader) = swarm.handle.open_batch().await?;
    for frame in requests {
        writer.send(&frame).await.map_err(|e| link.wire(e))?;
    }
    writer.finish();
    let mut unpacker = Unpacker::default();
    loop {
        let frame = match reader.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            // What this side's limit holds back may be all that the peer may have in flight. If it is not, the driver takes the batch back.
            Err(WireError::Stalled(_)) if download.is_some() => continue,
            Err(e) => return Err(link.wire(e).into()),
        };
        let arrived = match &frame {
            Frame::Data(data) => data.bytes.len(),
            _ => 0,
        };
        let event = ask.handle_frame(frame).map_err(|e| breach(link, &e))?;
        let message = match event {
            BatchEvent::Data(data) => {
                let entry = table.get(data.id).expect("only chunks of the table are asked for");
                let raw = unpacker.unpack(data.codec, &data.bytes, entry.len, &entry.hash).map_err(|e| {
                    reader.stop(CloseCode::IntegrityFailed);
                    BatchFailure::Peer(format!("{}: {}", link.address(), chain(&e)), PeerFault::WrongBytes)
                })?;
                let packed = PackedChunk { codec: data.codec, raw_len: entry.len, bytes: data.bytes };
                sink.accept(&entry, packed, raw).map_err(BatchFailure::Sink)?;
                Message::Chunk(batch, entry.id)
            }
            BatchEvent::DontHave(dont) => Message::DontHave(batch, dont.ranges.to_set(), dont.reason),
            BatchEvent::Choked(choke) => {
                tracing::debug!(peer = link.address(), ?choke, "choked");
                Message::Choked(swarm.peer, choke.retry_after)
            }
            BatchEvent::Unknown => continue,
        };
        let _ = tx.send(message).await;
        if let Some(limit) = download.filter(|_| arrived > 0) {
            // Once it is told of: what a limit of this side holds back has come. Flow control then slows the peer down, which is no fault of it.
            let mut pass = pin!(limit.pass(link.node_id(), arrived));
            if pass.as_mut().now_or_never().is_none() {
                let _ = tx.send(Message::HeldBack(batch)).await;
                pass.await;
                let _ = tx.send(Message::HeldBack(batch)).await;
            }
        }
    }
    ask.handle_end().map_err(|e| breach(link, &e))
}

fn breach(link: &Link, error: &dyn std::error::Error) -> BatchFailure {
    BatchFailure::Peer(format!("{}: {}", link.address(), chain(error)), PeerFault::Protocol)
}
