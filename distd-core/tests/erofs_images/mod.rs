//! Shared parts of the tests of EROFS images: trees, `mkfs.erofs` (Debian: erofs-utils), hand-made
//! images.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use distd_core::cut::Regions;

/// Reproducible noise (SplitMix64).
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// Bytes of each file, by path.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

pub(crate) fn mkfs(options: &[&str], tree: &Path, image: &Path) -> Vec<u8> {
    try_mkfs(options, tree, image).unwrap_or_else(|message| panic!("mkfs.erofs {options:?}: {message}"))
}

/// Makes an image; the error is the message of mkfs if it refuses the options. Newer versions know
/// more options.
pub(crate) fn try_mkfs(options: &[&str], tree: &Path, image: &Path) -> Result<Vec<u8>, String> {
    try_mkfs_of("mkfs.erofs".as_ref(), options, tree, image)
}

/// Returns a `mkfs.erofs` with every algorithm: the one that `DISTD_TEST_NEWER_MKFS` names, which
/// `tests/run.sh` sets.
pub(crate) fn newer_mkfs() -> Option<PathBuf> {
    let named = std::env::var_os("DISTD_TEST_NEWER_MKFS").map(PathBuf::from);
    if named.is_none() {
        eprintln!("NOT RUN: set DISTD_TEST_NEWER_MKFS to a mkfs.erofs that knows zstd; tests/run.sh does");
    }
    named
}

pub(crate) fn try_mkfs_of(
    program: &Path,
    options: &[&str],
    tree: &Path,
    image: &Path,
) -> Result<Vec<u8>, String> {
    let output = Command::new(program)
        .args(["-T1700000000", "-U11111111-2222-3333-4444-555555555555"])
        .args(options)
        .args([image, tree])
        .output()
        .expect("these tests run mkfs.erofs: install erofs-utils");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(fs::read(image).expect("mkfs.erofs left an image"))
}

pub(crate) fn assert_covers(regions: &Regions, len: usize, what: &str) {
    let mut at = 0;
    for region in regions.all() {
        assert_eq!(region.start, at, "{what}");
        assert!(region.len > 0, "{what}");
        at = region.end();
    }
    assert_eq!(at, len as u64, "{what}");
}

/// Makes an image of 4 KiB blocks by hand: a superblock, the given inodes (compact, 32 bytes each,
/// from byte 4096 on; the first is the root), then `blocks` from block 16 on.
pub(crate) fn forged(inodes: &[[u8; 32]], blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut image = vec![0; 16 * 4096];
    image[1024..1028].copy_from_slice(&0xe0f5_e1e2u32.to_le_bytes());
    image[1024 + 12] = 12;
    image[1024 + 14..1024 + 16].copy_from_slice(&128u16.to_le_bytes());
    for (index, inode) in inodes.iter().enumerate() {
        image[4096 + 32 * index..][..32].copy_from_slice(inode);
    }
    for block in blocks {
        image.extend_from_slice(block);
        image.resize(image.len().next_multiple_of(4096), 0);
    }
    let total = (image.len() / 4096) as u32;
    image[1024 + 36..1024 + 40].copy_from_slice(&total.to_le_bytes());
    image
}

pub(crate) fn inode(mode: u16, layout: u16, size: u32, data: u32) -> [u8; 32] {
    let mut raw = [0; 32];
    raw[0..2].copy_from_slice(&(layout << 1).to_le_bytes());
    raw[4..6].copy_from_slice(&mode.to_le_bytes());
    raw[6] = 1;
    raw[8..12].copy_from_slice(&size.to_le_bytes());
    raw[16..20].copy_from_slice(&data.to_le_bytes());
    raw
}

pub(crate) fn directory(entries: &[(&str, u64, u8)]) -> Vec<u8> {
    let mut block = Vec::new();
    let mut name_at = 12 * entries.len();
    for (name, nid, kind) in entries {
        block.extend_from_slice(&nid.to_le_bytes());
        block.extend_from_slice(&(name_at as u16).to_le_bytes());
        block.extend_from_slice(&[*kind, 0]);
        name_at += name.len();
    }
    entries.iter().for_each(|(name, ..)| block.extend_from_slice(name.as_bytes()));
    block
}

pub(crate) const DIR: u16 = 0o40755;
pub(crate) const FILE: u16 = 0o100_644;
