//! Reading of the index files of a repository: `Release`, `Packages`, `Sources`, and the `Index` of
//! patches. Only the names, sizes and SHA-256 of files are taken from them.
//!
//! An index was signed, or listed by one that was; it is read with bounds all the same, as the key
//! may be that of anybody.

use std::io::{self, BufRead};

use super::address::escaped;

/// Longest line that is read; the rest of a longer one is skipped. Fields that name files are
/// shorter.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Most files that one index names. `Sources` of Debian's `main` names 120 000.
pub(super) const NAMED_MAX: usize = 1 << 20;

/// Most files of one source package.
const SOURCE_FILES_MAX: usize = 1024;

/// SHA-256 of a file.
pub(super) type Sha256 = [u8; 32];

/// Length and SHA-256 of a file, as an index has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// SHA-256 of the file.
    pub sha256: Sha256,
    /// Length of the file, bytes.
    pub bytes: u64,
}

/// Kind of an index file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `Packages`: binary packages.
    Packages,
    /// `Sources`: source packages.
    Sources,
    /// `Index` of a directory of patches, such as `Packages.diff`.
    Patches,
}

impl Kind {
    /// The kind of the index with this path, without a suffix for its packing.
    pub fn of(path: &str) -> Option<Self> {
        match path.rsplit('/').next().unwrap_or(path) {
            "Packages" => Some(Self::Packages),
            "Sources" => Some(Self::Sources),
            "Index" if path.ends_with(".diff/Index") => Some(Self::Patches),
            _ => None,
        }
    }

    /// Number of the kind in a table of names; 0 is no index.
    pub fn number(self) -> u8 {
        match self {
            Self::Packages => 1,
            Self::Sources => 2,
            Self::Patches => 3,
        }
    }

    /// The kind with this number; `None` for none.
    pub fn of_number(number: u8) -> Option<Self> {
        [Self::Packages, Self::Sources, Self::Patches].into_iter().find(|kind| kind.number() == number)
    }
}

/// One file that a `Release` lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Escaped path, relative to the directory of the `Release`.
    pub path: String,
    /// Its sum.
    pub sum: Sum,
    /// Its SHA-512 in hexadecimal digits, if the `Release` has one: a name in `by-hash`.
    pub sha512: Option<String>,
}

/// Calls `take` with each line of `text`, without its end. The part of a line beyond a bound is
/// left out.
fn lines(mut text: impl BufRead, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut line = Vec::new();
    let mut is_any = false;
    loop {
        let (used, is_end) = {
            let some = text.fill_buf()?;
            if some.is_empty() {
                break;
            }
            is_any = true;
            let end = some.iter().position(|byte| *byte == b'\n');
            let part = &some[..end.unwrap_or(some.len())];
            let room = LINE_BYTES_MAX.saturating_sub(line.len());
            line.extend_from_slice(&part[..part.len().min(room)]);
            (end.map_or(some.len(), |end| end + 1), end.is_some())
        };
        text.consume(used);
        if is_end {
            take(line.strip_suffix(b"\r").unwrap_or(&line))?;
            line.clear();
            is_any = false;
        }
    }
    if is_any || !line.is_empty() { take(&line) } else { Ok(()) }
}

/// Splits ` HASH SIZE NAME`.
fn sum_line(line: &str) -> Option<(&str, u64, &str)> {
    let mut words = line.split_ascii_whitespace();
    let (hash, bytes, name) = (words.next()?, words.next()?, words.next()?);
    let is_number = bytes.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && words.next().is_none()).then_some((hash, bytes.parse().ok()?, name))
}

fn sha256_of(text: &str) -> Option<Sha256> {
    hex::decode(text).ok()?.try_into().ok()
}

fn too_many() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the index names too many files")
}

/// Splits `Name: value`; the name in lower case.
fn field(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.split_once(':')?;
    Some((name.to_ascii_lowercase(), value.trim()))
}

