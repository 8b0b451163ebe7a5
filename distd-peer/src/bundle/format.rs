//! Bytes of a bundle (docs/formats.md, "Bundle").

use std::io;

use distd_core::ManifestId;
use distd_core::bounds::{CHUNK_BYTES_MAX, METADATA_ANSWER_MAX, NODE_BYTES_MAX};
use distd_core::fleet::CAPABILITY_BYTES_MAX;
use distd_core::names::Name;
use serde::{Deserialize, Serialize};

/// First bytes of a bundle.
pub const MAGIC: &[u8; 8] = b"distdbn1";

/// Kind and length before each record's body.
pub(super) const RECORD_HEAD: usize = 5;

/// Id and codec before a chunk's packed bytes.
pub(super) const CHUNK_HEAD: usize = 9;

/// Body of the last record: the hash of everything before it, and the number of records before it.
pub(super) const END_BYTES: usize = 40;

/// Most bytes of the head.
const HEAD_MAX: usize = 64 << 10;

/// Most swarms in a bundle: the release, and the patch sets of a route.
pub(super) const SWARMS_MAX: usize = 16;

/// Most chunks in a bundle. Their places take 400 MB of memory.
pub(super) const CHUNKS_MAX: u64 = 1 << 24;

/// Most manifest nodes in a bundle.
pub(super) const NODES_MAX: u64 = 1 << 20;

/// Most bytes of metadata, unpacked: that of 10 000 releases takes a twentieth.
pub(super) const METADATA_BYTES_MAX: usize = 32 << 20;

/// Bytes of metadata in one piece, unpacked: a file is smaller.
pub(super) const METADATA_PIECE: usize = 4 << 20;

/// Most pieces of metadata and most capabilities: a realm changes its root keys rarely.
pub(super) const ANSWERS_MAX: usize = 64;

/// Kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// What the bundle is, as JSON. Always the first record.
    Head = 1,
    /// Part of the signed metadata: an answer of the metadata exchange.
    Metadata = 2,
    /// A capability of any node.
    Capability = 3,
    /// A manifest id: the nodes and chunks that follow are of its swarm.
    Swarm = 4,
    /// One manifest node, with its level before it.
    Node = 5,
    /// One chunk: its id, its codec, and its packed bytes.
    Chunk = 6,
    /// The end. Always the last record.
    End = 7,
}

impl Kind {
    pub(super) fn from_code(code: u8) -> Option<Self> {
        let all =
            [Self::Head, Self::Metadata, Self::Capability, Self::Swarm, Self::Node, Self::Chunk, Self::End];
        all.into_iter().find(|kind| *kind as u8 == code)
    }

    /// Bounds of the body's length, bytes.
    pub(super) fn lengths(self) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::Head => 2..=HEAD_MAX,
            Self::Metadata => 1..=METADATA_ANSWER_MAX,
            Self::Capability => 1..=CAPABILITY_BYTES_MAX,
            Self::Swarm => 32..=32,
            Self::Node => 2..=1 + NODE_BYTES_MAX,
            Self::Chunk => CHUNK_HEAD + 1..=CHUNK_HEAD + CHUNK_BYTES_MAX,
            Self::End => END_BYTES..=END_BYTES,
        }
    }
}

/// A release by its version and manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Version.
    pub version: Name,
    /// Manifest.
    pub manifest: ManifestId,
}

/// What a bundle is. Nothing in it is signed: the reader learns from it what to look for, and
/// verifies what it finds by the signed metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Product of the release.
    pub product: Name,
    /// Channel that led to the release, if a channel was exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<Name>,
    /// The release.
    pub release: Release,
    /// Length of the release's artifact, bytes.
    pub bytes: u64,
    /// Release whose bytes the reader must have. `None`: the bundle is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Release>,
    /// Memory for views that the patches may need, bytes.
    #[serde(default)]
    pub view_memory: u64,
    /// Time at which the bundle was made, unix seconds.
    pub made: u64,
}

/// Reason why a file is not a bundle that can be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file could not be read.
    #[error("could not read the bundle")]
    Io(#[from] io::Error),
    /// The file begins otherwise.
    #[error("the file is no bundle: make one with distd export")]
    NoBundle,
    /// The file ends before the bundle does.
    #[error("the bundle is cut short: copy it again")]
    Short,
    /// A byte was changed on the way.
    #[error("the bundle is damaged: copy it again")]
    Damaged,
    /// The file is larger than a bundle may be.
    #[error("the bundle has more {0} than are read")]
    TooMany(&'static str),
    /// A record that this build cannot know.
    #[error("the bundle has a record of kind {0}, which this version of distd does not know: upgrade distd")]
    Unknown(u8),
    /// The records contradict each other or the bounds of the format.
    #[error("the bundle is malformed: {0}")]
    Malformed(&'static str),
}
