//! Tables of the files that an index names: on disk, sorted, and searched without being loaded
//! (docs/formats.md, "Names of packages").
//!
//! `Packages` of Debian's `main` names 64 000 files. In memory that is 10 MB for each suite; on
//! disk a look-up reads some 16 records.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::index::{Kind, NAMED_MAX, Sha256, Sum};
use super::unpack::Packing;

/// First bytes of a table; the last is the version.
const MAGIC: [u8; 8] = *b"DAPTNAM1";

/// Longest head of a table, bytes.
const HEAD_BYTES_MAX: usize = 1 << 20;

/// Length of a record, bytes.
const RECORD: usize = 80;

/// Suffix of the name of a table's file.
pub(super) const SUFFIX: &str = "names";

/// Contents of a table's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// Kind of the index: `release`, `packages`, `sources` or `patches`.
    pub kind: String,
    /// SHA-256 of the file that the names are from, in hexadecimal digits.
    pub source: String,
    /// Addresses that the paths may be relative to, the likeliest first.
    pub roots: Vec<String>,
    /// Paths of the indexes that a `Release` lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub indexes: Vec<String>,
}

/// Entry of a table about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its sum.
    pub sum: Sum,
    /// Kind and packing, for an index.
    pub index: Option<(Kind, Packing)>,
}

/// A table.
#[derive(Debug)]
pub(super) struct Table {
    /// Head of the table.
    pub head: Head,
    /// Path of the file.
    pub path: PathBuf,
    /// Length of the file, bytes.
    pub bytes: u64,
    /// Time at which it was written; a later table is right where two disagree.
    pub made: SystemTime,
    file: File,
    first: u64,
    records: u64,
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the table of names is damaged: {what}"))
}

/// Records of a table that is being made.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<[u8; RECORD]>);

impl Names {
    /// Adds a file by its escaped path.
    ///
    /// # Errors
    /// When there are too many.
    pub(super) fn add(&mut self, path: &str, named: &Named) -> io::Result<()> {
        // A `Release` gives each file up to three names.
        if self.0.len() == 3 * NAMED_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the index names too many files"));
        }
        let mut record = [0; RECORD];
        record[..32].copy_from_slice(blake3::hash(path.as_bytes()).as_bytes());
        record[32..64].copy_from_slice(&named.sum.sha256);
        record[64..72].copy_from_slice(&named.sum.bytes.to_le_bytes());
        if let Some((kind, packing)) = named.index {
            record[72] = kind.number();
            record[73] = packing.number();
        }
        self.0.push(record);
        Ok(())
    }

    /// Writes the table into `dir`, in place of one with the same kind, source and first root.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn write(mut self, dir: &Path, head: &Head) -> io::Result<Table> {
        // Of two records of one path the one that was added first counts: the sort is stable.
        self.0.sort_by(|a, b| a[..32].cmp(&b[..32]));
        self.0.dedup_by(|later, first| later[..32] == first[..32]);
        let text = serde_json::to_vec(head).map_err(io::Error::other)?;
        if text.len() > HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the index lists too many indexes"));
        }
        let root = head.roots.first().map(String::as_str).unwrap_or_default();
        let name = blake3::hash(format!("{} {} {root}", head.kind, head.source).as_bytes()).to_hex();
        let path = dir.join(format!("{name}.{SUFFIX}"));
        let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
        {
            let mut out = BufWriter::new(temporary.as_file_mut());
            out.write_all(&MAGIC)?;
            out.write_all(&(text.len() as u32).to_le_bytes())?;
            out.write_all(&text)?;
            out.write_all(&(self.0.len() as u32).to_le_bytes())?;
            for record in &self.0 {
                out.write_all(record)?;
            }
            out.flush()?;
        }
        temporary.as_file().sync_data()?;
        temporary.persist(&path).map_err(|error| error.error)?;
        Table::open(&path)
    }
}

