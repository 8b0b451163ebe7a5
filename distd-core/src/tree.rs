//! Tree listing: everything in a directory artifact except the bytes of its files.
//!
//! A directory is shipped as one byte stream: the listing, then the bytes of every file in listing
//! order (docs/formats.md, "Tree listing"). The listing decides where a device writes, so it is
//! decoded strictly, and every path in it is a [`TreePath`], the one path validator of distd.

use std::fmt;

use rmp::{decode, encode};

use crate::bounds::{ARTIFACT_BYTES_MAX, PATH_BYTES_MAX, TREE_ENTRIES_MAX, TREE_LISTING_BYTES_MAX};
use crate::cut::{RegionKind, Regions};

/// Format version without the directory itself, times and hard links. This build reads it and never
/// writes it.
const VERSION_PLAIN: u64 = 1;

/// Format version that states the directory itself, times and hard links.
const VERSION_FULL: u64 = 2;

/// Longest component of a path, bytes (Linux `NAME_MAX`).
pub const COMPONENT_BYTES_MAX: usize = 255;

/// Longest symlink target, bytes: Linux accepts less than one page.
pub const TARGET_BYTES_MAX: usize = 4095;

/// Most extended attributes of one entry. Linux lists at most 64 KiB of names; 1024 is a guess far
/// above what any tool sets.
pub const XATTRS_MAX: usize = 1024;

/// Longest attribute name, bytes (Linux `XATTR_NAME_MAX`).
pub const XATTR_NAME_BYTES_MAX: usize = 255;

/// Longest attribute value, bytes (Linux `XATTR_SIZE_MAX`).
pub const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;

/// A path that stays inside the directory it is joined to.
///
/// Relative, `1..=`[`PATH_BYTES_MAX`] bytes of any encoding, without NUL; its components are
/// neither empty nor `.` nor `..` and at most [`COMPONENT_BYTES_MAX`] bytes. Ordered by bytes. A
/// path says nothing about symlinks that are already on the disk; code that writes to it must not
/// follow them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(Box<[u8]>);

/// Reason why bytes are not a [`TreePath`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreePathError {
    /// The path has no bytes.
    #[error("the path is empty")]
    Empty,
    /// The path has more than [`PATH_BYTES_MAX`] bytes, or a component more than
    /// [`COMPONENT_BYTES_MAX`].
    #[error("the path or one of its names is too long")]
    TooLong,
    /// The path has a NUL byte, which no file system can store.
    #[error("the path has a NUL byte")]
    Nul,
    /// The path starts or ends with `/`, or has two of them in a row.
    #[error("the path is absolute or has an empty name")]
    EmptyComponent,
    /// A component is `.` or `..`.
    #[error("the path has a `.` or `..` name")]
    Dots,
}

impl TreePath {
    /// Checks `path`.
    ///
    /// # Errors
    /// [`TreePathError`] naming the first rule it breaks.
    pub fn new(path: &[u8]) -> Result<Self, TreePathError> {
        if path.is_empty() {
            return Err(TreePathError::Empty);
        }
        if path.len() > PATH_BYTES_MAX {
            return Err(TreePathError::TooLong);
        }
        if path.contains(&0) {
            return Err(TreePathError::Nul);
        }
        for component in path.split(|byte| *byte == b'/') {
            match component {
                b"" => return Err(TreePathError::EmptyComponent),
                b"." | b".." => return Err(TreePathError::Dots),
                _ if component.len() > COMPONENT_BYTES_MAX => return Err(TreePathError::TooLong),
                _ => {}
            }
        }
        Ok(Self(path.into()))
    }

    /// Returns the bytes, with `/` between components.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the components from the top down.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/')
    }

    /// Returns the bytes of the parent directory's path; `None` for an entry at the top.
    pub fn parent(&self) -> Option<&[u8]> {
        self.0.iter().rposition(|byte| *byte == b'/').map(|slash| &self.0[..slash])
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Control characters in a file name must not drive the reader's terminal.
        self.0.escape_ascii().fmt(f)
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Kind of an entry, with the data that only this kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
    },
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink {
        /// The link's text, `1..=`[`TARGET_BYTES_MAX`] bytes without NUL. distd never resolves it.
        target: Box<[u8]>,
    },
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDev {
        /// Device number as Linux's 64-bit `dev_t` (`makedev`).
        rdev: u64,
    },
    /// A block device.
    BlockDev {
        /// Device number as Linux's 64-bit `dev_t` (`makedev`).
        rdev: u64,
    },
    /// One more name of a file of the tree. It has no bytes and no attributes of its own.
    HardLink {
        /// Path of an earlier entry of kind file.
        target: TreePath,
    },
}

