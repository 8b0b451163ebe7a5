//! File names under which other update clients know releases, and the lines of `SHA256SUMS` that
//! the realm signs for them (docs/formats.md, "Channel files").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bounds::NAME_BYTES_MAX;
use crate::names::Name;

/// Stands for the version in a pattern, as in the match patterns of systemd-sysupdate.
const VERSION: &str = "@v";

/// Longest pattern, bytes.
pub const FILE_PATTERN_MAX: usize = 100;

/// Longest file name, bytes: shorter than what file systems take.
pub const FILE_NAME_MAX: usize = FILE_PATTERN_MAX - VERSION.len() + NAME_BYTES_MAX;

/// Pattern of the file names of a product's releases, as `os_@v.erofs`: letters, digits and `._+-`,
/// with exactly one `@v`, at most [`FILE_PATTERN_MAX`] bytes, and no dot at the beginning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilePattern(String);

/// Reason why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilePatternError {
    /// The length is out of bounds; bytes.
    #[error("a file name's pattern has 2 to {FILE_PATTERN_MAX} bytes, this one has {0}")]
    Length(usize),
    /// The pattern has no `@v`, or several.
    #[error("a file name's pattern has {VERSION} exactly once, where the version stands, as os_@v.erofs")]
    Version,
    /// A character that is not allowed, or not as the first one.
    #[error(
        "a file name is made of a-z A-Z 0-9 . _ + - and does not begin with a dot; {0:?} is not allowed there"
    )]
    Character(char),
}

impl FilePattern {
    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the file of a version.
    pub fn name_of(&self, version: &Name) -> String {
        self.0.replacen(VERSION, version.as_str(), 1)
    }
}

impl FromStr for FilePattern {
    type Err = FilePatternError;

    fn from_str(s: &str) -> Result<Self, FilePatternError> {
        if !(VERSION.len()..=FILE_PATTERN_MAX).contains(&s.len()) {
            return Err(FilePatternError::Length(s.len()));
        }
        let (before, behind) = s.split_once(VERSION).ok_or(FilePatternError::Version)?;
        if behind.contains(VERSION) {
            return Err(FilePatternError::Version);
        }
        let mut parts = before.chars().chain(behind.chars());
        if let Some(c) = parts.find(|c| !is_allowed(*c)) {
            return Err(FilePatternError::Character(c));
        }
        if s.starts_with('.') {
            return Err(FilePatternError::Character('.'));
        }
        Ok(Self(s.to_owned()))
    }
}

impl TryFrom<String> for FilePattern {
    type Error = FilePatternError;

    fn try_from(s: String) -> Result<Self, FilePatternError> {
        s.parse()
    }
}

impl From<FilePattern> for String {
    fn from(pattern: FilePattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for FilePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The listing of one file as `sha256sum` prints it, and as the realm's OpenPGP key signs it.
pub fn sum_line(sha256: &[u8; 32], name: &str) -> String {
    format!("{}  {name}\n", hex::encode(sha256))
}

/// Whether bytes are one line of [`sum_line`] with the name of a file that a [`FilePattern`] can
/// have.
pub fn is_sum_line(bytes: &[u8]) -> bool {
    let Some((digest, rest)) = bytes.split_at_checked(64) else { return false };
    let name = rest.strip_prefix(b"  ").and_then(|rest| rest.strip_suffix(b"\n"));
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_name = |name: &[u8]| {
        (1..=FILE_NAME_MAX).contains(&name.len())
            && name[0] != b'.'
            && name.iter().all(|byte| is_allowed(char::from(*byte)))
    };
    digest.iter().all(is_hex) && name.is_some_and(is_name)
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn a_pattern_makes_the_names_of_versions() {
        for (pattern, version, file) in [
            ("os_@v.erofs", "1.2+3-4", "os_1.2+3-4.erofs"),
            ("@v", "7", "7"),
            ("-@v", "7", "-7"),
            ("a@v.raw.xz", "v", "av.raw.xz"),
        ] {
            let parsed: FilePattern = pattern.parse().expect(pattern);
            assert_eq!(parsed.name_of(&name(version)), file);
            assert_eq!(serde_json::to_string(&parsed).expect("encodes"), format!("{pattern:?}"));
        }
    }

    #[test]
    fn a_pattern_without_a_version_or_with_other_characters_is_refused() {
        use FilePatternError::{Character, Length, Version};
        let long = format!("{}@v", "a".repeat(99));
        for (text, error) in [
            ("", Length(0)),
            ("a", Length(1)),
            (long.as_str(), Length(101)),
            ("os.erofs", Version),
            ("os_@v_@v", Version),
            ("@v@v", Version),
            (".os_@v", Character('.')),
            ("a/@v", Character('/')),
            ("../@v", Character('/')),
            ("os @v", Character(' ')),
            ("os@@v", Character('@')),
            ("os@v@", Character('@')),
            ("os~@v", Character('~')),
            ("os_@v\n", Character('\n')),
            ("ö@v", Character('ö')),
        ] {
            assert_eq!(text.parse::<FilePattern>(), Err(error), "{text:?}");
        }
        let longest = format!("{}@v", "a".repeat(98));
        let made = longest.parse::<FilePattern>().expect("100 bytes").name_of(&name(&"1".repeat(100)));
        assert_eq!(made.len(), FILE_NAME_MAX);
        assert!(serde_json::from_str::<FilePattern>("\"x\"").is_err());
    }

    #[test]
    fn a_sum_line_is_told_from_other_texts() {
        let line = sum_line(&[0xab; 32], "os_1.erofs");
        assert_eq!(line, format!("{}  os_1.erofs\n", "ab".repeat(32)));
        assert!(is_sum_line(line.as_bytes()));
        let digest = "ab".repeat(32);
        for other in [
            String::new(),
            line.repeat(2),
            line.trim_end().to_owned(),
            format!("{line}\n"),
            format!("{digest} *os_1.erofs\n"),
            format!("{}  os_1.erofs\n", digest.to_uppercase()),
            format!("{}  os_1.erofs\n", &digest[1..]),
            format!("{digest}  .os_1\n"),
            format!("{digest}  ../os_1\n"),
            format!("{digest}  \n"),
            format!("{digest}  a b\n"),
            format!("{digest}  {}\n", "a".repeat(FILE_NAME_MAX + 1)),
        ] {
            assert!(!is_sum_line(other.as_bytes()), "{other:?}");
        }
        assert!(is_sum_line(format!("{digest}  {}\n", "a".repeat(FILE_NAME_MAX)).as_bytes()));
    }
}
