//! `distd gateway`: tokens of the gateway of this device.

use std::path::PathBuf;

use clap::Subcommand;
use distd_peer::gateway::{Tokens, TokensError};
use serde::Serialize;

use super::context::Context;
use super::secret::{hand_over, refuse_existing};
use crate::failure::{Code, Failure};

/// Manage the tokens that updaters show to the gateway of this device (docs/gateway.md).
///
/// The gateway itself is a part of the agent: distd agent --gateway ADDR:PORT --offer
/// PRODUCT:CHANNEL.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make, list and remove tokens.
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a token, and print it once. The gateway keeps its hash alone.
    Add {
        /// Name of the user of the token, as in checkout-7.
        label: String,
        /// Write the token to this new file, readable by its owner alone, instead of printing it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// List the labels of the tokens.
    Ls,
    /// Remove a token. Downloads that have begun go on.
    Rm {
        /// Label of the token.
        label: String,
    },
}

#[derive(Serialize)]
struct Made<'a> {
    label: &'a str,
    token: &'a str,
}

#[derive(Serialize)]
struct Labels<'a> {
    labels: Vec<&'a str>,
}

#[derive(Serialize)]
struct Removed<'a> {
    removed: &'a str,
}

fn failed(error: TokensError) -> Failure {
    let (code, next) = match &error {
        TokensError::File(_) => (Code::Local, None),
        TokensError::Damaged { .. } => (Code::Local, Some("remove the file, and make the tokens again")),
        TokensError::TooMany => (Code::Unusable, Some("remove some: distd gateway token rm LABEL")),
        TokensError::Taken(_) => (Code::Conflict, Some("choose another label, or remove that token first")),
    };
    let failure = Failure::new(code, error.into());
    match next {
        Some(next) => failure.next(next),
        None => failure,
    }
}

pub(crate) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let Command::Token { command } = args.command;
    let mut tokens = Tokens::open(context.data()).map_err(failed)?;
    match command {
        TokenCommand::Add { label, out } => {
            refuse_existing(out.as_deref())?;
            let token = tokens.make(&label).map_err(failed)?;
            let made = Made { label: &label, token: &token };
            hand_over(context, &made, &token, None, out.as_deref())
        }
        TokenCommand::Ls => {
            let labels = tokens.list().iter().map(|token| token.label.as_str()).collect();
            context.output().result(&Labels { labels }, |list| list.labels.join("\n"))
        }
        TokenCommand::Rm { label } => {
            if !tokens.remove(&label).map_err(failed)? {
                let error = anyhow::anyhow!("there is no token {label:?}");
                let next = "see which there are: distd gateway token ls";
                return Err(Failure::new(Code::NotFound, error).next(next).into());
            }
            context.output().result(&Removed { removed: &label }, |_| format!("removed the token {label}"))
        }
    }
}
