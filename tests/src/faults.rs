//! Faults at system calls: `strace` counts the calls of a command, then makes one of them fail or
//! kills the command there.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::lab::Outcome;

/// Calls that change something; each gets every fault.
const CHANGING: &str = "write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,syncfs,sync_file_range,rename,renameat,\
    renameat2,link,linkat,unlink,unlinkat,rmdir,mkdir,mkdirat,chmod,fchmod,fchmodat,fchmodat2,chown,fchown,lchown,\
    fchownat,truncate,ftruncate,fallocate,copy_file_range,sendfile,ioctl,setxattr,lsetxattr,fsetxattr,removexattr,\
    lremovexattr,fremovexattr,symlink,symlinkat,mknod,mknodat,utimensat,flock,fcntl";

/// Calls that only read; they get `EIO`. `openat` counts as changing if it creates or writes.
const READING: &str = "openat,openat2,read,pread64,readv,preadv,getdents64,statx,newfstatat,fstat,lgetxattr,fgetxattr,\
    llistxattr,flistxattr,readlink,readlinkat,lseek";

/// Errors that a disk or a security policy can return.
const ERRORS: [&str; 3] = ["EIO", "ENOSPC", "EPERM"];

/// Calls that are points only with a path that is the same in each run. Without a path the fault
/// would strike sockets and the runtime's own pipes. A file with a random name is struck at its
/// `fsync` or `rename`.
const OF_SOCKETS_TOO: [&str; 5] = ["write", "writev", "ioctl", "fcntl", "sendfile"];

/// A fault injected at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The command is killed there.
    Kill,
    /// The call fails with this error.
    Error(&'static str),
}

/// One place where a fault can be injected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// The system call.
    pub call: String,
    /// The path or name that the call is given, or the path of its descriptor; `None` where names
    /// differ from run to run.
    pub path: Option<String>,
    /// Number of the call among a thread's calls with this path, from 1: strace counts for each
    /// thread by itself.
    pub nth: u64,
    /// Largest number of times that the call occurs with this path in one thread.
    pub of: u64,
    /// The fault.
    pub fault: Fault,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = match self.fault {
            Fault::Kill => "kill",
            Fault::Error(name) => name,
        };
        let path = self.path.as_deref().unwrap_or("anything");
        write!(f, "{fault} at {} {}/{} of {path}", self.call, self.nth, self.of)
    }
}

/// Whether strace can trace here. Prints the reason if not.
pub fn can_trace() -> bool {
    let tried = Command::new("strace").args(["-f", "-qq", "-o", "/dev/null", "true"]).output();
    let traced = tried.as_ref().is_ok_and(|output| output.status.success());
    if !traced {
        eprintln!("skipped: strace cannot trace here: {tried:?}");
    }
    traced
}

/// Runs a command to its end with its output in files of `dir`, so that writing output is a point
/// too.
///
/// # Panics
/// When it cannot be started.
pub fn run(mut command: Command, dir: &Path) -> Outcome {
    let (out, err) = (dir.join("said.out"), dir.join("said.err"));
    let file = |path: &Path| Stdio::from(File::create(path).expect("create an output file"));
    let status = command.stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err)).status();
    let status = status.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let read = |path: &Path| fs::read(path).expect("read an output file");
    Outcome::of(Output { status, stdout: read(&out), stderr: read(&err) })
}

/// `command` under strace with `args`.
pub fn traced(command: &Command, args: &[&str], log: &Path) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-y", "-o"]).arg(log).args(args).arg("--");
    strace.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        strace.current_dir(dir);
    }
    strace
}

/// The arguments that make strace inject the fault of `point`.
pub fn injection(point: &Point) -> Vec<String> {
    let fault = match point.fault {
        Fault::Kill => "signal=KILL".to_owned(),
        Fault::Error(name) => format!("error={name}"),
    };
    let mut args = vec![
        "-e".to_owned(),
        format!("trace={}", point.call),
        "-e".to_owned(),
        format!("inject={}:{fault}:when={}", point.call, point.nth),
    ];
    if let Some(path) = &point.path {
        args.extend(["-P".to_owned(), path.clone()]);
    }
    args
}

/// Runs `command` with the fault of `point`. Returns the outcome, and whether the fault happened.
pub fn injected(command: &Command, point: &Point, dir: &Path) -> (Outcome, bool) {
    let log = dir.join("trace");
    let args = injection(point);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = run(traced(command, &args, &log), dir);
    let done = outcome.code == -1 || fs::read_to_string(log).unwrap_or_default().contains("(INJECTED)");
    (outcome, done)
}

/// The arguments that make strace log every call that may be a point.
pub fn counting() -> [String; 2] {
    // strace ignores a name with `?` that its version or this architecture does not know.
    let names = CHANGING.split(',').chain(READING.split(','));
    let names: Vec<String> = names.map(|name| format!("?{}", name.trim())).collect();
    ["-e".to_owned(), format!("trace={}", names.join(","))]
}

/// For each call and path: how often it occurs in one thread at most, and whether it changes
/// something.
type Calls = BTreeMap<(String, Option<String>), (u64, bool)>;