impl Table {
    /// Opens a table.
    ///
    /// # Errors
    /// Those of the file system, and `InvalidData` for a file that is no table of this version.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let meta = file.metadata()?;
        let mut start = [0; 12];
        file.read_exact(&mut start)?;
        if start[..8] != MAGIC {
            return Err(damaged("it is of another version"));
        }
        let length = u32::from_le_bytes([start[8], start[9], start[10], start[11]]) as usize;
        if length > HEAD_BYTES_MAX {
            return Err(damaged("its head is too long"));
        }
        let mut text = vec![0; length];
        file.read_exact(&mut text)?;
        let head: Head = serde_json::from_slice(&text).map_err(|_| damaged("its head"))?;
        let mut records = [0; 4];
        file.read_exact(&mut records)?;
        let records = u64::from(u32::from_le_bytes(records));
        let first = 16 + length as u64;
        if meta.len() != first + records * RECORD as u64 {
            return Err(damaged("its length"));
        }
        let (path, made) = (path.to_owned(), meta.modified()?);
        Ok(Self { head, path, bytes: meta.len(), made, file, first, records })
    }

    /// Finds the file at `address`, an address without a query.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn find(&self, address: &str) -> io::Result<Option<Named>> {
        for root in &self.head.roots {
            if let Some(path) = address.strip_prefix(root.as_str())
                && let Some(named) = self.search(blake3::hash(path.as_bytes()).as_bytes())?
            {
                return Ok(Some(named));
            }
        }
        Ok(None)
    }

    fn search(&self, key: &[u8; 32]) -> io::Result<Option<Named>> {
        let (mut low, mut high) = (0, self.records);
        let mut record = [0; RECORD];
        while low < high {
            let middle = low + (high - low) / 2;
            self.file.read_exact_at(&mut record, self.first + middle * RECORD as u64)?;
            match record[..32].cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(Some(named(&record))),
            }
        }
        Ok(None)
    }

    /// Removes the file, if it is still the one that was opened.
    pub(super) fn remove(&self) {
        let same = |meta: &fs::Metadata| self.file.metadata().is_ok_and(|own| own.ino() == meta.ino());
        if fs::metadata(&self.path).is_ok_and(|meta| same(&meta)) {
            // A table that stays is found again at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn named(record: &[u8; RECORD]) -> Named {
    let sha256: Sha256 = record[32..64].try_into().expect("32 bytes");
    let bytes = u64::from_le_bytes(record[64..72].try_into().expect("8 bytes"));
    let index = Kind::of_number(record[72]).zip(Packing::of_number(record[73]));
    Named { sum: Sum { sha256, bytes }, index }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            kind: "packages".into(),
            source: "00".repeat(32),
            roots: vec!["http://h/debian/".into(), "http://h/".into()],
            indexes: Vec::new(),
        }
    }

    fn sum(n: u8) -> Named {
        Named { sum: Sum { sha256: [n; 32], bytes: u64::from(n) }, index: None }
    }

    #[test]
    fn every_name_is_found_and_no_other() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut names = Names::default();
        for n in 0..200u8 {
            names.add(&format!("pool/{n}.deb"), &sum(n)).expect("room");
        }
        names.add("pool/7.deb", &sum(8)).expect("room");
        let index = Named { index: Some((Kind::Sources, Packing::Xz)), ..sum(201) };
        names.add("x/Sources.xz", &index).expect("room");
        let table = names.write(dir.path(), &head()).expect("written");
        for n in 0..200u8 {
            let found = table.find(&format!("http://h/debian/pool/{n}.deb")).expect("reads");
            assert_eq!(found, Some(sum(n)));
            assert_eq!(table.find(&format!("http://h/pool/{n}.deb")).expect("reads"), Some(sum(n)));
        }
        assert_eq!(table.find("http://h/debian/x/Sources.xz").expect("reads"), Some(index));
        for other in ["http://h/debian/pool/200.deb", "http://other/pool/1.deb", "http://h/debian", ""] {
            assert_eq!(table.find(other).expect("reads"), None, "{other}");
        }
        let empty =
            Names::default().write(dir.path(), &Head { kind: "x".into(), ..head() }).expect("written");
        assert_eq!(empty.find("http://h/debian/pool/1.deb").expect("reads"), None);
    }

    #[test]
    fn a_table_that_was_written_before_is_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/apt/testdata/v1.names");
        let mut names = Names::default();
        names.add("pool/a_1_all.deb", &sum(1)).expect("room");
        names.add("b", &Named { index: Some((Kind::Packages, Packing::Zstd)), ..sum(2) }).expect("room");
        let dir = tempfile::tempdir().expect("a directory");
        let written = names.write(dir.path(), &head()).expect("written");
        let golden = fs::read(&path).expect("the golden file");
        assert!(fs::read(&written.path).expect("read") == golden, "the format changed");
        let table = Table::open(&path).expect("opens");
        assert_eq!(table.find("http://h/pool/a_1_all.deb").expect("reads"), Some(sum(1)));
    }

    #[test]
    fn a_damaged_table_is_refused_without_a_panic() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut names = Names::default();
        names.add("a", &sum(1)).expect("room");
        let table = names.write(dir.path(), &head()).expect("written");
        let good = fs::read(&table.path).expect("read");
        let path = dir.path().join("damaged");
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).expect("write");
            assert!(Table::open(&path).is_err(), "{length} bytes of {}", good.len());
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            fs::write(&path, &bad).expect("write");
            if let Ok(table) = Table::open(&path) {
                let _ = table.find("http://h/a");
            }
        }
    }
}
