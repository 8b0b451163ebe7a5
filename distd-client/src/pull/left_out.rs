//! Parts of a tree's listing that this process or this file system cannot have. They are counted in
//! the result, and recorded beside the tree so that a later check does not report them as damage.

use std::collections::{BTreeMap, BTreeSet};

use distd_core::tree::Entry;
use serde::{Deserialize, Serialize};

/// Everything that was left out of one tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LeftOut {
    /// Pairs of owner and group that could not be set.
    owners: BTreeSet<(u32, u32)>,
    /// Names of attributes that could not be set.
    xattrs: BTreeSet<String>,
    /// Modes that could not be set. They always include the set-id modes of files whose owner could
    /// not be set.
    modes: BTreeSet<u32>,
    /// Whether hard links became separate files.
    hard_links: bool,
    /// Whether times could not be set.
    times: bool,
    /// For people: the number of each kind, and the first entry.
    counts: BTreeMap<String, Count>,
}

/// Number of entries with one kind of loss.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    entries: u64,
    /// Path of the first entry.
    first: String,
    /// Reason for the first entry, in the system's words.
    why: String,
}

/// One part that an entry lacks.
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

    /// Returns whether nothing was left out.
    pub(crate) fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    pub(crate) fn counts(&self) -> &BTreeMap<String, Count> {
        &self.counts
    }

    /// Returns one line of text for each kind.
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

    /// Returns the final mode of an entry; `None` if it is unknown.
    pub(super) fn mode_of(&self, mode: u16, uid: u32, gid: u32) -> Option<u16> {
        if self.modes.contains(&mode.into()) {
            return None;
        }
        Some(if self.has_owner(uid, gid) { mode & !SET_ID } else { mode })
    }
}

/// Mode bits that run a program as its owner or group.
pub(super) const SET_ID: u16 = 0o6000;

/// Returns the path of an entry for people.
pub(super) fn shown(entry: &Entry) -> String {
    entry.path.to_string()
}