/// A modification time, as a file system stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, `0..=999_999_999`.
    pub nanos: u32,
}

/// Nanoseconds in a second.
const NANOS: u32 = 1_000_000_000;

/// Attributes of the shipped directory itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootDir {
    /// Permission bits with set-id and sticky, `0..=0o7777`.
    pub mode: u16,
    /// User id of the owner.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Extended attributes, sorted by name, each name once.
    pub xattrs: Vec<Xattr>,
    /// Modification time.
    pub modified: Time,
}

/// One extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// Full name with its namespace (`security.capability`), without NUL.
    pub name: Box<[u8]>,
    /// Value, at most [`XATTR_VALUE_BYTES_MAX`] bytes.
    pub value: Box<[u8]>,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path below the shipped directory.
    pub path: TreePath,
    /// Kind of the entry.
    pub kind: EntryKind,
    /// Permission bits with set-id and sticky, `0..=0o7777`.
    pub mode: u16,
    /// User id of the owner.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Extended attributes, sorted by name, each name once.
    pub xattrs: Vec<Xattr>,
    /// Modification time; `None` in a listing of version 1, and for a hard link.
    pub modified: Option<Time>,
}

/// A valid listing: sorted by path bytes, no path twice, every parent an earlier directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The shipped directory itself; `None` in version 1.
    root: Option<RootDir>,
    entries: Vec<Entry>,
    bytes: u64,
}

/// Reason why entries do not form a listing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// More than [`TREE_ENTRIES_MAX`] entries.
    #[error("the tree has more than {TREE_ENTRIES_MAX} entries; ship it as several trees or as an image")]
    TooMany,
    /// The listing would be longer than [`TREE_LISTING_BYTES_MAX`].
    #[error(
        "the tree's listing is longer than {TREE_LISTING_BYTES_MAX} bytes; ship it as several trees or as an image"
    )]
    TooLong,
    /// The files add up to more than [`ARTIFACT_BYTES_MAX`].
    #[error("the tree's files have more than {ARTIFACT_BYTES_MAX} bytes together")]
    TooBig,
    /// An entry's path is not greater than the path before it.
    #[error("entry {0:?} is in the tree twice or out of order")]
    Order(TreePath),
    /// A hard link does not point at an earlier file.
    #[error("entry {0:?} is a hard link, but its target is not an earlier file of the tree")]
    Link(TreePath),
    /// A field of the directory itself is out of its bounds.
    #[error("the directory has an invalid value: {0}")]
    Root(&'static str),
    /// The parent of an entry is not an earlier entry of kind directory.
    #[error("the parent of entry {0:?} is not a directory of the tree")]
    Parent(TreePath),
    /// A field of an entry is out of its bounds.
    #[error("entry {path:?} has an invalid value: {field}")]
    Field {
        /// Path of the entry.
        path: TreePath,
        /// The field, in words.
        field: &'static str,
    },
}

/// Reason why bytes are not a listing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeListingError {
    /// The bytes are not msgpack of the expected shape, end too early, or go on behind the last
    /// entry.
    #[error("entry {entry} of the tree listing is malformed")]
    Malformed {
        /// Index of the entry; the number of entries if bytes follow the last one.
        entry: usize,
    },
    /// The listing has a format version that this build does not know.
    #[error("the tree listing has format version {0}; update distd")]
    Version(u64),
    /// The values are valid, but not in their one canonical form.
    #[error("entry {entry} of the tree listing is not in canonical form")]
    NotCanonical {
        /// Index of the entry.
        entry: usize,
    },
    /// A path could lead out of the tree.
    #[error("entry {entry} of the tree listing has a bad path")]
    Path {
        /// Index of the entry.
        entry: usize,
        /// The rule that the path breaks.
        #[source]
        cause: TreePathError,
    },
    /// The entries are well-formed but do not form a tree.
    #[error("the tree listing is inconsistent")]
    Listing(#[from] ListingError),
}

fn xattrs_are_good(xattrs: &[Xattr]) -> bool {
    let good = |x: &Xattr| {
        !x.name.is_empty()
            && x.name.len() <= XATTR_NAME_BYTES_MAX
            && !x.name.contains(&0)
            && x.value.len() <= XATTR_VALUE_BYTES_MAX
    };
    xattrs.len() <= XATTRS_MAX && xattrs.iter().all(good) && xattrs.is_sorted_by(|a, b| a.name < b.name)
}

