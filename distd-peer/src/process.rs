//! What the process asks of its allocator and of the system.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// glibc's name for the bound on arenas.
const VARIABLE: &str = "MALLOC_ARENA_MAX";

/// What else is set with it: from 256 KiB on memory is the system's again as soon as it is freed. glibc raises the threshold with the
/// first large buffer it sees freed, and keeps the following ones: 71 MB instead of 64 on a device that applies patches.
const THRESHOLD: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "262144");

/// Starts this program again, in the same process, with glibc's heap arenas bounded to two unless the environment says otherwise.
/// Call it first thing in `main`.
///
/// With an arena for each of a dozen threads, chunks freed on another thread than they came from stay resident: one update of an
/// 800 MB image peaked at 149 MiB in the relay and 186 MiB in the origin, with two arenas at 82 and 97 MiB, in the same time
/// (docs/decisions/0005-two-arenas.md). Where this cannot be done the program runs on as it is.
pub fn bound_arenas() {
    if cfg!(not(target_env = "gnu")) || std::env::var_os(VARIABLE).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // Returns only when it failed.
    let error = command.args(arguments).env(VARIABLE, "2").env(THRESHOLD.0, THRESHOLD.1).exec();
    eprintln!("note: memory may grow more than usual: could not start again with {VARIABLE}=2: {error}");
}

/// Raises the number of files that may be open to what the system lets this process have: a socket for each of
/// thousands of connections. Where that cannot be done the program runs on as it is.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // The hard limit may always be taken.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// Name of this machine, by which operators tell nodes apart; `otherwise` where it has none.
pub fn host_name(otherwise: &str) -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { otherwise.to_owned() } else { name }
}
