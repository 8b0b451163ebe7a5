//! Packers, called as `mkfs.erofs` calls them.

use libdeflater::{CompressionLvl, Compressor};
use lzzzz::{lz4, lz4_hc};
use zstd::zstd_safe::{CCtx, CParameter};

use crate::cut::erofs::Coding;

/// Bytes beyond the length of a cluster that mkfs.erofs gives to packers that do not stop early.
const ROOM: usize = 32;

/// Log2 of the longest zstd window that an image may ask for: with it, the slowest level takes some
/// 20 MB of memory.
pub(super) const ZSTD_WINDOW_BITS_MAX: u8 = 20;

/// Algorithm and level with which a cluster is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// `LZ4_compress_destSize`, LZ4's fast mode.
    Lz4,
    /// `LZ4_compress_HC_destSize` at this level.
    Lz4Hc(u8),
    /// libdeflate at this level.
    Deflate(u8),
    /// zstd at this level.
    Zstd(i8),
}

// Levels that an image may have been made with, the likeliest first; 0 is LZ4's fast mode. LZ4 at
// level 2 and below is not tried: its output has changed since most images were made. By default
// mkfs.erofs takes level 1 for libdeflate and -1 for zstd.
const LZ4_LEVELS: [u8; 11] = [9, 0, 12, 11, 10, 8, 7, 6, 5, 4, 3];
const DEFLATE_LEVELS: [u8; 12] = [1, 12, 9, 6, 8, 7, 11, 10, 5, 4, 3, 2];
const ZSTD_LEVELS: [i8; 23] =
    [-1, 3, 19, 22, 15, 12, 9, 6, 1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 18, 20, 21];

/// Numbers of settings: 0 is LZ4's fast mode, 3…12 are its slow modes. The numbers behind
/// `DEFLATE_FROM` are libdeflate's levels; `ZSTD_FROM` plus the level is zstd, from −1 on.
const DEFLATE_FROM: u8 = 32;
const ZSTD_FROM: u8 = 65;

impl Setting {
    /// Returns the settings to try for clusters of an algorithm.
    pub(super) fn of(coding: Coding) -> Vec<Self> {
        match coding {
            Coding::Lz4 => {
                LZ4_LEVELS.map(|level| if level == 0 { Self::Lz4 } else { Self::Lz4Hc(level) }).to_vec()
            }
            Coding::Deflate => DEFLATE_LEVELS.map(Self::Deflate).to_vec(),
            Coding::Zstd => ZSTD_LEVELS.map(Self::Zstd).to_vec(),
            Coding::Lzma | Coding::Shifted | Coding::Interlaced => Vec::new(),
        }
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        let setting = match number {
            0 => Self::Lz4,
            3..=12 => Self::Lz4Hc(number),
            33..=44 => Self::Deflate(number - DEFLATE_FROM),
            64 | 66..=87 => Self::Zstd((number.wrapping_sub(ZSTD_FROM)) as i8),
            _ => return None,
        };
        Some(setting)
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Self::Lz4 => 0,
            Self::Lz4Hc(level) => level,
            Self::Deflate(level) => DEFLATE_FROM + level,
            Self::Zstd(level) => ZSTD_FROM.wrapping_add_signed(level),
        }
    }

    /// Returns whether the packer packs everything it is given, or nothing. Other packers take as
    /// much as fits.
    pub(super) fn takes_all(self) -> bool {
        matches!(self, Self::Deflate(_) | Self::Zstd(_))
    }
}

/// Packs clusters, one at a time, and keeps the state of the packers between them.
#[derive(Default)]
pub(super) struct Packer {
    zstd: Option<((i8, u8), CCtx<'static>)>,
    deflate: Option<(u8, Compressor)>,
}

impl Packer {
    /// Packs as much of `plain` as fits into `capacity` bytes, and writes it to `out`. Returns the
    /// bytes taken and the bytes made. `None` if nothing fits. A setting that [takes
    /// all](Setting::takes_all) may make up to [`ROOM`] bytes more than `capacity`; `None` if even
    /// then not all of `plain` fits. `window_bits` is log2 of zstd's window, at most
    /// [`ZSTD_WINDOW_BITS_MAX`].
    pub(super) fn fill(
        &mut self,
        setting: Setting,
        window_bits: u8,
        plain: &[u8],
        capacity: usize,
        out: &mut Vec<u8>,
    ) -> Option<(usize, usize)> {
        out.resize(if setting.takes_all() { capacity + ROOM } else { capacity }, 0);
        let (taken, made) = match setting {
            Setting::Lz4 => lz4::compress_fill(plain, out).ok()?,
            Setting::Lz4Hc(level) => lz4_hc::compress_fill(plain, out, i32::from(level)).ok()?,
            Setting::Deflate(level) => {
                let compressor = match &mut self.deflate {
                    Some((of, compressor)) if *of == level => compressor,
                    kept => {
                        let level_of = CompressionLvl::new(i32::from(level)).ok()?;
                        &mut kept.insert((level, Compressor::new(level_of))).1
                    }
                };
                (plain.len(), compressor.deflate_compress(plain, out).ok()?)
            }
            Setting::Zstd(level) => {
                let context = match &mut self.zstd {
                    Some((of, context)) if *of == (level, window_bits) => context,
                    kept => {
                        let mut context = CCtx::try_create()?;
                        context.set_parameter(CParameter::CompressionLevel(i32::from(level))).ok()?;
                        if window_bits > 0 {
                            context.set_parameter(CParameter::WindowLog(u32::from(window_bits))).ok()?;
                        }
                        &mut kept.insert(((level, window_bits), context)).1
                    }
                };
                (plain.len(), context.compress2(&mut out[..], plain).ok()?)
            }
        };
        (taken > 0 && made > 0).then_some((taken, made))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_number_of_its_own() {
        let algorithms = [Coding::Lz4, Coding::Deflate, Coding::Zstd];
        let all: Vec<Setting> = algorithms.into_iter().flat_map(Setting::of).collect();
        for setting in &all {
            assert_eq!(Setting::from_number(setting.number()), Some(*setting));
        }
        let known = (0..=255).filter(|number| Setting::from_number(*number).is_some()).count();
        assert_eq!(known, all.len());
    }
}
