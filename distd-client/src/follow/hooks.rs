//! Programs that the operator puts into the hooks directory, one for each state of an attempt. They
//! get the release in the environment and have a time limit; the end of their output is kept.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use distd_core::names::Name;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::programs;

/// Longest output that is kept, bytes; the end of it.
const OUTPUT_MAX: usize = 4 << 10;

/// Longest part of the output that an error has, characters; the end of it.
const SAID_MAX: usize = 100;

/// Time after which a program that was told to end is killed.
const TERMINATE: Duration = Duration::from_secs(2);

/// States at which a program is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// An attempt is about to begin. A failure puts it off.
    Consent,
    /// The release is written, and about to become the current one. A failure ends the attempt.
    Activate,
    /// The release is the current one. A failure takes the device back.
    Health,
    /// The device went back to the release before.
    RolledBack,
}

impl Hook {
    /// Name of the program.
    fn name(self) -> &'static str {
        match self {
            Self::Consent => "consent",
            Self::Activate => "activate",
            Self::Health => "health",
            Self::RolledBack => "rolled-back",
        }
    }
}

/// Reason why a hook failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    /// The program could not be started or watched.
    #[error("{} could not be run", .0.display())]
    Run(PathBuf, #[source] std::io::Error),
    /// The program ended with another status than 0.
    #[error("{} ended with {status}{}", name(path), after_colon(said))]
    Status {
        /// The program.
        path: PathBuf,
        /// Its status.
        status: std::process::ExitStatus,
        /// End of its output.
        said: String,
    },
    /// The program did not end in time.
    #[error("{} did not end within {limit} s{}", name(path), after_colon(said))]
    Time {
        /// The program.
        path: PathBuf,
        /// The time limit, seconds.
        limit: u64,
        /// End of its output.
        said: String,
    },
}

fn name(path: &Path) -> std::ffi::os_str::Display<'_> {
    path.file_name().unwrap_or_default().display()
}

fn after_colon(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

/// The hooks directory.
#[derive(Clone, Debug)]
pub(super) struct Hooks {
    pub(super) directory: PathBuf,
    pub(super) limit: Duration,
}

/// Release that a hook is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct About<'a> {
    pub(super) product: &'a Name,
    /// Version; `None` when it is unknown.
    pub(super) version: Option<&'a Name>,
    /// Release before it.
    pub(super) from: Option<&'a Name>,
    /// Path of the release.
    pub(super) path: &'a Path,
    /// Slot of the release; `None` in a directory.
    pub(super) slot: Option<&'a Name>,
}

impl Hooks {
    /// Whether there is a program for a state.
    pub(super) fn has(&self, hook: Hook) -> bool {
        std::fs::symlink_metadata(self.directory.join(hook.name())).is_ok()
    }

    /// Runs the program of a state and waits for its end. Without such a program nothing is done.
    ///
    /// # Errors
    /// [`HookError`].
    pub(super) async fn run(&self, hook: Hook, about: About<'_>) -> Result<(), HookError> {
        let path = self.directory.join(hook.name());
        // A link that leads nowhere is a program that is missing where one is expected.
        match tokio::fs::symlink_metadata(&path).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(HookError::Run(path, error)),
            Ok(_) => {}
        }
        let mut command = programs::command(&path);
        command
            .env("DISTD_PRODUCT", about.product.as_str())
            .env("DISTD_VERSION", about.version.map_or("", Name::as_str))
            .env("DISTD_FROM", about.from.map_or("", Name::as_str))
            .env("DISTD_PATH", about.path)
            .env("DISTD_SLOT", about.slot.map_or("", Name::as_str))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Its children end with it.
            .process_group(0);
        let mut child = command.spawn().map_err(|error| HookError::Run(path.clone(), error))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let mut group = Group(group);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let output = tokio::spawn(async move { tokio::join!(tail(stdout), tail(stderr)) });
        let status = tokio::time::timeout(self.limit, child.wait()).await;
        if status.is_err() {
            group.signal(Signal::TERM);
            let _ = tokio::time::timeout(TERMINATE, child.wait()).await;
            group.signal(Signal::KILL);
        }
        // A program that ended in time may leave others running.
        group.0 = None;
        let said = match tokio::time::timeout(TERMINATE, output).await {
            Ok(Ok((stdout, stderr))) => format!("{stdout}{stderr}"),
            _ => String::new(),
        };
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        // A report has room for the end of it.
        let said: String = said.chars().skip(said.chars().count().saturating_sub(SAID_MAX)).collect();
        match status {
            Err(_) => Err(HookError::Time { path, limit: self.limit.as_secs(), said }),
            Ok(Err(error)) => Err(HookError::Run(path, error)),
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(HookError::Status { path, status, said }),
        }
    }
}

