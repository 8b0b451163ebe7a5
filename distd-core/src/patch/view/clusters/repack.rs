//! Packing of a view to clusters, by a recipe.

use std::io::{Read, Write};

use super::coder::{Packer, Setting, ZSTD_WINDOW_BITS_MAX};
use super::{COPY, Form, Reader, WINDOW_MAX};
use crate::bounds::VIEW_BYTES_MAX;
use crate::cut::erofs::CLUSTER_BYTES_MAX;
use crate::patch::view::corrections;
use crate::patch::view::error::RecipeError;

/// Most bytes that a recipe may pack for each byte of view; overlapping clusters pack bytes again,
/// but share less than a cluster.
const OVERLAP: u64 = 4;

/// Bytes consumed at the front of the buffer before the rest is moved to the front.
const GONE_MAX: usize = 1 << 20;

/// Packs a view again; `recipe` lacks its version byte. Returns the number of bytes written.
pub(super) fn repack(
    form: Form,
    recipe: &[u8],
    view: &mut dyn Read,
    sink: &mut dyn Write,
) -> Result<u64, RecipeError> {
    let mut packing = Packing {
        form,
        packer: Packer::default(),
        view,
        sink,
        plain: Vec::new(),
        gone: 0,
        unread: 0,
        window: 0,
        block: 512,
        zeros_in_front: true,
        window_bits: 0,
        cluster: Vec::new(),
        written: 0,
        work: 0,
        work_max: 0,
    };
    let mut recipe = Reader(recipe);
    while let Some(kind) = recipe.byte() {
        packing.step(kind, &mut recipe)?;
    }
    if packing.left() > 0 {
        return Err(RecipeError::Damaged("it ends within a file"));
    }
    Ok(packing.written)
}

struct Packing<'a> {
    form: Form,
    packer: Packer,
    view: &'a mut dyn Read,
    sink: &'a mut dyn Write,
    /// View bytes read ahead; the first `gone` of them are consumed.
    plain: Vec<u8>,
    gone: usize,
    /// Bytes of the current file still to be read from the view.
    unread: u64,
    window: usize,
    block: usize,
    zeros_in_front: bool,
    /// Log2 of the zstd window; 0 leaves the window to the level.
    window_bits: u8,
    cluster: Vec<u8>,
    written: u64,
    /// Bytes that packers took from `plain`, some of them more than once.
    work: u64,
    work_max: u64,
}