impl Listing {
    /// Sorts and checks `entries` of the directory `root`. Extended attributes are sorted too.
    ///
    /// # Errors
    /// [`ListingError`] for the first broken rule.
    pub fn new(mut root: RootDir, mut entries: Vec<Entry>) -> Result<Self, ListingError> {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        root.xattrs.sort();
        for entry in &mut entries {
            entry.xattrs.sort();
        }
        let mut scratch = Vec::new();
        encode_header(Some(&root), entries.len(), &mut scratch);
        let mut listing = Self::of_root(Some(root))?;
        let mut encoded = scratch.len() as u64;
        for entry in entries {
            scratch.clear();
            encode_entry(&entry, &mut scratch);
            encoded += scratch.len() as u64;
            if encoded > TREE_LISTING_BYTES_MAX {
                return Err(ListingError::TooLong);
            }
            listing.push(entry)?;
        }
        Ok(listing)
    }

    fn of_root(root: Option<RootDir>) -> Result<Self, ListingError> {
        if let Some(root) = &root {
            if root.mode > 0o7777 {
                return Err(ListingError::Root("its mode"));
            }
            if root.modified.nanos >= NANOS {
                return Err(ListingError::Root("its time"));
            }
            if !xattrs_are_good(&root.xattrs) {
                return Err(ListingError::Root("its extended attributes"));
            }
        }
        Ok(Self { root, ..Self::default() })
    }

    /// Appends an entry, or refuses it if the listing would become invalid.
    fn push(&mut self, entry: Entry) -> Result<(), ListingError> {
        if self.entries.len() == TREE_ENTRIES_MAX {
            return Err(ListingError::TooMany);
        }
        let field = |field| Err(ListingError::Field { path: entry.path.clone(), field });
        let link = matches!(entry.kind, EntryKind::HardLink { .. });
        match &entry.kind {
            EntryKind::Symlink { target }
                if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) =>
            {
                return field("its target");
            }
            EntryKind::HardLink { target } => {
                let is_file = |entry: &Entry| matches!(entry.kind, EntryKind::File { .. });
                if self.root.is_none() || !self.get(target.as_bytes()).is_some_and(is_file) {
                    return Err(ListingError::Link(entry.path));
                }
                let bare = (entry.mode, entry.uid, entry.gid) == (0, 0, 0) && entry.xattrs.is_empty();
                if !bare {
                    return field("attributes of its own, which a hard link cannot have");
                }
            }
            _ => {}
        }
        if entry.mode > 0o7777 {
            return field("its mode");
        }
        if entry.modified.is_some() != (self.root.is_some() && !link)
            || entry.modified.is_some_and(|time| time.nanos >= NANOS)
        {
            return field("its time");
        }
        if !xattrs_are_good(&entry.xattrs) {
            return field("its extended attributes");
        }
        if self.entries.last().is_some_and(|last| last.path >= entry.path) {
            return Err(ListingError::Order(entry.path));
        }
        if let Some(parent) = entry.path.parent()
            && !self.get(parent).is_some_and(|parent| parent.kind == EntryKind::Dir)
        {
            return Err(ListingError::Parent(entry.path));
        }
        if let EntryKind::File { size } = entry.kind {
            self.bytes = self
                .bytes
                .checked_add(size)
                .filter(|b| *b <= ARTIFACT_BYTES_MAX)
                .ok_or(ListingError::TooBig)?;
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Returns the attributes of the directory itself; `None` in a listing of version 1, which has
    /// none.
    pub fn root(&self) -> Option<&RootDir> {
        self.root.as_ref()
    }

    /// Returns all entries, parents before children.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the entry at `path`.
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        let index = self.entries.binary_search_by(|entry| entry.path.as_bytes().cmp(path)).ok()?;
        self.entries.get(index)
    }

    /// Returns the length of all files together, bytes.
    pub fn file_bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the non-empty files, each with the offset of its first byte in the artifact and its
    /// length. `listing_len` is the length of the encoded listing before them.
    pub fn files(&self, listing_len: u64) -> impl Iterator<Item = (u64, u64, &Entry)> {
        let mut at = listing_len;
        self.entries.iter().filter_map(move |entry| match entry.kind {
            EntryKind::File { size } if size > 0 => {
                let start = at;
                at += size;
                Some((start, size, entry))
            }
            _ => None,
        })
    }

    /// Returns the regions of the tree artifact: the listing of `listing_len` bytes, then each
    /// file.
    ///
    /// `None` above the bounds of [`Regions::from_parts`].
    pub fn regions(&self, listing_len: u64) -> Option<Regions> {
        let files = self.files(0).map(|(_, size, e)| (size, RegionKind::File, Some(e.path.as_bytes())));
        Regions::from_parts(std::iter::once((listing_len, RegionKind::Metadata, None)).chain(files))
    }

