//! One golden encoding for each frame. They pin docs/protocol.md; new ones are added, none is
//! edited. The unit tests compare them, and `tests/fuzz_seeds.rs` damages them.

use std::time::Duration;

use bytes::Bytes;
use distd_core::proto::Frame;
use distd_core::proto::frame::{
    CapabilityBody, Choke, Codec, Cost, Data, DontHave, DontHaveReason, EnrollBody, HaltBody, Handshake,
    Metadata, MetadataRequest, Newer, Node, NodeRequest, NodesEnd, PeerRecord, PeerRecords, Ranges, Shun,
};
use distd_core::{ChunkId, ManifestId, NodeHash, NodeId};

/// Frames and their bytes, hexadecimal.
pub(crate) fn golden() -> Vec<(Frame, &'static str)> {
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
        (Frame::Capability(CapabilityBody(Bytes::from_static(b"c"))), "8a0163"),
        (Frame::Halt(HaltBody(Bytes::from_static(b"h"))), "8b0168"),
        (Frame::Newer(Newer { version: 259 }), "8c08 0000000000000103"),
    ]
}
