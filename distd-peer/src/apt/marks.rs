//! Notes on the files of a cache: the name under which a file was asked for, and how often it was
//! given. They are extended attributes of the file; where the file system has none, there are no
//! notes, and nothing else depends on them.

use std::fs::File;
use std::path::Path;

use rustix::fs::{XattrFlags, fsetxattr, getxattr};

/// Attribute with the number of times and the name, as in `3 hello_2.10-3_amd64.deb`.
const ATTRIBUTE: &str = "user.distd.apt";

/// Longest value that is read.
const VALUE_BYTES_MAX: usize = 512;

/// Notes on a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Name of the file in its repository; empty when it is not known.
    pub name: String,
    /// Number of times that it was given.
    pub given: u64,
}

/// Reads the notes on the file at `path`.
pub(super) fn read(path: &Path) -> Marks {
    let mut value = [0; VALUE_BYTES_MAX];
    let read = getxattr(path, ATTRIBUTE, &mut value[..]).unwrap_or(0);
    parse(&value[..read.min(VALUE_BYTES_MAX)])
}

fn parse(value: &[u8]) -> Marks {
    let text = String::from_utf8_lossy(value);
    let Some((given, name)) = text.split_once(' ') else { return Marks::default() };
    // The name is shown on terminals.
    let name = name.chars().filter(|letter| !letter.is_control()).collect();
    Marks { name, given: given.parse().unwrap_or(0) }
}

/// Writes the notes on a file.
pub(super) fn write(file: &File, marks: &Marks) {
    let mut value = format!("{} {}", marks.given, marks.name).into_bytes();
    value.truncate(VALUE_BYTES_MAX);
    // A file system without attributes has no notes.
    let _ = fsetxattr(file, ATTRIBUTE, &value, XattrFlags::empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_any_kind_are_read() {
        assert_eq!(parse(b"3 a b.deb"), Marks { name: "a b.deb".into(), given: 3 });
        assert_eq!(parse(b"x \x1b[2Ja"), Marks { name: "[2Ja".into(), given: 0 });
        assert_eq!(parse(b""), Marks::default());
        assert_eq!(parse(b"\xff\xfe"), Marks::default());
    }

    #[test]
    fn notes_are_read_back_where_the_file_system_has_them() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let marks = Marks { name: "hello_1_all.deb".into(), given: 7 };
        write(file.as_file(), &marks);
        let read = read(file.path());
        assert!(read == marks || read == Marks::default(), "{read:?}");
    }
}
