//! Directories.

use super::inode::Inode;
use super::{FileSystem, HELD_BYTES};
use crate::cut::ReadAt;
use crate::cut::bytes::{u16_at, u32_at};

/// Bytes of an entry in front of its name.
const ENTRY: usize = 8;

/// Entry of a directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) inode: u32,
    pub(super) name: Vec<u8>,
}

impl<R: ReadAt + ?Sized> FileSystem<'_, R> {
    /// Reads the entries of a directory, without those for itself and its parent. An entry that
    /// does not parse ends its block: the blocks of an index look like that. A block that cannot be
    /// read ends the directory. `None` when the file system has asked for too much work.
    pub(super) fn entries(&mut self, directory: &Inode) -> Option<Vec<Entry>> {
        let mut entries = Vec::new();
        if directory.is_inline() {
            // The first four bytes are the parent. What does not fit lies in an attribute, which is
            // not read.
            parse(&directory.map[4..], &mut entries);
            return Some(entries);
        }
        for run in self.runs(directory)? {
            for block in run.block..run.block + run.count {
                match self.block(block) {
                    Some(block) => {
                        let before = entries.len();
                        parse(&block, &mut entries);
                        let held: usize = entries[before..].iter().map(|entry| entry.name.len()).sum();
                        self.hold(held + (entries.len() - before) * HELD_BYTES as usize)?;
                    }
                    None if self.is_exhausted() => return None,
                    None => return Some(entries),
                }
            }
        }
        Some(entries)
    }
}

fn parse(block: &[u8], entries: &mut Vec<Entry>) {
    let mut rest = block;
    while rest.len() >= ENTRY {
        let (inode, len, name_len) = (u32_at(rest, 0), usize::from(u16_at(rest, 4)), usize::from(rest[6]));
        // In blocks of 64 KiB, the length of a whole block does not fit and stands for itself.
        let len = if len == 0xFFFF || len == 0 { rest.len() } else { len };
        if len < ENTRY + name_len || len > rest.len() {
            return;
        }
        let name = &rest[ENTRY..ENTRY + name_len];
        if inode != 0 && !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') {
            entries.push(Entry { inode, name: name.to_vec() });
        }
        rest = &rest[len..];
    }
}
