//! Parts of a tree's listing that this process, or this file system, cannot have: counted in the result, and remembered beside the
//! tree so that a later check does not call it damage.

use std::collections::{BTreeMap, BTreeSet};

use distd_core::tree::Entry;
use serde::{Deserialize, Serialize};

/// Everything that was left out of one tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LeftOut {
    /// Owner and group that could not be given.
    owners: BTreeSet<(u32, u32)>,
    /// Names of attributes that could not be set.
    xattrs: BTreeSet<String>,
    /// Modes that could not be set; set-id bits of a file whose owner could not be given are always among them.
    modes: BTreeSet<u32>,
    /// Whether hard links became files of their own.
    hard_links: bool,
    /// Whether times could not be set.
    times: bool,
    /// For people: of each kind how many, and the first of them.
    counts: BTreeMap<String, Count>,
}

/// How often one thing was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    entries: u64,
    /// Path of the first entry.
    first: String,
    /// The system's words.
    why: String,
}

/// One thing that an entry lacks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lost<'n> {
    Owner(u32, u32),
    Xattr(&'n [u8]),
    Mode(u16),
    HardLink,
    Time,
}

impl LeftOut {
    pub(super) fn add(&mut self, path: &str, lost: Lost<'_>, why: &dyn std::fmt::Display) {
        let what = match lost {
            Lost::Owner(uid, gid) => {
                self.owners.insert((uid, gid));
                "owner".to_owned()
            }
            Lost::Xattr(name) => {
                let name = name.escape_ascii().to_string();
                self.xattrs.insert(name.clone());
                format!("attribute {name}")
            }
            Lost::Mode(mode) => {
                self.modes.insert(mode.into());
                "mode".to_owned()
            }
            Lost::HardLink => {
                self.hard_links = true;
                "hard link".to_owned()
            }
            Lost::Time => {
                self.times = true;
                "time".to_owned()
            }
        };
        let first = || Count { entries: 0, first: path.to_owned(), why: why.to_string() };
        self.counts.entry(what).or_insert_with(first).entries += 1;
    }

    /// Whether everything could be had.
    pub(crate) fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    pub(crate) fn counts(&self) -> &BTreeMap<String, Count> {
        &self.counts
    }

    /// One line for each kind, for people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |(what, count): (&String, &Count)| {
            format!("{what} of {} entries, the first {}: {}", count.entries, count.first, count.why)
        };
        self.counts.iter().map(line).collect()
    }

    pub(super) fn has_owner(&self, uid: u32, gid: u32) -> bool {
        self.owners.contains(&(uid, gid))
    }

    pub(super) fn has_xattr(&self, name: &[u8]) -> bool {
        self.xattrs.contains(&name.escape_ascii().to_string())
    }

    pub(super) fn has_hard_links(&self) -> bool {
        self.hard_links
    }

    pub(super) fn has_times(&self) -> bool {
        self.times
    }

    /// The mode that an entry has in the end, as far as it is known.
    pub(super) fn mode_of(&self, mode: u16, uid: u32, gid: u32) -> Option<u16> {
        if self.modes.contains(&mode.into()) {
            return None;
        }
        Some(if self.has_owner(uid, gid) { mode & !SET_ID } else { mode })
    }
}

/// Bits that run a program as its owner or group.
pub(super) const SET_ID: u16 = 0o6000;

/// Path of an entry for people.
pub(super) fn shown(entry: &Entry) -> String {
    entry.path.to_string()
}
