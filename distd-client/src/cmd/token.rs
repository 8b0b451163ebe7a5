//! `distd token`: manages API tokens (rights of people and machines) and join tokens (with which
//! nodes enrol).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Subcommand, ValueEnum};
use distd_client::cli::parse::{duration, token_id};
use distd_client::cli::secret::{hand_over, refuse_existing};
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::{Code, Failure};
use distd_client::text::time;
use distd_client::text::{joined, table};
use distd_core::api::{JOIN_USES_MAX, JoinTokenInfo, Token, label_texts};
use distd_core::fleet::{LabelKey, LabelValue, assignable_label};
use distd_core::role::Role;
use serde::Serialize;

/// Make, list and revoke tokens.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make an API token; it is printed once.
    Create {
        /// Rights of the token; repeat or separate by commas. admin implies all others.
        #[arg(long, required = true, value_delimiter = ',')]
        scope: Vec<Scope>,
        /// Pattern of products that the token is valid for, with * for any characters; with
        /// :CHANNEL the token moves only such channels. Repeat or separate by commas. Default: all
        /// products.
        #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
        product: Vec<String>,
        /// Name of the token for operators.
        #[arg(long)]
        label: String,
        /// How long the token is valid, such as 24h or 90d. Default: until it is revoked.
        #[arg(long, value_name = "TIME", value_parser = duration)]
        expires: Option<Duration>,
        /// Write the token to this new file, readable by its owner alone, instead of printing it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Make a join token, with which devices or relays enrol; it is printed once.
    Join {
        /// Role of the nodes that enrol with the token.
        #[arg(long, default_value = "leaf")]
        role: JoinRole,
        /// How many nodes may enrol with the token, at most 10000. Make one token for each batch of
        /// nodes, so that each can be revoked by itself.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(JOIN_USES_MAX)))]
        uses: u32,
        /// How long the token is valid, such as 45m, 24h or 7d; at most 90d.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
        expires: Duration,
        /// Name of the token for operators.
        #[arg(long, default_value = "")]
        label: String,
        /// Labels that each node gets when it enrols with the token, such as site=12,kind=till.
        #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = assignable_label)]
        labels: Vec<(LabelKey, LabelValue)>,
        /// Write the token to this new file, readable by its owner alone, instead of printing it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List API tokens and join tokens.
    Ls {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Revoke an API token or a join token. Nodes that enrolled with a join token stay in the
    /// realm.
    Revoke {
        /// Id of the token, from distd token ls.
        #[arg(value_parser = token_id)]
        id: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

/// Rights of an API token.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Scope {
    /// See products, releases, channels and manifests, and read packs.
    Read,
    /// See the fleet, its groups, grants and tokens, receipts and the audit log.
    View,
    /// Push releases.
    Publish,
    /// Point channels at releases.
    Channel,
    /// With channel: order devices back to older releases.
    Downgrade,
    /// Everything, including tokens and nodes.
    Admin,
}

/// Roles of a node that enrols with a join token.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum JoinRole {
    /// A device.
    Leaf,
    /// A relay.
    Relay,
}

impl From<JoinRole> for Role {
    fn from(role: JoinRole) -> Self {
        match role {
            JoinRole::Leaf => Self::Leaf,
            JoinRole::Relay => Self::Relay,
        }
    }
}

fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is skipped").get_name().to_owned()
}

#[derive(Serialize)]
struct AllTokens {
    tokens: Vec<Token>,
    join_tokens: Vec<JoinTokenInfo>,
}

#[derive(Serialize)]
struct Revoked<'a> {
    revoked: &'a str,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Create { scope, product, label, expires, out, api } => {
            let api = context.api(&api)?;
            refuse_existing(out.as_deref())?;
            let scopes: Vec<String> = scope.into_iter().map(word).collect();
            let secret = api.create_token(&label, &scopes, &product, expires).await.map_err(Failure::from)?;
            hand_over(context, &secret, &secret.token, Some(&secret.id), out.as_deref())?;
            let server = api.server();
            let file = out.as_deref().map_or("FILE".to_owned(), |path| path.display().to_string());
            context.output().note(&format!("next: distd login --server {server} --token-file {file}"));
        }
        Command::Join { role, uses, expires, label, labels, out, api } => {
            let api = context.api(&api)?;
            refuse_existing(out.as_deref())?;
            let labels = label_texts(&labels.into_iter().collect());
            let secret = api.create_join_token(role.into(), uses, expires, &label, labels).await;
            let secret = secret.map_err(Failure::from)?;
            hand_over(context, &secret, &secret.token, secret.id.as_deref(), out.as_deref())?;
            let token = match &out {
                Some(path) => format!("--token-file {}", path.display()),
                None => "--token TOKEN".to_owned(),
            };
            context.output().note(&match role {
                JoinRole::Leaf => format!("next: distd enroll --parent HOST:PORT {token}"),
                JoinRole::Relay => format!("next: distd-peer run --parent HOST:PORT --data DIR {token}"),
            });
        }
        Command::Ls { api } => {
            let api = context.api(&api)?;
            let tokens = api.tokens().await.map_err(Failure::from)?.tokens;
            let join_tokens = api.join_tokens().await.map_err(Failure::from)?.join_tokens;
            let list = AllTokens { tokens, join_tokens };
            context.output().result(&list, |list| {
                let head = ["ID", "LABEL", "FOR", "PRODUCTS", "LABELS", "CREATED", "EXPIRES", "STATE"];
                let mut rows = vec![head.map(str::to_owned).to_vec()];
                rows.extend(list.tokens.iter().map(|token| {
                    let Token { id, label, scopes, products, created, expires, state, .. } = token.clone();
                    let expires = expires.map_or("never".to_owned(), time);
                    let products = if products == ["*"] { "all".to_owned() } else { products.join(",") };
                    let scopes = joined(&scopes, ",");
                    let none = String::new();
                    vec![id, label, scopes, products, none, time(created), expires, state.to_string()]
                }));
                rows.extend(list.join_tokens.iter().map(|token| {
                    let JoinTokenInfo { id, label, role, nodes, uses_left, created, expires, .. } =
                        token.clone();
                    let what = format!("join as {role}, {nodes} of {} nodes", nodes + uses_left);
                    let labels: Vec<_> = token.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    let (labels, state) = (labels.join(","), token.state.to_string());
                    vec![id, label, what, String::new(), labels, time(created), time(expires), state]
                }));
                table(&rows)
            })?;
        }
        Command::Revoke { id, api } => {
            let api = context.api(&api)?;
            let revoked = match api.revoke_token(&id).await {
                Err(error) if error.is_not_found() => api.revoke_join_token(&id).await,
                other => other,
            };
            revoked.map_err(|error| match error.is_not_found() {
                true => {
                    let error = anyhow!("there is no API token and no join token {id}");
                    Failure::new(Code::NotFound, error).next("list the tokens: distd token ls")
                }
                false => Failure::from(error),
            })?;
            context.output().result(&Revoked { revoked: &id }, |_| format!("token {id} is revoked"))?;
        }
    }
    Ok(())
}
