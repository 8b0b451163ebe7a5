//! Tests of pairing: each new chunk's base, and that every job can be done in its order.

use std::ops::Range;

use distd_core::ChunkHash;
use distd_core::bounds::{PATCH_BASE_BYTES_MAX, PATCH_PAYLOAD_BYTES_MAX};
use distd_core::cut::{Batches, CutParams, RegionKind, Regions};
use distd_core::patch::pair::{
    ChunkSpan, Need, Of, PairOptions, Patch, PatchJob, Side, build, large_memory, needs, pair,
};
use distd_core::patch::{Effort, LargePayload, decode, large_cost, rebuild_large};
use proptest::prelude::*;

const EFFORT: Effort = Effort { level: 3 };

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Changes one byte in 500.
fn touched(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().enumerate().map(|(at, byte)| byte.wrapping_add(u8::from(at % 500 == 7))).collect()
}

/// An artifact of named files.
struct Release {
    bytes: Vec<u8>,
    regions: Regions,
    chunks: Vec<ChunkSpan>,
}

impl Release {
    fn of(files: &[(&str, Vec<u8>)]) -> Self {
        let parts = files.iter().map(|(name, data)| {
            let (kind, name) = match *name {
                "" => (RegionKind::Metadata, None),
                name => (RegionKind::File, Some(name.as_bytes())),
            };
            (data.len() as u64, kind, name)
        });
        let regions = Regions::from_parts(parts).expect("small");
        let bytes: Vec<u8> = files.iter().flat_map(|(_, data)| data.clone()).collect();
        let mut chunks = Vec::new();
        let mut batches = Batches::new(&bytes, regions.all(), CutParams::default());
        while let Some(batch) = batches.next_batch(Vec::new()).expect("memory reads") {
            chunks.extend(batch.chunks().map(|chunk| ChunkSpan {
                offset: chunk.offset,
                len: chunk.data.len() as u32,
                hash: ChunkHash::of(chunk.data),
            }));
        }
        Self { bytes, regions, chunks }
    }

    fn side(&self) -> Side<'_, Vec<u8>> {
        Side { bytes: &self.bytes, regions: &self.regions, chunks: &self.chunks }
    }

    fn bytes_of(&self, chunks: &Range<u32>) -> &[u8] {
        let all = &self.chunks[chunks.start as usize..chunks.end as usize];
        let last = &all[all.len() - 1];
        &self.bytes[all[0].offset as usize..last.offset as usize + last.len as usize]
    }
}

/// Rebuilds a large target from its base and the pieces of its payload.
fn rebuild(mut base: Vec<u8>, coded: &[u8], len: usize) -> Vec<u8> {
    let cost = large_cost(base.len() as u64, coded.len() as u64, len as u64).expect("a class");
    let payload = LargePayload::new(coded);
    payload.pieces.iter().for_each(|piece| base.extend_from_slice(piece));
    let mut out = Vec::new();
    let mut sink = |bytes: &[u8]| {
        out.extend_from_slice(bytes);
        Ok(())
    };
    rebuild_large(&base, &payload.own, len as u64, cost.memory(), &mut sink).expect("no I/O").expect("sound");
    out
}

struct Outcome {
    jobs: Vec<PatchJob>,
    patches: Vec<Patch>,
    /// Bytes of wanted chunks that no patch rebuilds.
    left: usize,
}

impl Outcome {
    fn payload(&self) -> usize {
        self.patches.iter().map(|patch| patch.payload.len()).sum()
    }
}

