//! Restarts of the system, and how a device knows that one has happened.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;

use super::programs;

/// File in which the system has the id of its boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Time within which a command that cannot restart the system says so.
const LIMIT: Duration = Duration::from_secs(60);

/// Time for the last words of a command that failed.
const SAID_WITHIN: Duration = Duration::from_secs(1);

/// Time after which a restart that did not happen is ordered again.
const AGAIN: Duration = Duration::from_secs(600);

/// Id of a boot of the system; zeros where the system has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BootId(pub(super) [u8; 16]);

impl BootId {
    /// Id of this boot.
    pub(super) fn current() -> Self {
        let text = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
        Self::parse(&text).unwrap_or_default()
    }

    /// Whether the system has an id of its boot.
    pub(super) fn is_known(self) -> bool {
        self != Self::default()
    }

    /// Parses an id in hexadecimal digits, with or without hyphens.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        hex::decode(digits).ok()?.try_into().ok().map(Self)
    }
}

impl std::fmt::Display for BootId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Orders restarts.
pub(super) struct Restarter {
    /// For the shell; empty when something else restarts the system.
    command: String,
    ordered: Option<Instant>,
    /// Command that has not ended, in a process group of its own.
    waiting: Option<Child>,
}

impl Restarter {
    pub(super) fn new(command: &str) -> Self {
        Self { command: command.to_owned(), ordered: None, waiting: None }
    }

    /// Orders a restart, unless one was ordered a short time ago; returns whether it did.
    ///
    /// # Errors
    /// When the command failed.
    pub(super) async fn order(&mut self) -> anyhow::Result<bool> {
        if self.ordered.is_some_and(|at| at.elapsed() < AGAIN) {
            return Ok(false);
        }
        if self.waiting.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
            return Ok(false);
        }
        self.ordered = Some(Instant::now());
        if self.command.is_empty() {
            tracing::info!("the release starts with the next restart of the system");
            return Ok(true);
        }
        tracing::info!(command = self.command, "the system restarts");
        self.waiting = run(&self.command).await?;
        Ok(true)
    }

    /// Ends a command that waits for its time: the system is not to restart any more.
    pub(super) fn withdraw(&mut self) {
        let Some(mut child) = self.waiting.take() else { return };
        if matches!(child.try_wait(), Ok(None)) {
            let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
            // A group that has ended by itself is no error.
            let _ = group.map(|group| kill_process_group(group, Signal::TERM));
        }
        self.ordered = None;
    }
}

/// Runs the command of a restart. One that has not ended after [`LIMIT`] goes on by itself, and is
/// returned: it may wait until the device has nothing else to do.
async fn run(command: &str) -> anyhow::Result<Option<Child>> {
    let mut shell = programs::command(Path::new("/bin/sh"));
    shell.args(["-c", command]).kill_on_drop(false).process_group(0);
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = shell.spawn().with_context(|| format!("could not run {command:?}"))?;
    // The task reads on for as long as the command writes.
    let said = tokio::spawn(programs::begin_of(child.stderr.take()));
    match tokio::time::timeout(LIMIT, child.wait()).await {
        Err(_) => Ok(Some(child)),
        Ok(status) => match status.with_context(|| format!("could not run {command:?}"))? {
            status if status.success() => Ok(None),
            status => {
                // A child of the command may hold its output open.
                let said = tokio::time::timeout(SAID_WITHIN, said).await;
                let said = said.ok().and_then(Result::ok).unwrap_or_default();
                Err(anyhow!("{command:?} ended with {status}: {said}"))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_boot_is_read_in_both_forms() {
        let id = BootId::parse("01020304-0506-0708-090a-0b0c0d0e0f10\n").expect("an id");
        assert_eq!(id.0[15], 16);
        assert_eq!(BootId::parse(&id.to_string()), Some(id));
        assert_eq!(BootId::parse("01"), None);
    }

    #[tokio::test]
    async fn a_restart_is_ordered_once_and_a_failure_is_told() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mark = dir.path().join("mark");
        let mut restarter = Restarter::new(&format!("echo x >>{}", mark.display()));
        for _ in 0..2 {
            restarter.order().await.expect("ordered");
        }
        assert_eq!(std::fs::read_to_string(&mark).expect("read"), "x\n");
        assert!(
            Restarter::new("echo no >&2; exit 3")
                .order()
                .await
                .expect_err("fails")
                .to_string()
                .contains("no")
        );
        let child = "(sleep 30; echo late) & echo no >&2; exit 3";
        assert!(Restarter::new(child).order().await.is_err(), "its child does not hold the answer up");
        Restarter::new("").order().await.expect("something else restarts the system");
    }
}
