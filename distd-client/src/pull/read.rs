//! Part of a shared artifact, read without the rest (docs/tickets.md, "Parts").

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::anyhow;
use bytes::Bytes;
use distd_core::ChunkId;
use distd_core::manifest::{ChunkAt, Entry, Kind, Manifest};
use distd_core::packing::PackedChunk;
use distd_core::ranges::ChunkRanges;
use distd_core::tree::{EntryKind, Listing, TreePath};
use distd_peer::driver::{ChunkSink, SinkError};
use distd_peer::gateway::{Asked, parse_ranges};
use distd_peer::table::ChunkTable;
use serde::Serialize;

use super::access::{TicketAccess, check_manifest, check_ticket, failed, join, shut_out, withdrawn};
use super::network::Network;
use crate::failure::{Code, Failure};

/// Bytes of the artifact that are fetched before they are written: some chunks, kept in memory.
const WINDOW_BYTES: u64 = 8 << 20;

/// A request to read part of a shared artifact.
pub struct ReadRequest {
    /// The ticket, and the way to its sharer.
    pub access: TicketAccess,
    /// File in a shared directory.
    pub path: Option<TreePath>,
    /// Bytes to read as in HTTP: `2-5`, `2-` or `-3`; `None` for all of them.
    pub range: Option<String>,
}

/// Result of a read.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ReadOutcome {
    /// Bytes written.
    pub bytes: u64,
    /// Bytes received for them.
    pub wire_bytes: u64,
}

/// Writes part of a shared artifact to `out`, and fetches no chunk that has none of it.
///
/// # Errors
/// A [`Failure`] with its exit code; [`Code::Unusable`] when the range lies behind the end.
pub async fn read(request: &ReadRequest, out: &mut (dyn Write + Send)) -> anyhow::Result<ReadOutcome> {
    let identity = check_ticket(&request.access)?;
    let network = join(&request.access, identity.as_ref()).await?;
    let read = tokio::select! {
        read = read_over(&network, request, out) => read,
        () = shut_out(&network) => Err(withdrawn().into()),
    };
    network.close().await;
    read.map_err(failed)
}

async fn read_over(
    network: &Network,
    request: &ReadRequest,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ReadOutcome> {
    let manifest = network.manifest_of(request.access.ticket.ticket.manifest, None, &[]).await?;
    if request.access.expected.is_some_and(|expected| expected != manifest.id().0) {
        let error = anyhow!("the expected hash is not that of the share's manifest, {}", manifest.id());
        // The manifest states the hash of the whole, and only reading the whole proves it.
        let next = "parts are proved by the manifest's id alone: --expect MANIFEST, or use distd fetch";
        return Err(Failure::new(Code::Integrity, error).next(next).into());
    }
    check_manifest(&request.access, &manifest)?;
    let reader = Reader { network, table: Arc::new(ChunkTable::of(&manifest)), manifest: &manifest };
    let file = match (manifest.root().kind, &request.path) {
        (Kind::Tree { listing_bytes }, Some(path)) => {
            let mut listing = Vec::new();
            reader.copy(0..listing_bytes, &mut listing).await?;
            find(&listing, path)?
        }
        (Kind::Tree { .. }, None) => {
            let error = anyhow!("the ticket is of a directory");
            return Err(Failure::new(Code::Usage, error).next("name a file in it: --path PATH").into());
        }
        (_, Some(_)) => return Err(Failure::new(Code::Usage, anyhow!("the ticket is of a file")).into()),
        (_, None) => 0..manifest.root().bytes,
    };
    let part = part_of(&file, request.range.as_deref())?;
    let bytes = part.end - part.start;
    reader.copy(part, out).await?;
    let (_, sharer) = network.parents.readings();
    Ok(ReadOutcome { bytes, wire_bytes: sharer.bytes_in })
}

/// Returns the place of a file in a directory's artifact.
fn find(listing: &[u8], path: &TreePath) -> anyhow::Result<Range<u64>> {
    let decoded = Listing::decode(listing).map_err(|e| Failure::new(Code::Integrity, e.into()))?;
    let target = match decoded.get(path.as_bytes()).map(|entry| &entry.kind) {
        Some(EntryKind::HardLink { target }) => target.clone(),
        _ => path.clone(),
    };
    let mut files = decoded.files(listing.len() as u64);
    let found = files.find(|(_, _, entry)| entry.path == target);
    found.map(|(start, size, _)| start..start + size).ok_or_else(|| {
        let error = anyhow!("the shared directory has no file {path}");
        Failure::new(Code::NotFound, error).into()
    })
}

/// Returns the part of `file` that a range names.
fn part_of(file: &Range<u64>, range: Option<&str>) -> anyhow::Result<Range<u64>> {
    let Some(range) = range else { return Ok(file.clone()) };
    let len = file.end - file.start;
    match parse_ranges(&format!("bytes={range}"), len) {
        Asked::One(part) => Ok(file.start + part.start..file.start + part.end),
        Asked::Outside => {
            let error = anyhow!("the range {range} lies behind the end: the file has {len} bytes");
            Err(Failure::new(Code::Unusable, error).into())
        }
        Asked::Whole | Asked::Many(_) => {
            let error = anyhow!("{range:?} is no range");
            Err(Failure::new(Code::Usage, error)
                .next("give FIRST-LAST, FIRST- or -COUNT, such as 0-99")
                .into())
        }
    }
}

/// Chunks of one window, in memory.
#[derive(Default)]
struct Window(Mutex<HashMap<ChunkId, Bytes>>);

impl ChunkSink for Window {
    fn accept(&self, entry: &Entry, _packed: &PackedChunk, raw: &[u8]) -> Result<(), SinkError> {
        let mut chunks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.insert(entry.id, Bytes::copy_from_slice(raw));
        Ok(())
    }
}

struct Reader<'r> {
    network: &'r Network,
    table: Arc<ChunkTable>,
    manifest: &'r Manifest,
}