/// Reads a `Release`.
///
/// # Errors
/// When it names too many files.
pub(super) fn release(text: &[u8]) -> io::Result<Vec<Listed>> {
    let mut section = String::new();
    let mut listed: Vec<Listed> = Vec::new();
    let mut long = std::collections::HashMap::new();
    lines(text, |line| {
        let Ok(line) = std::str::from_utf8(line) else { return Ok(()) };
        if !line.starts_with([' ', '\t']) {
            section = field(line).map(|(name, _)| name).unwrap_or_default();
            return Ok(());
        }
        let Some((hash, bytes, name)) = sum_line(line) else { return Ok(()) };
        let Ok(path) = escaped(name) else { return Ok(()) };
        match section.as_str() {
            "sha256" => {
                let Some(sha256) = sha256_of(hash) else { return Ok(()) };
                if listed.len() == NAMED_MAX {
                    return Err(too_many());
                }
                listed.push(Listed { path, sum: Sum { sha256, bytes }, sha512: None });
            }
            "sha512" if hash.len() == 128 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                if long.len() == NAMED_MAX {
                    return Err(too_many());
                }
                long.insert(path, hash.to_ascii_lowercase());
            }
            _ => {}
        }
        Ok(())
    })?;
    for file in &mut listed {
        file.sha512 = long.remove(&file.path);
    }
    Ok(listed)
}

/// Reads an index, and calls `take` with the escaped path and the sum of each file that it names.
/// Paths are relative: those of packages to the root of the repository, those of patches to the
/// directory of the index.
///
/// # Errors
/// Those of the reader and of `take`, and when the index names too many files.
pub(super) fn read(
    kind: Kind,
    text: impl BufRead,
    mut take: impl FnMut(String, Sum) -> io::Result<()>,
) -> io::Result<()> {
    let mut left = NAMED_MAX;
    let mut take = |path: String, sum: Sum| {
        left = left.checked_sub(1).ok_or_else(too_many)?;
        take(path, sum)
    };
    match kind {
        Kind::Packages => packages(text, &mut take),
        Kind::Sources => sources(text, &mut take),
        Kind::Patches => patches(text, &mut take),
    }
}

type Take<'t> = &'t mut dyn FnMut(String, Sum) -> io::Result<()>;

fn packages(text: impl BufRead, take: Take<'_>) -> io::Result<()> {
    let (mut name, mut bytes, mut sha256) = (None, None, None);
    let mut end = |name: &mut Option<String>, bytes: &mut Option<u64>, sha256: &mut Option<Sha256>| {
        if let (Some(name), Some(bytes), Some(sha256)) = (name.take(), bytes.take(), sha256.take()) {
            take(name, Sum { sha256, bytes })?;
        }
        Ok::<_, io::Error>(())
    };
    lines(text, |line| {
        if line.is_empty() {
            return end(&mut name, &mut bytes, &mut sha256);
        }
        // Of the many fields of a package only three are looked at.
        if !matches!(line[0], b'F' | b'f' | b'S' | b's') {
            return Ok(());
        }
        let Some((field, value)) = std::str::from_utf8(line).ok().and_then(field) else { return Ok(()) };
        match field.as_str() {
            "filename" => name = escaped(value).ok(),
            "size" => bytes = value.parse().ok(),
            "sha256" => sha256 = sha256_of(value),
            _ => {}
        }
        Ok(())
    })?;
    end(&mut name, &mut bytes, &mut sha256)
}

