//! GRUB, by its environment block: `saved_entry` is the entry that starts by default, and
//! `next_entry` the one that starts once, as `grub-set-default` and `grub-reboot` set them. Entries
//! of the menu have the names of the slots.
//!
//! The block is a file of 1024 bytes that GRUB reads without a journal and rewrites in place, so it
//! is rewritten in place here too: `grub-editenv` empties the file before it writes it, and a power
//! cut in between would leave no choice at all.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use async_trait::async_trait;
use distd_core::names::Name;

use super::{About, Loader, Spare, unusable};
use crate::disk::side;

/// Size of an environment block, bytes; fixed by GRUB.
const BLOCK_BYTES: usize = 1024;

/// First line of each block.
const HEADER: &[u8] = b"# GRUB Environment Block\n";

/// Part of the block that every disk writes as a whole, bytes: a sector.
const SECTOR_BYTES: usize = 512;

/// Entry that starts by default.
const SAVED: &str = "saved_entry";

/// Entry that starts once.
const NEXT: &str = "next_entry";

/// The environment block.
pub(super) struct Grub {
    path: PathBuf,
}

/// Lines of a block that say nothing about slots, in order, and the two variables that do.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    saved: String,
    next: String,
    others: Vec<u8>,
}

impl Block {
    /// Parses a block; `None` for other bytes.
    fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != BLOCK_BYTES {
            return None;
        }
        let mut rest = bytes.strip_prefix(HEADER)?;
        let (mut saved, mut next, mut others) = (String::new(), String::new(), Vec::new());
        while let Some(end) = line_end(rest) {
            let (line, after) = rest.split_at(end + 1);
            rest = after;
            let value = |key: &str| {
                let value = line.strip_prefix(key.as_bytes())?.strip_prefix(b"=")?;
                Some(String::from_utf8_lossy(&value[..value.len() - 1]).into_owned())
            };
            match (value(SAVED), value(NEXT)) {
                (Some(value), _) => saved = value,
                (_, Some(value)) => next = value,
                (None, None) => others.extend_from_slice(line),
            }
        }
        // The last line is the padding.
        rest.iter().all(|byte| *byte == b'#').then_some(Self { saved, next, others })
    }

    /// Encodes the block; `None` when it is too long, or when the variables do not fit into the
    /// first sector. `next_entry` stays there when it is empty: GRUB takes both for the same.
    fn encode(&self) -> Option<[u8; BLOCK_BYTES]> {
        let mut bytes = HEADER.to_vec();
        bytes.extend_from_slice(format!("{SAVED}={}\n{NEXT}={}\n", self.saved, self.next).as_bytes());
        let ours = bytes.len();
        bytes.extend_from_slice(&self.others);
        if ours > SECTOR_BYTES || bytes.len() > BLOCK_BYTES {
            return None;
        }
        bytes.resize(BLOCK_BYTES, b'#');
        bytes.try_into().ok()
    }
}

/// Position of the end of a line; a backslash takes the next byte into the line.
fn line_end(bytes: &[u8]) -> Option<usize> {
    let mut escaped = false;
    bytes.iter().position(|byte| {
        let ends = *byte == b'\n' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    })
}

impl Grub {
    /// Opens the block at `path`.
    ///
    /// # Errors
    /// Failures with [`Code::Local`](crate::failure::Code::Local) when it is no environment block.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let grub = Self { path: path.to_owned() };
        grub.read()?;
        Ok(grub)
    }

    fn read(&self) -> anyhow::Result<Block> {
        let shown = self.path.display();
        let next = format!("make it: grub-editenv {shown} create");
        let bytes = match side::read_anyones(&self.path, BLOCK_BYTES as u64) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Vec::new(),
            read => read
                .with_context(|| format!("could not read GRUB's environment block {shown}"))
                .map_err(|error| unusable(error, &next))?,
        };
        Block::parse(&bytes)
            .ok_or_else(|| unusable(anyhow!("{shown} is no environment block of GRUB"), &next))
    }

    fn change(&self, change: impl FnOnce(&mut Block)) -> anyhow::Result<()> {
        let before = self.read()?;
        let mut block = before.clone();
        change(&mut block);
        if block == before {
            return Ok(());
        }
        let shown = self.path.display();
        let bytes = block.encode().ok_or_else(|| {
            unusable(anyhow!("{shown} has no room"), "remove variables from it: grub-editenv FILE unset NAME")
        })?;
        let written = OpenOptions::new().write(true).open(&self.path).and_then(|file| {
            file.write_all_at(&bytes, 0)?;
            file.sync_all()
        });
        written.with_context(|| format!("could not write {shown}"))
    }
}

#[async_trait]
impl Loader for Grub {
    async fn default_slot(&self) -> anyhow::Result<Option<Name>> {
        Ok(self.read()?.saved.parse().ok())
    }

    async fn try_once(&self, slot: &Name, _: &About) -> anyhow::Result<()> {
        self.change(|block| block.next = slot.to_string())
    }

    async fn keep(&self, slot: &Name, _: &Name, _: Spare) -> anyhow::Result<()> {
        self.change(|block| {
            block.saved = slot.to_string();
            block.next.clear();
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn block(lines: &str) -> Vec<u8> {
        let mut bytes = [HEADER, lines.as_bytes()].concat();
        bytes.resize(BLOCK_BYTES, b'#');
        bytes
    }

    fn about() -> About {
        About { product: name("os"), version: name("2") }
    }

    #[tokio::test]
    async fn orders_are_variables_of_the_block_and_others_stay() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("grubenv");
        std::fs::write(&path, block("# WARNING: a comment\nx=1\\\\\nsaved_entry=a\ny=2\n")).expect("write");
        let grub = Grub::open(&path).expect("opens");
        assert_eq!(grub.default_slot().await.expect("reads"), Some(name("a")));
        grub.try_once(&name("b"), &about()).await.expect("ordered");
        let text = || String::from_utf8(std::fs::read(&path).expect("read")).expect("text");
        let begins = "saved_entry=a\nnext_entry=b\n# WARNING: a comment\nx=1\\\\\ny=2\n####";
        assert!(text()[HEADER.len()..].starts_with(begins), "{}", text());
        assert_eq!(text().len(), BLOCK_BYTES);
        grub.keep(&name("b"), &name("a"), Spare::Whole).await.expect("kept");
        assert!(text().contains("saved_entry=b\nnext_entry=\n"), "{}", text());
    }

    #[test]
    fn other_files_are_refused_and_stay() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("grubenv");
        assert!(Grub::open(&path).is_err());
        let unfinished = [HEADER, &[b'x'; BLOCK_BYTES - HEADER.len()]].concat();
        for wrong in [vec![], vec![b'#'; 1024], block("")[..1023].to_vec(), vec![b'#'; 5000], unfinished] {
            std::fs::write(&path, &wrong).expect("write");
            let error = Grub::open(&path).err().expect("refused");
            assert!(error.to_string().contains("no environment block"), "{error:#}");
            assert_eq!(std::fs::read(&path).expect("read"), wrong);
        }
    }

    #[tokio::test]
    async fn a_full_block_is_refused_and_stays() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("grubenv");
        let full = block(&format!("x={}\n", "y".repeat(980)));
        std::fs::write(&path, &full).expect("write");
        let grub = Grub::open(&path).expect("opens");
        assert!(grub.try_once(&name("b"), &about()).await.is_err());
        assert_eq!(std::fs::read(&path).expect("read"), full);
    }
}
