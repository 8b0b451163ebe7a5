//! The program `distd`: push, plan, pull, verify, and administration of a realm.
//!
//! The device itself, with its commands, is the library [`distd_client`]. [`cmd`] has one file per
//! command that a device does not need; [`push`] and [`explain`] do the work of the large ones.
//! docs/cli.md is the manual.

mod cmd;
mod explain;
mod push;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use distd_client::cli::{self, Options};
use distd_client::failure;

/// Ship OS images and other files to a fleet, with the fewest bytes, signed and resumable.
#[derive(Parser)]
#[command(name = "distd", version, after_help = failure::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Operator(cmd::Command),
    #[command(flatten)]
    Device(cli::Command),
}

fn main() -> ExitCode {
    let Cli { command, options } = match cli::parsed() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let makes_public_files = matches!(&command, Command::Operator(command) if command.makes_public_files());
    cli::start(options, makes_public_files, async |context| match command {
        Command::Operator(command) => command.run(context).await.map(|()| ExitCode::SUCCESS),
        Command::Device(command) => command.run(context).await,
    })
}

#[cfg(test)]
#[path = "../../tests/lib/pages.rs"]
mod pages;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_is_for() {
        fn check(command: &clap::Command) {
            for below in command.get_subcommands() {
                assert!(below.get_about().is_some(), "{} {}", command.get_name(), below.get_name());
                check(below);
            }
        }
        check(&Cli::command());
    }

    #[test]
    fn each_command_has_a_page_and_completions() {
        pages::check(Cli::command(), "1");
    }

    #[test]
    fn api_tokens_cannot_be_given_on_the_command_line() {
        let push = ["distd", "push", "f", "--product", "p", "--version", "1"];
        assert!(Cli::try_parse_from(push).is_ok());
        assert!(Cli::try_parse_from(push.into_iter().chain(["--token", "x"])).is_err());
        assert!(Cli::try_parse_from(push.into_iter().chain(["--level", "20"])).is_err());
    }

    #[test]
    fn enrolling_needs_a_parent_or_server_and_one_token() {
        let parse = |rest: &[&str]| Cli::try_parse_from(["distd", "enroll"].iter().chain(rest)).map(drop);
        assert!(parse(&["--parent", "a:1", "--token", "t"]).is_ok());
        assert!(parse(&["--server", "https://a", "--token-file", "t"]).is_ok());
        assert!(parse(&["--token", "t"]).is_err());
        assert!(parse(&["--parent", "a:1"]).is_err());
        assert!(parse(&["--parent", "a:1", "--token", "t", "--token-file", "f"]).is_err());
    }
}
