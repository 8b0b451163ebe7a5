//! `distd login`, `logout` and `whoami`: choose and show the origin and the token of later
//! commands.

use anyhow::anyhow;
use distd_core::api::Token;
use distd_peer::settings::Source;
use serde::Serialize;

use super::context::{ApiArgs, Context};
use crate::api::Api;
use crate::config::{FILE_NAME, Settings};
use crate::failure::{Code, Failure};
use crate::text::{joined, time};

/// Remember an origin and an API token, so that later commands need neither option.
///
/// The token is checked with the origin first. Both are kept in client.toml in the state directory,
/// which only its owner can read.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    api: ApiArgs,
}

/// Forget the origin and the token. The token itself stays valid until an admin revokes it (distd
/// token revoke).
#[derive(clap::Args)]
pub struct LogoutArgs {}

/// Show which token is in use and what it allows.
#[derive(clap::Args)]
pub struct WhoamiArgs {
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Serialize)]
struct LoggedIn {
    server: String,
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<Token>,
}

#[derive(Serialize)]
struct LoggedOut {
    server: Option<String>,
}

/// Returns a token's label, scopes, products and expiry as text.
fn rights(token: &Token) -> String {
    let scopes = joined(&token.scopes, ", ");
    let products = match token.products == ["*"] {
        true => "all products".to_owned(),
        false => token.products.join(", "),
    };
    let until = token.expires.map_or(String::new(), |end| format!(", until {}", time(end)));
    format!("{:?}: {scopes}; for {products}{until}", token.label)
}

pub(crate) fn logout(context: &Context) -> anyhow::Result<()> {
    let server = Settings::of_file(context.data()).map_err(Failure::from)?.server.clone();
    context.remember(&[("server", None), ("token", None)])?;
    context.output().result(&LoggedOut { server }, |done| match &done.server {
        Some(server) => format!("logged out of {server}; the token stays valid until it is revoked"),
        None => "nothing was remembered".to_owned(),
    })
}

pub(crate) async fn whoami(context: &Context, args: WhoamiArgs) -> anyhow::Result<()> {
    let api = context.api(&args.api)?;
    let token = api.own_token().await.map_err(Failure::from)?;
    let server = api.server().to_string();
    context.output().result(&token, |token| format!("{} at {server}, id {}", rights(token), token.id))
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let settings = context.settings(&args.api.settings.line)?;
    if !matches!(settings.source("server"), Source::CommandLine | Source::Environment(_)) {
        let next = "distd login --server https://HOST:PORT --token-file FILE";
        return Err(Failure::new(Code::Usage, anyhow!("no server to log in to")).next(next).into());
    }
    // Read the token once: it may come from standard input.
    let token = context.token(&args.api)?;
    let api = Api::new(context.server(&args.api)?, Some(&token)).map_err(Failure::from)?;
    api.check_token().await.map_err(Failure::from)?;
    let server = api.server().to_string();
    let secret = toml::Value::from(token.to_secret_string());
    context.remember(&[("server", Some(server.clone().into())), ("token", Some(secret))])?;
    let file = context.data().join(FILE_NAME).display().to_string();
    // Older origins cannot describe the token, so an error here is no failure.
    let own = api.own_token().await.ok();
    context.output().result(&LoggedIn { server, file, token: own }, |done| match &done.token {
        Some(token) => format!("logged in to {} with {}", done.server, rights(token)),
        None => format!("logged in to {}", done.server),
    })?;
    context.output().note("next: distd push FILE --product PRODUCT --version VERSION");
    Ok(())
}
