//! What is answered on each kind of stream.

use std::sync::atomic::Ordering;
use std::time::Duration;

use distd_core::proto::Frame;
use distd_core::proto::batch::BatchAnswer;
use distd_core::proto::close::CloseCode;
use distd_core::proto::control::{Control, Side};
use distd_core::proto::frame::{Choke, DontHave, EnrollBody, Handshake, Metadata, NodesEnd, Ranges};
use quinn::Connection;
use tokio::sync::mpsc;

use super::connection::{Peer, SwarmState};
use super::{ChunkAnswer, ServeError, Server};
use crate::net::{FrameReader, FrameWriter, Meter, WireError};

/// Answers queued between reading chunks and writing them to the stream. A few keep the stream full; each may be a
/// megabyte.
const ANSWER_QUEUE: usize = 16;

/// How often a node that fetches upstream looks whether it holds more than it announced.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(30);

/// What a choked asker is told to wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

fn code_of(error: &ServeError) -> CloseCode {
    match error {
        ServeError::NoManifest(_) => CloseCode::NoManifest,
        ServeError::Unauthorised => CloseCode::Unauthorised,
        ServeError::Upstream(_) => CloseCode::Busy,
        ServeError::Internal(_) => CloseCode::Internal,
    }
}

fn refuse(what: &str, error: &ServeError) -> CloseCode {
    tracing::info!(error = error as &dyn std::error::Error, "{what} not served");
    code_of(error)
}

fn wire(error: WireError) -> CloseCode {
    error.close_code()
}

pub(super) async fn control(
    peer: &Peer,
    id: u64,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
) -> Result<(), CloseCode> {
    let result = open_control(peer, id, writer, reader).await;
    if let Err(code) = result {
        // Requests that already wait for this swarm learn why it never opened.
        peer.swarms.set(id, SwarmState::Refused(code));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    peer.swarms.forget(id);
    result
}

async fn open_control(
    peer: &Peer,
    id: u64,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
) -> Result<(), CloseCode> {
    let Some(Frame::Handshake(theirs)) = reader.next().await.map_err(wire)? else {
        return Err(CloseCode::Protocol);
    };
    let manifest = theirs.manifest;
    let swarm = peer.server.content.swarm(&peer.identity, manifest).await.map_err(|e| refuse("swarm", &e))?;
    let fetches_upstream = swarm.fetches_upstream();
    let ours = Handshake { fetches_upstream, ..Handshake::new(manifest) };
    let mut control = Control::new(Side::Answerer, ours);
    control.handle_frame(Frame::Handshake(theirs)).map_err(|e| e.close_code())?;
    peer.swarms.set(id, SwarmState::Open(swarm.clone()));
    let mut announce = tokio::time::interval(ANNOUNCE_EVERY);
    loop {
        while let Some(frame) = control.poll_transmit() {
            writer.send(&frame).await.map_err(wire)?;
        }
        tokio::select! {
            frame = reader.next() => match frame {
                Ok(Some(frame)) => {
                    control.handle_frame(frame).map_err(|e| e.close_code())?;
                }
                Ok(None) => return Ok(()),
                // Silence on a control stream is no fault.
                Err(WireError::Stalled(_)) => {}
                Err(e) => return Err(e.close_code()),
            },
            _ = announce.tick() => {
                let held = swarm.held().await.map_err(|e| refuse("holdings", &e))?;
                control.announce(&held);
            }
        }
    }
}

pub(super) async fn batch(
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
    let counters = &peer.server.counters;
    let slot = tokio::time::timeout(peer.server.config.upload_slot_wait, peer.server.slots.acquire()).await;
    let Ok(Ok(_slot)) = slot else {
        counters.choked.fetch_add(1, Ordering::Relaxed);
        let choke = Choke { retry_after: RETRY_AFTER, alternates: Vec::new() };
        return writer.send(&Frame::Choke(choke)).await.map_err(wire);
    };
    let (tx, mut answers) = mpsc::channel(ANSWER_QUEUE);
    let answering = swarm.chunks(wanted, tx);
    // Owns the receiver: when sending fails it is dropped, and `chunks` notices that nobody listens.
    let sending = async move {
        while let Some(answer) = answers.recv().await {
            match answer {
                ChunkAnswer::Data(data) => {
                    counters.chunks.fetch_add(1, Ordering::Relaxed);
                    counters.chunk_bytes.fetch_add(data.bytes.len() as u64, Ordering::Relaxed);
                    send(peer, writer, &Frame::Data(data)).await?;
                }
                ChunkAnswer::DontHave(chunks, reason) => {
                    for ranges in Ranges::split(&chunks) {
                        send(peer, writer, &Frame::DontHave(DontHave { reason, ranges })).await?;
                    }
                }
            }
        }
        Ok(())
    };
    let ((), result) = tokio::join!(answering, sending);
    counters.batches.fetch_add(1, Ordering::Relaxed);
    result
}

/// Sends a frame; an asker that does not read for too long is given up.
async fn send(peer: &Peer, writer: &mut FrameWriter, frame: &Frame) -> Result<(), CloseCode> {
    match tokio::time::timeout(peer.server.config.stall, writer.send(frame)).await {
        Ok(sent) => sent.map_err(wire),
        Err(_) => Err(CloseCode::Stalled),
    }
}

pub(super) async fn nodes(
    peer: &Peer,
    control: u64,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
) -> Result<(), CloseCode> {
    let Some(Frame::NodeRequest(request)) = reader.next().await.map_err(wire)? else {
        return Err(CloseCode::Protocol);
    };
    let swarm = peer.swarms.wait(control).await?;
    let answer = swarm.nodes(request).await.map_err(|e| refuse("nodes", &e))?;
    for node in answer.nodes {
        peer.server.counters.nodes.fetch_add(1, Ordering::Relaxed);
        peer.server.counters.control_bytes.fetch_add(node.bytes.len() as u64, Ordering::Relaxed);
        send(peer, writer, &Frame::Integrity(node)).await?;
    }
    send(peer, writer, &Frame::NodesEnd(NodesEnd { missing: answer.missing })).await
}

pub(super) async fn metadata(
    peer: &Peer,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
) -> Result<(), CloseCode> {
    let Some(Frame::MetadataRequest(request)) = reader.next().await.map_err(wire)? else {
        return Err(CloseCode::Protocol);
    };
    let answer = peer.server.content.metadata(request.0).await.map_err(|e| refuse("metadata", &e))?;
    peer.server.counters.control_bytes.fetch_add(answer.len() as u64, Ordering::Relaxed);
    for piece in Metadata::split(&answer) {
        send(peer, writer, &Frame::Metadata(piece)).await?;
    }
    Ok(())
}

pub(super) async fn enroll(server: &Server, connection: &Connection) {
    let Ok((send, recv)) = connection.accept_bi().await else { return };
    let mut writer = FrameWriter::new(send);
    let mut reader = FrameReader::new(recv, std::sync::Arc::new(Meter::default()), server.config.stall);
    let answer = async {
        if reader.stream_kind().await.map_err(wire)? != distd_core::proto::stream::StreamKind::Enroll {
            return Err(CloseCode::Protocol);
        }
        let Some(Frame::Enroll(EnrollBody(body))) = reader.next().await.map_err(wire)? else {
            return Err(CloseCode::Protocol);
        };
        let reply = server.content.enroll(body).await.map_err(|e| refuse("enrolment", &e))?;
        writer.send(&Frame::Enrolled(EnrollBody(reply))).await.map_err(wire)
    };
    match answer.await {
        Ok(()) => writer.finish(),
        Err(code) => writer.reset(code),
    }
}
