//! Programs that the agent runs: those of boot loaders, of restarts, and the operator's hooks.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Time after which [`run`] takes a program for one that hangs: it writes a few bytes.
const LIMIT: Duration = Duration::from_secs(60);

/// Longest output that [`run`] reads, bytes: several times the largest environment of U-Boot.
const OUTPUT_MAX: u64 = 1 << 20;

/// Longest part of an error's text that is used, characters.
const SAID_MAX: usize = 200;

/// Makes a command that ends with this process, and does not get the secrets of its environment.
pub(super) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_remove("DISTD_TOKEN").env_remove("DISTD_JOIN_TOKEN").kill_on_drop(true);
    command
}

/// Reads to the end, or one byte more than [`OUTPUT_MAX`].
async fn read(from: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(OUTPUT_MAX + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// Reads to the end, and returns the begin of it on one line.
pub(super) async fn begin_of(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let (mut kept, mut piece) = (Vec::new(), [0; 1024]);
    while let Ok(n @ 1..) = from.read(&mut piece).await {
        let room = (4 * SAID_MAX).saturating_sub(kept.len()).min(n);
        kept.extend_from_slice(&piece[..room]);
    }
    one_line(&kept)
}

/// The begin of a text without line breaks, for an error.
fn one_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SAID_MAX).collect()
}

/// Runs a program with `input` and returns its standard output without blanks around it.
///
/// # Errors
/// When it cannot be run, does not end within a minute, prints more than 1 MiB, or ends with
/// another status than 0; then with the begin of what it wrote to standard error.
pub(super) async fn run<I, S>(program: &Path, args: I, input: &str) -> anyhow::Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let shown = program.display();
    let mut command = command(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("could not run {shown}"))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input says by its status what it wanted.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let talk = async { tokio::join!(write, read(stdout), read(stderr), child.wait()) };
    let ended = tokio::time::timeout(LIMIT, talk).await;
    let ((), output, said, status) =
        ended.map_err(|_| anyhow!("{shown} did not end within {} s", LIMIT.as_secs()))?;
    let failed = || format!("could not run {shown}");
    let (output, said, status) =
        (output.with_context(failed)?, said.with_context(failed)?, status.with_context(failed)?);
    if output.len() as u64 > OUTPUT_MAX {
        return Err(anyhow!("{shown} printed more than {OUTPUT_MAX} bytes"));
    }
    if !status.success() {
        return Err(anyhow!("{shown} ended with {status}: {}", one_line(&said)));
    }
    Ok(String::from_utf8_lossy(&output).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str, input: &str) -> anyhow::Result<String> {
        run(Path::new("/bin/sh"), ["-c", script], input).await
    }

    #[tokio::test]
    async fn a_program_gets_its_input_and_its_output_is_whole_and_bounded() {
        assert_eq!(shell("cat", " a\nb ").await.expect("runs"), "a\nb");
        let long = shell("head -c 300000 /dev/zero | tr '\\0' x", "").await.expect("runs");
        assert_eq!(long.len(), 300_000);
        let endless = shell("yes", "").await.expect_err("too long").to_string();
        assert!(endless.contains("printed more than"), "{endless}");
        let failed = shell("echo no room >&2; exit 4", "").await.expect_err("fails").to_string();
        assert!(failed.contains("exit status: 4: no room"), "{failed}");
    }
}
