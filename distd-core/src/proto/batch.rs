//! Checks of the frames of one request stream on both sides, sans-io.

use super::Frame;
use super::frame::{Choke, Data, DontHave, Ranges};
use crate::bounds::REQUEST_CHUNKS_MAX;
use crate::ranges::ChunkRanges;

/// Content of one frame of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchEvent {
    /// One of the requested chunks, not verified yet.
    Data(Data),
    /// Requested chunks that will not come.
    DontHave(DontHave),
    /// The peer choked the batch: the stream may end with chunks open.
    Choked(Choke),
    /// A frame of unknown type, which is ignored; the reader of frames has counted it.
    Unknown,
}

/// A breach of the protocol on a request stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The peer answered a chunk that is not open: one that was not requested, or that it answered
    /// before.
    #[error("peer answered chunk {0}, which is not open on this stream")]
    Unasked(u64),
    /// The peer sent a frame that belongs on another kind of stream.
    #[error("peer sent a frame that does not belong in a batch")]
    Misplaced,
    /// The stream ended with this many chunks unanswered.
    #[error("peer ended the batch with {0} chunks unanswered")]
    Unanswered(u64),
    /// A request for no chunk, or for more chunks than a batch may have.
    #[error("a batch asks for 1 to {REQUEST_CHUNKS_MAX} chunks, this one for {0}")]
    Size(u64),
}

/// The asker's side of a batch.
#[derive(Debug)]
pub struct BatchAsk {
    open: ChunkRanges,
    choked: bool,
}

impl BatchAsk {
    /// Starts a batch for `wanted` and returns the frames that request it.
    ///
    /// # Errors
    /// [`BatchError::Size`] if `wanted` is empty or too large.
    pub fn new(wanted: ChunkRanges) -> Result<(Self, Vec<Frame>), BatchError> {
        if wanted.is_empty() || wanted.len() > REQUEST_CHUNKS_MAX {
            return Err(BatchError::Size(wanted.len()));
        }
        let frames = Ranges::split(&wanted).map(Frame::Request).collect();
        Ok((Self { open: wanted, choked: false }, frames))
    }

    /// Takes the next frame of the answer.
    ///
    /// # Errors
    /// [`BatchError`]. The peer cannot be trusted with this batch any more.
    pub fn handle_frame(&mut self, frame: Frame) -> Result<BatchEvent, BatchError> {
        match frame {
            Frame::Data(data) => {
                if !self.open.remove(data.id) {
                    return Err(BatchError::Unasked(data.id.0));
                }
                Ok(BatchEvent::Data(data))
            }
            Frame::DontHave(dont) => {
                let set = dont.ranges.to_set();
                if let Some(foreign) = set.difference(&self.open).iter().next() {
                    return Err(BatchError::Unasked(foreign.start().0));
                }
                self.open = self.open.difference(&set);
                Ok(BatchEvent::DontHave(dont))
            }
            Frame::Choke(choke) => {
                self.choked = true;
                Ok(BatchEvent::Choked(choke))
            }
            Frame::Unknown { .. } => Ok(BatchEvent::Unknown),
            _ => Err(BatchError::Misplaced),
        }
    }

    /// Checks that the peer may end its side of the stream now.
    ///
    /// # Errors
    /// [`BatchError::Unanswered`] when chunks are open and the peer did not choke.
    pub fn handle_end(&self) -> Result<(), BatchError> {
        if self.choked || self.open.is_empty() {
            return Ok(());
        }
        Err(BatchError::Unanswered(self.open.len()))
    }

    /// Returns the chunks not answered yet.
    pub fn open(&self) -> &ChunkRanges {
        &self.open
    }
}

/// The answerer's side of a batch: collects the REQUEST frames of one stream. A COST_REQUEST has
/// the same bounds and is checked by it too.
#[derive(Debug, Default)]
pub struct BatchAnswer {
    wanted: ChunkRanges,
}

impl BatchAnswer {
    /// Takes a frame of the asker.
    ///
    /// # Errors
    /// [`BatchError`].
    pub fn handle_frame(&mut self, frame: Frame) -> Result<(), BatchError> {
        match frame {
            Frame::Request(ranges) => {
                self.wanted.extend(&ranges.to_set());
                if self.wanted.len() > REQUEST_CHUNKS_MAX {
                    return Err(BatchError::Size(self.wanted.len()));
                }
                Ok(())
            }
            Frame::Unknown { .. } => Ok(()),
            _ => Err(BatchError::Misplaced),
        }
    }

