//! Metadata exchange: one question and one answer bring all the TUF metadata that a device lacks
//! (docs/trust.md, "Metadata exchange").
//!
//! The device states what it holds and wants. The origin answers with the newer files and the
//! targets, in one round trip. Relays forward both unread: the device checks every byte of the
//! answer.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::trust::capability::CapabilityQuestion;
use crate::trust::receipts::LogQuestion;
use crate::trust::report::REPORTS_MAX;
use crate::trust::statement::StatementQuestion;
use crate::trust::turn::TurnQuestion;

/// Maximum size of a question, bytes.
pub const QUERY_BYTES_MAX: usize = 16 << 10;

/// Maximum size of an answer after decompression, bytes.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Maximum number of targets, and of files, named in a question.
pub const QUERY_NAMES_MAX: usize = 64;

/// Maximum number of roles named in a question: a device of an earlier version holds all existing
/// roles.
pub const QUERY_ROLES_MAX: usize = 1024;

/// Maximum number of root versions in one answer. A device further behind asks again.
pub const ROOTS_PER_ANSWER: u64 = 32;

/// Maximum number of held targets named in a question.
pub const HELD_TARGETS_MAX: usize = 32;

/// Level of the compression of answers.
pub(super) const LEVEL: i32 = 9;

/// A device's question: what it holds and what it wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// Version of the trusted root: the device wants the roots after it. 0 if it wants no roots.
    #[serde(default)]
    pub root: u64,
    /// Whether the device wants files newer than the versions below, and the targets.
    #[serde(default)]
    pub latest: bool,
    /// Version of the held `timestamp.json`, 0 if none.
    #[serde(default)]
    pub timestamp: u64,
    /// Version of the held `snapshot.json`, 0 if none.
    #[serde(default)]
    pub snapshot: u64,
    /// Names and versions of the held targets roles.
    #[serde(default)]
    pub roles: Vec<(String, u64)>,
    /// Wanted targets. The answer to a channel also contains the release that the channel points
    /// to, and that of its rollout.
    #[serde(default)]
    pub targets: Vec<String>,
    /// First 8 bytes of the SHA-256 of each held target file.
    #[serde(default)]
    pub held: Vec<u64>,
    /// Files wanted by name, if the answer to an earlier question left something out.
    #[serde(default)]
    pub files: Vec<String>,
    /// Whether the device wants only those delegated roles that are on the way to the targets. A
    /// device of an earlier version reads all delegated roles.
    #[serde(default)]
    pub on_path: bool,
    /// Whether the answer may be packed over the files that the question names as held
    /// ([`super::differences`]). A parent of an earlier version does not read it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub differences: bool,
    /// Whether the sender wants the list of revoked nodes ([`crate::trust::revoked`]).
    #[serde(default)]
    pub revoked: bool,
    /// Whether the sender wants the parent's time and version ([`crate::doctor`]); a query with it
    /// asks for nothing else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub about: bool,
    /// Id of the request of the device, for logs ([`crate::request`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Question for capabilities; a query with it asks for nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<CapabilityQuestion>,
    /// Question for the statement about a node; a query with it asks for nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement: Option<StatementQuestion>,
    /// Question for a turn in a rollout; a query with it asks for nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<TurnQuestion>,
    /// Question for the head of the log of receipts, and for proofs; a query with it asks for
    /// nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogQuestion>,
    /// Signed reports ([`crate::trust::report`]); a query with them asks for nothing else. The
    /// answer says that the parent keeps them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<ByteBuf>,
}

/// The files that a device lacks: names in the repository, and bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Files by name. Names are as served under `/tuf/`: `timestamp.json`, `4.snapshot.json`,
    /// `targets/…`.
    pub files: Vec<(String, Bytes)>,
}

/// Reason why bytes are not a question or answer.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The message is too long, or contains too many names.
    #[error("a metadata message is larger than allowed")]
    TooLarge,
    /// The message is not msgpack of this shape.
    #[error("a metadata message is malformed")]
    Malformed(#[source] rmp_serde::decode::Error),
    /// The answer is not zstd.
    #[error("a metadata answer does not decompress")]
    Compressed(#[source] std::io::Error),
    /// The answer ends within the names of its bases.
    #[error("a metadata answer is cut short")]
    Cut,
    /// The answer is packed over a file that is not held.
    #[error("a metadata answer needs {0}, which is not held")]
    NoBase(String),
}

impl Query {
    /// Encodes the question as msgpack.
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("strings and numbers always encode")
    }

    /// Changes an encoded question with [`differences`](Self::differences) into one without, and
    /// nothing else in it: it may have fields of a later version.
    pub fn without_differences(question: &[u8]) -> Bytes {
        // The key as a string of eleven bytes, and the value `true`.
        const ASKED: &[u8] = b"\xabdifferences\xc3";
        let mut question = question.to_vec();
        let at = question.windows(ASKED.len()).position(|bytes| bytes == ASKED);
        if let Some(value) = at.and_then(|at| question.get_mut(at + ASKED.len() - 1)) {
            // `false`.
            *value = 0xc2;
        }
        question.into()
    }

    /// Decodes bytes from the network, within the bounds above.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > QUERY_BYTES_MAX {
            return Err(WireError::TooLarge);
        }
        let query: Self = rmp_serde::from_slice(bytes).map_err(WireError::Malformed)?;
        let too_many = query.targets.len() > QUERY_NAMES_MAX
            || query.files.len() > QUERY_NAMES_MAX
            || query.roles.len() > QUERY_ROLES_MAX
            || query.held.len() > HELD_TARGETS_MAX
            || query.reports.len() > REPORTS_MAX
            || query.capability.as_ref().is_some_and(|asked| asked.is_too_large(query.targets.len()));
        if too_many { Err(WireError::TooLarge) } else { Ok(query) }
    }
}

