//! One golden encoding for each frame. They pin docs/protocol.md; new ones are added, none is
//! edited.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::bounds::FRAME_BODY_MAX;
use crate::proto::{DecodeError, Frame, FrameDecoder};
use crate::{ChunkId, ManifestId, NodeHash, NodeId};

fn golden() -> Vec<(Frame, &'static str)> {
    let range = Ranges(vec![ChunkId(300)..=ChunkId(912)]);
    vec![
        (
            Frame::Handshake(Handshake::new(ManifestId([0xab; 32]))),
            "0037000101010200 20abababababababababababababababababababababababababababababababab 0380 0480 0604 0802d8f0 09ffffffff ff",
        ),
        (
            Frame::Data(Data { id: ChunkId(300), codec: Codec::Zstd, bytes: Bytes::from_static(b"zz") }),
            "0113 000000000000012c 000000000000012c 01 7a7a",
        ),
        (Frame::Have(range.clone()), "0310 000000000000012c 0000000000000390"),
        (Frame::Integrity(Node { level: 2, bytes: Bytes::from_static(b"node") }), "0405 02 6e6f6465"),
        (Frame::Request(range.clone()), "0810 000000000000012c 0000000000000390"),
        (Frame::Cancel(range.clone()), "0910 000000000000012c 0000000000000390"),
        (
            Frame::Choke(Choke { retry_after: Duration::from_millis(1500), alternates: vec!["b:1".into()] }),
            "0a08 000005dc 03 623a31",
        ),
        (Frame::Unchoke, "0b00"),
        (Frame::CostRequest(range.clone()), "8710 000000000000012c 0000000000000390"),
        (Frame::Cost(Cost { chunks: 3, bytes: 70_000 }), "8810 0000000000000003 0000000000011170"),
        (
            Frame::DontHave(DontHave { reason: DontHaveReason::Upstream, ranges: range }),
            "8011 02 000000000000012c 0000000000000390",
        ),
        (
            Frame::NodeRequest(NodeRequest {
                held: vec![ManifestId([1; 32])],
                hashes: vec![NodeHash([2; 32])],
            }),
            "814041 01 0101010101010101010101010101010101010101010101010101010101010101 0202020202020202020202020202020202020202020202020202020202020202",
        ),
        (Frame::NodesEnd(NodesEnd { missing: 3 }), "8204 00000003"),
        (Frame::MetadataRequest(MetadataRequest(Bytes::from_static(b"q"))), "830171"),
        (Frame::Metadata(Metadata(Bytes::from_static(b"{}"))), "84027b7d"),
        (Frame::Enroll(EnrollBody(Bytes::from_static(b"e"))), "850165"),
        (Frame::Enrolled(EnrollBody(Bytes::from_static(b"f"))), "860166"),
        (
            Frame::Handshake(Handshake { exchanges: true, ..Handshake::new(ManifestId([0xab; 32])) }),
            "0039000101010200 20abababababababababababababababababababababababababababababababab 0380 0480 0604 0802d8f0 09ffffffff 8201 ff",
        ),
        (Frame::Shun(Shun(vec![NodeId([0xcd; 16])])), "8910 cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"),
        (Frame::PexRequest, "0600"),
        (Frame::PeerRecords(PeerRecords(Vec::new())), "0d0100"),
        (
            Frame::PeerRecords(PeerRecords(vec![PeerRecord {
                sequence: 5,
                expires: 6,
                resident: true,
                site: "hall".into(),
                addresses: vec![
                    "192.0.2.1:4434".parse().expect("an address"),
                    "[2001:db8::1]:4434".parse().expect("an address"),
                ],
                certificate: Bytes::from_static(b"cert"),
                signature: [0x11; 64],
            }])),
            "0d407b 01 0078 01 01 0000000000000005 0000000000000006 04 68616c6c 02 04 c0000201 1152 06 20010db8000000000000000000000001 1152 0004 63657274 11111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111",
        ),
        (
            Frame::DontHave(DontHave {
                reason: DontHaveReason::Leased,
                ranges: Ranges(vec![ChunkId(1)..=ChunkId(2)]),
            }),
            "8011 04 0000000000000001 0000000000000002",
        ),
    ]
}

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
