//! The cache of a proxy as commands see it: the same files, while the agent runs or not.
//!
//! The directory is the state: a command removes or adds a file by one system call, and the agent
//! notices when it next looks for that file. So commands need no connection to the agent.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use aws_lc_rs::digest;

use super::index::{Sha256, Sum};
use super::marks::{self, Marks};
use super::store::{OBJECTS, PARTIAL, PINS, finish, hash_of};

/// Largest package that is taken over.
const IMPORT_BYTES_MAX: u64 = 16 << 30;

/// First bytes of a package: an archive of `ar` whose first member is `debian-binary`.
const PACKAGE_START: &[u8] = b"!<arch>\ndebian-binary";

/// A file of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// SHA-256 in hexadecimal digits.
    pub sha256: String,
    /// Length, bytes.
    pub bytes: u64,
    /// When it was last given, unix seconds.
    pub used: u64,
    /// Name and number of times.
    pub marks: Marks,
    /// Whether it stays when room is needed.
    pub is_pinned: bool,
}

/// Result of taking a package over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Import {
    /// It is in the cache now.
    Added(Sum),
    /// It was there.
    There(Sum),
    /// It is no package.
    NoPackage,
}

/// The cache in a directory.
#[derive(Clone, Debug)]
pub struct Shelf(PathBuf);

