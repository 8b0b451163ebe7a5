//! Unpacking of old clusters to their content, by an unpack recipe.

use std::io::Write;

use super::{COPY, Form, Reader};
use crate::cut::ReadAt;
use crate::cut::erofs::{Coding, Decoder, EXTENT_BYTES_MAX};
use crate::patch::view::error::RecipeError;

/// Unpacks the clusters that `recipe`, without its version byte, describes in `file`. Returns the
/// number of bytes written.
///
/// Stops at a damaged cluster, at the end of `file`, and at `max` bytes. The view serves as base,
/// so a short one is still useful.
pub(super) fn unpack(
    form: Form,
    recipe: &[u8],
    file: &dyn ReadAt,
    max: u64,
    sink: &mut dyn Write,
) -> Result<u64, RecipeError> {
    let mut recipe = Reader(recipe);
    let longest = recipe.within(EXTENT_BYTES_MAX)?;
    let mut unpacking = Unpacking {
        form,
        decoder: Decoder::default(),
        file,
        at: 0,
        left: max,
        sink,
        longest,
        packed: Vec::new(),
        plain: vec![0; longest.max(COPY)],
    };
    while let Some(kind) = recipe.byte() {
        if !unpacking.step(kind, &mut recipe)? {
            break;
        }
    }
    Ok(max - unpacking.left)
}

struct Unpacking<'a> {
    form: Form,
    decoder: Decoder,
    file: &'a dyn ReadAt,
    at: u64,
    /// Bytes that may still be written.
    left: u64,
    sink: &'a mut dyn Write,
    /// Most bytes that a cluster unpacks to.
    longest: usize,
    packed: Vec<u8>,
    plain: Vec<u8>,
}

impl Unpacking<'_> {
    /// Executes one step; returns whether unpacking can go on.
    fn step(&mut self, kind: u8, recipe: &mut Reader<'_>) -> Result<bool, RecipeError> {
        let there = self.file.len().saturating_sub(self.at);
        match kind {
            1 | 2 => {
                let coding = match self.form {
                    Form::Any => recipe.coding()?,
                    Form::Lz4 => Coding::Lz4,
                };
                let (count, packed) = (recipe.within(u64::MAX)?, recipe.cluster()?);
                let plain = if kind == 2 { Some(recipe.within(self.longest as u64)?) } else { None };
                for _ in 0..count {
                    if !self.read(packed)? {
                        return Ok(false);
                    }
                    let out = plain.unwrap_or(self.longest);
                    let made = self.decoder.unpack(coding, &self.packed, &mut self.plain[..out]);
                    let Some(made) =
                        made.filter(|made| *made > 0 && plain.is_none_or(|plain| plain == *made))
                    else {
                        return Ok(false);
                    };
                    if !self.write(made)? {
                        return Ok(false);
                    }
                }
            }
            3 => {
                let (mut plain, padding) = (recipe.within(u64::MAX)?, recipe.number()?);
                if plain as u64 > there {
                    return Ok(false);
                }
                while plain > 0 {
                    let step = plain.min(COPY);
                    if !self.read(step)? {
                        return Ok(false);
                    }
                    self.plain[..step].copy_from_slice(&self.packed);
                    if !self.write(step)? {
                        return Ok(false);
                    }
                    plain -= step;
                }
                self.at = self.at.saturating_add(padding);
            }
            4 => {
                let packed = recipe.cluster()?;
                let (plain, turn) = (recipe.within(packed as u64)?, recipe.within(packed as u64)?);
                if !self.read(packed)? {
                    return Ok(false);
                }
                self.plain.resize(self.plain.len().max(plain), 0);
                self.packed.rotate_left(turn);
                self.plain[..plain].copy_from_slice(&self.packed[..plain]);
                return self.write(plain);
            }
            5 => self.at = self.at.saturating_add(recipe.number()?),
            _ => return Err(RecipeError::Damaged("unknown step")),
        }
        Ok(true)
    }

    /// Reads the next `len` bytes of the file; returns `false` if the file is shorter.
    fn read(&mut self, len: usize) -> Result<bool, RecipeError> {
        if self.file.len().saturating_sub(self.at) < len as u64 {
            return Ok(false);
        }
        self.packed.resize(len, 0);
        self.file.read_exact_at(&mut self.packed, self.at)?;
        self.at += len as u64;
        Ok(true)
    }

    /// Writes the first `len` bytes of `plain`; returns `false` if that is more than may be
    /// written.
    fn write(&mut self, len: usize) -> Result<bool, RecipeError> {
        if len as u64 > self.left {
            return Ok(false);
        }
        self.sink.write_all(&self.plain[..len])?;
        self.left -= len as u64;
        Ok(true)
    }
}
