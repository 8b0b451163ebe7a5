//! Tables of the names in repositories' indexes, by which the proxy knows files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use distd_core::error::Chain;

use super::address::Address;
use super::index::{self, Kind, Listed, Sha256, Sum};
use super::names::{Head, Named, Names, SUFFIX, Table};
use super::store::Stored;
use super::unpack::Packing;

/// Most tables, and most bytes of them; the oldest are removed beyond.
const TABLES_MAX: usize = 512;
const TABLES_BYTES_MAX: u64 = 512 << 20;

/// Most directories above a flat repository that its names may be relative to.
const ROOTS_MAX: usize = 8;

/// Most indexes that are fetched for one file that no table names.
const MISSING_MAX: usize = 8;

/// Kind of the table of a `Release`.
const RELEASE: &str = "release";

/// Tables of names, the latest first.
#[derive(Debug)]
pub struct Library {
    dir: PathBuf,
    tables: RwLock<Vec<Arc<Table>>>,
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Packages => "packages",
        Kind::Sources => "sources",
        Kind::Patches => "patches",
    }
}

/// Addresses that the paths in the indexes of a release may be relative to. `release` is the
/// address of the directory of its `Release`.
pub(super) fn package_roots(release: &str) -> Vec<String> {
    if let Some(at) = release.rfind("/dists/") {
        return vec![release[..=at].to_owned()];
    }
    // A flat repository `deb URI DIR/`: names are relative to the URI, which is that directory or
    // one above it.
    let host = release.find("://").map_or(0, |at| at + 3);
    let slashes = release.char_indices().filter(|(at, letter)| *at >= host && *letter == '/');
    let mut roots: Vec<String> = slashes.map(|(at, _)| release[..=at].to_owned()).collect();
    roots.reverse();
    roots.truncate(ROOTS_MAX);
    roots
}

/// Address of the directory of an index, by the address that it was asked at, which may be one in
/// `by-hash`.
fn index_directory(address: &Address) -> Address {
    let directory = address.directory();
    let above = directory.trim_end_matches('/').rsplit_once('/').map_or("", |(above, _)| above);
    match above.strip_suffix("/by-hash") {
        Some(above) => address.with_path(format!("{above}/")),
        None => address.with_path(directory),
    }
}