impl Answer {
    /// Encodes the answer as a zstd frame of msgpack. Metadata is mostly hex, which compresses to
    /// half.
    pub fn encode(&self) -> Vec<u8> {
        zstd::bulk::compress(&self.raw(), LEVEL).expect("compressing memory to memory does not fail")
    }

    /// The answer as msgpack, before it is compressed.
    pub(super) fn raw(&self) -> Vec<u8> {
        let raw: Vec<(&str, &serde_bytes::Bytes)> =
            self.files.iter().map(|(n, b)| (n.as_str(), serde_bytes::Bytes::new(b))).collect();
        rmp_serde::to_vec(&raw).expect("strings and bytes always encode")
    }

    /// Decodes bytes from the network that are packed over nothing; at most [`ANSWER_BYTES_MAX`]
    /// come out.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        Self::decode_over(bytes, |_| None)
    }

    /// Decompresses a frame made with `dictionary`, and reads what is in it.
    pub(super) fn unpack(frame: &[u8], dictionary: &[u8]) -> Result<Self, WireError> {
        let claimed = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten();
        let capacity = claimed.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        if capacity > ANSWER_BYTES_MAX {
            return Err(WireError::TooLarge);
        }
        let raw = zstd::bulk::Decompressor::with_dictionary(dictionary)
            .and_then(|mut decompressor| decompressor.decompress(frame, capacity))
            .map_err(WireError::Compressed)?;
        let files: Vec<(String, ByteBuf)> = rmp_serde::from_slice(&raw).map_err(WireError::Malformed)?;
        Ok(Self { files: files.into_iter().map(|(n, b)| (n, Bytes::from(b.into_vec()))).collect() })
    }
}

/// Returns the first 8 bytes of a hash, by which a question names a held target file.
pub fn held_prefix(sha256: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.iter_mut().zip(sha256).for_each(|(to, from)| *to = *from);
    u64::from_be_bytes(first)
}

/// Path of a target's file under `/tuf/`: `targets/DIRS/SHA256.NAME`, as in TUF's consistent
/// snapshots.
pub fn target_path(target: &str, sha256: &[u8]) -> String {
    let sha256 = hex::encode(sha256);
    match target.rsplit_once('/') {
        Some((dirs, name)) => format!("targets/{dirs}/{sha256}.{name}"),
        None => format!("targets/{sha256}.{target}"),
    }
}

/// Returns the target whose file has a path made by [`target_path`].
pub fn target_of(path: &str) -> Option<String> {
    let (dirs, file) = path.strip_prefix("targets/")?.rsplit_once('/')?;
    Some(format!("{dirs}/{}", file.split_once('.')?.1))
}

/// Returns the SHA-256 in a path made by [`target_path`].
pub fn target_hash(path: &str) -> Option<Vec<u8>> {
    let file = path.strip_prefix("targets/")?.rsplit('/').next()?;
    hex::decode(file.split('.').next()?).ok()
}

/// Returns role and version of a file name `VERSION.ROLE.json`.
pub fn role_file(name: &str) -> Option<(&str, u64)> {
    let (version, role) = name.strip_suffix(".json")?.split_once('.')?;
    Some((role, version.parse().ok()?)).filter(|_| !name.contains('/'))
}

/// Returns `signed.version` of a metadata file. It only steers what is requested, and proves
/// nothing.
pub fn version_of(json: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(json).ok()?.get("signed")?.get("version")?.as_u64()
}

/// Returns `signed.expires` of a metadata file, unix seconds. It proves nothing.
pub fn end_of(json: &[u8]) -> Option<u64> {
    let file: serde_json::Value = serde_json::from_slice(json).ok()?;
    let end: jiff::Timestamp = file.get("signed")?.get("expires")?.as_str()?.parse().ok()?;
    u64::try_from(end.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_survive_a_round_trip_and_are_small() {
        let query = Query {
            root: 1,
            latest: true,
            timestamp: 40,
            snapshot: 30,
            roles: vec![("releases".into(), 9), ("channels".into(), 8), ("targets".into(), 1)],
            targets: vec!["channels/os/stable".into()],
            ..Query::default()
        };
        let bytes = query.encode();
        assert!(bytes.len() < 150, "{} bytes", bytes.len());
        assert_eq!(Query::decode(&bytes).expect("round trip"), query);
        let asked = Query { differences: true, ..query.clone() };
        let without = Query::without_differences(&asked.encode());
        assert_eq!(Query::decode(&without).expect("as before"), query);
        assert_eq!(Query::without_differences(&bytes), bytes);
        let answer = Answer { files: vec![("timestamp.json".into(), Bytes::from_static(b"{}"))] };
        assert_eq!(Answer::decode(&answer.encode()).expect("round trip"), answer);
        assert!(Answer::default().encode().len() < 20);
    }

    #[test]
    fn an_answer_too_large_for_memory_is_refused_before_it_is_unpacked() {
        let bomb = zstd::bulk::compress(&vec![0; ANSWER_BYTES_MAX + 1], 9).expect("compress");
        assert!(bomb.len() < 10_000);
        assert!(matches!(Answer::decode(&bomb), Err(WireError::TooLarge)));
        assert!(Answer::decode(b"not zstd").is_err());
        assert!(Query::decode(&vec![0; QUERY_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn a_target_has_the_path_that_the_tuf_specification_gives() {
        assert_eq!(target_path("releases/os/1", &[0xab]), "targets/releases/os/ab.1");
    }
}
