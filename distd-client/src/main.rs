//! The program `distd`: push, plan, pull, verify, and administration of a realm.
//!
//! The device itself is the library [`distd_client`]. [`cmd`] has one file per command; [`push`]
//! and [`explain`] do the work of the large commands that a device does not need. [`api`] is the
//! client of the origin's HTTP API, [`context`] has the state that every command starts from,
//! [`output`] and [`shown`] print results and progress. docs/cli.md is the manual.

mod api;
mod cmd;
mod context;
mod explain;
mod output;
mod push;
mod shown;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgAction, Parser, Subcommand};
use distd_client::failure::{self, Code};

use crate::context::Context;
use crate::output::Output;

/// Ship OS images and other files to a fleet, with the fewest bytes, signed and resumable.
#[derive(Parser)]
#[command(name = "distd", version, after_help = failure::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
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

#[derive(Subcommand)]
enum Command {
    Login(cmd::login::Args),
    Logout(cmd::login::LogoutArgs),
    Whoami(cmd::login::WhoamiArgs),
    Enroll(cmd::enroll::Args),
    Push(cmd::push::Args),
    Plan(cmd::plan::Args),
    Explain(cmd::explain::Args),
    Pull(cmd::pull::Args),
    Export(cmd::export::Args),
    Bundle(cmd::export::BundleArgs),
    Import(cmd::import::Args),
    Verify(cmd::verify::Args),
    Share(cmd::share::Args),
    Fetch(cmd::fetch::Args),
    Cat(cmd::cat::Args),
    Ticket(cmd::ticket::Args),
    Clean(cmd::clean::Args),
    Agent(cmd::agent::Args),
    Gateway(cmd::gateway::Args),
    Apt(cmd::apt::Args),
    Cache(cmd::cache::Args),
    Seed(cmd::seed::Args),
    Product(cmd::product::Args),
    Ddi(cmd::ddi::Args),
    Release(cmd::release::Args),
    Channel(cmd::channel::Args),
    Patch(cmd::patch::Args),
    Gc(cmd::gc::Args),
    Quota(cmd::quota::Args),
    Token(cmd::token::Args),
    Node(cmd::node::Args),
    Audit(cmd::audit::Args),
    Receipts(cmd::receipts::Args),
    Fleet(cmd::fleet::Args),
    Group(cmd::group::Args),
    Grant(cmd::grant::Args),
    Rollout(cmd::rollout::Args),
    Simulate(cmd::simulate::Args),
    Status(cmd::status::Args),
    Doctor(cmd::doctor::Args),
    Update(cmd::update::Args),
    Rollback(cmd::update::RollbackArgs),
    Webhook(cmd::webhook::Args),
    Why(cmd::why::Args),
}

async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    let done = match command {
        Command::Doctor(args) => return cmd::doctor::run(context, args).await,
        Command::Login(args) => cmd::login::run(context, args).await,
        Command::Logout(_) => cmd::login::logout(context),
        Command::Whoami(args) => cmd::login::whoami(context, args).await,
        Command::Enroll(args) => cmd::enroll::run(context, args).await,
        Command::Push(args) => cmd::push::run(context, args).await,
        Command::Explain(args) => cmd::explain::run(context, args).await,
        Command::Plan(args) => cmd::plan::run(context, args).await,
        Command::Pull(args) => cmd::pull::run(context, args).await,
        Command::Export(args) => cmd::export::run(context, args).await,
        Command::Import(args) => cmd::import::run(context, args).await,
        Command::Bundle(args) => cmd::export::bundle(context, args).await,
        Command::Verify(args) => cmd::verify::run(context, args).await,
        Command::Share(args) => cmd::share::run(context, args).await,
        Command::Fetch(args) => cmd::fetch::run(context, args).await,
        Command::Cat(args) => cmd::cat::run(context, args).await,
        Command::Ticket(args) => cmd::ticket::run(context, args).await,
        Command::Clean(args) => cmd::clean::run(context, args).await,
        Command::Agent(args) => cmd::agent::run(context, args).await,
        Command::Gateway(args) => cmd::gateway::run(context, args),
        Command::Apt(args) => cmd::apt::run(context, args).await,
        Command::Cache(args) => cmd::cache::run(context, args),
        Command::Seed(args) => cmd::seed::run(context, args).await,
        Command::Product(args) => cmd::product::run(context, args).await,
        Command::Ddi(args) => cmd::ddi::run(context, args).await,
        Command::Release(args) => cmd::release::run(context, args).await,
        Command::Channel(args) => cmd::channel::run(context, args).await,
        Command::Patch(args) => cmd::patch::run(context, args).await,
        Command::Gc(args) => cmd::gc::run(context, args).await,
        Command::Quota(args) => cmd::quota::run(context, args).await,
        Command::Token(args) => cmd::token::run(context, args).await,
        Command::Node(args) => cmd::node::run(context, args).await,
        Command::Audit(args) => cmd::audit::run(context, args).await,
        Command::Receipts(args) => cmd::receipts::run(context, args).await,
        Command::Fleet(args) => cmd::fleet::run(context, args).await,
        Command::Group(args) => cmd::group::run(context, args).await,
        Command::Grant(args) => cmd::grant::run(context, args).await,
        Command::Rollout(args) => cmd::rollout::run(context, args).await,
        Command::Simulate(args) => cmd::simulate::run(context, args).await,
        Command::Update(args) => cmd::update::run(context, args).await,
        Command::Rollback(args) => cmd::update::roll_back(context, args).await,
        Command::Status(args) => cmd::status::run(context, args),
        Command::Webhook(args) => cmd::webhook::run(context, args).await,
        Command::Why(args) => cmd::why::run(context, args).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn start(command: Command, data: Option<PathBuf>, output: Output) -> anyhow::Result<ExitCode> {
    let context = Context::open(data, output)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("could not start")?;
    let result = runtime.block_on(run(command, &context));
    // After an error a thread may still be in the middle of a read. Do not wait for it.
    runtime.shutdown_background();
    result
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

fn main() -> ExitCode {
    distd_peer::process::bound_arenas();
    distd_peer::process::raise_open_files();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    if !matches!(cli.command, Command::Explain(_)) {
        // Artifacts and state may hold secrets, so new files are private by default; files for
        // other users get their mode explicitly. `explain` writes only a picture, which is not
        // secret.
        rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    }
    let level = match (cli.quiet, cli.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    distd_peer::process::start_log(level);
    let output = Output::new(cli.json, cli.quiet);
    match start(cli.command, cli.data, output) {
        Ok(code) => code,
        Err(error) => ExitCode::from(output.failure(&error) as u8),
    }
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
