//! The bounded reader below everything else: a small cache, and an end to what an image may ask for.

use std::sync::{Arc, Mutex};

use erofs_rs::backend::AsyncImage;

use crate::cut::ReadAt;

/// Bytes of one cache line. Inodes and directories lie scattered between the files in blocks of 4 KiB, so
/// longer lines mostly fetch file data. The walk of an 800 MB image takes 0.03 s from the page cache.
const LINE_BYTES: usize = 16 << 10;

/// Lines kept, 4 MiB in all.
const LINES: usize = 256;

/// Work allowed per byte of image, in bytes copied or read. An 800 MB Debian image needs 0.2, one of tiny
/// files a few; one whose directories or chunk tables point at the same bytes over and over runs out.
const WORK_PER_BYTE: u64 = 16;
/// Work any image may do: small ones with many hard links need more per byte.
const WORK_FLOOR: u64 = 64 << 20;
/// Work no image may do, a guess at half a minute.
const WORK_CEILING: u64 = 64 << 30;
/// What one read costs beside its bytes.
const WORK_PER_READ: u64 = 64;

/// A reader for `erofs-rs` that keeps recent lines and stops when the image asks for too much.
pub(super) struct Image<'a, R: ReadAt + ?Sized> {
    artifact: &'a R,
    len: u64,
    state: Mutex<State>,
}

struct State {
    /// Direct-mapped: line `n` lives in slot `n % LINES`.
    lines: Vec<Option<(u64, Box<[u8]>)>>,
    work_left: u64,
}

impl<'a, R: ReadAt + ?Sized> Image<'a, R> {
    pub(super) fn new(artifact: &'a R) -> Self {
        let len = artifact.len();
        let state = Mutex::new(State { lines: vec![None; LINES], work_left: work(len) });
        Self { artifact, len, state }
    }

    /// Gives back all work, for the next thing a caller asks of an image already open.
    pub(super) fn refill(&self) {
        if let Ok(mut state) = self.state.lock() {
            state.work_left = work(self.len);
        }
    }

    /// Takes `work` for something else than reading; `None` when the image has used up its work.
    pub(super) fn charge(&self, work: u64) -> Option<()> {
        let mut state = self.state.lock().ok()?;
        state.work_left = state.work_left.checked_sub(work)?;
        Some(())
    }

    /// Fills `buf` from `offset` on; `None` outside the image, on an error of the source, or when the
    /// image has used up its work.
    pub(super) fn read(&self, mut buf: &mut [u8], mut offset: u64) -> Option<()> {
        if offset.checked_add(buf.len() as u64)? > self.len {
            return None;
        }
        // Nothing panics while it is held, except the source itself; then there is no point going on.
        let state = &mut *self.state.lock().ok()?;
        state.work_left = state.work_left.checked_sub(WORK_PER_READ + buf.len() as u64)?;
        while !buf.is_empty() {
            let number = offset / LINE_BYTES as u64;
            let slot = &mut state.lines[number as usize % LINES];
            let line = match slot {
                Some((held, line)) if *held == number => &*line,
                _ => {
                    state.work_left = state.work_left.checked_sub(LINE_BYTES as u64)?;
                    let start = number * LINE_BYTES as u64;
                    let mut line = vec![0; (self.len - start).min(LINE_BYTES as u64) as usize];
                    self.artifact.read_exact_at(&mut line, start).ok()?;
                    &*slot.insert((number, line.into_boxed_slice())).1
                }
            };
            let within = (offset % LINE_BYTES as u64) as usize;
            let count = buf.len().min(line.len() - within);
            buf[..count].copy_from_slice(&line[within..within + count]);
            buf = &mut buf[count..];
            offset += count as u64;
        }
        Some(())
    }
}

fn work(len: u64) -> u64 {
    len.saturating_mul(WORK_PER_BYTE).saturating_add(WORK_FLOOR).min(WORK_CEILING)
}

/// The image as `erofs-rs` holds it, while we go on reading it ourselves.
pub(super) struct Shared<'a, R: ReadAt + ?Sized>(pub(super) Arc<Image<'a, R>>);

impl<R: ReadAt + ?Sized> AsyncImage for Shared<'_, R> {
    async fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> erofs_rs::Result<()> {
        self.0.read(buf, offset).ok_or_else(|| erofs_rs::Error::OutOfBounds("read refused".into()))
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
