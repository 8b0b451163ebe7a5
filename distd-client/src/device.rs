//! The program `distd-device`: what a device needs of `distd`, for small flashes.
//!
//! It is [`distd_client::cli`] and nothing else. Release engineers and operators have `distd`.

use std::process::ExitCode;

use clap::Parser;
use distd_client::cli::{self, Options};
use distd_client::failure;

/// Keep a device up to date, with the fewest bytes, verified and resumable.
#[derive(Parser)]
#[command(name = "distd-device", version, after_help = failure::HELP)]
struct Cli {
    #[command(subcommand)]
    command: cli::Command,
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let Cli { command, options } = match cli::parsed() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    cli::start(options, false, async |context| command.run(context).await)
}
