//! One batch, asked and taken.

use std::time::Duration;

use distd_core::ChunkId;
use distd_core::proto::Frame;
use distd_core::proto::batch::{BatchAsk, BatchEvent};
use distd_core::proto::close::CloseCode;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{BatchId, PeerFault};
use tokio::sync::mpsc;

use super::verified::Gathered;
use super::{ChunkSink, Joined, Message, SinkError, chain};
use crate::net::{Link, LinkError, RateLimit};
use crate::table::ChunkTable;

/// How often the driver is told that a batch is held back by this side's own limit.
const STILL_HERE: Duration = Duration::from_secs(2);

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
    download: Option<&RateLimit>,
    tx: &mpsc::Sender<Message>,
) -> Result<(), BatchFailure> {
    let mut taken = Taken { batch, gathered: Gathered::default(), sink, tx };
    let end = take_batch(swarm, chunks, table, download, &mut taken).await;
    if matches!(end, Err(BatchFailure::Sink(_))) {
        return end;
    }
    // What came before a failure too, so that it is not asked for again.
    taken.pass_on().await.map_err(BatchFailure::Sink)?;
    end
}

/// Chunks that came, on their way to the sink and the driver.
struct Taken<'t> {
    batch: BatchId,
    gathered: Gathered,
    sink: &'t dyn ChunkSink,
    tx: &'t mpsc::Sender<Message>,
}

impl Taken<'_> {
    async fn pass_on(&mut self) -> Result<(), SinkError> {
        let chunks: Vec<ChunkId> = self.gathered.hand_to(self.sink)?.map(|entry| entry.id).collect();
        if !chunks.is_empty() {
            // The driver is gone only when nobody waits for the answer.
            let _ = self.tx.send(Message::Chunks(self.batch, chunks)).await;
        }
        Ok(())
    }
}

async fn take_batch(
    swarm: &Joined,
    chunks: ChunkRanges,
    table: &ChunkTable,
    download: Option<&RateLimit>,
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
            // All that came at once, before this waits for more.
            taken.pass_on().await.map_err(BatchFailure::Sink)?;
            frame = reader.next().await.map_err(|e| link.wire(e))?;
        }
        let Some(frame) = frame else { break };
        if let (Some(limit), Frame::Data(data)) = (download, &frame) {
            held_back(limit, data.bytes.len(), batch, tx).await;
        }
        let event = ask.handle_frame(frame).map_err(|e| breach(link, &e))?;
        let message = match event {
            BatchEvent::Data(data) => {
                let entry = table.get(data.id).expect("only chunks of the table are asked for");
                let enough = taken.gathered.add(entry, data).map_err(|e| {
                    reader.stop(CloseCode::IntegrityFailed);
                    BatchFailure::Peer(format!("{}: {}", link.address(), chain(&e)), PeerFault::WrongBytes)
                })?;
                if enough {
                    taken.pass_on().await.map_err(BatchFailure::Sink)?;
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
    BatchFailure::Peer(format!("{}: {}", link.address(), chain(error)), PeerFault::Protocol)
}

/// Waits for the download limit. Flow control then slows the peer down, which is no fault of it.
async fn held_back(limit: &RateLimit, bytes: usize, batch: BatchId, tx: &mpsc::Sender<Message>) {
    let mut pass = std::pin::pin!(limit.pass(bytes));
    while tokio::time::timeout(STILL_HERE, &mut pass).await.is_err() {
        let _ = tx.send(Message::HeldBack(batch)).await;
    }
}
