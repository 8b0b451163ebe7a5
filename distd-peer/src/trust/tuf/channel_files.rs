//! The part of a channel's document that is for other update clients: names of files, their sums
//! and OpenPGP signatures (docs/formats.md, "Channel files").

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use distd_core::file_name::{FilePattern, sum_line};
use distd_core::names::Name;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Longest signature that a document may have, bytes. The realm's own has about 130.
const SIGNATURE_BYTES_MAX: usize = 1024;

/// Files that the releases of a channel are to other update clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelFiles {
    /// Pattern of the files' names.
    pub name: FilePattern,
    /// Sum of the file of each version to which the channel may lead; trees have none.
    pub sums: BTreeMap<Name, FileSum>,
}

/// Sum of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SumText", into = "SumText")]
pub struct FileSum {
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
    /// OpenPGP packets of a detached signature over [`ChannelFiles::listing`], by the realm's key.
    pub signature: Vec<u8>,
}

/// A sum as JSON has it: hexadecimal and base64.
#[derive(Serialize, Deserialize)]
struct SumText {
    sha256: String,
    signature: String,
}

/// Reason why a text is no sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sum has 64 hexadecimal digits, and a signature in base64")]
struct SumTextError;

impl TryFrom<SumText> for FileSum {
    type Error = SumTextError;

    fn try_from(text: SumText) -> Result<Self, SumTextError> {
        let mut sha256 = [0; 32];
        hex::decode_to_slice(&text.sha256, &mut sha256).map_err(|_| SumTextError)?;
        let signature = STANDARD.decode(&text.signature).map_err(|_| SumTextError)?;
        if signature.len() > SIGNATURE_BYTES_MAX {
            return Err(SumTextError);
        }
        Ok(Self { sha256, signature })
    }
}

impl From<FileSum> for SumText {
    fn from(sum: FileSum) -> Self {
        Self { sha256: hex::encode(sum.sha256), signature: STANDARD.encode(sum.signature) }
    }
}

impl ChannelFiles {
    /// Name of the file of a version.
    pub fn name_of(&self, version: &Name) -> String {
        self.name.name_of(version)
    }

    /// Version whose file has this name, among those with a sum.
    pub fn version_of(&self, file: &str) -> Option<&Name> {
        self.sums.keys().find(|version| self.name_of(version) == file)
    }

    /// Content of `SHA256SUMS` with the file of a version alone, over which the version's signature
    /// is; `None` for a version without a sum.
    pub fn listing(&self, version: &Name) -> Option<String> {
        self.sums.get(version).map(|sum| sum_line(&sum.sha256, &self.name_of(version)))
    }
}

/// Reads the files. Those that this build cannot read must not hide the channel's release.
pub(super) fn readable_files<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ChannelFiles>, D::Error> {
    let value = Option::<Value>::deserialize(from)?;
    Ok(value.and_then(|value| serde_json::from_value(value).ok()))
}

#[cfg(test)]
mod tests {
    use super::super::ChannelDoc;
    use super::*;

    const GOLDEN: &str = r#"{"product":"os","channel":"stable","version":"2","manifest":"0707070707070707070707070707070707070707070707070707070707070707","counter":3,"files":{"name":"os_@v.erofs","sums":{"2":{"sha256":"abababababababababababababababababababababababababababababababab","signature":"wgE="}}}}"#;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn a_document_with_files_is_this_text() {
        let doc: ChannelDoc = serde_json::from_str(GOLDEN).expect("a document");
        assert_eq!(serde_json::to_string(&doc).expect("encodes"), GOLDEN);
        let files = doc.files.expect("files");
        assert_eq!(files.name_of(&name("2")), "os_2.erofs");
        assert_eq!(files.listing(&name("2")), Some(format!("{}  os_2.erofs\n", "ab".repeat(32))));
        assert_eq!(files.listing(&name("1")), None);
        assert_eq!(files.version_of("os_2.erofs"), Some(&name("2")));
        assert_eq!((files.version_of("os_1.erofs"), files.version_of("2")), (None, None));
        assert_eq!(files.sums[&name("2")].signature, [0xc2, 1]);
    }

    #[test]
    fn a_document_without_files_is_as_it_was_before_there_were_any() {
        let plain = r#"{"product":"os","channel":"stable","version":"2","manifest":"0707070707070707070707070707070707070707070707070707070707070707","counter":3}"#;
        let doc: ChannelDoc = serde_json::from_str(plain).expect("a document");
        assert_eq!(doc.files, None);
        assert_eq!(serde_json::to_string(&doc).expect("encodes"), plain);
    }

    #[test]
    fn files_that_cannot_be_read_do_not_hide_the_release() {
        let long = format!("\"{}\"", "AAAA".repeat(SIGNATURE_BYTES_MAX / 3 + 1));
        for (text, other) in [
            ("\"os_@v.erofs\"", "\"../@v\""),
            ("\"abababababababababababababababababababababababababababababababab\"", "\"ab\""),
            ("\"wgE=\"", "\"w\""),
            ("\"wgE=\"", long.as_str()),
            ("\"wgE=\"", "7"),
            ("\"sums\"", "\"later\""),
            ("\"2\":{\"sha256\"", "\"/\":{\"sha256\""),
        ] {
            let changed = GOLDEN.replace(text, other);
            assert_ne!(changed, GOLDEN);
            let doc: ChannelDoc = serde_json::from_str(&changed).expect(&changed);
            assert_eq!((doc.files, doc.version), (None, name("2")), "{changed}");
        }
    }
}
