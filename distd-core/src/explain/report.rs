//! What an explanation says.

use serde::{Serialize, Serializer};

use super::hints::Hint;
use super::metadata::MetadataCost;

/// Why bytes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A file that was not there.
    New,
    /// A file with other content under its old path.
    Changed,
    /// A file with other content that had another path.
    Renamed,
    /// Superblock, inodes and directories, for what they say.
    Metadata,
    /// The same, for nothing but times.
    Times,
    /// What compressed clusters cost more than the content in them would: it may be there already, and it packs better.
    Compression,
    /// Ends of many files packed together.
    Fragments,
    /// Bytes no format reader knows.
    Unknown,
}

impl Kind {
    /// All of them, in the order they are listed.
    pub const ALL: [Self; 8] = [
        Self::New,
        Self::Changed,
        Self::Renamed,
        Self::Metadata,
        Self::Times,
        Self::Compression,
        Self::Fragments,
        Self::Unknown,
    ];

    /// The word in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Changed => "changed",
            Self::Renamed => "renamed",
            Self::Metadata => "metadata",
            Self::Times => "times",
            Self::Compression => "compression",
            Self::Fragments => "fragments",
            Self::Unknown => "unknown",
        }
    }
}

/// Bytes that one path costs for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PathCost {
    /// Raw bytes as in the artifact; `None` for what belongs to no file. Hostile: escape it where it is shown.
    #[serde(serialize_with = "as_text")]
    pub path: Option<Vec<u8>>,
    /// Why.
    pub kind: Kind,
    /// The path it had, for [`Kind::Renamed`].
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
    /// Which.
    pub kind: Kind,
    /// Number of paths.
    pub paths: u64,
    /// Bytes of the chunks before packing.
    pub raw_bytes: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
}

/// Files, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// How many.
    pub files: u64,
    /// Their bytes in the artifact.
    pub bytes: u64,
}

/// Modification times in both images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// Inodes whose path is in both.
    pub inodes: u64,
    /// Those with another time.
    pub differ: u64,
    /// Those with nothing but another time: the same attributes and the same content. Of content
    /// that lies among the inodes (below 256 bytes) only the length is compared.
    pub differ_only_in_time: u64,
}

/// What the delta would be between images without compression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Uncompressed {
    /// Bytes of the chunks before packing.
    pub raw_bytes: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// Compressed files that were unpacked and cut again.
    pub files: u64,
    /// Those that could not be: they count as they are.
    pub files_not_unpacked: u64,
}

/// Where a delta comes from. All bytes on the wire are those of chunks, each packed on its own: patches make less of
/// them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Length of the old artifact.
    pub old_bytes: u64,
    /// Length of the new one.
    pub new_bytes: u64,
    /// zstd level chunks were packed with.
    pub level: i32,
    /// Chunks the old one lacks.
    pub chunks: u64,
    /// Their bytes.
    pub raw_bytes: u64,
    /// Their bytes on the wire. The sums over `kinds` and over `paths` are these.
    pub wire_bytes: u64,
    /// By kind, those with nothing left out.
    pub kinds: Vec<KindCost>,
    /// By path and kind, most bytes on the wire first.
    pub paths: Vec<PathCost>,
    /// Files under another path with all of their content: they cost nothing.
    pub moved: Count,
    /// Structures of the file system; all zeros without one.
    pub metadata: MetadataCost,
    /// `None` where there are no inodes.
    pub times: Option<Times>,
    /// `None` where nothing compressed differs.
    pub uncompressed: Option<Uncompressed>,
    /// What to change, what saves most first.
    pub hints: Vec<Hint>,
    /// Whether all names were listed. Above a million of them, some files are called new that are not.
    pub all_names: bool,
}

fn as_text<S: Serializer>(path: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| String::from_utf8_lossy(path)).serialize(serializer)
}