    /// Returns the canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        encode_header(self.root.as_ref(), self.entries.len(), &mut out);
        for entry in &self.entries {
            encode_entry(entry, &mut out);
        }
        out
    }

    /// Decodes a listing that [`encode`](Self::encode) wrote, and refuses any other encoding.
    ///
    /// Memory grows with the bytes read, never by a length that they claim.
    ///
    /// # Errors
    /// [`DecodeListingError`]; there is no partial result.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeListingError> {
        if bytes.len() as u64 > TREE_LISTING_BYTES_MAX {
            return Err(ListingError::TooLong.into());
        }
        let malformed = |entry| DecodeListingError::Malformed { entry };
        let mut rest = bytes;
        let parts = array(&mut rest).ok_or(malformed(0))?;
        let version: u64 = uint(&mut rest).ok_or(malformed(0))?;
        let root = match version {
            VERSION_PLAIN if parts == 2 => None,
            VERSION_FULL if parts == 3 => Some(decode_root(&mut rest).ok_or(malformed(0))?),
            VERSION_PLAIN | VERSION_FULL => return Err(malformed(0)),
            other => return Err(DecodeListingError::Version(other)),
        };
        let count = array(&mut rest).ok_or(malformed(0))?;
        let mut scratch = Vec::new();
        encode_header(root.as_ref(), count, &mut scratch);
        if !bytes.starts_with(&scratch) {
            return Err(DecodeListingError::NotCanonical { entry: 0 });
        }
        let mut listing = Self::of_root(root)?;
        for index in 0..count {
            let before = rest;
            let entry = decode_entry(&mut rest, index)?;
            scratch.clear();
            encode_entry(&entry, &mut scratch);
            if before[..before.len() - rest.len()] != scratch {
                return Err(DecodeListingError::NotCanonical { entry: index });
            }
            listing.push(entry)?;
        }
        if rest.is_empty() { Ok(listing) } else { Err(malformed(count)) }
    }
}

const KIND_FILE: u64 = 0;
const KIND_DIR: u64 = 1;
const KIND_SYMLINK: u64 = 2;
const KIND_FIFO: u64 = 3;
const KIND_CHAR_DEV: u64 = 4;
const KIND_BLOCK_DEV: u64 = 5;
const KIND_HARD_LINK: u64 = 6;

/// Number of fields of an encoded entry of version 1.
const PLAIN_FIELDS: usize = 7;

/// Number of fields of an encoded entry with its time.
const FULL_FIELDS: usize = 8;

/// Number of fields of an encoded hard link.
const LINK_FIELDS: usize = 3;

fn put_array(len: usize, out: &mut Vec<u8>) {
    encode::write_array_len(out, len as u32).expect("a vector takes every write");
}

fn put_uint(value: u64, out: &mut Vec<u8>) {
    encode::write_uint(out, value).expect("a vector takes every write");
}

fn put_bin(bytes: &[u8], out: &mut Vec<u8>) {
    encode::write_bin(out, bytes).expect("a vector takes every write");
}

fn encode_header(root: Option<&RootDir>, entries: usize, out: &mut Vec<u8>) {
    match root {
        None => {
            put_array(2, out);
            put_uint(VERSION_PLAIN, out);
        }
        Some(root) => {
            put_array(3, out);
            put_uint(VERSION_FULL, out);
            put_array(5, out);
            put_owner(root.mode, root.uid, root.gid, &root.xattrs, out);
            put_time(root.modified, out);
        }
    }
    put_array(entries, out);
}

fn put_owner(mode: u16, uid: u32, gid: u32, xattrs: &[Xattr], out: &mut Vec<u8>) {
    put_uint(mode.into(), out);
    put_uint(uid.into(), out);
    put_uint(gid.into(), out);
    put_array(xattrs.len(), out);
    for xattr in xattrs {
        put_array(2, out);
        put_bin(&xattr.name, out);
        put_bin(&xattr.value, out);
    }
}

fn put_time(time: Time, out: &mut Vec<u8>) {
    put_array(2, out);
    encode::write_sint(out, time.seconds).expect("a vector takes every write");
    put_uint(time.nanos.into(), out);
}

