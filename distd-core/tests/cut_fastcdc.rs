//! Tests of cutting inside regions, compared with FastCDC run over each whole region.

use distd_core::ChunkHash;
use distd_core::cut::{Batches, CutParams, ReadAt, RegionKind, Regions};
use fastcdc::v2020::FastCDC;
use proptest::prelude::*;

/// Reproducible noise (SplitMix64).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Returns offset and length of each chunk, after checking that each chunk carries its own bytes.
fn cut(
    data: &[u8],
    regions: &[distd_core::cut::Region],
    params: CutParams,
    window: usize,
) -> Vec<(u64, usize)> {
    let mut batches = Batches::new(data, regions, params).with_window(window);
    let (mut out, mut buffer) = (Vec::new(), Vec::new());
    while let Some(batch) = batches.next_batch(buffer).expect("memory is readable") {
        for chunk in batch.chunks() {
            let start = chunk.offset as usize;
            assert_eq!(chunk.data, &data[start..start + chunk.data.len()]);
            assert!(!chunk.zero || chunk.data.iter().all(|byte| *byte == 0));
            out.push((chunk.offset, chunk.data.len()));
        }
        buffer = batch.into_buffer();
    }
    out
}

fn naive(data: &[u8], regions: &[distd_core::cut::Region], params: CutParams) -> Vec<(u64, usize)> {
    let (min, avg, max) = (params.min() as usize, params.avg() as usize, params.max() as usize);
    let mut out = Vec::new();
    for region in regions {
        let bytes = &data[region.start as usize..region.end() as usize];
        let chunks = FastCDC::new(bytes, min, avg, max);
        out.extend(chunks.map(|chunk| (region.start + chunk.offset as u64, chunk.length)));
    }
    out
}

fn piece() -> impl Strategy<Value = (bool, usize)> {
    (any::<bool>(), prop_oneof![1usize..200, 1usize..40_000])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn chunks_depend_on_neither_window_nor_threads(
        seed in any::<u64>(),
        pieces in prop::collection::vec(piece(), 0..20),
        lens in prop::collection::vec(prop_oneof![1u64..100, 1u64..60_000], 0..20),
        sizes in prop_oneof![Just((64, 256, 1024)), Just((100, 1000, 5000)), Just((2048, 2048, 2048))],
        window in 0usize..70_000,
        threads in 1usize..6,
    ) {
        let params = CutParams::new(sizes.0, sizes.1, sizes.2).expect("valid sizes");
        let mut data = Vec::new();
        for (index, (zero, len)) in pieces.iter().enumerate() {
            data.extend(if *zero { vec![0; *len] } else { noise(seed ^ index as u64, *len) });
        }
        let mut left = data.len() as u64;
        let mut parts = Vec::new();
        for len in lens {
            parts.push(len.min(left));
            left -= len.min(left);
        }
        parts.push(left);
        let regions = Regions::from_parts(parts.iter().map(|len| (*len, RegionKind::Plain, None))).expect("few");
        let expected = naive(&data, regions.all(), params);
        prop_assert_eq!(expected.iter().map(|chunk| chunk.1).sum::<usize>(), data.len());
        prop_assert_eq!(&cut(&data, regions.all(), params, window), &expected);
        let mut shared = Vec::new();
        for part in regions.split(threads) {
            shared.extend(cut(&data, &regions.all()[part], params, window));
        }
        prop_assert_eq!(&shared, &expected);
    }
}

#[test]
fn the_default_window_cuts_like_one_look_at_the_whole() {
    let mut data = noise(7, 9 << 20);
    data.extend(vec![0; 9 << 20]);
    data.extend(noise(8, 1 << 20));
    let regions = Regions::plain(data.len() as u64);
    let params = CutParams::default();
    assert_eq!(
        cut(&data, regions.all(), params, distd_core::cut::WINDOW_BYTES),
        naive(&data, regions.all(), params)
    );
}

#[test]
fn an_inserted_byte_makes_few_new_chunks() {
    let params = CutParams::default();
    let data = noise(1, 64 << 20);
    let hashes = |data: &[u8]| -> std::collections::BTreeSet<ChunkHash> {
        let regions = Regions::plain(data.len() as u64);
        let chunks = cut(data, regions.all(), params, 4 << 20);
        chunks.iter().map(|(at, len)| ChunkHash::of(&data[*at as usize..*at as usize + len])).collect()
    };
    let before = hashes(&data);
    let mut counts: Vec<_> = (0..9)
        .map(|turn| {
            let place = turn * (data.len() / 9) + turn * 1_013;
            let mut changed = data.clone();
            changed.insert(place, 0x55);
            hashes(&changed).difference(&before).count()
        })
        .collect();
    counts.sort_unstable();
    assert!(counts[counts.len() / 2] <= 3, "new chunks per insertion: {counts:?}");
}

#[test]
fn zero_runs_are_one_chunk_over_and_over() {
    let data = vec![0; 10 << 20];
    let regions = Regions::plain(data.len() as u64);
    let mut batches = Batches::new(&data, regions.all(), CutParams::default());
    let mut seen = 0;
    while let Some(batch) = batches.next_batch(Vec::new()).expect("memory is readable") {
        assert!(batch.chunks().all(|chunk| chunk.zero && chunk.data.len() == 64 << 10));
        seen += batch.chunks().len();
    }
    assert_eq!(seen, 160);
}

#[test]
fn an_artifact_that_shrinks_while_it_is_read_is_an_error_and_not_a_panic() {
    struct Shrunk;
    impl ReadAt for Shrunk {
        fn len(&self) -> u64 {
            10_000_000
        }
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
            if offset + buf.len() as u64 > 5_000_000 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            buf.fill(1);
            Ok(())
        }
    }
    let regions = distd_core::cut::regions(&Shrunk);
    let mut batches = Batches::new(&Shrunk, regions.all(), CutParams::default());
    assert!(batches.next_batch(Vec::new()).is_ok());
    for _ in 0..3 {
        let error = batches.next_batch(Vec::new()).expect_err("the rest is gone");
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}
