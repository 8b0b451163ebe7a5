//! Answers on the streams of manifest nodes, metadata and enrolment.

use std::sync::atomic::Ordering;

use distd_core::NodeId;
use distd_core::error::Chain;
use distd_core::proto::Frame;
use distd_core::proto::batch::BatchAnswer;
use distd_core::proto::close::CloseCode;
use distd_core::proto::frame::{EnrollBody, Metadata, NodesEnd, Ranges};
use distd_core::proto::stream::StreamKind;

use super::connection::Peer;
use super::{ServeError, Server};
use crate::net::{FrameReader, FrameWriter, WireError};

fn code_of(error: &ServeError) -> CloseCode {
    match error {
        ServeError::NoManifest(_) => CloseCode::NoManifest,
        ServeError::Unauthorised | ServeError::NotPermitted(_) => CloseCode::Unauthorised,
        ServeError::Upstream(_) => CloseCode::Busy,
        ServeError::Internal(_) => CloseCode::Internal,
    }
}

pub(super) fn refuse(peer: &Peer, what: &'static str, error: &ServeError) -> CloseCode {
    not_served(&peer.server, Some(peer.identity.node_id), what, error)
}

/// Logs that a request of a node, or of an unknown peer, was not served.
fn not_served(server: &Server, node: Option<NodeId>, what: &'static str, error: &ServeError) -> CloseCode {
    let (name, error_of) = (node.map(tracing::field::display), tracing::field::display(Chain(error)));
    match server.refusals.due((node, what)) {
        Some(times) => tracing::info!(node = name, error = error_of, times, "{what} not served"),
        None => tracing::debug!(node = name, error = error_of, "{what} not served"),
    }
    code_of(error)
}

pub(super) fn wire(error: WireError) -> CloseCode {
    error.close_code()
}

/// Sends a frame after the coalesced ones. Gives up on an asker that reads nothing for too long.
pub(super) async fn send(peer: &Peer, writer: &mut FrameWriter, frame: &Frame) -> Result<(), CloseCode> {
    writer.gather(frame);
    match tokio::time::timeout(peer.server.config.stall, writer.flush()).await {
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
    let request = match reader.next().await.map_err(wire)? {
        Some(Frame::NodeRequest(request)) => request,
        Some(Frame::CostRequest(ranges)) => return cost(peer, control, ranges, writer, reader).await,
        _ => return Err(CloseCode::Protocol),
    };
    let swarm = peer.swarms.wait(control).await?;
    let answering = async {
        let answer = swarm.content.nodes(request).await.map_err(|e| refuse(peer, "nodes", &e))?;
        for node in answer.nodes {
            peer.server.counters.nodes.fetch_add(1, Ordering::Relaxed);
            let bytes = node.bytes.len() as u64;
            peer.server.counters.control_bytes.fetch_add(bytes, Ordering::Relaxed);
            send(peer, writer, &Frame::Integrity(node)).await?;
            peer.budget.give_back(bytes);
        }
        send(peer, writer, &Frame::NodesEnd(NodesEnd { missing: answer.missing })).await
    };
    swarm.while_permitted(answering).await
}

/// Answers the COST_REQUESTs of one stream. The number of their chunks is bounded like that of a
/// batch.
async fn cost(
    peer: &Peer,
    control: u64,
    first: Ranges,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
) -> Result<(), CloseCode> {
    let mut asked = BatchAnswer::default();
    asked.handle_frame(Frame::Request(first)).map_err(|_| CloseCode::Protocol)?;
    while let Some(frame) = reader.next().await.map_err(wire)? {
        let Frame::CostRequest(ranges) = frame else { return Err(CloseCode::Protocol) };
        asked.handle_frame(Frame::Request(ranges)).map_err(|_| CloseCode::Protocol)?;
    }
    let wanted = asked.finish().map_err(|_| CloseCode::Protocol)?;
    let swarm = peer.swarms.wait(control).await?;
    // For a cost request a relay opens the swarm at its parent.
    let _few = peer.budget.opening().await;
    let answering = async {
        let cost = swarm.content.cost(&wanted).await.map_err(|e| refuse(peer, "cost", &e))?;
        send(peer, writer, &Frame::Cost(cost)).await
    };
    swarm.while_permitted(answering).await
}

pub(super) async fn metadata(
    peer: &Peer,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
) -> Result<(), CloseCode> {
    let Some(Frame::MetadataRequest(request)) = reader.next().await.map_err(wire)? else {
        return Err(CloseCode::Protocol);
    };
    // Bounds the number of concurrent requests of one node: a relay asks one after another.
    let _few = peer.budget.opening().await;
    let answer = peer
        .server
        .content
        .metadata(&peer.identity, request.0)
        .await
        .map_err(|e| refuse(peer, "metadata", &e))?;
    peer.server.counters.control_bytes.fetch_add(answer.len() as u64, Ordering::Relaxed);
    for piece in Metadata::split(&answer) {
        send(peer, writer, &Frame::Metadata(piece)).await?;
    }
    Ok(())
}

/// Answers the only stream of an enrolment connection.
pub(super) async fn enroll(server: &Server, writer: &mut FrameWriter, reader: &mut FrameReader) {
    let answer = async {
        if reader.stream_kind().await.map_err(wire)? != StreamKind::Enroll {
            return Err(CloseCode::Unauthorised);
        }
        let Some(Frame::Enroll(EnrollBody(body))) = reader.next().await.map_err(wire)? else {
            return Err(CloseCode::Protocol);
        };
        let reply = server.content.enroll(body).await;
        let reply = reply.map_err(|error| not_served(server, None, "enrolment", &error))?;
        writer.send(&Frame::Enrolled(EnrollBody(reply))).await.map_err(wire)
    };
    match answer.await {
        Ok(()) => writer.finish(),
        Err(code) => writer.reset(code),
    }
}
