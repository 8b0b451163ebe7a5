//! Packers, called as `mksquashfs` calls them.

use std::fmt;

use flate2::{Compress, Compression, FlushCompress, Status};
use lzzzz::{lz4, lz4_hc};
use zstd::zstd_safe::{CCtx, CParameter};

use crate::cut::squashfs::Packing;
use crate::patch::view::error::RecipeError;
use crate::patch::view::reader::Reader;
use crate::patch::view::streams::{lzma2, xz};

/// Level of LZ4's slow mode: `LZ4HC_CLEVEL_MAX`.
const LZ4_HC_LEVEL: i32 = 12;

/// Levels of zlib and zstd that an image may have been made with, the likeliest first: 9 and 15 are
/// the defaults.
const GZIP_LEVELS: [u8; 9] = [9, 6, 8, 7, 5, 4, 3, 2, 1];
const ZSTD_LEVELS: [u8; 22] = [15, 22, 19, 3, 1, 9, 12, 10, 18, 20, 21, 16, 17, 2, 4, 5, 6, 7, 8, 11, 13, 14];

/// Log2 of the windows of zlib.
const WINDOW_BITS: std::ops::RangeInclusive<u8> = 9..=15;

/// Algorithm and settings with which a block is packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// zlib at a level, with log2 of the window.
    Gzip(u8, u8),
    /// liblzma, in a file of one block.
    Xz(lzma2::Setting),
    /// `LZ4_compress_default`, or `LZ4_compress_HC` at its highest level.
    Lz4(bool),
    /// zstd at a level.
    Zstd(u8),
}

impl Setting {
    /// Returns the settings to try for a packed block.
    pub(super) fn of(packing: Packing, block: &[u8]) -> Vec<Self> {
        match packing {
            Packing::Gzip => {
                let bits = block.first().map_or(0, |first| (first >> 4) + 8);
                let levels = GZIP_LEVELS.into_iter().filter(|_| WINDOW_BITS.contains(&bits));
                levels.map(|level| Self::Gzip(level, bits)).collect()
            }
            Packing::Xz => {
                let Some((chain, properties)) = xz::first_block(block) else { return Vec::new() };
                let of = |preset| lzma2::Setting { preset, properties, chain: chain.clone() };
                lzma2::PRESETS.into_iter().map(|preset| Self::Xz(of(preset))).collect()
            }
            Packing::Lz4 => vec![Self::Lz4(true), Self::Lz4(false)],
            Packing::Zstd => ZSTD_LEVELS.into_iter().map(Self::Zstd).collect(),
        }
    }

    /// Returns the setting for a block like one that this setting packed: xz blocks state filters
    /// and dictionary, and only the preset has to be known.
    pub(super) fn for_block(&self, block: &[u8]) -> Option<Self> {
        match self {
            Self::Xz(setting) => {
                let (chain, properties) = xz::first_block(block)?;
                Some(Self::Xz(lzma2::Setting { preset: setting.preset, properties, chain }))
            }
            other => Some(other.clone()),
        }
    }

    pub(super) fn take(packing: Packing, reader: &mut Reader<'_>) -> Result<Self, RecipeError> {
        const BAD: RecipeError = RecipeError::Damaged("a setting is out of bounds");
        Ok(match packing {
            Packing::Gzip => {
                let (level, bits) = (reader.expect_byte()?, reader.expect_byte()?);
                if !GZIP_LEVELS.contains(&level) || !WINDOW_BITS.contains(&bits) {
                    return Err(BAD);
                }
                Self::Gzip(level, bits)
            }
            Packing::Xz => Self::Xz(lzma2::Setting::take(reader)?),
            Packing::Lz4 => match reader.expect_byte()? {
                mode @ 0..=1 => Self::Lz4(mode == 1),
                _ => return Err(BAD),
            },
            Packing::Zstd => {
                let level = reader.expect_byte()?;
                if !ZSTD_LEVELS.contains(&level) {
                    return Err(BAD);
                }
                Self::Zstd(level)
            }
        })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Gzip(level, bits) => out.extend_from_slice(&[*level, *bits]),
            Self::Xz(setting) => setting.put(out),
            Self::Lz4(is_slow) => out.push(u8::from(*is_slow)),
            Self::Zstd(level) => out.push(*level),
        }
    }

    /// Memory to pack a block of `block` bytes, beside the block, bytes; an upper bound.
    pub(super) fn memory(&self, block: u64) -> u64 {
        match self {
            Self::Gzip(..) => 1 << 20,
            Self::Xz(setting) => setting.memory(),
            Self::Lz4(_) => 1 << 20,
            // The highest levels take 30 MB for a block of 1 MiB (hashes, chains, and the state of
            // the search for the best parse).
            Self::Zstd(_) => (6 << 20) + 24 * block,
        }
    }

    /// Bytes of content packed in a second by one core, about.
    pub(super) fn rate(&self) -> u64 {
        match self {
            Self::Gzip(7.., _) => 10_000_000,
            Self::Gzip(..) | Self::Lz4(_) => 30_000_000,
            Self::Xz(setting) => setting.rate(),
            Self::Zstd(..=9) => 30_000_000,
            Self::Zstd(10..=12) => 10_000_000,
            Self::Zstd(13..=17) => 3_000_000,
            Self::Zstd(_) => 1_000_000,
        }
    }
}

/// Packs blocks, one at a time, and keeps the state of the packers between them.
#[derive(Default)]
pub(super) struct Packer {
    zstd: Option<(u8, CCtx<'static>)>,
    gzip: Option<((u8, u8), Compress)>,
}

impl fmt::Debug for Packer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Packer")
    }
}

impl Packer {
    /// Packs `plain`, a block of at most `room` bytes, and writes the packed block to `out`. `None`
    /// if it does not fit into `room` bytes, or the setting is not known.
    pub(super) fn pack(
        &mut self,
        setting: &Setting,
        plain: &[u8],
        room: usize,
        out: &mut Vec<u8>,
    ) -> Option<()> {
        out.resize(room, 0);
        let made = match setting {
            Setting::Gzip(level, bits) => {
                let packer = match &mut self.gzip {
                    Some((of, packer)) if *of == (*level, *bits) => packer,
                    kept => {
                        let level_of = Compression::new(u32::from(*level));
                        let made = Compress::new_with_window_bits(level_of, true, *bits);
                        &mut kept.insert(((*level, *bits), made)).1
                    }
                };
                packer.reset();
                let status = packer.compress(plain, out, FlushCompress::Finish).ok()?;
                (status == Status::StreamEnd).then(|| packer.total_out() as usize)?
            }
            Setting::Xz(setting) => {
                let mut data = Vec::new();
                setting.packer()?.pack(plain, true, &mut data).ok()?;
                *out = xz::one_block(&data, plain, &setting.chain);
                out.len()
            }
            Setting::Lz4(false) => lz4::compress(plain, out, lz4::ACC_LEVEL_DEFAULT).ok()?,
            Setting::Lz4(true) => lz4_hc::compress(plain, out, LZ4_HC_LEVEL).ok()?,
            Setting::Zstd(level) => {
                let context = match &mut self.zstd {
                    Some((of, context)) if of == level => context,
                    kept => {
                        let mut context = CCtx::try_create()?;
                        context.set_parameter(CParameter::CompressionLevel(i32::from(*level))).ok()?;
                        &mut kept.insert((*level, context)).1
                    }
                };
                context.compress2(&mut out[..], plain).ok()?
            }
        };
        if made == 0 || made > room {
            return None;
        }
        out.truncate(made);
        Some(())
    }
}
