//! The content of compressed files in an EROFS image, an extent at a time.

use std::io;

use crate::cut::ReadAt;
use crate::cut::erofs::{Coding, Decoder, EXTENT_BYTES_MAX, Extent, ExtentData, PackedFile, Reader};

/// Most extents of the packed inode kept in memory, 64 bytes each. Files that end behind them count as not unpacked.
const FRAGMENT_EXTENTS_MAX: usize = 1 << 18;

/// Most content unpacked, per byte of the artifact. LZ4 cannot do more than 255, real images do three; beyond it
/// the rest counts as not unpacked.
const CONTENT_PER_BYTE: u64 = 64;

/// Why a file's content is not to be had.
#[derive(Debug)]
pub(super) enum ContentError {
    /// The artifact could not be read.
    Read(io::Error),
    /// It does not unpack, or not with what is built in.
    NotUnpacked,
}

/// Unpacks files of one image. Holds one cluster and one extent, and one more of the packed inode.
pub(super) struct Unpacker<'r, 'a, R: ReadAt + ?Sized> {
    artifact: &'a R,
    reader: &'r Reader<'a, R>,
    decoder: Decoder,
    cluster: Vec<u8>,
    /// Extents of the packed inode, once one was asked for.
    fragments: Option<Vec<Extent>>,
    /// The one of them that is unpacked.
    fragment: (Option<usize>, Vec<u8>),
    left: u64,
}

impl<'r, 'a, R: ReadAt + ?Sized> Unpacker<'r, 'a, R> {
    /// `None` if the image's algorithms are not known.
    pub(super) fn new(artifact: &'a R, reader: &'r Reader<'a, R>) -> Option<Self> {
        reader.codecs()?;
        Some(Self {
            artifact,
            reader,
            decoder: Decoder::default(),
            cluster: Vec::new(),
            fragments: None,
            fragment: (None, Vec::new()),
            left: artifact.len().saturating_mul(CONTENT_PER_BYTE).saturating_add(EXTENT_BYTES_MAX),
        })
    }

    /// Hands out the content of `file` in order, in pieces of at most [`EXTENT_BYTES_MAX`].
    pub(super) fn content(
        &mut self,
        file: &PackedFile<'_, '_, R>,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), ContentError> {
        self.left = self.left.checked_sub(file.size()).ok_or(ContentError::NotUnpacked)?;
        let mut out = Vec::new();
        for extent in file.extents().map_err(|_| ContentError::NotUnpacked)? {
            let extent = extent.map_err(|_| ContentError::NotUnpacked)?;
            match extent.data {
                ExtentData::Fragment { offset } => self.fragment(offset, extent.len, &mut each)?,
                ExtentData::Cluster { .. } => {
                    self.extent(&extent, &mut out)?;
                    each(&out);
                }
            }
        }
        Ok(())
    }

    /// A part of the packed inode's content.
    fn fragment(&mut self, mut at: u64, len: u64, each: &mut impl FnMut(&[u8])) -> Result<(), ContentError> {
        if self.fragments.is_none() {
            let packed = self.reader.packed_nid().and_then(|nid| self.reader.packed_file(nid));
            let extents = packed.and_then(|file| file.extents().ok());
            let found = extents.into_iter().flatten().map_while(Result::ok).take(FRAGMENT_EXTENTS_MAX);
            self.fragments = Some(found.collect());
        }
        let extents = self.fragments.take().unwrap_or_default();
        let (mut left, mut unpacked) = (len, std::mem::take(&mut self.fragment.1));
        let result = loop {
            if left == 0 {
                break Ok(());
            }
            let index = extents.partition_point(|extent| extent.start + extent.len <= at);
            let Some(extent) = extents.get(index) else { break Err(ContentError::NotUnpacked) };
            if self.fragment.0 != Some(index) {
                self.fragment.0 = None;
                // A fragment in the packed inode itself would be a cycle; `extent` refuses it.
                if let Err(error) = self.extent(extent, &mut unpacked) {
                    break Err(error);
                }
                self.fragment.0 = Some(index);
            }
            let from = (at - extent.start) as usize;
            let count = left.min(extent.len - from as u64);
            each(&unpacked[from..from + count as usize]);
            at += count;
            left -= count;
        };
        self.fragment.1 = unpacked;
        self.fragments = Some(extents);
        result
    }

    /// Puts the content of one extent into `out`.
    fn extent(&mut self, extent: &Extent, out: &mut Vec<u8>) -> Result<(), ContentError> {
        let ExtentData::Cluster { start, len, coding, .. } = extent.data else {
            return Err(ContentError::NotUnpacked);
        };
        self.cluster.resize(len as usize, 0);
        self.artifact.read_exact_at(&mut self.cluster, start).map_err(ContentError::Read)?;
        let want = extent.len as usize;
        out.clear();
        let unpacked = match coding {
            Coding::Shifted => self.cluster.get(..want).map(|bytes| out.extend_from_slice(bytes)),
            Coding::Interlaced => {
                let block = self.reader.block_bytes() as usize;
                let turned = (extent.start % block as u64) as usize;
                let whole = self.cluster.get(..block).filter(|_| want <= block);
                whole.map(|bytes| out.extend((0..want).map(|index| bytes[(turned + index) % block])))
            }
            _ => {
                out.resize(want, 0);
                self.decoder.unpack(coding, &self.cluster, out).filter(|len| *len == want).map(drop)
            }
        };
        unpacked.ok_or(ContentError::NotUnpacked)
    }
}