/// A program with its children. They end when this is dropped before the program has ended.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        // A group that has ended by itself is no error.
        let _ = self.0.map(|group| kill_process_group(group, signal));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Reads a program's output to its end and returns the last part of it.
async fn tail(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let (mut kept, mut piece) = (Vec::new(), [0; 1024]);
    while let Ok(n @ 1..) = from.read(&mut piece).await {
        kept.extend_from_slice(&piece[..n]);
        let excess = kept.len().saturating_sub(OUTPUT_MAX);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    fn hooks(script: Option<&str>, limit: Duration) -> (tempfile::TempDir, Hooks) {
        let dir = tempfile::tempdir().expect("temporary directory");
        if let Some(script) = script {
            let path = dir.path().join("health");
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        let hooks = Hooks { directory: dir.path().to_owned(), limit };
        (dir, hooks)
    }

    async fn run(script: Option<&str>, limit: Duration) -> Result<(), HookError> {
        let (dir, hooks) = hooks(script, limit);
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let (product, version, from) = (name("os"), name("2"), name("1"));
        let path = dir.path().join("r");
        let about =
            About { product: &product, version: Some(&version), from: Some(&from), path: &path, slot: None };
        hooks.run(Hook::Health, about).await
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_hook_gets_the_release_and_its_status_decides() {
        run(None, LONG).await.expect("no hook is no failure");
        let check = "[ \"$DISTD_PRODUCT $DISTD_FROM $DISTD_VERSION\" = 'os 1 2' ] && [ -n \"$DISTD_PATH\" ]";
        run(Some(check), LONG).await.expect("the environment");
        let error = run(Some("echo no network; echo at all >&2; exit 3"), LONG).await.expect_err("fails");
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.ends_with("no network at all"), "{text}");
        let long = run(Some("yes | head -c 100000; exit 1"), LONG).await.expect_err("fails").to_string();
        assert!(long.len() < OUTPUT_MAX + 500, "{}", long.len());
    }

    #[tokio::test]
    async fn a_hook_that_hangs_is_ended_with_its_children() {
        let begun = Instant::now();
        let error =
            run(Some("echo waiting; sleep 1000 & wait"), Duration::from_secs(1)).await.expect_err("late");
        assert!(matches!(&error, HookError::Time { limit: 1, said, .. } if said == "waiting"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn a_hook_that_is_given_up_ends_with_its_children_and_what_one_leaves_running_stays() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("pid").display().to_string();
        let pid = || {
            fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()).and_then(Pid::from_raw)
        };
        let runs = |pid| rustix::process::test_kill_process(pid).is_ok();
        let script = format!("sleep 1000 >/dev/null 2>&1 & echo $! >{file}.new; mv {file}.new {file}; wait");
        let hook = tokio::time::timeout(Duration::from_secs(1), run(Some(&script), LONG)).await;
        assert!(hook.is_err(), "it waits");
        let child = pid().expect("the child's id");
        // The child is a zombie until the first process reaps it.
        let status = format!("/proc/{}/stat", child.as_raw_nonzero());
        let is_gone = || !fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z "));
        for _ in 0..100 {
            if is_gone() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(is_gone());
        let script = format!("sleep 1000 >/dev/null 2>&1 & echo $! >{file}");
        run(Some(&script), LONG).await.expect("ends at once");
        let child = pid().expect("the child's id");
        assert!(runs(child));
        rustix::process::kill_process(child, Signal::KILL).expect("killed");
    }
}