    /// Returns the requested chunks, once all REQUEST frames are in.
    ///
    /// # Errors
    /// [`BatchError::Size`] if no chunk was requested.
    pub fn finish(self) -> Result<ChunkRanges, BatchError> {
        if self.wanted.is_empty() {
            return Err(BatchError::Size(0));
        }
        Ok(self.wanted)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ChunkId;
    use crate::proto::frame::{Codec, DontHaveReason};

    fn set(start: u64, end: u64) -> ChunkRanges {
        [ChunkId(start)..=ChunkId(end)].into_iter().collect()
    }

    fn data(id: u64) -> Frame {
        Frame::Data(Data { id: ChunkId(id), codec: Codec::Raw, bytes: Bytes::from_static(b"x") })
    }

    fn dont(start: u64, end: u64) -> Frame {
        Frame::DontHave(DontHave {
            reason: DontHaveReason::NotHeld,
            ranges: Ranges(vec![ChunkId(start)..=ChunkId(end)]),
        })
    }

    #[test]
    fn a_batch_is_answered_when_each_chunk_came_or_was_refused() {
        let (mut ask, frames) = BatchAsk::new(set(5, 8)).expect("four chunks");
        let mut answer = BatchAnswer::default();
        for frame in frames {
            answer.handle_frame(frame).expect("requests");
        }
        assert_eq!(answer.finish(), Ok(set(5, 8)));
        ask.handle_frame(data(6)).expect("asked for");
        assert_eq!(ask.handle_end(), Err(BatchError::Unanswered(3)));
        ask.handle_frame(dont(7, 8)).expect("asked for");
        ask.handle_frame(data(5)).expect("asked for");
        assert_eq!(ask.handle_end(), Ok(()));
    }

    #[test]
    fn a_chunk_twice_or_unasked_for_ends_the_batch() {
        let (mut ask, _) = BatchAsk::new(set(5, 8)).expect("four chunks");
        ask.handle_frame(data(5)).expect("asked for");
        assert_eq!(ask.handle_frame(data(5)), Err(BatchError::Unasked(5)));
        assert_eq!(ask.handle_frame(data(9)), Err(BatchError::Unasked(9)));
        assert_eq!(ask.handle_frame(dont(8, 9)), Err(BatchError::Unasked(9)));
        assert_eq!(ask.handle_frame(Frame::Unchoke), Err(BatchError::Misplaced));
    }

    #[test]
    fn absurd_counts_are_refused_before_anything_is_looked_up() {
        let mut answer = BatchAnswer::default();
        let all = Frame::Request(Ranges(vec![ChunkId(1)..=ChunkId(i64::MAX as u64)]));
        assert!(matches!(answer.handle_frame(all), Err(BatchError::Size(_))));
        assert_eq!(BatchAnswer::default().finish(), Err(BatchError::Size(0)));
        assert!(BatchAsk::new(ChunkRanges::new()).is_err());
    }

    #[test]
    fn every_state_and_frame_has_the_outcome_of_this_table() {
        type Start = fn() -> BatchAsk;
        let states: [(&str, Start); 3] = [
            ("open 5-6", || BatchAsk::new(set(5, 6)).expect("two chunks").0),
            ("choked", || {
                let (mut ask, _) = BatchAsk::new(set(5, 6)).expect("two chunks");
                ask.handle_frame(Frame::Choke(Choke::default())).expect("allowed");
                ask
            }),
            ("answered", || {
                let (mut ask, _) = BatchAsk::new(set(5, 6)).expect("two chunks");
                ask.handle_frame(dont(5, 6)).expect("requested");
                ask
            }),
        ];
        let frames = [
            ("data 5", data(5)),
            ("data 7", data(7)),
            ("dont have 5-6", dont(5, 6)),
            ("dont have 6-7", dont(6, 7)),
            ("choke", Frame::Choke(Choke::default())),
            ("unchoke", Frame::Unchoke),
            ("request", Frame::Request(Ranges(vec![ChunkId(5)..=ChunkId(5)]))),
            ("have", Frame::Have(Ranges(vec![ChunkId(5)..=ChunkId(5)]))),
            ("unknown", Frame::Unknown { frame_type: 200, len: 3 }),
        ];
        let end = |ask: &BatchAsk| match ask.handle_end() {
            Ok(()) => "well".to_owned(),
            Err(error) => format!("{error:?}"),
        };
        let mut table = String::new();
        for (state, start) in states {
            for (name, frame) in &frames {
                let mut ask = start();
                let outcome = match ask.handle_frame(frame.clone()) {
                    Ok(event) => {
                        let event = format!("{event:?}");
                        let event = event.split(['(', ' ']).next().unwrap_or_default();
                        format!("{event}; {} open; an end now: {}", ask.open().len(), end(&ask))
                    }
                    Err(error) => format!("breach {error:?}"),
                };
                table += &format!("{state} + {name}: {outcome}\n");
            }
        }
        for (name, frame) in &frames {
            let mut answer = BatchAnswer::default();
            let outcome = match answer.handle_frame(frame.clone()) {
                Ok(()) => format!("finish {:?}", answer.finish().map(|wanted| wanted.len())),
                Err(error) => format!("breach {error:?}"),
            };
            table += &format!("answerer + {name}: {outcome}\n");
        }
        assert_eq!(table, include_str!("testdata/batch_table.txt"));
    }
}