fn encode_entry(entry: &Entry, out: &mut Vec<u8>) {
    let (kind, number) = match &entry.kind {
        EntryKind::HardLink { target } => {
            put_array(LINK_FIELDS, out);
            put_bin(entry.path.as_bytes(), out);
            put_uint(KIND_HARD_LINK, out);
            return put_bin(target.as_bytes(), out);
        }
        EntryKind::File { size } => (KIND_FILE, *size),
        EntryKind::Dir => (KIND_DIR, 0),
        EntryKind::Symlink { .. } => (KIND_SYMLINK, 0),
        EntryKind::Fifo => (KIND_FIFO, 0),
        EntryKind::CharDev { rdev } => (KIND_CHAR_DEV, *rdev),
        EntryKind::BlockDev { rdev } => (KIND_BLOCK_DEV, *rdev),
    };
    put_array(if entry.modified.is_some() { FULL_FIELDS } else { PLAIN_FIELDS }, out);
    put_bin(entry.path.as_bytes(), out);
    put_uint(kind, out);
    match &entry.kind {
        EntryKind::Symlink { target } => put_bin(target, out),
        _ => put_uint(number, out),
    }
    put_owner(entry.mode, entry.uid, entry.gid, &entry.xattrs, out);
    if let Some(time) = entry.modified {
        put_time(time, out);
    }
}

fn array(rest: &mut &[u8]) -> Option<usize> {
    decode::read_array_len(rest).ok().map(|len| len as usize)
}

fn uint<T: TryFrom<u64>>(rest: &mut &[u8]) -> Option<T> {
    decode::read_int::<u64, _>(rest).ok()?.try_into().ok()
}

fn bin<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = decode::read_bin_len(rest).ok()? as usize;
    rest.split_off(..len)
}

fn time(rest: &mut &[u8]) -> Option<Time> {
    let 2 = array(rest)? else { return None };
    let seconds = decode::read_int::<i64, _>(rest).ok()?;
    Some(Time { seconds, nanos: uint(rest)? })
}

fn xattrs(rest: &mut &[u8]) -> Option<Vec<Xattr>> {
    let count = array(rest).filter(|count| *count <= XATTRS_MAX)?;
    let mut xattrs = Vec::new();
    for _ in 0..count {
        let 2 = array(rest)? else { return None };
        xattrs.push(Xattr { name: bin(rest)?.into(), value: bin(rest)?.into() });
    }
    Some(xattrs)
}

fn decode_root(rest: &mut &[u8]) -> Option<RootDir> {
    let 5 = array(rest)? else { return None };
    let (mode, uid, gid) = (uint(rest)?, uint(rest)?, uint(rest)?);
    Some(RootDir { mode, uid, gid, xattrs: xattrs(rest)?, modified: time(rest)? })
}

fn decode_entry(rest: &mut &[u8], index: usize) -> Result<Entry, DecodeListingError> {
    let malformed = DecodeListingError::Malformed { entry: index };
    let fields = array(rest).ok_or(malformed.clone())?;
    let bad_path = |cause| DecodeListingError::Path { entry: index, cause };
    let path = TreePath::new(bin(rest).ok_or(malformed.clone())?).map_err(bad_path)?;
    if fields != LINK_FIELDS {
        return decode_fields(rest, path, fields).ok_or(malformed);
    }
    if uint(rest) != Some(KIND_HARD_LINK) {
        return Err(malformed);
    }
    let target = TreePath::new(bin(rest).ok_or(malformed)?).map_err(bad_path)?;
    let kind = EntryKind::HardLink { target };
    Ok(Entry { path, kind, mode: 0, uid: 0, gid: 0, xattrs: Vec::new(), modified: None })
}

fn decode_fields(rest: &mut &[u8], path: TreePath, fields: usize) -> Option<Entry> {
    if !matches!(fields, PLAIN_FIELDS | FULL_FIELDS) {
        return None;
    }
    let kind = match uint(rest)? {
        KIND_FILE => EntryKind::File { size: uint(rest)? },
        KIND_SYMLINK => EntryKind::Symlink { target: bin(rest)?.into() },
        KIND_CHAR_DEV => EntryKind::CharDev { rdev: uint(rest)? },
        KIND_BLOCK_DEV => EntryKind::BlockDev { rdev: uint(rest)? },
        kind @ (KIND_DIR | KIND_FIFO) => {
            let 0 = uint::<u64>(rest)? else { return None };
            if kind == KIND_DIR { EntryKind::Dir } else { EntryKind::Fifo }
        }
        _ => return None,
    };
    let (mode, uid, gid) = (uint(rest)?, uint(rest)?, uint(rest)?);
    let xattrs = xattrs(rest)?;
    let modified = if fields == FULL_FIELDS { Some(time(rest)?) } else { None };
    Some(Entry { path, kind, mode, uid, gid, xattrs, modified })
}