impl Reader<'_> {
    /// Writes the bytes of the artifact in `range` to `out`.
    async fn copy(&self, range: Range<u64>, out: &mut (dyn Write + Send)) -> anyhow::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + WINDOW_BYTES);
            let pieces = pieces(self.manifest, at..end);
            let wanted: ChunkRanges = pieces.iter().map(|(entry, _)| entry.id).collect();
            let window = Arc::new(Window::default());
            self.network.fetch(self.manifest.id(), self.table.clone(), window.clone(), wanted, None).await?;
            let chunks = window.0.lock().unwrap_or_else(PoisonError::into_inner);
            for (entry, part) in pieces {
                let Some(chunk) = chunks.get(&entry.id) else { return Err(anyhow!("a chunk did not come")) };
                match out.write_all(&chunk[part]) {
                    // The reader has read enough.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                    written => written.map_err(|error| {
                        let error = anyhow::Error::new(error).context("could not write what was read");
                        Failure::new(Code::Local, error)
                    })?,
                }
            }
            at = end;
        }
        Ok(out.flush()?)
    }
}

/// Returns the chunks with bytes in `range`, in order, each with its part in the range.
fn pieces(manifest: &Manifest, range: Range<u64>) -> Vec<(Entry, Range<usize>)> {
    if range.is_empty() {
        return Vec::new();
    }
    let of = |ChunkAt { offset, entry }: ChunkAt| {
        let from = range.start.saturating_sub(offset);
        let to = u64::from(entry.len).min(range.end - offset);
        // A chunk has at most a megabyte.
        (entry, from as usize..to as usize)
    };
    manifest.entries_at(range.start).take_while(|at| at.offset < range.end).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Ignored;
    use crate::tickets::LocalArtifact;
    use distd_peer::share::ChunkBytes as _;

    #[test]
    fn any_range_is_read_as_from_a_slice() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("file");
        let mut bytes = vec![0; 1_000_000];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        std::fs::write(&path, &bytes).expect("write");
        let local = LocalArtifact::cut(&path, &Ignored).expect("cut");
        let read = |range: Range<u64>| {
            let mut out = Vec::new();
            for (entry, part) in pieces(local.manifest(), range) {
                let mut chunk = vec![0; entry.len as usize];
                assert!(local.read(&entry, &mut chunk));
                assert!(!part.is_empty(), "a chunk without a byte of the range");
                out.extend_from_slice(&chunk[part]);
            }
            out
        };
        let borders: Vec<u64> = local.manifest().entries().map(|at| at.offset).take(4).collect();
        let len = bytes.len() as u64;
        let mut ends = vec![0, 1, 2, 500_000, len - 1, len];
        ends.extend(borders.iter().flat_map(|at| [*at, at + 1, at.saturating_sub(1)]));
        for start in &ends {
            for end in ends.iter().filter(|end| *end >= start) {
                let part = &bytes[*start as usize..*end as usize];
                assert!(read(*start..*end) == part, "{start}..{end}");
            }
        }
    }

    #[test]
    fn a_range_is_one_of_http_and_relative_to_its_file() {
        let part = |range| part_of(&(100..110), range);
        assert_eq!(part(None).expect("all"), 100..110);
        assert_eq!(part(Some("0-0")).expect("one"), 100..101);
        assert_eq!(part(Some("9-")).expect("the last"), 109..110);
        assert_eq!(part(Some("-3")).expect("the end"), 107..110);
        assert_eq!(part(Some("5-99")).expect("to the end"), 105..110);
        for (wrong, code) in
            [("10-", Code::Unusable), ("5-4", Code::Usage), ("x", Code::Usage), ("0-1,4-5", Code::Usage)]
        {
            let error = part(Some(wrong)).expect_err(wrong);
            assert_eq!(crate::failure::code_of(&error), code, "{wrong}");
        }
    }
}
