//! Process-wide settings: the allocator's arenas, the limit on open files, the host's name, and the
//! signals that end a daemon.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Environment variable with the filter of the log, such as `info` or `distd_peer=debug`.
const LOG: &str = "DISTD_LOG";

/// Environment variable with the form of the log: `text`, or `json` for one object a line.
const LOG_FORMAT: &str = "DISTD_LOG_FORMAT";

/// Starts the log on standard error, with the filter of the environment, else with `filter`.
pub fn start_log(filter: &str) {
    let filter = EnvFilter::try_from_env(LOG).unwrap_or_else(|_| EnvFilter::new(filter));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match std::env::var(LOG_FORMAT).as_deref() {
        Ok("json") => log.json().flatten_event(true).with_span_list(true).with_current_span(false).init(),
        Ok("text" | "") | Err(_) => log.init(),
        Ok(other) => {
            log.init();
            tracing::warn!(format = other, "{LOG_FORMAT} is neither text nor json: text is written");
        }
    }
}

/// Environment variable by which glibc bounds the number of its arenas.
const VARIABLE: &str = "MALLOC_ARENA_MAX";

/// Setting that goes with it: glibc returns buffers of 256 KiB or more to the system as soon as
/// they are freed. Otherwise glibc raises this threshold when the first large buffer is freed, and
/// keeps later buffers: 71 MB instead of 64 on a device that applies patches.
const THRESHOLD: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "262144");

/// Starts this program again, in the same process, with glibc's heap bounded to two arenas unless
/// the environment already sets a bound. Must be the first call in `main`.
///
/// Each of a dozen threads would get its own arena, and chunks freed on another thread than the one
/// that allocated them would stay resident. One update of an 800 MB image peaked at 149 MiB in the
/// relay and 186 MiB in the origin; with two arenas it peaked at 82 and 97 MiB, in the same time
/// (docs/decisions/0005-two-arenas.md). If the restart fails, the program continues without it.
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
    // `exec` returns only if it failed.
    let error = command.args(arguments).env(VARIABLE, "2").env(THRESHOLD.0, THRESHOLD.1).exec();
    eprintln!("note: memory may grow more than usual: could not start again with {VARIABLE}=2: {error}");
}

/// Waits until the process is told to end: by SIGTERM, or by ctrl-c.
///
/// # Errors
/// When the system lets the process watch no signals.
pub async fn told_to_end() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result,
        _ = terminate.recv() => Ok(()),
    }
}

/// Returns the memory that the control group of this process allows it, bytes; [`u64::MAX`] without
/// a bound. Groups of version 1 are not looked at.
pub fn memory_bound() -> u64 {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(own) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else { return u64::MAX };
    let root = Path::new("/sys/fs/cgroup");
    let bounds = root
        .join(own)
        .ancestors()
        .take_while(|at| at.starts_with(root))
        .filter_map(|at| std::fs::read_to_string(at.join("memory.max")).ok()?.trim().parse::<u64>().ok())
        .min();
    bounds.unwrap_or(u64::MAX)
}

/// Raises the limit on open files to the highest value the system allows this process: each of
/// thousands of connections needs a socket. If that fails, the program continues with the old
/// limit.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // A process may always raise its soft limit to the hard limit.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// Name of this machine, by which operators tell nodes apart; `otherwise` if the machine has none.
pub fn host_name(otherwise: &str) -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { otherwise.to_owned() } else { name }
}
