//! The commands of release engineers and operators, one file each, beside the device's own
//! ([`distd_client::cli`]).

mod audit;
mod channel;
mod ddi;
mod explain;
mod exported;
mod fleet;
mod gc;
mod grant;
mod group;
mod import;
mod node;
mod patch;
mod product;
mod push;
mod quota;
mod receipts;
mod release;
mod rollout;
mod simulate;
mod token;
mod webhook;

use distd_client::cli::Context;

/// The commands of release engineers and operators.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    Push(push::Args),
    Explain(explain::Args),
    Import(import::Args),
    Product(product::Args),
    Release(release::Args),
    Channel(channel::Args),
    Rollout(rollout::Args),
    Fleet(fleet::Args),
    Node(node::Args),
    Group(group::Args),
    Grant(grant::Args),
    Patch(patch::Args),
    Token(token::Args),
    Ddi(ddi::Args),
    Webhook(webhook::Args),
    Audit(audit::Args),
    Receipts(receipts::Args),
    Gc(gc::Args),
    Quota(quota::Args),
    Simulate(simulate::Args),
}

impl Command {
    /// Returns whether the command writes only files that are no secret.
    pub(crate) fn makes_public_files(&self) -> bool {
        // A picture.
        matches!(self, Self::Explain(_))
    }

    /// Runs the command.
    ///
    /// # Errors
    /// [`Failure`](distd_client::failure::Failure)s of every kind.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Push(args) => push::run(context, args).await,
            Self::Explain(args) => explain::run(context, args).await,
            Self::Import(args) => import::run(context, args).await,
            Self::Product(args) => product::run(context, args).await,
            Self::Release(args) => release::run(context, args).await,
            Self::Channel(args) => channel::run(context, args).await,
            Self::Rollout(args) => rollout::run(context, args).await,
            Self::Fleet(args) => fleet::run(context, args).await,
            Self::Node(args) => node::run(context, args).await,
            Self::Group(args) => group::run(context, args).await,
            Self::Grant(args) => grant::run(context, args).await,
            Self::Patch(args) => patch::run(context, args).await,
            Self::Token(args) => token::run(context, args).await,
            Self::Ddi(args) => ddi::run(context, args).await,
            Self::Webhook(args) => webhook::run(context, args).await,
            Self::Audit(args) => audit::run(context, args).await,
            Self::Receipts(args) => receipts::run(context, args).await,
            Self::Gc(args) => gc::run(context, args).await,
            Self::Quota(args) => quota::run(context, args).await,
            Self::Simulate(args) => simulate::run(context, args).await,
        }
    }
}
