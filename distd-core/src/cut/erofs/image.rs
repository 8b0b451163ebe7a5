//! Bounded access to the image: a small cache, and a limit on the work that an image may cause.

use std::sync::{Arc, Mutex};

use erofs_rs::backend::AsyncImage;

use crate::cut::ReadAt;

/// Bytes of one cache line. Inodes and directories lie scattered between the files in blocks of 4
/// KiB, so longer lines mostly fetch file data. The walk of an 800 MB image takes 0.03 s from the
/// page cache.
const LINE_BYTES: usize = 16 << 10;

/// Number of lines kept, 4 MiB in all.
const LINES: usize = 256;

/// Work allowed per byte of image, in bytes copied or read. An 800 MB Debian image needs 0.2 per
/// byte, an image of tiny files a few. An image whose directories or chunk tables point at the same
/// bytes over and over exceeds this limit.
const WORK_PER_BYTE: u64 = 16;
/// Work allowed in addition to every image: a small one with many hard links needs more per byte.
const WORK_FLOOR: u64 = 64 << 20;
/// Most work allowed for an image, however large: about half a minute, a guess.
const WORK_CEILING: u64 = 64 << 30;
/// Work charged for one read in addition to its bytes.
const WORK_PER_READ: u64 = 64;

/// Image for `erofs-rs` that caches recently read lines and stops when the image asks for too much
/// work.
pub(super) struct Image<'a, R: ReadAt + ?Sized> {
    artifact: &'a R,
    len: u64,
    state: Mutex<State>,
}

struct State {
    /// Direct-mapped cache: line `n` lives in slot `n % LINES`.
    lines: Vec<Option<(u64, Box<[u8]>)>>,
    work_left: u64,
}

impl<'a, R: ReadAt + ?Sized> Image<'a, R> {
    pub(super) fn new(artifact: &'a R) -> Self {
        let len = artifact.len();
        let state = Mutex::new(State { lines: vec![None; LINES], work_left: work(len) });
        Self { artifact, len, state }
    }

    /// Restores the full work allowance, for a new operation on an open image.
    pub(super) fn refill(&self) {
        if let Ok(mut state) = self.state.lock() {
            state.work_left = work(self.len);
        }
    }

    /// Takes `work` from the allowance for something other than reading; `None` when the allowance
    /// is used up.
    pub(super) fn charge(&self, work: u64) -> Option<()> {
        let mut state = self.state.lock().ok()?;
        state.work_left = state.work_left.checked_sub(work)?;
        Some(())
    }

    /// Fills `buf` from `offset` on; `None` outside the image, on an error of the source, or when
    /// the work allowance is used up.
    pub(super) fn read(&self, mut buf: &mut [u8], mut offset: u64) -> Option<()> {
        if offset.checked_add(buf.len() as u64)? > self.len {
            return None;
        }
        // While this lock is held only the source can panic; there is no point in going on after
        // that.
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

/// Handle through which `erofs-rs` reads the image, while this module keeps reading it directly.
pub(super) struct Shared<'a, R: ReadAt + ?Sized>(pub(super) Arc<Image<'a, R>>);

impl<R: ReadAt + ?Sized> AsyncImage for Shared<'_, R> {
    async fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> erofs_rs::Result<()> {
        self.0.read(buf, offset).ok_or_else(|| erofs_rs::Error::OutOfBounds("read refused".into()))
    }
}