impl Shelf {
    /// The cache in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    fn path(&self, sha256: &str) -> PathBuf {
        self.0.join(OBJECTS).join(&sha256[..2]).join(sha256)
    }

    fn pin_path(&self, sha256: &str) -> PathBuf {
        self.0.join(PINS).join(sha256)
    }

    /// Lists the files, the last given first.
    ///
    /// # Errors
    /// Those of the file system; a cache that was never made has no files.
    pub fn list(&self) -> io::Result<Vec<Item>> {
        let groups = match fs::read_dir(self.0.join(OBJECTS)) {
            Ok(groups) => groups,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut items = Vec::new();
        for group in groups.flatten().filter(|group| group.path().is_dir()) {
            for entry in fs::read_dir(group.path())?.flatten() {
                let Some(sha256) =
                    entry.file_name().to_str().filter(|name| hash_of(name).is_some()).map(str::to_owned)
                else {
                    continue;
                };
                // It may have been removed since it was listed.
                let Ok(meta) = entry.metadata() else { continue };
                let used = meta.accessed()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                let is_pinned = self.pin_path(&sha256).exists();
                items.push(Item {
                    bytes: meta.size(),
                    used,
                    marks: marks::read(&entry.path()),
                    is_pinned,
                    sha256,
                });
            }
        }
        items.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.sha256.cmp(&b.sha256)));
        Ok(items)
    }

    /// Files that a word means: a SHA-256 or 8 digits or more of its beginning, a name, or a
    /// pattern of a name with `*`.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn find(&self, word: &str) -> io::Result<Vec<Item>> {
        let is_digits = word.len() >= 8 && word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let mut items = self.list()?;
        items.retain(|item| (is_digits && item.sha256.starts_with(word)) || fits(word, &item.marks.name));
        Ok(items)
    }

    /// Removes a file. Whoever reads it reads on.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self, item: &Item) -> io::Result<()> {
        self.unpin(item)?;
        absent(fs::remove_file(self.path(&item.sha256)))
    }

    /// Keeps a file when room is needed.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn pin(&self, item: &Item) -> io::Result<()> {
        fs::create_dir_all(self.0.join(PINS))?;
        File::create(self.pin_path(&item.sha256)).map(drop)
    }

    /// Keeps it no longer.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn unpin(&self, item: &Item) -> io::Result<()> {
        absent(fs::remove_file(self.pin_path(&item.sha256)))
    }

    /// Takes a package over: a copy under its hash. The original stays.
    ///
    /// # Errors
    /// Those of the file system, and `InvalidData` for a file that is too long.
    pub fn import(&self, package: &Path) -> io::Result<Import> {
        let mut file = File::open(package)?;
        let meta = file.metadata()?;
        if meta.len() > IMPORT_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the package is longer than 16 GiB"));
        }
        let mut start = [0; PACKAGE_START.len()];
        if !meta.is_file() || file.read_exact(&mut start).is_err() || start != PACKAGE_START {
            return Ok(Import::NoPackage);
        }
        for dir in [OBJECTS, PARTIAL] {
            fs::create_dir_all(self.0.join(dir))?;
        }
        let mut copy = tempfile::NamedTempFile::new_in(self.0.join(OBJECTS))?;
        let mut context = digest::Context::new(&digest::SHA256);
        let mut left = IMPORT_BYTES_MAX;
        let mut bytes = 0;
        let mut part = start.to_vec();
        let mut buffer = vec![0; 256 << 10];
        loop {
            left = left.checked_sub(part.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
            bytes += part.len() as u64;
            context.update(&part);
            copy.write_all(&part)?;
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            part = buffer[..read].to_vec();
        }
        let sha256: Sha256 = finish(context);
        let (sum, name) = (Sum { sha256, bytes }, hex::encode(sha256));
        let path = self.path(&name);
        if path.exists() {
            return Ok(Import::There(sum));
        }
        // The date of the mirror, which apt gives the files that it keeps.
        copy.as_file().set_modified(meta.modified()?)?;
        let known = package.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // apt writes the colon of an epoch as %3a in the names of its archive.
        marks::write(copy.as_file(), &Marks { name: known.replace("%3a", ":"), given: 0 });
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        copy.persist(&path).map_err(|error| error.error)?;
        Ok(Import::Added(sum))
    }
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Whether a name fits a pattern in which `*` stands for any text. Takes time in proportion to
/// both lengths, once for each star.
fn fits(pattern: &str, name: &str) -> bool {
    if name.is_empty() {
        return false;
    }
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, [PACKAGE_START, content].concat()).expect("write");
        path
    }

    #[test]
    fn packages_are_taken_over_listed_pinned_and_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = Shelf::new(&dir.path().join("cache"));
        assert_eq!(shelf.list().expect("lists"), []);
        let deb = package(dir.path(), "a_1%3a2_all.deb", b"content");
        let Import::Added(sum) = shelf.import(&deb).expect("imports") else { panic!("it is new") };
        assert_eq!(shelf.import(&deb).expect("imports"), Import::There(sum));
        let text = dir.path().join("text.deb");
        fs::write(&text, "no package").expect("write");
        assert_eq!(shelf.import(&text).expect("looks"), Import::NoPackage);
        assert_eq!(shelf.import(dir.path()).expect("looks"), Import::NoPackage);
        assert!(deb.exists());
        let item = shelf.find(&hex::encode(sum.sha256)[..8]).expect("finds").remove(0);
        assert_eq!((item.bytes, item.is_pinned), (sum.bytes, false));
        assert_eq!(shelf.find(&hex::encode(sum.sha256)[..7]).expect("finds"), [], "too short");
        shelf.pin(&item).expect("pins");
        assert!(shelf.list().expect("lists")[0].is_pinned);
        shelf.remove(&item).expect("removes");
        shelf.remove(&item).expect("the second time");
        assert_eq!(shelf.list().expect("lists"), []);
        assert_eq!(fs::read_dir(dir.path().join("cache/pins")).expect("a directory").count(), 0);
    }

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, fits_it) in [
            ("hello_1_all.deb", true),
            ("hello", false),
            ("hello*", true),
            ("*all.deb", true),
            ("h*_*_*.deb", true),
            ("*", true),
            ("*x*", false),
            ("hello_1_all.deb*", true),
            ("", false),
        ] {
            assert_eq!(fits(pattern, "hello_1_all.deb"), fits_it, "{pattern}");
        }
        assert!(!fits("*", ""), "a file without a name has none");
        assert!(!fits("aa*aa", "aaa"), "parts do not share letters");
    }
}
