//! Steps of recipes and of unpack recipes, as the origin writes them; see the tables in the parent
//! module. Steps of one kind become one.

use super::coder::Setting;
use super::{STEP_CORRECTED, STEP_LITERAL, STEP_PACKED, STEP_SETTING, STEP_STORED, STEP_TABLE};
use crate::cut::squashfs::TABLE_BLOCK_BYTES;
use crate::proto::put_varint;

/// Steps so far.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    out: Vec<u8>,
    setting: Option<Setting>,
    open: Option<Open>,
    /// Bytes of content in a full block; 0 for steps of an unpack recipe, which states the length
    /// of each block.
    block: u64,
}

/// Step that takes more.
#[derive(Clone, Debug)]
enum Open {
    Packed(Vec<u64>),
    Stored(u64),
    Table(u64),
}

/// State of steps, to which they can go back.
#[derive(Debug)]
pub(super) struct Mark {
    len: usize,
    setting: Option<Setting>,
    open: Option<Open>,
}

impl Steps {
    /// Begins with `head`.
    pub(super) fn behind(head: Vec<u8>, block: u64) -> Self {
        Self { out: head, setting: None, open: None, block }
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { len: self.out.len(), setting: self.setting.clone(), open: self.open.clone() }
    }

    pub(super) fn back_to(&mut self, mark: Mark) {
        self.out.truncate(mark.len);
        (self.setting, self.open) = (mark.setting, mark.open);
    }

    /// Most bytes of the steps so far.
    pub(super) fn len(&self) -> usize {
        let open = match &self.open {
            Some(Open::Packed(runs)) => 9 + 8 * runs.len(),
            Some(_) => 9,
            None => 0,
        };
        self.out.len() + open
    }

    pub(super) fn setting(&mut self, setting: &Setting) {
        if self.setting.as_ref() != Some(setting) {
            self.close();
            self.out.push(STEP_SETTING);
            setting.put(&mut self.out);
            self.setting = Some(setting.clone());
        }
    }

    /// Adds a packed block: its content, or in an unpack recipe its length.
    pub(super) fn packed(&mut self, bytes: u64) {
        if !matches!(self.open, Some(Open::Packed(_))) {
            self.close();
        }
        match &mut self.open {
            Some(Open::Packed(runs)) => match runs.last_mut() {
                Some(run) if self.block > 0 && run.is_multiple_of(self.block) => *run += bytes,
                _ => runs.push(bytes),
            },
            _ => self.open = Some(Open::Packed(vec![bytes])),
        }
    }

    pub(super) fn stored(&mut self, bytes: u64) {
        match &mut self.open {
            Some(Open::Stored(all)) => *all += bytes,
            _ => {
                self.close();
                self.open = Some(Open::Stored(bytes));
            }
        }
    }

    /// Adds a block of a table: its content, or in an unpack recipe the length of the table.
    pub(super) fn table(&mut self, bytes: u64) {
        match &mut self.open {
            Some(Open::Table(all)) if self.block > 0 && all.is_multiple_of(TABLE_BLOCK_BYTES as u64) => {
                *all += bytes;
            }
            _ => {
                self.close();
                self.open = Some(Open::Table(bytes));
            }
        }
    }

    pub(super) fn corrected(&mut self, bytes: u64, header: [u8; 2], corrections: &[u8]) {
        self.close();
        self.out.push(STEP_CORRECTED);
        put_varint(&mut self.out, bytes);
        self.out.extend_from_slice(&header);
        put_varint(&mut self.out, corrections.len() as u64);
        self.out.extend_from_slice(corrections);
    }

    pub(super) fn literal(&mut self, bytes: &[u8]) {
        self.close();
        self.out.push(STEP_LITERAL);
        put_varint(&mut self.out, bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }

    fn close(&mut self) {
        match self.open.take() {
            None => {}
            Some(Open::Packed(runs)) => {
                self.out.push(STEP_PACKED);
                put_varint(&mut self.out, runs.len() as u64);
                for run in runs {
                    put_varint(&mut self.out, run);
                }
            }
            Some(Open::Stored(bytes)) => {
                self.out.push(STEP_STORED);
                put_varint(&mut self.out, bytes);
            }
            Some(Open::Table(bytes)) => {
                self.out.push(STEP_TABLE);
                put_varint(&mut self.out, bytes);
            }
        }
    }

    /// Returns the whole recipe.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.close();
        self.out
    }
}