/// Pairs and builds patches, then rebuilds as a device does: a new chunk is only available once a
/// patch or a fetch brought it.
fn update(old: &Release, new: &Release, options: PairOptions) -> Outcome {
    let needs = needs(&old.chunks, &new.chunks);
    let jobs = pair(old.side(), new.side(), &needs, options).expect("memory reads");
    let mut ready: Vec<bool> = needs.iter().map(|need| *need == Need::Held).collect();
    let mut left: Vec<bool> = needs.iter().map(|need| *need == Need::Wanted).collect();
    let mut patches = Vec::new();
    for job in &jobs {
        let base: u64 = job
            .bases
            .iter()
            .map(|span| match span.of {
                Of::Old => old.bytes_of(&span.chunks).len() as u64,
                Of::New => new.bytes_of(&span.chunks).len() as u64,
            })
            .sum();
        let target: usize = job.targets.iter().map(|range| new.bytes_of(range).len()).sum();
        if job.large {
            assert!(large_memory(base, target as u64) <= options.large_memory_max);
        } else {
            assert!(base <= options.base_bytes_max as u64 && target <= options.target_bytes_max);
        }
        let built = build(job, old.side(), new.side(), EFFORT).expect("memory reads");
        for patch in &built {
            assert!(patch.large || patch.payload.len() <= PATCH_PAYLOAD_BYTES_MAX);
            let mut base = Vec::new();
            for span in &patch.bases {
                base.extend_from_slice(match span.of {
                    Of::Old => old.bytes_of(&span.chunks),
                    Of::New => {
                        assert!(
                            span.chunks.clone().all(|index| ready[index as usize]),
                            "a base comes too late"
                        );
                        new.bytes_of(&span.chunks)
                    }
                });
            }
            let target: Vec<u8> =
                patch.targets.iter().flat_map(|range| new.bytes_of(range).to_vec()).collect();
            let rebuilt = if patch.large {
                rebuild(base, &patch.payload, target.len())
            } else {
                decode(patch.codec, &base, &patch.payload, target.len()).expect("sound")
            };
            assert!(rebuilt == target);
            for index in patch.targets.iter().cloned().flatten() {
                assert!(std::mem::take(&mut left[index as usize]), "rebuilt twice, or not wanted");
            }
        }
        // Targets that no patch of the job rebuilds are fetched as chunks, at any time.
        job.targets.iter().cloned().flatten().for_each(|index| ready[index as usize] = true);
        patches.extend(built);
    }
    assert!(
        needs.iter().zip(&ready).all(|(need, ready)| *ready || *need == Need::Other),
        "a wanted chunk is in no job"
    );
    let left =
        new.chunks.iter().zip(&left).filter(|(_, left)| **left).map(|(chunk, _)| chunk.len as usize).sum();
    Outcome { jobs, patches, left }
}

fn only(by_name: bool, by_content: bool) -> PairOptions {
    PairOptions { by_name, by_content, ..PairOptions::default() }
}

/// Compares the bytes on the wire with and without a rule, for a release with one file that needs
/// the rule.
fn gain(old: (&str, Vec<u8>), new: (&str, Vec<u8>), with: PairOptions, without: PairOptions) {
    let other = noise(300_000, 99);
    let len = new.1.len();
    let old = Release::of(&[("etc/other", other.clone()), old]);
    let new = Release::of(&[new, ("etc/other", other)]);
    let cost = |options| {
        let outcome = update(&old, &new, options);
        outcome.payload() + outcome.left
    };
    assert!(cost(with) < len / 4, "with the rule: {} of {len}", cost(with));
    assert!(cost(without) > len / 2, "without the rule: {} of {len}", cost(without));
}

#[test]
fn a_file_of_the_same_name_is_the_base() {
    // The file is too short and changes too often for an anchor. Only its name points to its base.
    let old = noise(600, 1);
    gain(("a/b", old.clone()), ("a/b", touched(&old)), only(true, false), only(false, true));
}

#[test]
fn a_file_whose_name_has_another_version_is_the_base() {
    let old = noise(600, 1);
    gain(
        ("usr/lib/modules/6.12.41+deb13-amd64/x.ko", old.clone()),
        ("usr/lib/modules/6.12.48+deb13-amd64/x.ko", touched(&old)),
        only(true, false),
        only(false, true),
    );
}

#[test]
fn a_file_of_like_content_and_another_name_is_the_base() {
    let old = noise(200_000, 2);
    gain(("opt/first", old.clone()), ("srv/second", touched(&old)), only(false, true), only(true, false));
}

#[test]
fn a_namesake_with_other_content_does_not_hide_the_file_that_moved() {
    let moved = noise(200_000, 3);
    let old = Release::of(&[("a", moved.clone()), ("b", noise(200_000, 4))]);
    let new = Release::of(&[("b", touched(&moved))]);
    assert!(update(&old, &new, PairOptions::default()).payload() < 20_000);
}

#[test]
fn structures_of_the_file_system_are_base_for_their_successors() {
    let old = noise(50_000, 5);
    let new: Vec<u8> = old.chunks(32).flat_map(|inode| [&[inode[0] ^ 1][..], &inode[1..]].concat()).collect();
    gain(("", old), ("", new), only(true, false), only(false, true));
}

#[test]
fn rebuilt_chunks_are_bases_for_later_ones() {
    let fresh = noise(100_000, 6);
    let old = Release::of(&[("x", noise(50_000, 7))]);
    let new = Release::of(&[("a", fresh.clone()), ("x", noise(50_000, 7)), ("z", touched(&fresh))]);
    let outcome = update(&old, &new, PairOptions::default());
    // "a" is new noise and is left over. "z" is built from it.
    assert!(outcome.payload() + outcome.left < 120_000, "{} {}", outcome.payload(), outcome.left);
    assert!(outcome.jobs.iter().any(|job| job.bases.iter().any(|span| span.of == Of::New)));
}

#[test]
fn a_file_inside_a_view_meets_the_file_of_the_image() {
    let module = noise(700, 8);
    let old = Release::of(&[("boot/initrd-1//usr/x.ko", noise(700, 9)), ("usr/x.ko", noise(700, 10))]);
    let new = Release::of(&[("usr/x.ko", module.clone()), ("boot/initrd-2//usr/x.ko", touched(&module))]);
    let outcome = update(&old, &new, PairOptions::default());
    assert!(outcome.payload() + outcome.left < 1000, "{} {}", outcome.payload(), outcome.left);
}

