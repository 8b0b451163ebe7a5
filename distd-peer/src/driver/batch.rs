//! One batch: its request, its answers, and their way to the sink.

use std::pin::pin;

use distd_core::ChunkId;
use distd_core::error::Chain;
use distd_core::proto::batch::{BatchAsk, BatchEvent};
use distd_core::proto::close::CloseCode;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{BatchId, PeerFault};
use futures::FutureExt;
use tokio::sync::mpsc;

use super::verified::Coalesced;
use super::{ChunkSink, Message, PeerSwarm, SinkError};
use crate::net::{Link, LinkError, WireError};
use crate::rates::Throttle;
use crate::table::ChunkTable;

/// Reason why a batch ended early.
pub(super) enum BatchFailure {
    /// The sink failed.
    Sink(SinkError),
    /// The peer failed or broke the protocol: a description for the log, and the kind of fault.
    Peer(String, PeerFault),
}

impl From<LinkError> for BatchFailure {
    fn from(error: LinkError) -> Self {
        let fault = if error.is_breach() { PeerFault::Protocol } else { PeerFault::Failed };
        Self::Peer(Chain(&error).to_string(), fault)
    }
}

/// Requests `chunks`, hands each one to the sink once it is verified, and reports it to the driver.
pub(super) async fn run_batch(
    swarm: &PeerSwarm,
    batch: BatchId,
    chunks: ChunkRanges,
    table: &ChunkTable,
    sink: &dyn ChunkSink,
    download: Option<&Throttle>,
    tx: &mpsc::Sender<Message>,
) -> Result<(), BatchFailure> {
    let mut taken = Taken { batch, coalesced: Coalesced::default(), sink, tx };
    let end = take_batch(swarm, chunks, table, download, &mut taken).await;
    if matches!(end, Err(BatchFailure::Sink(_))) {
        return end;
    }
    // Also pass on the chunks that came before a failure, so that they are not requested again.
    taken.pass_on().await.map_err(BatchFailure::Sink)?;
    end
}

/// Received chunks on their way to the sink and the driver.
struct Taken<'t> {
    batch: BatchId,
    coalesced: Coalesced,
    sink: &'t dyn ChunkSink,
    tx: &'t mpsc::Sender<Message>,
}

impl Taken<'_> {
    async fn pass_on(&mut self) -> Result<(), SinkError> {
        let chunks: Vec<ChunkId> = self.coalesced.hand_to(self.sink)?.map(|entry| entry.id).collect();
        if !chunks.is_empty() {
            // The receiver is gone only if nobody waits for the driver's result.
            let _ = self.tx.send(Message::Chunks(self.batch, chunks)).await;
        }
        Ok(())
    }
}

async fn take_batch(
    swarm: &PeerSwarm,
    chunks: ChunkRanges,
    table: &ChunkTable,
    download: Option<&Throttle>,
    taken: &mut Taken<'_>,
) -> Result<(), BatchFailure> {
    let link = &swarm.handle.link;
    let (batch, tx) = (taken.batch, taken.tx);
    let (mut ask, requests) = BatchAsk::new(chunks).expect("the fetch asks for 1 to batch_chunks chunks");
    let (mut writer, mut reader) = swarm.handle.open_batch().await?;
    for frame in requests {
        writer.send(&frame).await.map_err(|e| link.wire(e))?;
    }
    writer.finish();
    loop {
        let mut frame = reader.arrived().map_err(|e| link.wire(e))?;
        if frame.is_none() {
            // Pass on everything that arrived together before waiting for more.
            taken.pass_on().await.map_err(BatchFailure::Sink)?;
            frame = match reader.next().await {
                // The bytes that this side's limit holds back may fill the peer's send window. If
                // the peer did stall, the driver takes the batch back.
                Err(WireError::Stalled(_)) if download.is_some() => continue,
                next => next.map_err(|e| link.wire(e))?,
            };
        }
        let Some(frame) = frame else { break };
        let event = ask.handle_frame(frame).map_err(|e| breach(link, &e))?;
        let message = match event {
            BatchEvent::Data(data) => {
                let entry = table.get(data.id).expect("only chunks of the table are asked for");
                let bytes = data.bytes.len();
                let enough = taken.coalesced.add(entry, data).map_err(|e| {
                    reader.stop(CloseCode::IntegrityFailed);
                    BatchFailure::Peer(format!("{}: {}", link.address(), Chain(&e)), PeerFault::WrongBytes)
                })?;
                if enough {
                    taken.pass_on().await.map_err(BatchFailure::Sink)?;
                }
                if let Some(limit) = download {
                    held_back(limit, link, bytes, taken).await?;
                }
                continue;
            }
            BatchEvent::DontHave(dont) => Message::DontHave(batch, dont.ranges.to_set(), dont.reason),
            BatchEvent::Choked(choke) => {
                tracing::debug!(peer = link.address(), ?choke, "choked");
                Message::Choked(swarm.peer, choke.retry_after)
            }
            BatchEvent::Unknown => continue,
        };
        let _ = tx.send(message).await;
    }
    ask.handle_end().map_err(|e| breach(link, &e))
}

fn breach(link: &Link, error: &dyn std::error::Error) -> BatchFailure {
    BatchFailure::Peer(format!("{}: {}", link.address(), Chain(error)), PeerFault::Protocol)
}

/// Waits for the download limit. Meanwhile flow control slows the peer down, which is not its
/// fault.
async fn held_back(
    limit: &Throttle,
    link: &Link,
    bytes: usize,
    taken: &mut Taken<'_>,
) -> Result<(), BatchFailure> {
    let mut pass = pin!(limit.pass(link.node_id(), bytes));
    if pass.as_mut().now_or_never().is_none() {
        // Report the chunks that have come before waiting.
        taken.pass_on().await.map_err(BatchFailure::Sink)?;
        let _ = taken.tx.send(Message::HeldBack(taken.batch)).await;
        pass.await;
        let _ = taken.tx.send(Message::HeldBack(taken.batch)).await;
    }
    Ok(())
}
