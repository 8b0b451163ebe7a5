//! `distd logout`: forget the origin's HTTP API and the token.

use serde::Serialize;

use crate::context::Context;

/// Forget the API token and the server it is for.
///
/// The token stays valid for whoever has it: `distd token revoke ID` ends it.
#[derive(clap::Args)]
pub(crate) struct Args {}

#[derive(Serialize)]
struct LoggedOut {
    /// The server that was logged in to; none when there was none.
    server: Option<String>,
}

pub(crate) async fn run(context: &Context, _args: Args) -> anyhow::Result<()> {
    let mut server = None;
    context.remember(|file| {
        server = file.server.take();
        file.token = None;
    })?;
    context.output().result(&LoggedOut { server }, |done| match &done.server {
        Some(server) => format!("logged out of {server}"),
        None => "was not logged in".to_owned(),
    })
}
