//! Tests of all frames, over their golden bytes.

use proptest::prelude::*;

use super::golden::golden;
use super::{Codec, Data};
use crate::ChunkId;
use crate::bounds::FRAME_BODY_MAX;
use crate::proto::{DecodeError, Frame, FrameDecoder};

fn bytes_of(hex_text: &str) -> Vec<u8> {
    hex::decode(hex_text.replace(' ', "")).expect("golden text is hexadecimal")
}

fn decode_all(bytes: &[u8]) -> Result<Vec<Frame>, DecodeError> {
    let mut decoder = FrameDecoder::default();
    decoder.push(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.poll()? {
        frames.push(frame);
    }
    Ok(frames)
}

#[test]
fn every_frame_has_its_golden_bytes_and_reads_back() {
    for (frame, text) in golden() {
        let bytes = bytes_of(text);
        assert_eq!(hex::encode(frame.encode()), hex::encode(&bytes), "{frame:?}");
        assert_eq!(decode_all(&bytes), Ok(vec![frame]));
    }
}

/// Types that this build knows, in the order of their numbers.
fn known_types() -> Vec<u8> {
    let known = |t: &u8| !matches!(decode_all(&[*t, 0]).as_deref(), Ok([Frame::Unknown { .. }]));
    (0..=u8::MAX).filter(known).collect()
}

#[test]
fn every_type_has_golden_bytes_and_a_row_in_the_protocols_page() {
    let mut golden: Vec<_> = golden().iter().map(|(_, text)| bytes_of(text)[0]).collect();
    golden.sort();
    golden.dedup();
    assert_eq!(golden, known_types());
    let page = include_str!("../../../../docs/protocol.md");
    let table = page.split("| type | frame | body |").nth(1).expect("a table of the frames");
    let rows = table.lines().skip(2).map_while(|row| row.strip_prefix("| ")?.split(' ').next());
    let rows: Vec<u8> = rows.map(|number| number.parse().expect("a type number")).collect();
    assert_eq!(rows, known_types());
}

#[test]
fn frames_read_back_however_the_stream_is_cut() {
    let all: Vec<u8> = golden().iter().flat_map(|(_, text)| bytes_of(text)).collect();
    for piece in 1..40 {
        let mut decoder = FrameDecoder::default();
        let mut frames = Vec::new();
        for part in all.chunks(piece) {
            decoder.push(part);
            while let Some(frame) = decoder.poll().expect("golden") {
                frames.push(frame);
            }
        }
        assert_eq!(decoder.pending(), 0);
        assert!(frames.iter().eq(golden().iter().map(|(frame, _)| frame)), "pieces of {piece}");
    }
}

#[test]
fn a_length_above_the_limit_is_refused_before_its_bytes_arrive() {
    for text in ["01c000000100000000", "01bfffffff", "c8bfffffff"] {
        assert!(matches!(decode_all(&bytes_of(text)), Err(DecodeError::TooLong(_))), "{text}");
    }
    assert!(matches!(decode_all(&[0x01, 0x80, 0x10, 0x00, 0x00]), Ok(f) if f.is_empty()));
    const { assert!(FRAME_BODY_MAX < 0x0020_0000) };
}

#[test]
fn bad_fields_are_named() {
    for (text, error) in [
        ("0810 0000000000000005 0000000000000004", DecodeError::Field("REQUEST", "range")),
        ("0810 0000000000000000 0000000000000004", DecodeError::Field("REQUEST", "range")),
        ("0800", DecodeError::Length("REQUEST")),
        ("080f 000000000000000500000000000000", DecodeError::Length("REQUEST")),
        ("0112 0000000000000005 0000000000000006 00 61", DecodeError::Field("DATA", "range")),
        ("0112 0000000000000005 0000000000000005 07 61", DecodeError::Field("DATA", "codec")),
        ("0111 0000000000000005 0000000000000005 00", DecodeError::Length("DATA")),
        ("8101 ff", DecodeError::Field("NODE_REQUEST", "number of held manifests")),
        ("0b01 00", DecodeError::Length("UNCHOKE")),
        ("880f 000000000000000000000000000000", DecodeError::Length("COST")),
        ("8900", DecodeError::Length("SHUN")),
        ("8911 cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", DecodeError::Length("SHUN")),
        ("8700", DecodeError::Length("COST_REQUEST")),
        ("0003 0001ff", DecodeError::Field("HANDSHAKE", "method")),
    ] {
        assert_eq!(decode_all(&bytes_of(text)), Err(error), "{text}");
    }
}

#[test]
fn an_unknown_type_is_skipped_by_its_length() {
    let frames = decode_all(&bytes_of("c803aabbcc 0b00")).expect("well formed");
    assert_eq!(frames, [Frame::Unknown { frame_type: 200, len: 3 }, Frame::Unchoke]);
}

proptest! {
    #[test]
    fn random_bytes_never_panic_and_decoded_frames_encode_again(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(frames) = decode_all(&bytes) {
            for frame in frames {
                if !matches!(frame, Frame::Unknown { .. } | Frame::Handshake(_)) {
                    prop_assert_eq!(decode_all(&frame.encode()), Ok(vec![frame]));
                }
            }
        }
    }

    #[test]
    fn data_of_every_length_round_trips(len in 1usize..70_000, byte in any::<u8>(), id in 1u64..1 << 60) {
        let frame = Frame::Data(Data { id: ChunkId(id), codec: Codec::Raw, bytes: vec![byte; len].into() });
        prop_assert_eq!(decode_all(&frame.encode()), Ok(vec![frame]));
    }
}
