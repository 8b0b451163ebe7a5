//! `distd login`: remember an origin and a token.

use anyhow::anyhow;
use serde::Serialize;

use crate::api::Api;
use crate::context::{ApiArgs, Context};
use crate::exit::{Code, Failure};

/// Remember an origin and an API token, so that later commands need neither.
///
/// The token is checked with the origin first. Both are kept in client.toml in the state directory, readable by its owner
/// alone.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Serialize)]
struct LoggedIn {
    server: String,
    file: String,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    if args.api.server.is_none() {
        let next = "distd login --server https://HOST:PORT --token-file FILE";
        return Err(Failure::new(Code::Usage, anyhow!("no server to log in to")).next(next).into());
    }
    // Read once: it may come from standard input.
    let token = context.token(&args.api)?;
    let api = Api::new(context.server(&args.api)?, Some(&token)).map_err(Failure::from)?;
    api.check_token().await.map_err(Failure::from)?;
    let server = api.server().to_string();
    context.remember(|file| {
        file.server = Some(server.clone());
        file.token = Some(token.to_secret_string());
    })?;
    let file = context.data().join(crate::config::FILE_NAME).display().to_string();
    context.output().result(&LoggedIn { server, file }, |done| format!("logged in to {}", done.server))?;
    context.output().note("next: distd push FILE --product PRODUCT --version VERSION");
    Ok(())
}
