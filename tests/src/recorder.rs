//! Records each write and flush of a program to some files and one disk, and rebuilds what a power
//! cut can leave of them.
//!
//! `strace` logs the system calls with their bytes. The model is pessimistic within what disks and
//! journaling file systems promise:
//! - pages of a disk that were written and not flushed are there or not, each by itself;
//! - changes of a directory (create, rename, remove) last in their order, so that a prefix of those
//!   since the last flush is there;
//! - bytes of a file that were written and not flushed are there or not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Size of a page of the disk, which is there as a whole or not at all, bytes.
pub const PAGE: usize = 4096;

/// Calls that are recorded. Every call that changes a file is among them, so that a change which
/// the model does not know ends the test.
const CALLS: &str = "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,sync_file_range,\
                     ftruncate,truncate,fallocate,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,link,linkat,\
                     symlink,symlinkat,close,copy_file_range,sendfile,lseek";

/// One recorded call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes were written to the disk.
    Write {
        /// Position on the disk, bytes.
        offset: usize,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Everything that was written to the disk before event `began` is durable.
    Flush {
        /// Number of the first event that the flush does not cover.
        began: usize,
    },
    /// A file was changed.
    File {
        /// Its path.
        path: PathBuf,
        /// The change.
        change: Change,
    },
}

/// Change of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The file was made, or emptied.
    Empty,
    /// The directory was made.
    Directory,
    /// Bytes were written.
    Write {
        /// Position in the file, bytes.
        offset: usize,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The file got another length.
    Length(usize),
    /// Its bytes are durable, and all changes of its directory before.
    Flush,
    /// It got another name.
    Rename(PathBuf),
    /// It was removed.
    Remove,
}

/// Puts `command` under strace, which writes to `log`.
pub fn recorded(command: &Command, log: &Path) -> Command {
    let calls = format!("trace={CALLS}");
    crate::faults::traced(command, &["-xx", "-s", "4000000", "-e", &calls], log)
}

/// A line of the log with its words.
struct Call<'t> {
    name: &'t str,
    args: Vec<&'t str>,
    result: &'t str,
    began: usize,
}

