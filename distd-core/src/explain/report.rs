//! Report of an explanation.

use serde::{Serialize, Serializer};

use super::hints::Hint;
use super::metadata::MetadataCost;
use crate::patch::view::Transparency;

/// Reason why bytes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A file that the old artifact does not have.
    New,
    /// A file with new content under its old path.
    Changed,
    /// A file with new content that had another path.
    Renamed,
    /// Superblock, inodes and directories, for changes other than times.
    Metadata,
    /// Superblock, inodes and directories, for changes of times alone.
    Times,
    /// Amount by which compressed clusters cost more than their content would: the content may be
    /// there already, and it packs better.
    Compression,
    /// Fragments: ends of many files, packed together.
    Fragments,
    /// Hash trees of dm-verity. Devices compute those whose data is in the same artifact.
    HashTree,
    /// Bytes that no format reader knows.
    Unknown,
}

impl Kind {
    /// All kinds, in the order in which they are listed.
    pub const ALL: [Self; 9] = [
        Self::New,
        Self::Changed,
        Self::Renamed,
        Self::Metadata,
        Self::Times,
        Self::Compression,
        Self::Fragments,
        Self::HashTree,
        Self::Unknown,
    ];

    /// Name of the kind in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Changed => "changed",
            Self::Renamed => "renamed",
            Self::Metadata => "metadata",
            Self::Times => "times",
            Self::Compression => "compression",
            Self::Fragments => "fragments",
            Self::HashTree => "hash_tree",
            Self::Unknown => "unknown",
        }
    }
}

/// Bytes that one path costs for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PathCost {
    /// Path as raw bytes from the artifact; `None` for bytes that belong to no file. Hostile:
    /// escape it before display.
    #[serde(serialize_with = "as_text")]
    pub path: Option<Vec<u8>>,
    /// Reason for the cost.
    pub kind: Kind,
    /// Old path of the file, for [`Kind::Renamed`].
    #[serde(serialize_with = "as_text")]
    pub old_path: Option<Vec<u8>>,
    /// Bytes of the chunks before packing.
    pub raw_bytes: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
}

/// Bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KindCost {
    /// Reason that the bytes are summed for.
    pub kind: Kind,
    /// Number of paths.
    pub paths: u64,
    /// Bytes of the chunks before packing.
    pub raw_bytes: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
}

/// Number of files and of their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Number of files.
    pub files: u64,
    /// Bytes of these files in the artifact.
    pub bytes: u64,
}

/// Modification times in both images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// Number of inodes whose path is in both images.
    pub inodes: u64,
    /// Number of those inodes with different times.
    pub differ: u64,
    /// Number of those inodes that differ in nothing but the time: the same attributes and the same
    /// content. If the content lies among the inodes (below 256 bytes), only its length is
    /// compared.
    pub differ_only_in_time: u64,
}

/// Size of the delta between the same images without compression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Uncompressed {
    /// Bytes of the chunks before packing.
    pub raw_bytes: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// Number of compressed files that were unpacked and cut again.
    pub files: u64,
    /// Number of compressed files that could not be unpacked; they are counted as they are.
    pub files_not_unpacked: u64,
}

/// Origin of a delta. All bytes on the wire are those of chunks, each packed on its own; patches
/// need fewer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Length of the old artifact.
    pub old_bytes: u64,
    /// Length of the new artifact.
    pub new_bytes: u64,
    /// zstd level at which chunks were packed.
    pub level: i32,
    /// Number of chunks that the old artifact lacks.
    pub chunks: u64,
    /// Bytes of these chunks before packing.
    pub raw_bytes: u64,
    /// Bytes of these chunks on the wire. Equal to the sum over `kinds` and to the sum over
    /// `paths`.
    pub wire_bytes: u64,
    /// Costs by kind; kinds without cost are left out.
    pub kinds: Vec<KindCost>,
    /// Costs by path and kind, most bytes on the wire first.
    pub paths: Vec<PathCost>,
    /// Files with a new path and unchanged content: they cost nothing.
    pub moved: Count,
    /// Cost of the file system's structures; all zeros without a file system.
    pub metadata: MetadataCost,
    /// Comparison of the times; `None` without inodes.
    pub times: Option<Times>,
    /// Delta without compression; `None` if no compressed file differs.
    pub uncompressed: Option<Uncompressed>,
    /// Share of the new artifact in which patches see content; `None` if it was not asked for.
    pub transparency: Option<Transparency>,
    /// Changes to make, largest saving first.
    pub hints: Vec<Hint>,
    /// Whether all names were listed. With more than a million names, some files are reported as
    /// new although they are not.
    pub all_names: bool,
}

fn as_text<S: Serializer>(path: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| String::from_utf8_lossy(path)).serialize(serializer)
}
