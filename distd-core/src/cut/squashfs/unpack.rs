//! Unpacking of blocks.

use liblzma::stream::{Action, Status, Stream};
use lzzzz::lz4;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_PARSE_ZLIB_HEADER, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::Packing;

/// Most memory of the decoder of xz, bytes: the longest dictionary, which is a block of 1 MiB, and
/// its state.
const XZ_MEMORY_MAX: u64 = 4 << 20;

/// Decoder of blocks, one at a time.
pub(crate) struct Unpacker {
    packing: Packing,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    inflate: Box<DecompressorOxide>,
}

impl Unpacker {
    pub(crate) fn new(packing: Packing) -> Self {
        Self { packing, zstd: None, inflate: Box::default() }
    }

    /// Unpacks a block to the front of `out`. Returns the number of bytes; `None` if the block is
    /// damaged, is more than fits into `out`, or has bytes behind its end.
    pub(crate) fn unpack(&mut self, block: &[u8], out: &mut [u8]) -> Option<usize> {
        match self.packing {
            Packing::Gzip => {
                self.inflate.init();
                let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF | TINFL_FLAG_PARSE_ZLIB_HEADER;
                let (status, taken, made) = decompress(&mut self.inflate, block, out, 0, flags);
                (status == TINFLStatus::Done && taken == block.len()).then_some(made)
            }
            Packing::Xz => {
                let mut stream = Stream::new_stream_decoder(XZ_MEMORY_MAX, 0).ok()?;
                let status = stream.process(block, out, Action::Finish).ok()?;
                let whole = matches!(status, Status::StreamEnd) && stream.total_in() == block.len() as u64;
                whole.then_some(stream.total_out() as usize)
            }
            Packing::Lz4 => lz4::decompress(block, out).ok(),
            Packing::Zstd => {
                let decoder = match &mut self.zstd {
                    Some(decoder) => decoder,
                    none => none.insert(zstd::bulk::Decompressor::new().ok()?),
                };
                decoder.decompress_to_buffer(block, out).ok()
            }
        }
    }
}