/// Every point of a command, from the traces of two runs without a fault. A path that occurs in
/// only one of the traces is taken for a random name.
pub fn points(first: &Path, second: &Path) -> Vec<Point> {
    let [first, second] = [first, second].map(|log| {
        let bytes = fs::read(log).expect("the trace");
        calls(&String::from_utf8_lossy(&bytes))
    });
    let mut found = Calls::new();
    for (key, (count, changes)) in first {
        if second.contains_key(&key) {
            found.insert(key, (count, changes));
        } else if changes && !OF_SOCKETS_TOO.contains(&key.0.as_str()) {
            let any = (key.0.clone(), None);
            let known = found.entry(any).or_insert((0, true));
            known.0 += count;
        }
    }
    let mut points = Vec::new();
    for ((call, path), (of, changes)) in found {
        // A fault at a call that only reads leaves the same state as a kill at the change before
        // it.
        let faults: Vec<Fault> = match changes {
            true => ERRORS.into_iter().map(Fault::Error).chain([Fault::Kill]).collect(),
            false => vec![Fault::Error("EIO")],
        };
        for nth in 1..=of {
            for fault in &faults {
                points.push(Point { call: call.clone(), path: path.clone(), nth, of, fault: *fault });
            }
        }
    }
    points
}

/// The calls of a trace. Calls on sockets, pipes and memory do not count: faults of the network
/// have tests of their own, and the kernel has no such faults for pipes and memory.
fn calls(trace: &str) -> Calls {
    let mut each: BTreeMap<(&str, String, String), (u64, bool)> = BTreeMap::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((call, args)) = rest.trim_start().split_once('(') else { continue };
        if call.is_empty() || !call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            continue;
        }
        let opens = call.starts_with("openat");
        let writes = ["O_CREAT", "O_WRONLY", "O_RDWR"].iter().any(|flag| args.contains(flag));
        let changes = if opens { writes } else { CHANGING.split(',').any(|name| name.trim() == call) };
        if matches!(call, "ioctl" | "fcntl") && !["FICLONE", "LOCK", "SETLK"].iter().any(|w| args.contains(w))
        {
            continue;
        }
        let Some(path) = path_of(call, args).filter(|path| !is_of_the_system(path)) else { continue };
        let known = each.entry((thread, call.to_owned(), path)).or_default();
        *known = (known.0 + 1, known.1 || changes);
    }
    let mut most = Calls::new();
    for ((_, call, path), (count, changes)) in each {
        let known = most.entry((call, Some(path))).or_default();
        *known = (known.0.max(count), known.1 || changes);
    }
    most
}

/// Returns the name that a call is given, or else the path of its descriptor.
fn path_of(call: &str, args: &str) -> Option<String> {
    let named = call.contains("at") && !call.contains("fdatasync") && call != "fstat" && call != "ftruncate"
        || [
            "rename",
            "link",
            "unlink",
            "mkdir",
            "symlink",
            "lsetxattr",
            "lgetxattr",
            "llistxattr",
            "readlink",
        ]
        .contains(&call)
        || ["statx", "lremovexattr", "setxattr", "chmod", "chown", "lchown", "rmdir"].contains(&call);
    if named && let Some(name) = args.split('"').nth(1).filter(|name| !name.is_empty()) {
        return Some(name.to_owned());
    }
    let path = args.split_once('<')?.1.split_once('>')?.0;
    path.starts_with('/').then(|| path.trim_end_matches("(deleted)").to_owned())
}

/// Whether a path belongs to the loader or to another process: a fault there is not a fault of this
/// command.
fn is_of_the_system(path: &str) -> bool {
    let foreign =
        path.strip_prefix("/proc/").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    foreign || ["/lib", "/usr/lib", "/etc/ld.so", "/dev/null"].iter().any(|dir| path.starts_with(dir))
}

/// Everything below `root`, with content, owner, mode, time, links and attributes; entries called
/// `except` are left out.
///
/// # Panics
/// When it cannot be read.
pub fn fingerprint(root: &Path, except: &str) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        if path.file_name().is_some_and(|name| name.as_bytes() == except.as_bytes()) {
            continue;
        }
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let content = if meta.is_dir() {
            open.extend(fs::read_dir(&path).expect("list").map(|entry| entry.expect("entry").path()));
            String::new()
        } else if meta.is_file() {
            blake3::hash(&fs::read(&path).expect("read")).to_hex().to_string()
        } else {
            format!("{:?} {}", fs::read_link(&path).ok(), meta.rdev())
        };
        let mut names = vec![0; 4096];
        let len = rustix::fs::llistxattr(&path, &mut names[..]).unwrap_or(0);
        let names = String::from_utf8_lossy(&names[..len]).into_owned();
        let links = if meta.is_file() { meta.nlink() } else { 0 };
        // The user of a tree may add files to it, which changes the times of directories. An image
        // has the time at which it arrived.
        let time = if meta.is_dir() || path == root { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
        let text =
            format!("{:o} {}:{} {time:?} {links} {names:?} {content}", meta.mode(), meta.uid(), meta.gid());
        found.insert(path.strip_prefix(root).unwrap_or(&path).to_owned(), text);
    }
    found
}
