//! Decompression of clusters.

use lzzzz::lz4;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use zstd::zstd_safe::get_frame_content_size;

use super::Coding;

/// Longest zstd frame, in unpacked bytes, of which only the front is unpacked. Extents that share a
/// front are short.
const SHARED_MAX: u64 = 4 << 20;

/// Decompressor for clusters, one at a time. Supports every algorithm but MicroLZMA, whose decoder
/// has no safe binding.
pub(crate) struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
    inflate: Box<DecompressorOxide>,
    /// Buffer for a zstd frame of which only the front is wanted.
    scratch: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            zstd: zstd::bulk::Decompressor::new().expect("a zstd context needs only memory"),
            inflate: Box::default(),
            scratch: Vec::new(),
        }
    }
}

impl Decoder {
    /// Unpacks a cluster, with or without zeros in front, until `out` is full or the cluster is
    /// used up. Returns the number of bytes written to `out`; `None` if the cluster is damaged or
    /// its coding is not supported here.
    pub(crate) fn unpack(&mut self, coding: Coding, cluster: &[u8], out: &mut [u8]) -> Option<usize> {
        // No stream of these algorithms begins with a zero: in LZ4 that would be a match with
        // nothing before it, and packers make sure that no deflate stream begins so.
        let front = cluster.iter().take_while(|byte| **byte == 0).count();
        let packed = &cluster[front..];
        let len = out.len();
        match coding {
            Coding::Lz4 => lz4::decompress_partial(packed, out, len).ok(),
            Coding::Zstd => {
                let whole = get_frame_content_size(packed).ok()?.unwrap_or(0);
                if whole <= len as u64 {
                    return self.zstd.decompress_to_buffer(packed, out).ok();
                }
                // The zstd decoder cannot stop early, so unpack the whole frame.
                self.scratch.resize(usize::try_from(whole).ok().filter(|_| whole <= SHARED_MAX)?, 0);
                self.zstd.decompress_to_buffer(packed, &mut self.scratch[..]).ok()?;
                out.copy_from_slice(&self.scratch[..len]);
                Some(len)
            }
            Coding::Deflate => {
                self.inflate.init();
                let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
                let (status, _, made) = decompress(&mut self.inflate, packed, out, 0, flags);
                matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput).then_some(made)
            }
            Coding::Lzma | Coding::Shifted | Coding::Interlaced => None,
        }
    }
}