fn sources(text: impl BufRead, take: Take<'_>) -> io::Result<()> {
    let mut directory = String::new();
    let mut files: Vec<(String, Sum)> = Vec::new();
    let mut in_sums = false;
    let mut end = |directory: &mut String, files: &mut Vec<(String, Sum)>| {
        for (name, sum) in files.drain(..) {
            if let Ok(path) = escaped(&format!("{directory}/{name}")) {
                take(path, sum)?;
            }
        }
        directory.clear();
        Ok::<_, io::Error>(())
    };
    lines(text, |line| {
        if line.is_empty() {
            in_sums = false;
            return end(&mut directory, &mut files);
        }
        let Ok(line) = std::str::from_utf8(line) else { return Ok(()) };
        if line.starts_with([' ', '\t']) {
            if in_sums
                && let Some((hash, bytes, name)) = sum_line(line)
                && let Some(sha256) = sha256_of(hash)
            {
                if files.len() == SOURCE_FILES_MAX {
                    return Err(too_many());
                }
                files.push((name.to_owned(), Sum { sha256, bytes }));
            }
            return Ok(());
        }
        let Some((field, value)) = field(line) else { return Ok(()) };
        in_sums = field == "checksums-sha256";
        if field == "directory" {
            // In a flat repository the directory may be missing or a dot.
            directory = value.trim_end_matches('/').to_owned();
        }
        Ok(())
    })?;
    end(&mut directory, &mut files)
}

fn patches(text: impl BufRead, take: Take<'_>) -> io::Result<()> {
    let mut section = String::new();
    lines(text, |line| {
        let Ok(line) = std::str::from_utf8(line) else { return Ok(()) };
        if !line.starts_with([' ', '\t']) {
            section = field(line).map(|(name, _)| name).unwrap_or_default();
        } else if section == "sha256-download"
            && let Some((hash, bytes, name)) = sum_line(line)
            && let (Some(sha256), Ok(path)) = (sha256_of(hash), escaped(name))
        {
            take(path, Sum { sha256, bytes })?;
        }
        Ok(())
    })
}

