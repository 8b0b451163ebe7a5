//! Hints: changes that make the next delta smaller, and the bytes that they save.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::classify::Stats;
use super::report::{Kind, PathCost, Report};
use crate::patch::pair::fold;
use crate::patch::view::{FORMATS, Layer};

/// Most paths that a hint names.
const EXAMPLES_MAX: usize = 10;

/// A hint that saves less than one part in this many of the delta is left out.
const WORTH_PART: u64 = 1000;

/// Suffixes of files that are compressed as a whole.
const PACKED_SUFFIXES: [&[u8]; 13] = [
    b".gz", b".xz", b".zst", b".bz2", b".lz4", b".lzma", b".zip", b".jar", b".tgz", b".txz", b".deb",
    b".rpm", b".apk",
];

/// Prefixes of the names of boot files that are compressed whatever their suffix.
const PACKED_PREFIXES: [&[u8]; 5] = [b"initrd", b"initramfs", b"vmlinuz", b"bzImage", b"uki"];

/// Recommended change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// Use the same time for all files.
    FixTimes,
    /// Use the same UUID and volume name.
    FixIdentity,
    /// Nothing to change: inodes contain the address of data, and data moved.
    MovedData,
    /// Do not compress the image.
    NoCompression,
    /// Do not put compressed files into the image.
    NoCompressedFiles,
    /// Do not use fragments.
    NoFragments,
    /// Keep the content the same when only the version in the path changes.
    SameContent,
}

/// Origin of the number of saved bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The changed artifact was cut and packed.
    Measured,
    /// The current cost of the bytes in question; the saving is some part of that.
    AtMost,
}

/// Recommended change with its saving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hint {
    /// Change to make.
    pub advice: Advice,
    /// Bytes on the wire that the change saves.
    pub saves_bytes: u64,
    /// Origin of `saves_bytes`.
    pub method: Method,
    /// Some of the paths concerned, those with the most bytes first. Hostile, as all paths: escape
    /// them before display.
    #[serde(serialize_with = "as_texts")]
    pub paths: Vec<Vec<u8>>,
}

impl Advice {
    /// Describes the finding in words.
    pub fn finding(self) -> &'static str {
        match self {
            Self::FixTimes => "inodes that differ only in their times",
            Self::FixIdentity => "a changed UUID or volume name",
            Self::MovedData => "inodes whose data moved, behind a file that grew or is new",
            Self::NoCompression => "compressed clusters, which cost more than their content would",
            Self::NoCompressedFiles => "compressed files that changed from end to end",
            Self::NoFragments => "ends of files packed together: a changed one changes its neighbours",
            Self::SameContent => "files that changed together with the version in their path",
        }
    }

    /// Describes the change to make in words.
    pub fn action(self) -> Cow<'static, str> {
        let words = match self {
            Self::FixTimes => {
                "build with mkfs.erofs -T SECONDS (newer versions: with --all-time), with the same \
                 SECONDS for every release instead of each release's SOURCE_DATE_EPOCH"
            }
            Self::FixIdentity => "build with mkfs.erofs -U UUID, with the same UUID for every release",
            Self::MovedData => "no option of mkfs.erofs avoids this; patches shrink these bytes",
            Self::NoCompression => {
                "build with mkfs.erofs without -z (the image grows, but chunks are packed on the wire \
                 anyway), or rely on patches"
            }
            Self::NoCompressedFiles => return Cow::Owned(no_compressed_files()),
            Self::NoFragments => "build with mkfs.erofs without -Efragments",
            Self::SameContent => {
                "nothing if the files changed on purpose (unchanged content costs nothing under any \
                 path); else look for versions, build times and signatures inside them"
            }
        };
        Cow::Borrowed(words)
    }
}

fn no_compressed_files() -> String {
    let names = FORMATS.iter().filter(|format| format.layer() == Layer::File).map(|format| format.name());
    format!(
        "put these files into the image uncompressed (kernel modules: CONFIG_MODULE_COMPRESS_NONE; \
         initrd: COMPRESS=cat), or rely on patches, which unpack {}",
        names.collect::<Vec<_>>().join(", ")
    )
}

impl Method {
    /// Describes the method in words, for tables.
    pub fn words(self) -> &'static str {
        match self {
            Self::Measured => "measured: the changed content was cut and packed",
            Self::AtMost => "at most: their current cost",
        }
    }
}

