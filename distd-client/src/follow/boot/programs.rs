//! Programs that the orders of boot loaders and restarts need.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Time after which such a program has failed: it writes a few bytes.
const LIMIT: Duration = Duration::from_secs(60);

/// Longest part of a program's output that is used, bytes.
const OUTPUT_MAX: usize = 4 << 10;

/// Runs a program with `input` and returns its standard output, at most [`OUTPUT_MAX`] bytes.
///
/// # Errors
/// When it cannot be run, does not end within a minute, or ends with another status than 0; with
/// the end of what it wrote to standard error.
pub(in super::super) async fn run<I, S>(program: &Path, args: I, input: &str) -> anyhow::Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let shown = program.display();
    let mut command = Command::new(program);
    command
        .args(args)
        .env_remove("DISTD_TOKEN")
        .env_remove("DISTD_JOIN_TOKEN")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("could not run {shown}"))?;
    let stdin = child.stdin.take();
    let talk = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input says by its status what it wanted.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(LIMIT, talk).await;
    let output = output.map_err(|_| anyhow!("{shown} did not end within {} s", LIMIT.as_secs()))?;
    let output = output.with_context(|| format!("could not run {shown}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let said: String = said.chars().take(200).collect();
        return Err(anyhow!("{shown} ended with {}: {said}", output.status));
    }
    let end = output.stdout.len().min(OUTPUT_MAX);
    Ok(String::from_utf8_lossy(&output.stdout[..end]).trim().to_owned())
}
