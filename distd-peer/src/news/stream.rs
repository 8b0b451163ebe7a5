//! A news stream from the side that opened it.

use std::collections::BTreeMap;

use bytes::Bytes;
use distd_core::fleet::HaltNotice;
use distd_core::fleet::rollout::RolloutId;
use distd_core::proto::Frame;
use distd_core::proto::frame::{HaltBody, Newer};
use distd_core::swarm::Judged;

use super::Newsroom;
use crate::net::{FrameReader, FrameWriter, Link, LinkError, WireError};

/// Notices that one stream has carried in either direction.
#[derive(Default)]
pub(crate) struct Passed(BTreeMap<RolloutId, u64>);

impl Passed {
    /// Begins a stream that carries only notices which come later: one that is opened often.
    pub(crate) fn from_now(room: &Newsroom) -> Self {
        let mut passed = Self::default();
        passed.due(room);
        passed
    }

    /// Returns the notices of this node that the stream has not carried yet, as carried.
    pub(crate) fn due(&mut self, room: &Newsroom) -> Vec<Bytes> {
        let mut notices = room.notices();
        notices.retain(|(rollout, counter, _)| self.0.get(rollout).is_none_or(|passed| passed < counter));
        self.0.extend(notices.iter().map(|(rollout, counter, _)| (*rollout, *counter)));
        notices.into_iter().map(|(.., bytes)| bytes).collect()
    }

    /// The peer has sent a notice, which was judged so. Only those that this node holds are
    /// remembered: a peer can send any number of others.
    pub(crate) fn note(&mut self, notice: &HaltNotice, judged: Judged) {
        if !matches!(judged, Judged::News | Judged::Known) {
            return;
        }
        let passed = self.0.entry(notice.rollout).or_default();
        *passed = notice.counter.max(*passed);
    }
}

/// Received news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewsEvent {
    /// A halt notice. It is not verified yet.
    Halt(Bytes),
    /// Version of the peer's newest metadata; 0 when it has none to announce.
    Newer(u64),
}

/// A news stream that this side opened.
pub struct NewsLink {
    writer: FrameWriter,
    reader: FrameReader,
}

impl NewsLink {
    pub(crate) fn new(writer: FrameWriter, reader: FrameReader) -> Self {
        Self { writer, reader }
    }

    /// Sends the notices that `passed` lacks.
    ///
    /// # Errors
    /// [`WireError`].
    pub(crate) async fn pass(&mut self, passed: &mut Passed, room: &Newsroom) -> Result<(), WireError> {
        for notice in passed.due(room) {
            self.writer.gather(&Frame::Halt(HaltBody(notice)));
        }
        self.writer.flush().await
    }

    /// Sends the bytes of one notice, whatever they are.
    ///
    /// # Errors
    /// [`WireError`].
    pub async fn send(&mut self, notice: Bytes) -> Result<(), WireError> {
        self.writer.send(&Frame::Halt(HaltBody(notice))).await
    }

    /// Waits for the next news; `None` when the peer ended the stream.
    ///
    /// # Errors
    /// [`WireError`]. Cancelling the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<NewsEvent>, WireError> {
        loop {
            return Ok(Some(match self.reader.next().await? {
                Some(Frame::Halt(HaltBody(bytes))) => NewsEvent::Halt(bytes),
                Some(Frame::Newer(Newer { version })) => NewsEvent::Newer(version),
                // Frames that only later versions know are skipped, and others have no place here.
                Some(_) => continue,
                None => return Ok(None),
            }));
        }
    }

    /// Says that nothing more follows from this side.
    pub fn finish(&mut self) {
        self.writer.finish();
    }
}

impl Link {
    /// Opens a news stream. A peer of an earlier version resets it.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn open_news(&self) -> Result<NewsLink, LinkError> {
        let (writer, reader) = self.open_lasting(distd_core::proto::stream::StreamKind::News).await?;
        Ok(NewsLink::new(writer, reader))
    }
}
