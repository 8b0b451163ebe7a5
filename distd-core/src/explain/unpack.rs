//! Content of compressed files in an EROFS image, one extent at a time.

use std::io;

use crate::cut::ReadAt;
use crate::cut::erofs::{Coding, Decoder, EXTENT_BYTES_MAX, Extent, ExtentData, PackedFile, Reader};

/// Most extents of the packed inode kept in memory, 64 bytes each. Files that end behind these
/// extents count as not unpacked.
const FRAGMENT_EXTENTS_MAX: usize = 1 << 18;

/// Most content unpacked, per byte of the artifact; further files count as not unpacked. LZ4
/// reaches at most 255, real images reach three.
const CONTENT_PER_BYTE: u64 = 64;

/// Reason why a file's content is not available.
#[derive(Debug)]
pub(super) enum ContentError {
    /// The artifact could not be read.
    Read(io::Error),
    /// The content does not unpack, or not with the decoders built in.
    NotUnpacked,
}

/// Unpacks files of one image. Holds one cluster, one extent, and one extent of the packed inode.
pub(super) struct Unpacker<'r, 'a, R: ReadAt + ?Sized> {
    artifact: &'a R,
    reader: &'r Reader<'a, R>,
    decoder: Decoder,
    cluster: Vec<u8>,
    /// Extents of the packed inode, read at the first fragment.
    fragments: Option<Vec<Extent>>,
    /// Index and content of the extent of the packed inode that was unpacked last.
    fragment: (Option<usize>, Vec<u8>),
    left: u64,
}

impl<'r, 'a, R: ReadAt + ?Sized> Unpacker<'r, 'a, R> {
    /// Creates an unpacker; `None` if the parameters of the image's algorithms do not parse.
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

    /// Calls `each` with the content of `file` in order, in pieces of at most [`EXTENT_BYTES_MAX`].
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

    /// Passes a range of the packed inode's content to `each`.
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