impl Library {
    /// Opens the tables in `dir`. Those that are damaged or of another version are removed: they
    /// are made again from indexes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut tables = Vec::new();
        for entry in fs::read_dir(dir)?.flatten() {
            let path = entry.path();
            match Table::open(&path) {
                Ok(table) if path.extension().is_some_and(|suffix| suffix == SUFFIX) => {
                    tables.push(Arc::new(table))
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::info!(path = %path.display(), error = %Chain(&error), "a table of names is removed");
                    fs::remove_file(&path)?;
                }
            }
        }
        tables.sort_by_key(|table| std::cmp::Reverse(table.made));
        Ok(Self { dir: dir.to_owned(), tables: RwLock::new(tables) })
    }

    fn tables(&self) -> RwLockReadGuard<'_, Vec<Arc<Table>>> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds what indexes say of the file at `address`. Reads some records from the disk.
    pub fn find(&self, address: &Address) -> Option<Named> {
        if address.path.contains('?') {
            return None;
        }
        let (text, tables) = (address.to_string(), self.tables().clone());
        for table in tables {
            match table.find(&text) {
                Ok(Some(named)) => return Some(named),
                Ok(None) => {}
                Err(error) => {
                    let path = table.path.display();
                    tracing::warn!(%path, error = %Chain(&error), "a table of names cannot be read");
                }
            }
        }
        None
    }

    fn put(&self, table: Table) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.retain(|old| {
            let is_same = old.path == table.path;
            // A newer release is in place of the one before it. Tables of packages stay: another
            // machine may still have the older release.
            let is_older =
                table.head.kind == RELEASE && old.head.kind == RELEASE && old.head.roots == table.head.roots;
            if is_older && !is_same {
                old.remove();
            }
            !is_same && !is_older
        });
        tables.insert(0, Arc::new(table));
        let mut bytes = 0;
        let mut number = 0;
        tables.retain(|table| {
            number += 1;
            bytes += table.bytes;
            let stays = number <= TABLES_MAX && bytes <= TABLES_BYTES_MAX;
            if !stays {
                table.remove();
            }
            stays
        });
    }

    /// Takes note of what a `Release` lists. `at` is the address of its directory. Blocks.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn adopt_release(&self, at: &Address, listed: &[Listed], source: &Sha256) -> io::Result<()> {
        let root = at.to_string();
        let mut names = Names::default();
        let mut indexes = Vec::new();
        for file in listed {
            let (stem, packing) = Packing::of(&file.path);
            let named = Named { sum: file.sum, index: Kind::of(stem).map(|kind| (kind, packing)) };
            names.add(&file.path, &named)?;
            let directory = &file.path[..file.path.rfind('/').map_or(0, |at| at + 1)];
            names.add(&format!("{directory}by-hash/SHA256/{}", hex::encode(file.sum.sha256)), &named)?;
            if let Some(sha512) = &file.sha512 {
                names.add(&format!("{directory}by-hash/SHA512/{sha512}"), &named)?;
            }
            if matches!(named.index, Some((Kind::Packages | Kind::Sources, _))) {
                indexes.push(file.path.clone());
            }
        }
        let head = Head { kind: RELEASE.into(), source: hex::encode(source), roots: vec![root], indexes };
        self.put(names.write(&self.dir, &head)?);
        Ok(())
    }

    /// Whether the names that the `Release` in the directory `at` lists are known.
    pub fn has_release(&self, at: &Address) -> bool {
        let root = at.to_string();
        let mut tables = self.tables().clone().into_iter();
        tables.any(|table| table.head.kind == RELEASE && table.head.roots.first() == Some(&root))
    }

    /// Directory of the release that an index at `directory` belongs to.
    fn release_of(&self, directory: &str) -> Option<String> {
        let tables = self.tables();
        let roots =
            tables.iter().filter(|table| table.head.kind == RELEASE).flat_map(|table| &table.head.roots);
        roots.filter(|root| directory.starts_with(root.as_str())).max_by_key(|root| root.len()).cloned()
    }

    fn roots(&self, kind: Kind, address: &Address) -> Vec<String> {
        let directory = index_directory(address).to_string();
        match kind {
            Kind::Patches => vec![directory],
            Kind::Packages | Kind::Sources => {
                package_roots(&self.release_of(&directory).unwrap_or(directory))
            }
        }
    }

    /// Whether the names in this index, asked at `address`, are known.
    pub fn has_read(&self, kind: Kind, address: &Address, sha256: &Sha256) -> bool {
        let (source, roots) = (hex::encode(sha256), self.roots(kind, address));
        let kind = word(kind);
        self.tables()
            .iter()
            .any(|table| table.head.kind == kind && table.head.source == source && table.head.roots == roots)
    }

    /// Reads an index that was asked at `address`, and takes note of what it names. Blocks.
    ///
    /// # Errors
    /// Those of the file system, and those of a file that is no such index.
    pub fn read(&self, kind: Kind, packing: Packing, address: &Address, stored: &Stored) -> io::Result<()> {
        let mut names = Names::default();
        let text = packing.reader(stored.reopen()?)?;
        index::read(kind, text, |path, sum: Sum| names.add(&path, &Named { sum, index: None }))?;
        let head = Head {
            kind: word(kind).to_owned(),
            source: hex::encode(stored.sum.sha256),
            roots: self.roots(kind, address),
            indexes: Vec::new(),
        };
        self.put(names.write(&self.dir, &head)?);
        Ok(())
    }

    /// Indexes that were not read and that may name the file at `address`, each in its best
    /// packing. A machine that patches its indexes never asks for them.
    pub fn missing_for(&self, address: &Address) -> Vec<(Address, Named)> {
        let text = address.to_string();
        let mut out = Vec::new();
        for table in self.tables().clone() {
            let Some(release) = table.head.roots.first().filter(|_| table.head.kind == RELEASE) else {
                continue;
            };
            let roots = package_roots(release);
            let Some(path) = roots.iter().find_map(|root| text.strip_prefix(root.as_str())) else { continue };
            for index in likely(&table.head.indexes, path) {
                let Ok(at) = Address::parse(&format!("{release}{index}")) else { continue };
                let Ok(Some(named)) = table.find(&at.to_string()) else { continue };
                let Some((kind, _)) = named.index else { continue };
                if !self.has_read(kind, &at, &named.sum.sha256) && out.len() < MISSING_MAX {
                    out.push((at, named));
                }
            }
        }
        out
    }
}

