//! `distd ddi`: manages tokens of devices whose update client speaks hawkBit's DDI.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use clap::Subcommand;
use distd_client::cli::parse::{ChannelName, duration, token_id};
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::{Code, Failure};
use distd_client::text::{table, time};
use distd_core::api::{DdiToken, NewDdiToken};
use distd_core::fleet::{LabelKey, LabelValue, assignable_label};
use distd_peer::trust::files;
use serde::Serialize;

/// Manage devices whose update client speaks hawkBit's DDI, such as SWUpdate and
/// rauc-hawkbit-updater.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make, list and revoke their tokens.
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a token; it is printed once. With --target it is for one device, which gets a node of
    /// the realm at once. Without, it is a gateway token.
    Create {
        /// Channel that the devices follow.
        #[arg(value_name = "PRODUCT:CHANNEL")]
        channel: ChannelName,
        /// Id of the device, as its client is configured (target_name, -i).
        #[arg(long, value_name = "ID", conflicts_with = "admit")]
        target: Option<String>,
        /// Number of new devices that a gateway token lets in.
        #[arg(long, value_name = "N", default_value_t = 0)]
        admit: u64,
        /// Name of the token for operators.
        #[arg(long, default_value = "")]
        label: String,
        /// Labels that a device gets when it is let in, such as site=12,kind=till.
        #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = assignable_label)]
        labels: Vec<(LabelKey, LabelValue)>,
        /// How long the token is valid, such as 24h or 90d. Default: until it is revoked.
        #[arg(long, value_name = "TIME", value_parser = duration)]
        expires: Option<Duration>,
        /// Write the token to this new file, readable by its owner alone, instead of printing it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List tokens.
    Ls {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Revoke a token. The nodes of its devices stay.
    Rm {
        /// Id of the token, from distd ddi token ls.
        #[arg(value_parser = token_id)]
        id: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

#[derive(Serialize)]
struct Made {
    id: String,
    node: Option<String>,
    /// The token, unless it is in a file.
    token: Option<String>,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let Command::Token { command } = args.command;
    match command {
        TokenCommand::Create { channel, target, admit, label, labels, expires, out, api } => {
            let new = NewDdiToken {
                target,
                product: channel.product.to_string(),
                channel: channel.channel.to_string(),
                label,
                admits: (admit > 0).then_some(admit),
                labels: labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
                expires_in: expires.map(|time| time.as_secs()),
            };
            create(context, &api, new, out).await
        }
        TokenCommand::Ls { api } => ls(context, &api).await,
        TokenCommand::Rm { id, api } => {
            context.api(&api)?.revoke_ddi_token(&id).await.map_err(Failure::from)?;
            context.output().result(&serde_json::json!({"id": id}), |_| format!("token {id} is revoked"))
        }
    }
}

async fn create(
    context: &Context,
    api: &ApiArgs,
    new: NewDdiToken,
    out: Option<PathBuf>,
) -> anyhow::Result<()> {
    let exists =
        |path: &PathBuf| Failure::new(Code::Usage, anyhow!("{} exists: name a new file", path.display()));
    if let Some(path) = out.as_ref().filter(|path| path.exists()) {
        return Err(exists(path).into());
    }
    let made = context.api(api)?.make_ddi_token(&new).await.map_err(Failure::from)?;
    if let Some(path) = &out
        && !files::create_secret(path, format!("{}\n", made.token).as_bytes())?
    {
        return Err(exists(path).into());
    }
    let token = out.is_none().then_some(made.token);
    context.output().result(&Made { id: made.id, node: made.node, token }, |made| match (&made.token, &out) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => format!("token {} written to {}", made.id, path.display()),
        (None, None) => String::new(),
    })
}

async fn ls(context: &Context, api: &ApiArgs) -> anyhow::Result<()> {
    let list = context.api(api)?.ddi_tokens().await.map_err(Failure::from)?;
    context.output().result(&list, |list| {
        if list.tokens.is_empty() {
            return "there are no DDI tokens".to_owned();
        }
        let head = ["ID", "FOR", "CHANNEL", "STATE", "LABEL", "CREATED"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(list.tokens.iter().map(|token| {
            let DdiToken { id, target, product, channel, label, admits, created, state, .. } = token;
            let whom = target.clone().unwrap_or_else(|| format!("gateway, {admits} more"));
            vec![
                id.clone(),
                whom,
                format!("{product}:{channel}"),
                state.to_string(),
                label.clone(),
                time(*created),
            ]
        }));
        table(&rows)
    })
}