#[test]
fn many_new_files_share_solid_segments() {
    let text =
        |n: usize| format!("# configuration {n}\n{}", "key = value of some length\n".repeat(5)).into_bytes();
    let names: Vec<String> = (0..300).map(|n| format!("etc/conf.d/{n}.conf")).collect();
    let files: Vec<_> = names.iter().enumerate().map(|(n, name)| (name.as_str(), text(n))).collect();
    let new = Release::of(&files);
    let outcome = update(&Release::of(&[("x", noise(5000, 1))]), &new, PairOptions::default());
    // One file may be close enough to another to be built from it.
    assert!(outcome.jobs.len() <= 2 && outcome.left == 0);
    assert!(outcome.payload() * 20 < new.bytes.len(), "{} of {}", outcome.payload(), new.bytes.len());
}

#[test]
fn a_long_file_gets_windows_where_its_content_was() {
    let old = noise(40 << 20, 11);
    // Everything moves back by 3 MiB.
    let new = [noise(3 << 20, 12), touched(&old[..30 << 20])].concat();
    let (old, new) = (Release::of(&[("big", old)]), Release::of(&[("big", new)]));
    let outcome = update(&old, &new, PairOptions::default());
    assert!(outcome.left < (3 << 20) + (1 << 18), "{}", outcome.left);
    assert!(outcome.payload() < 2 << 20, "{}", outcome.payload());
}

#[test]
fn a_large_file_is_one_job_if_there_is_memory_and_its_payload_may_be_longer_than_a_chunk() {
    let old = noise(5 << 20, 13);
    let new = [&touched(&old[2 << 20..])[..], &noise(3 << 19, 14), &old[..2 << 20]].concat();
    let other = noise(100_000, 15);
    let memory = large_memory(old.len() as u64, new.len() as u64);
    let (old, new) = (
        Release::of(&[("lib/big-1", old.clone()), ("a", other.clone())]),
        Release::of(&[("lib/big-2", new.clone()), ("a", touched(&other))]),
    );
    let options = |memory| PairOptions {
        target_bytes_max: 3 << 19,
        base_bytes_max: 4 << 20,
        large_memory_max: memory,
        ..PairOptions::default()
    };
    let outcome = update(&old, &new, options(memory));
    assert_eq!(outcome.jobs.iter().map(|job| job.large).collect::<Vec<_>>(), [true, false]);
    let large = outcome.patches.iter().find(|patch| patch.large).expect("a large patch");
    assert!(large.payload.len() > PATCH_PAYLOAD_BYTES_MAX && outcome.left == 0);
    // The old release has the chunks of the part that moved to the end of the file.
    let wanted = outcome.jobs[0].targets.iter().map(|range| new.bytes_of(range).len()).sum::<usize>();
    let less = large_memory(5 << 20, wanted as u64) - 1;
    assert!(update(&old, &new, options(less)).jobs.iter().all(|job| !job.large));
}

#[test]
fn a_job_above_the_limits_or_outside_the_release_is_an_error() {
    let release = Release::of(&[("a", noise(PATCH_BASE_BYTES_MAX + (1 << 20), 1))]);
    let all = 0..release.chunks.len() as u32;
    for targets in [all.clone(), 0..u32::MAX, u32::MAX - 1..u32::MAX] {
        let job = PatchJob { targets: vec![targets], ..PatchJob::default() };
        assert!(build(&job, release.side(), release.side(), EFFORT).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_wanted_chunk_is_in_one_job_and_every_base_comes_first(
        old in prop::collection::vec((0usize..6, 1usize..9000, 0u64..5), 0..12),
        new in prop::collection::vec((0usize..6, 1usize..9000, 0u64..5, any::<bool>()), 1..12),
        target_kib in 16usize..40, base_kib in 1usize..64,
    ) {
        let names = ["", "a", "b-1.2", "b-1.3", "v//a", "v//"];
        let old: Vec<_> = old.iter().map(|(name, len, seed)| (names[*name], noise(*len, *seed))).collect();
        let new: Vec<_> = new
            .iter()
            .map(|(name, len, seed, touch)| {
                let bytes = noise(*len, *seed);
                (names[*name], if *touch { touched(&bytes) } else { bytes })
            })
            .collect();
        let options = PairOptions {
            target_bytes_max: target_kib << 10,
            base_bytes_max: base_kib << 10,
            ..PairOptions::default()
        };
        let (old, new) = (Release::of(&old), Release::of(&new));
        let outcome = update(&old, &new, options);
        let again = update(&old, &new, options);
        prop_assert!(outcome.jobs == again.jobs && outcome.patches == again.patches);
    }
}
