//! Segment files. Records are appended and read by offset; a file is removed as a whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use distd_core::ChunkHash;

use super::StoreError;
use super::index::Location;
use super::record::{HEADER_BYTES, Header};

/// Number of a segment. Numbers only grow, so their order is the order of age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentId(pub(super) u32);

impl SegmentId {
    pub(super) fn next(self) -> Self {
        Self(self.0 + 1)
    }

    fn path(self, dir: &Path) -> PathBuf {
        dir.join(format!("{:08}.seg", self.0))
    }
}

/// Result of a scan of a segment from a given offset.
pub(super) struct Scan {
    pub(super) found: Vec<(ChunkHash, Location)>,
    /// Length up to which all records are complete.
    pub(super) good_len: u64,
    /// Number of bytes after `good_len`.
    pub(super) torn_bytes: u64,
}

/// An open segment file.
pub(super) struct Segment {
    id: SegmentId,
    path: PathBuf,
    file: File,
    len: u64,
}

impl Segment {
    pub(super) fn create(dir: &Path, id: SegmentId) -> Result<Self, StoreError> {
        let path = id.path(dir);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(StoreError::io("create", &path))?;
        File::open(dir).and_then(|d| d.sync_all()).map_err(StoreError::io("sync", dir))?;
        Ok(Self { id, path, file, len: 0 })
    }

    pub(super) fn open(dir: &Path, id: SegmentId) -> Result<Self, StoreError> {
        let path = id.path(dir);
        let file =
            OpenOptions::new().read(true).write(true).open(&path).map_err(StoreError::io("open", &path))?;
        let len = file.metadata().map_err(StoreError::io("stat", &path))?.len();
        Ok(Self { id, path, file, len })
    }

    pub(super) fn id(&self) -> SegmentId {
        self.id
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends a record and returns the offset of its packed bytes. A failed write leaves `len`
    /// unchanged, so the next record overwrites the torn one.
    pub(super) fn append(&mut self, header: &Header, bytes: &[u8]) -> Result<u64, StoreError> {
        let mut record = Vec::with_capacity(HEADER_BYTES + bytes.len());
        record.extend_from_slice(&header.encode());
        record.extend_from_slice(bytes);
        self.file.write_all_at(&record, self.len).map_err(StoreError::io("write", &self.path))?;
        let offset = self.len + HEADER_BYTES as u64;
        self.len += record.len() as u64;
        Ok(offset)
    }

    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(StoreError::io("sync", &self.path))
    }

    pub(super) fn truncate(&mut self, len: u64) -> Result<(), StoreError> {
        self.file.set_len(len).map_err(StoreError::io("truncate", &self.path))?;
        self.len = len;
        Ok(())
    }

    /// Reads the records from offset `from` on and skips damaged ones. Stops at a torn tail.
    pub(super) fn scan(&mut self, from: u64) -> Result<Scan, StoreError> {
        let mut at = from.min(self.len);
        let mut found = Vec::new();
        while self.len - at >= HEADER_BYTES as u64 {
            let mut head = [0; HEADER_BYTES];
            self.file.read_exact_at(&mut head, at).map_err(StoreError::io("read", &self.path))?;
            let Some(header) = Header::decode(&head) else { break };
            let end = at + HEADER_BYTES as u64 + u64::from(header.stored_len);
            if end > self.len {
                break;
            }
            let location = Location { segment: self.id, offset: at + HEADER_BYTES as u64, header };
            let mut bytes = vec![0; header.stored_len as usize];
            self.file
                .read_exact_at(&mut bytes, location.offset)
                .map_err(StoreError::io("read", &self.path))?;
            let whole = header.rot_check.passes(&bytes);
            if !whole && end == self.len {
                // The last record was only partly written.
                break;
            }
            if whole {
                found.push((header.hash, location));
            }
            at = end;
        }
        Ok(Scan { found, good_len: at, torn_bytes: self.len - at })
    }
}

/// Maximum number of bytes read in one go. Larger buffers would be allocated from the system anew
/// each time.
const RUN_BYTES: u64 = 128 << 10;

/// Maximum gap between two records' packed bytes that is read and discarded instead of skipped.
const GAP_BYTES: u64 = 4096;

/// Number of locations, from the first one on, that can be read in one go.
pub(super) fn run_len(locations: &[Location]) -> usize {
    let Some(first) = locations.first() else { return 0 };
    let mut end = first.end();
    let joins = |next: &&Location| {
        let near = next.segment == first.segment
            && (end..=end + GAP_BYTES).contains(&next.offset)
            && next.end() - first.offset <= RUN_BYTES;
        end = next.end();
        near
    };
    1 + locations[1..].iter().take_while(joins).count()
}

/// Reads the bytes of a segment from the first location of a run to the end of the last one.
pub(super) fn read_run(dir: &Path, run: &[Location]) -> Result<Bytes, StoreError> {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(Bytes::new()) };
    let path = first.segment.path(dir);
    let file = File::open(&path).map_err(StoreError::io("open", &path))?;
    let len = (last.end() - first.offset) as usize;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = first.offset + bytes.len() as u64;
        match rustix::io::pread(&file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(StoreError::io("read", &path)(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(StoreError::io("read", &path)(error.into())),
        }
    }
    // The allocator may have given more room than was requested.
    bytes.truncate(len);
    Ok(bytes.into())
}

/// Returns the existing segments, oldest first.
pub(super) fn list(dir: &Path) -> Result<Vec<SegmentId>, StoreError> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(dir).map_err(StoreError::io("read", dir))? {
        let entry = entry.map_err(StoreError::io("read", dir))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_suffix(".seg")).and_then(|n| n.parse().ok());
        ids.extend(number.map(SegmentId));
    }
    ids.sort_unstable();
    Ok(ids)
}

pub(super) fn remove(dir: &Path, id: SegmentId) -> Result<(), StoreError> {
    let path = id.path(dir);
    fs::remove_file(&path).map_err(StoreError::io("remove", &path))
}
