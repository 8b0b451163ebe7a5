//! From the command line to the exit code of the program.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgAction, Parser};

use super::context::Context;
use super::output::Output;
use crate::failure::Code;

/// Options of every command.
#[derive(clap::Args)]
pub struct Options {
    /// Print one JSON object on standard output at the end.
    #[arg(long, global = true)]
    json: bool,
    /// Print no progress and no notes.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Log more on standard error; give it twice for still more. $DISTD_LOG takes a full filter,
    /// such as distd=debug.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// State directory. Default: /var/lib/distd for root, else $XDG_STATE_HOME/distd or
    /// ~/.local/state/distd.
    #[arg(long, global = true, value_name = "DIR", env = "DISTD_DATA")]
    data: Option<PathBuf>,
}

/// Parses the command line, after the process has got its bounds. A command line that does not
/// parse or only asks for help is answered.
///
/// # Errors
/// The exit code with which the program is to end.
pub fn parsed<C: Parser>() -> Result<C, ExitCode> {
    distd_peer::process::bound_arenas();
    distd_peer::process::raise_open_files();
    C::try_parse().map_err(|error| refused(&error))
}

/// Ends the program after a command line that does not parse or that only asks for help.
fn refused(error: &clap::Error) -> ExitCode {
    let is_json = |arg: &OsString| arg == "--json";
    let json = std::env::args_os().take_while(|arg| arg != "--").any(|arg| is_json(&arg));
    // Help goes to standard output, which the reader may have closed.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    if json {
        let text = error.render().to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let message = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let usage = lines.find(|line| line.starts_with("Usage:")).map(str::to_owned);
        Output::refused(&message, usage.as_deref());
    }
    ExitCode::from(Code::Usage as u8)
}

/// Runs a command and prints its failure. New files are private: artifacts and state may hold
/// secrets, and files for other users get their mode explicitly. With `makes_public_files` they
/// have the mode that the user's mask leaves.
pub fn start(
    options: Options,
    makes_public_files: bool,
    run: impl AsyncFnOnce(&Context) -> anyhow::Result<ExitCode>,
) -> ExitCode {
    if !makes_public_files {
        rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    }
    let level = match (options.quiet, options.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    distd_peer::process::start_log(level);
    let output = Output::new(options.json, options.quiet);
    match run_to_end(options.data, output, run) {
        Ok(code) => code,
        Err(error) => ExitCode::from(output.failure(&error) as u8),
    }
}

fn run_to_end(
    data: Option<PathBuf>,
    output: Output,
    run: impl AsyncFnOnce(&Context) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let context = Context::open(data, output)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("could not start")?;
    let result = runtime.block_on(run(&context));
    // After an error a thread may still be in the middle of a read. Do not wait for it.
    runtime.shutdown_background();
    result
}
