//! The answering side of a news stream.

use std::time::Duration;

use distd_core::error::Chain;
use distd_core::proto::Frame;
use distd_core::proto::close::CloseCode;
use distd_core::proto::frame::{HaltBody, Newer};
use distd_core::role::Role;
use distd_core::swarm::{Neighbour, NewsFrom};

use super::connection::Peer;
use super::streams::wire;
use crate::net::{FrameReader, FrameWriter, WireError};
use crate::news::Passed;

/// Pause before a stream with a notice that is not the realm's is ended: the check of a signature
/// costs this node more than the peer.
const FORGED: Duration = Duration::from_secs(1);

/// Source of notices that a peer sends. A relay and an origin have no neighbours, so that their
/// devices may count as such.
pub(super) fn from(peer: &Peer) -> NewsFrom {
    match peer.identity.role {
        Role::Leaf => NewsFrom::Neighbour(peer.identity.node_id),
        Role::Relay | Role::Origin => NewsFrom::Child,
    }
}

/// Tells the peer of news, and takes the peer's, until the peer ends its side.
pub(super) async fn answer(
    peer: &Peer,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
) -> Result<(), CloseCode> {
    // As an earlier version would.
    let Some(room) = &peer.server.config.news else { return Err(CloseCode::Protocol) };
    // Devices must not keep out a relay, which tells a whole site.
    let _place = match peer.identity.role {
        Role::Relay => None,
        _ => Some(peer.server.news_places.try_acquire().map_err(|_| CloseCode::Busy)?),
    };
    let _share = peer.budget.news().ok_or(CloseCode::Busy)?;
    let from = from(peer);
    if peer.identity.role == Role::Leaf {
        // A device dials from the port at which it listens.
        room.was_called(Neighbour { node: peer.identity.node_id, address: peer.observed });
    }
    let (mut notices, mut versions) = (room.changes(), room.announced());
    let (mut passed, mut said) = (Passed::default(), None);
    loop {
        let version = *versions.borrow_and_update();
        if said.is_none_or(|said| said < version) {
            // The first one says that the stream is accepted.
            writer.gather(&Frame::Newer(Newer { version }));
            said = Some(version);
        }
        notices.mark_unchanged();
        for notice in passed.due(room) {
            writer.gather(&Frame::Halt(HaltBody(notice)));
        }
        match tokio::time::timeout(peer.server.config.stall, writer.flush()).await {
            Ok(sent) => sent.map_err(wire)?,
            Err(_) => return Err(CloseCode::Stalled),
        }
        tokio::select! {
            frame = reader.next() => match frame {
                Ok(Some(Frame::Halt(HaltBody(bytes)))) => match room.take(&bytes, from) {
                    Ok((signed, judged)) => passed.note(&signed.notice, judged),
                    Err(error) => {
                        let node = peer.identity.node_id;
                        tracing::debug!(%node, error = %Chain(&error), "a notice is not used");
                        tokio::time::sleep(FORGED).await;
                        return Err(CloseCode::Protocol);
                    }
                },
                Ok(Some(Frame::Unknown { .. })) => {}
                Ok(Some(_)) => return Err(CloseCode::Protocol),
                Ok(None) => return Ok(()),
                // Silence is the rule here.
                Err(WireError::Stalled(_)) => {}
                Err(error) => return Err(error.close_code()),
            },
            // The senders live as long as `room`.
            _ = notices.changed() => {}
            _ = versions.changed() => {}
        }
    }
}