impl Packing<'_> {
    /// Bytes of the current file that are not packed yet.
    fn left(&self) -> u64 {
        (self.plain.len() - self.gone) as u64 + self.unread
    }

    fn step(&mut self, kind: u8, recipe: &mut Reader<'_>) -> Result<(), RecipeError> {
        if kind == 0 {
            return self.file(recipe);
        }
        let left = self.left();
        match kind {
            1 => {
                let (setting, capacity) = self.setting(recipe)?;
                for _ in 0..recipe.within(left)? {
                    let taken = self.cluster(setting, capacity, self.window, true)?;
                    self.advance(taken);
                }
            }
            2 => {
                let (setting, capacity) = self.setting(recipe)?;
                let (count, len) = (recipe.within(left)?, recipe.within(left.min(WINDOW_MAX))?);
                for _ in 0..count {
                    if self.left() < len as u64 || self.cluster(setting, capacity, len, true)? != len {
                        return Err(RecipeError::Damaged(
                            "a cluster packs another number of bytes than stated",
                        ));
                    }
                    self.advance(len);
                }
            }
            3 => {
                let (setting, capacity) = self.setting(recipe)?;
                let len = recipe.within(left.min(WINDOW_MAX))?;
                if self.cluster(setting, capacity, self.window, true)? < len {
                    return Err(RecipeError::Damaged("a cluster packs another number of bytes than stated"));
                }
                self.advance(len);
            }
            4 | 9 => {
                let len = recipe.within(left)?;
                self.copy(len)?;
                if kind == 4 {
                    self.zeros(len.next_multiple_of(self.block) - len)?;
                }
            }
            5 => {
                let block = self.block;
                let (len, turn) = (recipe.within(left.min(block as u64))?, recipe.within(block as u64 - 1)?);
                self.read_ahead(len)?;
                let mut turned = vec![0; block];
                let front = len.min(block - turn);
                let plain = &self.plain[self.gone..self.gone + len];
                turned[turn..turn + front].copy_from_slice(&plain[..front]);
                turned[..len - front].copy_from_slice(&plain[front..]);
                self.write(&turned)?;
                self.advance(len);
            }
            6 => {
                let (stands_for, len) = (recipe.within(left.min(WINDOW_MAX))?, recipe.cluster()?);
                let literal = recipe.bytes(len)?;
                self.write(literal)?;
                self.skip(stands_for)?;
            }
            7 => {
                let len = recipe.within(left)?;
                self.skip(len)?;
            }
            8 => {
                let (setting, capacity) = self.setting(recipe)?;
                // This cluster is the last one of the file.
                let all = usize::try_from(left).unwrap_or(WINDOW_MAX as usize).min(WINDOW_MAX as usize);
                let shown = if setting.takes_all() { all } else { self.window };
                let taken = self.cluster(setting, capacity, shown, false)?;
                self.advance(taken);
            }
            10 | 11 if self.form == Form::Any => {
                let len = recipe.within(left.min(WINDOW_MAX))?;
                let corrected = recipe.within(CLUSTER_BYTES_MAX)?;
                let corrected = recipe.bytes(corrected)?;
                self.corrected(len, corrected, kind == 10)?;
            }
            _ => return Err(RecipeError::Damaged("unknown step")),
        }
        Ok(())
    }

    fn file(&mut self, recipe: &mut Reader<'_>) -> Result<(), RecipeError> {
        if self.left() > 0 {
            return Err(RecipeError::Damaged("it starts a file before the previous one is complete"));
        }
        let flags = recipe.expect_byte()?;
        if flags & 0xE != 0 || flags >> 4 > 7 {
            return Err(RecipeError::Damaged("unknown flags"));
        }
        self.zeros_in_front = flags & 1 != 0;
        self.block = 512 << (flags >> 4);
        self.unread = recipe.within(VIEW_BYTES_MAX)? as u64;
        self.window = recipe.within(WINDOW_MAX)?;
        self.window_bits = match self.form {
            Form::Any => recipe.expect_byte()?,
            Form::Lz4 => 0,
        };
        if self.window_bits != 0 && !(10..=ZSTD_WINDOW_BITS_MAX).contains(&self.window_bits) {
            return Err(RecipeError::Damaged("unknown window"));
        }
        self.work_max += self.unread * OVERLAP;
        Ok(())
    }

    /// Reads setting and capacity.
    fn setting(&self, recipe: &mut Reader<'_>) -> Result<(Setting, usize), RecipeError> {
        let setting = Setting::from_number(recipe.expect_byte()?)
            .filter(|setting| self.form == Form::Any || !setting.takes_all())
            // Without a bound on the window, zstd's slowest levels would take too much memory.
            .filter(|setting| self.window_bits != 0 || !matches!(setting, Setting::Zstd(_)));
        Ok((setting.ok_or(RecipeError::Damaged("unknown setting"))?, recipe.cluster()?))
    }

    /// Reads until `len` bytes, or all bytes of the file, are in the buffer. Reads in steps, so
    /// that a large number in a recipe alone allocates nothing.
    fn read_ahead(&mut self, len: usize) -> Result<(), RecipeError> {
        if self.gone >= GONE_MAX {
            self.plain.drain(..self.gone);
            self.gone = 0;
        }
        while self.plain.len() - self.gone < len && self.unread > 0 {
            let held = self.plain.len();
            let step = (len - (held - self.gone)).min(COPY).min(usize::try_from(self.unread).unwrap_or(COPY));
            self.plain.resize(held + step, 0);
            self.view.read_exact(&mut self.plain[held..])?;
            self.unread -= step as u64;
        }
        Ok(())
    }

    fn advance(&mut self, len: usize) {
        self.gone += len;
        if self.gone == self.plain.len() {
            self.plain.clear();
            self.gone = 0;
        }
    }

    /// Packs and writes one cluster from at most `shown` bytes. Returns the number of view bytes in
    /// the cluster.
    fn cluster(
        &mut self,
        setting: Setting,
        capacity: usize,
        shown: usize,
        whole_blocks: bool,
    ) -> Result<usize, RecipeError> {
        self.read_ahead(shown)?;
        let plain = &self.plain[self.gone..];
        let plain = &plain[..plain.len().min(shown)];
        let filled = self.packer.fill(setting, self.window_bits, plain, capacity, &mut self.cluster);
        let (taken, made) = filled.ok_or(RecipeError::Damaged("a cluster packs no bytes"))?;
        self.work += taken as u64;
        if self.work > self.work_max {
            return Err(RecipeError::Damaged("its clusters overlap too much"));
        }
        let cluster = std::mem::take(&mut self.cluster);
        self.packed(&cluster[..made], whole_blocks)?;
        self.cluster = cluster;
        Ok(taken)
    }

    /// Writes a deflate cluster made with corrections.
    fn corrected(&mut self, len: usize, corrections: &[u8], whole_blocks: bool) -> Result<(), RecipeError> {
        self.read_ahead(len)?;
        let plain = self.plain.get(self.gone..self.gone + len);
        let packed =
            corrections::apply(plain.ok_or(RecipeError::Damaged("it ends within a file"))?, corrections);
        self.packed(&packed.ok_or(RecipeError::Damaged("corrections do not fit the view"))?, whole_blocks)?;
        self.advance(len);
        Ok(())
    }

    /// Writes a packer's output, padded with zeros to whole blocks if `whole_blocks` is set.
    fn packed(&mut self, packed: &[u8], whole_blocks: bool) -> Result<(), RecipeError> {
        let made = packed.len();
        let zeros = if whole_blocks { made.next_multiple_of(self.block) - made } else { 0 };
        if self.zeros_in_front {
            self.zeros(zeros)?;
        }
        self.write(packed)?;
        if !self.zeros_in_front {
            self.zeros(zeros)?;
        }
        Ok(())
    }

    fn copy(&mut self, mut len: usize) -> Result<(), RecipeError> {
        while len > 0 {
            let step = len.min(COPY);
            self.read_ahead(step)?;
            let plain = std::mem::take(&mut self.plain);
            let written = self.write(&plain[self.gone..self.gone + step]);
            self.plain = plain;
            written?;
            self.advance(step);
            len -= step;
        }
        Ok(())
    }

    fn skip(&mut self, mut len: usize) -> Result<(), RecipeError> {
        while len > 0 {
            let step = len.min(COPY);
            self.read_ahead(step)?;
            self.advance(step);
            len -= step;
        }
        Ok(())
    }

    fn zeros(&mut self, len: usize) -> Result<(), RecipeError> {
        // Padding is shorter than a block, and a block has at most `COPY` bytes.
        self.write(&[0; COPY][..len])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RecipeError> {
        self.written += bytes.len() as u64;
        if self.written > VIEW_BYTES_MAX {
            return Err(RecipeError::Damaged("it makes more bytes than allowed"));
        }
        self.sink.write_all(bytes)?;
        Ok(())
    }
}
