//! Fuzz bodies of protocol frames, and of the state machines that take them.

use distd_core::ManifestId;
use distd_core::bounds::{FRAME_BODY_MAX, REQUEST_CHUNKS_MAX};
use distd_core::proto::batch::{BatchAnswer, BatchAsk};
use distd_core::proto::control::{Control, Side};
use distd_core::proto::frame::Handshake;
use distd_core::proto::stream::StreamKind;
use distd_core::proto::{DecodeError, Frame, FrameDecoder};
use distd_core::ranges::ChunkRanges;

use super::memory::within;

/// A stream gives the same frames in whatever pieces it arrives. Each frame encodes to bytes that
/// decode to the same frame, and nothing is allocated for a length that is only claimed. The first
/// byte of the input is the length of the pieces.
pub fn frames(data: &[u8]) {
    let Some((piece, data)) = data.split_first() else { return };
    let whole = decoded(data, data.len().max(1));
    assert_eq!(decoded(data, usize::from(*piece).max(1)), whole);
    let (frames, _) = &whole;
    let mut control = Control::new(Side::Answerer, Handshake::new(ManifestId([1; 32])));
    let (mut ask, _) =
        BatchAsk::new([distd_core::ChunkId(1)..=distd_core::ChunkId(900)].into_iter().collect())
            .expect("not too many");
    let mut answer = Some(BatchAnswer::default());
    let mut open = ask.open().clone();
    for frame in frames {
        let encoded = frame.encode();
        assert_eq!(decoded(&encoded, encoded.len()).0, std::slice::from_ref(frame));
        let _ = control.handle_frame(frame.clone());
        // A breach of the protocol ends the stream.
        answer = answer.and_then(|mut answer| answer.handle_frame(frame.clone()).is_ok().then_some(answer));
        if ask.handle_frame(frame.clone()).is_ok() {
            assert!(ask.open().difference(&open).is_empty(), "nothing opens again");
            open = ask.open().clone();
        }
    }
    assert!(control.remote_have().range_count() <= 1100);
    while control.poll_transmit().is_some() {}
    control.announce(&ChunkRanges::new());
    if let Some(Ok(wanted)) = answer.map(BatchAnswer::finish) {
        assert!((1..=REQUEST_CHUNKS_MAX).contains(&wanted.len()));
    }
    let mut rest = data;
    if let Ok(Some(kind)) = StreamKind::take(&mut rest) {
        let again = kind.encode();
        assert_eq!(StreamKind::take(&mut &again[..]), Ok(Some(kind)));
    }
}

/// Returns every frame before the end of the data, the first breach, or an incomplete frame.
fn decoded(data: &[u8], piece: usize) -> (Vec<Frame>, Option<DecodeError>) {
    let (mut decoder, mut frames) = (FrameDecoder::default(), Vec::new());
    // The current buffer and the one it grows into. Frames and their parts are slices of these.
    let bound = 2 * (FRAME_BODY_MAX + 16) + 8 * data.len() + (1 << 20);
    let error = within(bound, || {
        for bytes in data.chunks(piece) {
            decoder.push(bytes);
            loop {
                match decoder.poll() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => return Some(error),
                }
            }
        }
        None
    });
    (frames, error)
}