/// Returns the text that an `InRelease` signs: of a message in the clear (RFC 9580, section 7) with
/// nothing before and nothing behind it, the lines between its head and its signature. `None` for
/// anything else.
pub(super) fn signed_text(file: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(file).ok()?;
    let mut lines = text.lines();
    if lines.next()? != "-----BEGIN PGP SIGNED MESSAGE-----" {
        return None;
    }
    // Headers such as Hash, up to an empty line.
    for line in lines.by_ref() {
        if line.is_empty() {
            break;
        }
        if !line.starts_with("Hash:") {
            return None;
        }
    }
    let mut out = Vec::with_capacity(text.len());
    let mut is_signed = false;
    for line in lines.by_ref() {
        if line == "-----BEGIN PGP SIGNATURE-----" {
            is_signed = true;
            break;
        }
        let line = match line.strip_prefix("- ") {
            Some(line) => line,
            None if line.starts_with('-') => return None,
            None => line,
        };
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
    if !is_signed || !lines.any(|line| line == "-----END PGP SIGNATURE-----") {
        return None;
    }
    lines.all(|line| line.trim().is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(kind: Kind, text: &str) -> Vec<(String, u64)> {
        let mut out = Vec::new();
        read(kind, text.as_bytes(), |path, sum| {
            out.push((path, sum.bytes));
            Ok(())
        })
        .expect("reads");
        out
    }

    const HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_release_lists_files_and_their_names_by_hash() {
        let text = format!(
            "Origin: x\nMD5Sum:\n d41d8cd98f00b204e9800998ecf8427e 5 main/binary-amd64/Packages\nSHA256:\n {HASH} 5 \
             main/binary-amd64/Packages\n {HASH}  7\tmain/source/Sources.xz\n {HASH} 9 ../../etc/passwd\n {HASH} -1 a\n \
             short 1 b\nSHA512:\n {0} 5 main/binary-amd64/Packages\nAcquire-By-Hash: yes\n",
            "AB".repeat(64)
        );
        let listed = release(text.as_bytes()).expect("reads");
        let paths: Vec<_> = listed.iter().map(|file| (file.path.as_str(), file.sum.bytes)).collect();
        assert_eq!(paths, [("main/binary-amd64/Packages", 5), ("main/source/Sources.xz", 7)]);
        assert_eq!(listed[0].sha512.as_deref(), Some("ab".repeat(64).as_str()));
        assert_eq!(listed[1].sha512, None);
    }

    #[test]
    fn packages_name_their_files() {
        let text = format!(
            "Package: a\nFilename: pool/a/a_1+b_all.deb\nSize: 12\nDescription: x\n Filename: not/this\nSHA256: {HASH}\n\n\
             Package: without-sum\nFilename: pool/b.deb\nSize: 1\n\nPackage: c\nsha256: {HASH}\nsize: 3\nfilename: \
             ./c.deb\n\nFilename: ../d.deb\nSize: 3\nSHA256: {HASH}"
        );
        assert_eq!(
            all(Kind::Packages, &text),
            [("pool/a/a_1%2Bb_all.deb".to_owned(), 12), ("c.deb".to_owned(), 3)]
        );
    }

    #[test]
    fn sources_name_all_their_files() {
        let text = format!(
            "Package: a\nFiles:\n 0 1 wrong.dsc\nChecksums-Sha256:\n {HASH} 4 a.dsc\n {HASH} 5 a.tar.xz\nDirectory: \
             pool/a\n\nPackage: b\nDirectory: .\nChecksums-Sha256:\n {HASH} 6 b.dsc\n"
        );
        let expected = [("pool/a/a.dsc", 4), ("pool/a/a.tar.xz", 5), ("b.dsc", 6)];
        assert_eq!(all(Kind::Sources, &text), expected.map(|(path, bytes)| (path.to_owned(), bytes)));
    }

    #[test]
    fn patches_are_those_that_are_downloaded() {
        let text = format!(
            "SHA256-Current: {HASH} 100\nSHA256-Patches:\n {HASH} 9 T-1\nSHA256-Download:\n {HASH} 7 T-1.gz\n"
        );
        assert_eq!(all(Kind::Patches, &text), [("T-1.gz".to_owned(), 7)]);
        assert_eq!(Kind::of("main/binary-amd64/Packages.diff/Index"), Some(Kind::Patches));
        assert_eq!(Kind::of("main/i18n/Index"), None);
    }

    #[test]
    fn only_what_is_signed_is_read() {
        let signed = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nSuite: x\n- -dash\n-----BEGIN PGP \
                      SIGNATURE-----\n\nabc\n-----END PGP SIGNATURE-----\n";
        assert_eq!(signed_text(signed.as_bytes()).as_deref(), Some(&b"Suite: x\n-dash\n"[..]));
        for wrong in [
            format!("Suite: y\n{signed}"),
            format!("{signed}Suite: y\n"),
            signed.replace("Hash: SHA512", "Suite: y"),
            signed.replace("- -dash", "-dash"),
            signed.replace("-----END PGP SIGNATURE-----", ""),
            signed.replace("-----BEGIN PGP SIGNATURE-----", ""),
            "Suite: x\n".to_owned(),
        ] {
            assert_eq!(signed_text(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut text = vec![b'x'; 10 << 20];
        text.extend_from_slice(format!("\nFilename: a\nSize: 1\nSHA256: {HASH}\n").as_bytes());
        let mut longest = 0;
        lines(&text[..], |line| {
            longest = longest.max(line.len());
            Ok(())
        })
        .expect("reads");
        assert_eq!(longest, LINE_BYTES_MAX);
        let mut named = 0;
        read(Kind::Packages, &text[..], |_, _| {
            named += 1;
            Ok(())
        })
        .expect("reads");
        assert_eq!(named, 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 1u8..4) {
            let kind = Kind::of_number(kind).expect("a kind");
            let _ = read(kind, &bytes[..], |path, _| {
                assert!(!path.split('/').any(|part| part == ".."));
                Ok(())
            });
            let _ = release(&bytes);
            let _ = signed_text(&bytes);
        }
    }
}
