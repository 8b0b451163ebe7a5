//! The device's command line, which two programs have: `distd`, with the commands of release
//! engineers and operators beside it, and `distd-device`, which is a third of its size.
//!
//! One file per command: every command takes arguments and prints one result. [`Context`] has the
//! state that every command starts from, [`Output`] prints results, [`ShownProgress`] progress.
//! docs/cli.md is the manual.

mod agent;
mod apt;
mod cache;
mod cat;
mod clean;
mod context;
mod doctor;
mod enroll;
mod export;
mod fetch;
mod gateway;
mod login;
mod output;
pub mod parse;
mod plan;
mod pull;
pub mod secret;
mod seed;
mod share;
mod shown;
mod start;
mod status;
mod ticket;
mod update;
mod verify;
mod why;

use std::process::ExitCode;

pub use context::{ApiArgs, ApiOptions, Context};
pub use output::Output;
pub use shown::ShownProgress;
pub use start::{Options, parsed, start};

/// The commands of a device.
#[derive(clap::Subcommand)]
#[expect(missing_docs, reason = "the commands' own docs are what `--help` prints")]
pub enum Command {
    Enroll(enroll::Args),
    Pull(pull::Args),
    Plan(plan::Args),
    Verify(verify::Args),
    Agent(agent::Args),
    Update(update::Args),
    Rollback(update::RollbackArgs),
    Status(status::Args),
    Why(why::Args),
    Doctor(doctor::Args),
    Gateway(gateway::Args),
    Apt(apt::Args),
    Cache(cache::Args),
    Seed(seed::Args),
    Export(export::Args),
    Bundle(export::BundleArgs),
    Share(share::Args),
    Fetch(fetch::Args),
    Cat(cat::Args),
    Ticket(ticket::Args),
    Clean(clean::Args),
    Login(login::Args),
    Logout(login::LogoutArgs),
    Whoami(login::WhoamiArgs),
}

impl Command {
    /// Runs the command. The exit code is that of `distd doctor` when it finds faults.
    ///
    /// # Errors
    /// [`Failure`](crate::failure::Failure)s of every [`Code`](crate::failure::Code).
    pub async fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let done = match self {
            Self::Doctor(args) => return doctor::run(context, args).await,
            Self::Enroll(args) => enroll::run(context, args).await,
            Self::Pull(args) => pull::run(context, args).await,
            Self::Plan(args) => plan::run(context, args).await,
            Self::Verify(args) => verify::run(context, args).await,
            Self::Agent(args) => agent::run(context, args).await,
            Self::Update(args) => update::run(context, args).await,
            Self::Rollback(args) => update::roll_back(context, args).await,
            Self::Status(args) => status::run(context, args),
            Self::Why(args) => why::run(context, args).await,
            Self::Gateway(args) => gateway::run(context, args),
            Self::Apt(args) => apt::run(context, args).await,
            Self::Cache(args) => cache::run(context, args),
            Self::Seed(args) => seed::run(context, args).await,
            Self::Export(args) => export::run(context, args).await,
            Self::Bundle(args) => export::bundle(context, args).await,
            Self::Share(args) => share::run(context, args).await,
            Self::Fetch(args) => fetch::run(context, args).await,
            Self::Cat(args) => cat::run(context, args).await,
            Self::Ticket(args) => ticket::run(context, args).await,
            Self::Clean(args) => clean::run(context, args).await,
            Self::Login(args) => login::run(context, args).await,
            Self::Logout(_) => login::logout(context),
            Self::Whoami(args) => login::whoami(context, args).await,
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}