/// Returns the hints for a report that has none yet.
pub(super) fn hints(report: &Report, stats: &Stats<'_>) -> Vec<Hint> {
    let metadata = &report.metadata;
    let mut hints = Vec::new();
    let mut measured = |advice, saves_bytes| {
        hints.push(Hint { advice, saves_bytes, method: Method::Measured, paths: Vec::new() });
    };
    measured(Advice::FixTimes, metadata.wire_bytes - metadata.without_times);
    measured(Advice::FixIdentity, metadata.without_times - metadata.without_identity);
    measured(Advice::MovedData, metadata.without_identity - metadata.without_addresses);
    if let Some(uncompressed) = &report.uncompressed {
        measured(Advice::NoCompression, report.wire_bytes.saturating_sub(uncompressed.wire_bytes));
    }
    let of = |advice, costs: &[&PathCost]| Hint {
        advice,
        saves_bytes: costs.iter().map(|cost| cost.wire_bytes).sum(),
        method: Method::AtMost,
        paths: costs.iter().take(EXAMPLES_MAX).filter_map(|cost| cost.path.clone()).collect(),
    };
    let fragments: Vec<_> = report.paths.iter().filter(|cost| cost.kind == Kind::Fragments).collect();
    hints.push(of(Advice::NoFragments, &fragments));
    let files = || report.paths.iter().filter(|cost| matches!(cost.kind, Kind::Changed | Kind::Renamed));
    let packed: Vec<_> = files().filter(|cost| is_packed(cost, stats)).collect();
    hints.push(of(Advice::NoCompressedFiles, &packed));
    hints.push(versions(files().filter(|cost| !is_packed(cost, stats))));
    hints.retain(|hint| hint.saves_bytes > 0 && hint.saves_bytes * WORTH_PART >= report.wire_bytes);
    hints.sort_by_key(|hint| (Reverse(hint.saves_bytes), hint.advice));
    hints
}

/// Returns whether the file looks compressed by name and by content, and shares next to nothing
/// with its old version.
fn is_packed(cost: &PathCost, stats: &Stats<'_>) -> bool {
    let Some(path) = cost.path.as_deref() else { return false };
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let named = PACKED_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
        || PACKED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let stat = stats.paths.get(path).copied().unwrap_or_default();
    named && stat.held * 10 < stat.bytes && cost.wire_bytes * 10 >= cost.raw_bytes * 8
}

/// Returns the hint for files whose old path differs only in a version number. Names the
/// directories or files that have the number.
fn versions<'a>(costs: impl Iterator<Item = &'a PathCost>) -> Hint {
    let mut by_place: BTreeMap<&[u8], u64> = BTreeMap::new();
    for cost in costs {
        if let (Some(path), Some(old)) = (&cost.path, &cost.old_path)
            && fold(path) == fold(old)
        {
            *by_place.entry(versioned_part(path, old)).or_default() += cost.wire_bytes;
        }
    }
    let mut places: Vec<_> = by_place.into_iter().collect();
    places.sort_by_key(|(place, bytes)| (Reverse(*bytes), *place));
    Hint {
        advice: Advice::SameContent,
        saves_bytes: places.iter().map(|(_, bytes)| bytes).sum(),
        method: Method::AtMost,
        paths: places.iter().take(EXAMPLES_MAX).map(|(place, _)| place.to_vec()).collect(),
    }
}

/// Returns `path` up to the end of the first component that `old` does not have.
fn versioned_part<'a>(path: &'a [u8], old: &[u8]) -> &'a [u8] {
    let same = path.iter().zip(old).take_while(|(a, b)| a == b).count();
    let end = path[same..].iter().position(|byte| *byte == b'/').map_or(path.len(), |at| same + at);
    &path[..end]
}

fn as_texts<S: Serializer>(paths: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| String::from_utf8_lossy(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_versioned_path_ends_behind_the_component_with_the_version() {
        for (path, old, part) in [
            ("lib/modules/6.12.48/a.ko", "lib/modules/6.12.41/a.ko", "lib/modules/6.12.48"),
            ("lib/libx.so.1.3", "lib/libx.so.1.2", "lib/libx.so.1.3"),
            ("lib/libx.so.1", "lib/libx.so.1.2", "lib/libx.so.1"),
        ] {
            assert_eq!(versioned_part(path.as_bytes(), old.as_bytes()), part.as_bytes());
        }
    }
}
