//! Benchmarks of the hot paths of the core: `cargo bench -p distd-core`. The names of the groups
//! are stable, so that two builds can be compared group by group, on a quiet machine.

use std::time::Duration;

use bytes::Bytes;
use distd_core::cut::{Batches, CutParams, Regions};
use distd_core::packing::{LEVEL_DEFAULT, Packer, Unpacker};
use distd_core::proto::frame::{Codec, Data, Ranges};
use distd_core::proto::{Frame, FrameDecoder};
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{Fetch, FetchConfig, PeerId, Tier};
use distd_core::time::Timestamp;
use distd_core::{ArtifactHash, ChunkHash, ChunkId};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

fn main() {
    divan::main();
}

/// Bytes of an artifact: half of each page is noise (SplitMix64), half repeats, which packs to some
/// 55 %.
fn artifact(len: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let word = if out.len() % 4096 < 2048 { z ^ (z >> 31) } else { (out.len() / 4096) as u64 };
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.truncate(len);
    out
}

const MIB: usize = 1 << 20;

#[divan::bench]
fn cut_16_mib(bencher: Bencher) {
    let data = artifact(16 * MIB);
    let regions = Regions::plain(data.len() as u64);
    bencher.counter(BytesCount::new(data.len())).bench(|| {
        let mut batches = Batches::new(&data, regions.all(), CutParams::default());
        let (mut chunks, mut buffer) = (0, Vec::new());
        while let Some(batch) = batches.next_batch(buffer).expect("memory is readable") {
            chunks += batch.chunks().len();
            buffer = batch.into_buffer();
        }
        chunks
    });
}

#[divan::bench(args = [16 << 10, 64 << 10, 256 << 10])]
fn hash_chunk(bencher: Bencher, len: usize) {
    let data = artifact(len);
    bencher.counter(BytesCount::new(len)).bench(|| ChunkHash::of(&data));
}

#[divan::bench]
fn hash_artifact_16_mib(bencher: Bencher) {
    let data = artifact(16 * MIB);
    bencher.counter(BytesCount::new(data.len())).bench(|| ArtifactHash(*blake3::hash(&data).as_bytes()));
}

#[divan::bench(args = [16 << 10, 64 << 10, 256 << 10])]
fn pack_chunk(bencher: Bencher, len: usize) {
    let data = artifact(len);
    let mut packer = Packer::new(LEVEL_DEFAULT);
    bencher.counter(BytesCount::new(len)).bench_local(|| packer.pack(&data));
}

#[divan::bench(args = [16 << 10, 64 << 10, 256 << 10])]
fn unpack_and_verify_chunk(bencher: Bencher, len: usize) {
    let data = artifact(len);
    let (packed, hash) = (Packer::new(LEVEL_DEFAULT).pack(&data), ChunkHash::of(&data));
    let mut unpacker = Unpacker::default();
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        let raw = unpacker.unpack(packed.codec, &packed.bytes, packed.raw_len, &hash);
        raw.expect("packed before").len()
    });
}

#[divan::bench]
fn encode_data_frame_64_kib(bencher: Bencher) {
    let bytes = Bytes::from(artifact(64 << 10));
    let frame = Frame::Data(Data { id: ChunkId(1 << 40), codec: Codec::Raw, bytes });
    let mut out = Vec::new();
    bencher.counter(BytesCount::new(64_usize << 10)).bench_local(|| {
        out.clear();
        frame.encode_pieces(&mut out);
        out.len()
    });
}

#[divan::bench]
fn decode_data_frame_64_kib(bencher: Bencher) {
    let bytes = Bytes::from(artifact(64 << 10));
    let wire = Frame::Data(Data { id: ChunkId(1 << 40), codec: Codec::Raw, bytes }).encode();
    let mut decoder = FrameDecoder::default();
    bencher.counter(BytesCount::new(wire.len())).bench_local(|| {
        // As a transport delivers it.
        wire.chunks(16 << 10).for_each(|piece| decoder.push(piece));
        decoder.poll().expect("encoded before").expect("a whole frame")
    });
}

/// Chunks of a device that has every `step`th run of ten.
fn scattered(runs: u64, step: u64) -> ChunkRanges {
    (0..runs).map(|run| ChunkId(run * step + 1)..=ChunkId(run * step + 10)).collect()
}

#[divan::bench(args = [10, 1000, 10_000])]
fn difference_of_ranges(bencher: Bencher, runs: u64) {
    let (wanted, held) = (scattered(runs, 20), scattered(runs, 25));
    bencher.counter(ItemsCount::new(runs)).bench(|| wanted.difference(&held));
}

#[divan::bench(args = [1000, 10_000])]
fn have_frames_of_ranges(bencher: Bencher, runs: u64) {
    let held = scattered(runs, 20);
    bencher
        .counter(ItemsCount::new(runs))
        .bench(|| Ranges::split(&held).map(Frame::Have).map(|f| f.encode().len()).sum::<usize>());
}

/// A whole fetch of 5000 chunks: every choice of a chunk and a peer, and every arrival.
#[divan::bench(args = [1, 16, 64])]
fn fetch_5000_chunks_from_neighbours(bencher: Bencher, neighbours: u32) {
    const CHUNKS: u64 = 5000;
    let all: ChunkRanges = [ChunkId(1)..=ChunkId(CHUNKS)].into_iter().collect();
    bencher.counter(ItemsCount::new(CHUNKS)).bench(|| {
        let mut now = Timestamp(1_000_000);
        let mut fetch = Fetch::new(FetchConfig::sharing(CHUNKS, 7));
        fetch.want(&all);
        for peer in 0..neighbours {
            fetch.handle_connected(now, PeerId(peer), Tier::Site);
            fetch.handle_have(now, PeerId(peer), &all);
        }
        let mut came = 0;
        while !fetch.is_idle() {
            let asked: Vec<_> = std::iter::from_fn(|| fetch.poll_request(now)).collect();
            assert!(!asked.is_empty(), "neighbours have every chunk");
            now = now + Duration::from_millis(5);
            for (_, batch, chunks) in asked {
                chunks.ids().for_each(|id| came += u64::from(fetch.handle_chunk(now, batch, id)));
                fetch.handle_batch_end(now, batch);
            }
            while fetch.poll_event().is_some() {}
        }
        assert_eq!(came, CHUNKS);
    });
}