/// Reads the log of a program that had the disk `disk` and files below `directories`.
///
/// # Panics
/// When the log has a call that the model does not know for one of these.
pub fn read(log: &Path, disk: &Path, directories: &[&Path]) -> Vec<Event> {
    let text = fs::read_to_string(log).expect("read the log");
    let mut open: BTreeMap<&str, (String, usize)> = BTreeMap::new();
    let mut positions: BTreeMap<(String, PathBuf), usize> = BTreeMap::new();
    let mut events = Vec::new();
    for line in text.lines() {
        let Some((id, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(begin) = rest.strip_suffix("<unfinished ...>") {
            open.insert(id, (begin.to_owned(), events.len()));
            continue;
        }
        let whole;
        let (call, began) = match rest.strip_prefix("<... ").and_then(|rest| rest.split_once("resumed>")) {
            Some((_, end)) => {
                let Some((begin, began)) = open.remove(id) else { continue };
                whole = begin + end;
                (whole.as_str(), began)
            }
            None => (rest, events.len()),
        };
        let Some(call) = parse(call, began) else { continue };
        if call.result.starts_with("-1") || call.result.starts_with('?') {
            continue;
        }
        add(&call, disk, directories, &mut positions, &mut events);
    }
    events
}

/// Splits `name(args) = result`. Strings have hexadecimal digits alone, so no comma is in one.
fn parse(text: &str, began: usize) -> Option<Call<'_>> {
    let (name, rest) = text.split_once('(')?;
    let (args, result) = rest
        .rsplit_once(") = ")
        .or_else(|| rest.rsplit_once(')').map(|(a, r)| (a, r.trim_start_matches([' ', '=']))))?;
    Some(Call { name, args: split(args), result: result.trim(), began })
}

/// Splits at commas outside of brackets.
fn split(args: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0, 0);
    for (at, byte) in args.bytes().enumerate() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(args[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(args[from..].trim());
    parts
}

/// Bytes of a string, or of all strings of a list of buffers.
fn bytes(text: &str) -> Vec<u8> {
    let strings = text.split('"').skip(1).step_by(2);
    strings.flat_map(|string| hex::decode(string.replace("\\x", "")).expect("hexadecimal digits")).collect()
}

/// Path of a descriptor in the form `N<PATH>`, with its number.
fn descriptor(text: &str) -> Option<(&str, PathBuf)> {
    let (number, rest) = text.split_once('<')?;
    let path = rest.strip_suffix('>')?;
    // strace adds the numbers of a device, and shows unusual characters of a path in hexadecimal.
    let path = path.split_once('<').map_or(path, |(path, _)| path);
    let path = match path.contains("\\x") {
        true => String::from_utf8(hex::decode(path.replace("\\x", "")).ok()?).ok()?,
        false => path.to_owned(),
    };
    Some((number, path.trim_end_matches(" (deleted)").into()))
}

fn path_of(directory: &str, name: &str) -> PathBuf {
    let name: PathBuf = String::from_utf8(bytes(name)).expect("a path in UTF-8").into();
    match descriptor(directory) {
        Some((_, at)) if name.is_relative() => at.join(name),
        _ => name,
    }
}

fn number(text: &str) -> usize {
    text.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no number: {text}"))
}

fn add(
    call: &Call<'_>,
    disk: &Path,
    directories: &[&Path],
    positions: &mut BTreeMap<(String, PathBuf), usize>,
    events: &mut Vec<Event>,
) {
    let watched = |path: &Path| directories.iter().any(|directory| path.starts_with(directory));
    let args = &call.args;
    let mut push = |path: PathBuf, change: Change| {
        if watched(&path) {
            events.push(Event::File { path, change });
        }
    };
    match call.name {
        "open" | "openat" | "creat" => {
            let flags = args.iter().find(|arg| arg.starts_with("O_")).copied().unwrap_or("O_CREAT|O_TRUNC");
            let Some((number, path)) = descriptor(call.result) else { return };
            positions.insert((number.to_owned(), path.clone()), 0);
            // A file that is opened with O_CREAT alone may have been there, and stays as it was. A
            // new one is made by its first write.
            if flags.contains("O_TRUNC") || flags.contains("O_EXCL") && flags.contains("O_CREAT") {
                push(path, Change::Empty);
            }
        }
        "mkdir" => push(path_of("", args[0]), Change::Directory),
        "mkdirat" => push(path_of(args[0], args[1]), Change::Directory),
        "unlink" => push(path_of("", args[0]), Change::Remove),
        "unlinkat" => push(path_of(args[0], args[1]), Change::Remove),
        "rename" => push(path_of("", args[0]), Change::Rename(path_of("", args[1]))),
        "renameat" | "renameat2" => {
            push(path_of(args[0], args[1]), Change::Rename(path_of(args[2], args[3])))
        }
        "close" => {
            if let Some((number, path)) = descriptor(args[0]) {
                positions.remove(&(number.to_owned(), path));
            }
        }
        _ => {
            let Some((fd, path)) = args.first().and_then(|fd| descriptor(fd)) else { return };
            let is_disk = path == disk;
            if !is_disk && !watched(&path) {
                return;
            }
            let position = positions.entry((fd.to_owned(), path.clone())).or_default();
            let (offset, written) = match call.name {
                "write" | "writev" => {
                    let bytes = bytes(args[1]);
                    let at = *position;
                    *position += number(call.result);
                    (at, bytes)
                }
                "pwrite64" | "pwritev" => (number(args[3]), bytes(args[1])),
                "fsync" | "fdatasync" if is_disk => {
                    events.push(Event::Flush { began: call.began });
                    return;
                }
                "fsync" | "fdatasync" => {
                    events.push(Event::File { path, change: Change::Flush });
                    return;
                }
                "ftruncate" => {
                    events.push(Event::File { path, change: Change::Length(number(args[1])) });
                    return;
                }
                "lseek" => {
                    *position = number(call.result);
                    return;
                }
                other => panic!("{other} changes {} and the model does not know it", path.display()),
            };
            let bytes = written[..number(call.result).min(written.len())].to_vec();
            events.push(match is_disk {
                true => Event::Write { offset, bytes },
                false => Event::File { path, change: Change::Write { offset, bytes } },
            });
        }
    }
}

/// Files by their paths; a directory is `None`.
pub type Files = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Reads all files below a directory.
///
/// # Panics
/// When they cannot be read.
pub fn files_below(directory: &Path) -> Files {
    let mut files = Files::new();
    for entry in fs::read_dir(directory).expect("list").map(|entry| entry.expect("an entry")) {
        let path = entry.path();
        match entry.file_type().expect("a type") {
            kind if kind.is_dir() => {
                files.extend(files_below(&path));
                files.insert(path, None);
            }
            kind if kind.is_file() => {
                let bytes = fs::read(&path).expect("read");
                files.insert(path, Some(bytes));
            }
            _ => {}
        }
    }
    files
}

/// Storage of a device after some events: what is durable, and what is not yet.
#[derive(Clone, Debug)]
pub struct Storage {
    /// Durable bytes of the disk.
    pub disk: Vec<u8>,
    /// Pages that were written since, by their number; each is there or not.
    pub pages: BTreeMap<usize, Vec<u8>>,
    /// Durable files.
    pub files: Files,
    /// Changes of files since, in their order; a prefix is there.
    pub changes: Vec<(PathBuf, Change)>,
    /// Number of events so far, and the event at which each page was written last.
    events: usize,
    written: BTreeMap<usize, usize>,
}

impl Storage {
    /// Storage in which everything is durable.
    pub fn new(disk: Vec<u8>, files: Files) -> Self {
        Self { disk, pages: BTreeMap::new(), files, changes: Vec::new(), events: 0, written: BTreeMap::new() }
    }

    /// Takes an event into account.
    pub fn add(&mut self, event: &Event) {
        match event {
            Event::Write { offset, bytes } => self.write(*offset, bytes),
            Event::Flush { began } => {
                let durable = |page: &usize| self.written.get(page).is_none_or(|at| at < began);
                let pages: Vec<usize> = self.pages.keys().copied().filter(durable).collect();
                for page in pages {
                    let bytes = self.pages.remove(&page).expect("a page");
                    self.disk[page * PAGE..][..bytes.len()].copy_from_slice(&bytes);
                }
            }
            Event::File { path, change } => {
                self.changes.push((path.clone(), change.clone()));
                // A journaling file system commits all its changes at once.
                if *change == Change::Flush {
                    let changes = std::mem::take(&mut self.changes);
                    self.files = applied(&self.files, &changes);
                }
            }
        }
        self.events += 1;
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done;
            let (page, within) = (at / PAGE, at % PAGE);
            let len = (PAGE - within).min(bytes.len() - done);
            let start = page * PAGE;
            let end = (start + PAGE).min(self.disk.len());
            let durable = &self.disk[start..end];
            let contents = self.pages.entry(page).or_insert_with(|| durable.to_vec());
            contents[within..within + len].copy_from_slice(&bytes[done..done + len]);
            self.written.insert(page, self.events);
            done += len;
        }
    }

    /// Disk on which only the chosen ones of the pages that were not flushed are.
    pub fn disk_with(&self, is_there: impl Fn(usize) -> bool) -> Vec<u8> {
        let mut disk = self.disk.clone();
        for (page, bytes) in self.pages.iter().filter(|(page, _)| is_there(**page)) {
            disk[page * PAGE..][..bytes.len()].copy_from_slice(bytes);
        }
        disk
    }

    /// Files after the first `count` of the changes that were not flushed. `with_bytes` says
    /// whether the bytes written by them are there too.
    pub fn files_with(&self, count: usize, with_bytes: bool) -> Files {
        let kept = |(_, change): &&(PathBuf, Change)| with_bytes || !matches!(change, Change::Write { .. });
        let changes: Vec<_> = self.changes[..count].iter().filter(kept).cloned().collect();
        applied(&self.files, &changes)
    }
}

/// Files after some changes.
fn applied(files: &Files, changes: &[(PathBuf, Change)]) -> Files {
    let mut files = files.clone();
    for (path, change) in changes {
        match change {
            Change::Empty => drop(files.insert(path.clone(), Some(Vec::new()))),
            Change::Directory => drop(files.entry(path.clone()).or_insert(None)),
            Change::Write { offset, bytes } => {
                let Some(file) = files.entry(path.clone()).or_insert_with(|| Some(Vec::new())) else {
                    continue;
                };
                file.resize(file.len().max(offset + bytes.len()), 0);
                file[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Change::Length(length) => {
                if let Some(file) = files.entry(path.clone()).or_insert_with(|| Some(Vec::new())) {
                    file.resize(*length, 0);
                }
            }
            Change::Flush => {}
            Change::Rename(to) => {
                let below: Vec<PathBuf> =
                    files.keys().filter(|file| file.starts_with(path)).cloned().collect();
                for from in below {
                    let rest = from.strip_prefix(path).expect("below it").to_owned();
                    let contents = files.remove(&from).expect("one of them");
                    let to = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                    files.insert(to, contents);
                }
            }
            Change::Remove => drop(files.remove(path)),
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<Event> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = dir.path().join("log");
        fs::write(&log, text).expect("write");
        read(&log, Path::new("/dev/loop3"), &[Path::new("/s")])
    }

    #[test]
    fn writes_and_flushes_are_read_also_when_calls_overlap() {
        let events = lines(
            "10 pwrite64(5</dev/loop3<block 7:3>>, \"\\x61\\x62\", 2, 4096) = 2\n\
             10 fdatasync(5</dev/loop3<block 7:3>> <unfinished ...>\n\
             11 pwritev(5</dev/loop3<block 7:3>>, [{iov_base=\"\\x63\", iov_len=1}, {iov_base=\"\\x64\", iov_len=1}], 2, 0) = 2\n\
             10 <... fdatasync resumed>) = 0\n\
             11 openat(AT_FDCWD</x>, \"\\x2f\\x73\\x2f\\x66\", O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 7</s/f>\n\
             11 write(7</s/f>, \"\\x31\", 1) = 1\n\
             11 write(7</s/f>, \"\\x32\", 1) = 1\n\
             11 write(1</tmp/other>, \"\\x32\", 1) = 1\n\
             11 rename(\"\\x2f\\x73\\x2f\\x66\", \"\\x2f\\x73\\x2f\\x67\") = 0\n\
             11 unlink(\"\\x2f\\x73\\x2f\\x68\") = -1 ENOENT (No such file or directory)\n",
        );
        let file = |path: &str, change| Event::File { path: path.into(), change };
        let expected = [
            Event::Write { offset: 4096, bytes: b"ab".to_vec() },
            Event::Write { offset: 0, bytes: b"cd".to_vec() },
            Event::Flush { began: 1 },
            file("/s/f", Change::Empty),
            file("/s/f", Change::Write { offset: 0, bytes: b"1".to_vec() }),
            file("/s/f", Change::Write { offset: 1, bytes: b"2".to_vec() }),
            file("/s/f", Change::Rename("/s/g".into())),
        ];
        assert_eq!(events, expected);
        let mut storage = Storage::new(vec![0; 2 * PAGE], Files::new());
        for event in &events[..3] {
            storage.add(event);
        }
        // The flush began before the second write.
        assert_eq!((storage.disk[PAGE], storage.disk[0]), (b'a', 0));
        assert_eq!(storage.disk_with(|_| true)[0], b'c');
        for event in &events[3..] {
            storage.add(event);
        }
        assert_eq!(storage.files_with(0, true), Files::new());
        assert_eq!(storage.files_with(4, true), Files::from([("/s/g".into(), Some(b"12".to_vec()))]));
        assert_eq!(storage.files_with(4, false), Files::from([("/s/g".into(), Some(Vec::new()))]));
    }
}