/// Of the indexes of a release, those that may name the file at `path`, one packing of each.
fn likely<'i>(indexes: &'i [String], path: &str) -> Vec<&'i str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let architecture = name.rsplit_once('.').and_then(|(stem, suffix)| {
        let is_package = matches!(suffix, "deb" | "udeb" | "ddeb");
        is_package.then(|| stem.rsplit('_').next().unwrap_or_default())
    });
    let of_kind = |index: &&&str| {
        let Some(kind) = Kind::of(Packing::of(index).0) else { return false };
        match (architecture, kind) {
            (Some(architecture), Kind::Packages) => {
                let is_all = index.contains("binary-all/") || !index.contains("binary-");
                is_all || architecture == "all" || index.contains(&format!("binary-{architecture}/"))
            }
            (None, Kind::Sources) => true,
            _ => false,
        }
    };
    let all: Vec<&str> = indexes.iter().map(String::as_str).collect();
    let mut found: Vec<&str> = all.iter().filter(of_kind).copied().collect();
    // `pool/main/…` lies in the component `main`, where the archive keeps to that.
    let component = path.strip_prefix("pool/").and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let in_component = |index: &&str| index.strip_prefix(component).is_some_and(|rest| rest.starts_with('/'));
    if !component.is_empty() && found.iter().any(in_component) {
        found.retain(in_component);
    }
    let rank = |index: &str| match Packing::of(index).1 {
        Packing::Xz => 0,
        Packing::Zstd => 1,
        Packing::Gzip => 2,
        Packing::Lz4 => 3,
        Packing::Plain => 4,
        Packing::Bzip2 => 5,
    };
    found.sort_by_key(|index| (Packing::of(index).0, rank(index)));
    found.dedup_by_key(|index| Packing::of(index).0);
    found
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::apt::store::{Bounds, Store, sha256};

    fn at(text: &str) -> Address {
        Address::parse(text).expect("an address")
    }

    fn listed(path: &str, content: &[u8]) -> Listed {
        let sum = Sum { sha256: sha256(content), bytes: content.len() as u64 };
        Listed { path: path.into(), sum, sha512: None }
    }

    fn stored(store: &Arc<Store>, content: &[u8]) -> Arc<Stored> {
        let partial = store.begin(content.len() as u64).expect("room");
        partial.handle().expect("a handle").write_all(content).expect("write");
        partial.keep(Sum { sha256: sha256(content), bytes: content.len() as u64 }, 1, "x").expect("kept")
    }

    fn package(path: &str, n: u8) -> Vec<u8> {
        format!("Filename: {path}\nSize: {n}\nSHA256: {}\n\n", hex::encode([n; 32])).into_bytes()
    }

    #[test]
    fn a_release_its_indexes_and_their_packages_are_found_also_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let bounds = Bounds { max_bytes: 1 << 20, min_free_bytes: 0 };
        let store = Arc::new(Store::open(&dir.path().join("store"), bounds).expect("opens"));
        let names = dir.path().join("names");
        let library = Library::open(&names).expect("opens");
        let packages = package("pool/main/a/a_1_amd64.deb", 1);
        let release = at("http://h/debian/dists/x/");
        let files = [
            listed("main/binary-amd64/Packages", &packages),
            listed("main/binary-amd64/Packages.xz", b"xz"),
            listed("main/binary-arm64/Packages", b"arm"),
            listed("contrib/binary-amd64/Packages", b"contrib"),
            listed("main/source/Sources", b"sources"),
            listed("main/i18n/Translation-en", b"en"),
        ];
        library.adopt_release(&release, &files, &[7; 32]).expect("adopted");
        let by_hash = format!(
            "http://h/debian/dists/x/main/binary-amd64/by-hash/SHA256/{}",
            hex::encode(files[0].sum.sha256)
        );
        let index = library.find(&at(&by_hash)).expect("listed");
        assert_eq!(index.index, Some((Kind::Packages, Packing::Plain)));
        let deb = at("http://h/debian/pool/main/a/a_1_amd64.deb");
        assert_eq!(library.find(&deb), None);
        let missing: Vec<String> = library.missing_for(&deb).into_iter().map(|(at, _)| at.path).collect();
        assert_eq!(
            missing,
            ["/debian/dists/x/main/binary-amd64/Packages.xz"],
            "of the component and architecture"
        );
        let source = library.missing_for(&at("http://h/debian/pool/main/a/a_1.dsc"));
        assert_eq!(source.len(), 1);

        let file = stored(&store, &packages);
        assert!(!library.has_read(Kind::Packages, &at(&by_hash), &file.sum.sha256));
        library.read(Kind::Packages, Packing::Plain, &at(&by_hash), &file).expect("reads");
        assert!(library.has_read(Kind::Packages, &at(&by_hash), &file.sum.sha256));
        drop(library);
        fs::write(names.join("x.names"), "damaged").expect("write");
        let library = Library::open(&names).expect("opens");
        assert!(!names.join("x.names").exists());
        assert_eq!(library.find(&deb).expect("named").sum.bytes, 1);
        assert_eq!(library.find(&at("http://h/debian/pool/main/a/a_1_amd64.deb?x")), None);
        assert_eq!(library.find(&at("http://other/debian/pool/main/a/a_1_amd64.deb")), None);

        // The next release: what it no longer lists is gone, packages stay.
        library.adopt_release(&release, &files[1..2], &[8; 32]).expect("adopted");
        assert_eq!(library.find(&at(&by_hash)), None);
        assert!(library.find(&deb).is_some());
    }

    #[test]
    fn names_of_a_flat_repository_are_relative_to_any_directory_above() {
        let dir = tempfile::tempdir().expect("a directory");
        let bounds = Bounds { max_bytes: 1 << 20, min_free_bytes: 0 };
        let store = Arc::new(Store::open(&dir.path().join("store"), bounds).expect("opens"));
        let library = Library::open(&dir.path().join("names")).expect("opens");
        library.adopt_release(&at("http://h/repo/sub/"), &[], &[7; 32]).expect("adopted");
        let old = stored(&store, &package("./sub/a.deb", 1));
        let index = at("http://h/repo/sub/Packages");
        library.read(Kind::Packages, Packing::Plain, &index, &old).expect("reads");
        assert_eq!(library.find(&at("http://h/repo/sub/a.deb")).expect("named").sum.bytes, 1);
        assert_eq!(library.find(&at("http://h/repo/a.deb")), None);
        let new = stored(&store, &package("sub/a.deb", 2));
        library.read(Kind::Packages, Packing::Plain, &index, &new).expect("reads");
        assert_eq!(
            library.find(&at("http://h/repo/sub/a.deb")).expect("named").sum.bytes,
            2,
            "the later one"
        );
        assert_eq!(package_roots("http://h/a/b/"), ["http://h/a/b/", "http://h/a/", "http://h/"]);
        assert_eq!(package_roots("http://h/a/dists/b/c/"), ["http://h/a/"]);
    }

    #[test]
    fn patches_lie_beside_their_index() {
        let dir = tempfile::tempdir().expect("a directory");
        let bounds = Bounds { max_bytes: 1 << 20, min_free_bytes: 0 };
        let store = Arc::new(Store::open(&dir.path().join("store"), bounds).expect("opens"));
        let library = Library::open(&dir.path().join("names")).expect("opens");
        let text = format!("SHA256-Download:\n {} 7 T-1.gz\n", hex::encode([7; 32]));
        let index = stored(&store, text.as_bytes());
        let asked = at("http://h/dists/x/main/binary-amd64/Packages.diff/by-hash/SHA256/00");
        library.read(Kind::Patches, Packing::Plain, &asked, &index).expect("reads");
        let patch = at("http://h/dists/x/main/binary-amd64/Packages.diff/T-1.gz");
        assert_eq!(library.find(&patch).expect("named").sum.bytes, 7);
        assert!(library.read(Kind::Packages, Packing::Xz, &asked, &index).is_err(), "it is not packed");
    }
}
