//! Bodies of responses: texts, and parts of a file that are read as the caller takes them.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body::{Frame, SizeHint};

use super::FileBytes;

/// Piece of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// These bytes.
    Text(Bytes),
    /// Bytes of the file.
    Part(Range<u64>),
}

impl Piece {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Part(range) => range.end - range.start,
        }
    }
}

/// Body of a response. Reads only as fast as the caller takes the bytes, one piece ahead.
pub struct Body {
    file: Option<Arc<dyn FileBytes>>,
    pieces: VecDeque<Piece>,
    /// Whether the caller asked for a part of the file.
    part: bool,
    left: u64,
    reading: Option<BoxFuture<'static, io::Result<Bytes>>>,
    /// Receives the number of bytes that were handed on.
    sent: Option<Arc<dyn Fn(u64) + Send + Sync>>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("pieces", &self.pieces).field("left", &self.left).finish_non_exhaustive()
    }
}

impl Body {
    /// Body of a text.
    pub fn text(text: impl Into<Bytes>) -> Self {
        Self::of(None, vec![Piece::Text(text.into())], false)
    }

    pub(crate) fn of(file: Option<Arc<dyn FileBytes>>, pieces: Vec<Piece>, part: bool) -> Self {
        let pieces: VecDeque<Piece> = pieces.into_iter().filter(|piece| piece.len() > 0).collect();
        let left = pieces.iter().map(Piece::len).sum();
        Self { file, pieces, part, left, reading: None, sent: None }
    }

    /// Calls `sent` with the number of bytes, each time that some are handed on.
    pub fn counted(mut self, sent: Arc<dyn Fn(u64) + Send + Sync>) -> Self {
        self.sent = Some(sent);
        self
    }

    fn hand_on(&mut self, bytes: Bytes) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.left = self.left.saturating_sub(bytes.len() as u64);
        if let Some(sent) = &self.sent {
            sent(bytes.len() as u64);
        }
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let range = match self.pieces.front() {
            None => return Poll::Ready(None),
            Some(Piece::Text(text)) => {
                let text = text.clone();
                self.pieces.pop_front();
                return self.hand_on(text);
            }
            Some(Piece::Part(range)) => range.clone(),
        };
        let Some(file) = self.file.clone() else { return Poll::Ready(None) };
        let part = self.part;
        let wanted = range.clone();
        let reading =
            self.reading.get_or_insert_with(|| async move { file.read(wanted, part).await }.boxed());
        let read = std::task::ready!(reading.poll_unpin(cx));
        self.reading = None;
        let mut bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                self.pieces.clear();
                return Poll::Ready(Some(Err(error)));
            }
        };
        let asked = range.end - range.start;
        if bytes.is_empty() {
            self.pieces.clear();
            let error = io::Error::other("the file ended before its length");
            return Poll::Ready(Some(Err(error)));
        }
        if bytes.len() as u64 > asked {
            bytes.truncate(usize::try_from(asked).unwrap_or(usize::MAX));
        }
        let start = range.start + bytes.len() as u64;
        match start < range.end {
            true => self.pieces[0] = Piece::Part(start..range.end),
            false => drop(self.pieces.pop_front()),
        }
        self.hand_on(bytes)
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
