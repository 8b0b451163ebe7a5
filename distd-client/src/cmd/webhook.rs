//! `distd webhook`: addresses to which the origin sends events.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Subcommand;
use distd_client::api::ApiError;
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::{Code, Failure};
use distd_client::text::{table, time};
use distd_core::api::{NewWebhook, Webhook, WebhookDelivery, WebhookState};
use distd_peer::trust::files;
use serde::Serialize;

/// Register, list, try and remove webhooks: addresses to which the origin sends signed events.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Register an address; the key of the signatures is printed once.
    Add {
        /// Address of the receiver, which begins with https. One with a secret in it can come from
        /// --url-file instead.
        #[arg(value_name = "URL", required_unless_present = "url_file", conflicts_with = "url_file")]
        url: Option<String>,
        /// File that holds the address.
        #[arg(long, value_name = "FILE")]
        url_file: Option<PathBuf>,
        /// Kind of event, such as rollout.halted; repeat or separate by commas. Default: every
        /// kind.
        #[arg(long = "event", value_name = "KIND", value_delimiter = ',')]
        events: Vec<String>,
        /// Name for operators.
        #[arg(long, default_value = "")]
        label: String,
        /// Write the key to this new file, readable by its owner alone, instead of printing it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List the webhooks and how they fare.
    Ls {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Remove a webhook, and the events that wait for it.
    Rm {
        /// Id of the webhook, from distd webhook ls.
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Have the origin send a test now, and show the answer.
    Test {
        /// Id of the webhook, from distd webhook ls.
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show the newest events of a webhook and what came of them.
    Log {
        /// Id of the webhook, from distd webhook ls.
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Try events that wait or were given up again, from the oldest on.
    Retry {
        /// Id of the webhook, from distd webhook ls.
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

#[derive(Serialize)]
struct Added {
    id: String,
    /// Key of the signatures; absent when it was written to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

#[derive(Serialize)]
struct Removed {
    id: String,
}

fn unknown(error: ApiError) -> Failure {
    let is_unknown = error.is_not_found();
    let failure = Failure::from(error);
    if is_unknown { failure.next("look the id up with: distd webhook ls") } else { failure }
}

fn shown(webhooks: &[Webhook]) -> String {
    let mut rows = vec![
        ["ID", "STATE", "WAITING", "GIVEN UP", "TAKEN", "EVENTS", "LABEL", "URL"].map(str::to_owned).to_vec(),
    ];
    for hook in webhooks {
        let events: Vec<_> = hook.events.iter().map(ToString::to_string).collect();
        rows.push(vec![
            hook.id.clone(),
            hook.state.to_string(),
            hook.waiting.to_string(),
            hook.given_up.to_string(),
            hook.delivered.map_or("never".to_owned(), time),
            if events.is_empty() { "all".to_owned() } else { events.join(",") },
            hook.label.clone(),
            hook.url.clone(),
        ]);
    }
    let mut text = table(&rows);
    for hook in webhooks {
        if let (Some(since), Some(error)) = (hook.failing, &hook.error) {
            text.push_str(&format!("\n{} fails since {}: {error}", hook.id, time(since)));
        }
        if hook.lost > 0 {
            text.push_str(&format!("\n{} lost {} events: too many waited", hook.id, hook.lost));
        }
        if hook.state == WebhookState::GivenUp {
            text.push_str(&format!("\nnext: mend the receiver, then: distd webhook retry {}", hook.id));
        }
    }
    text
}

fn log(deliveries: &[WebhookDelivery]) -> String {
    let mut rows =
        vec![["TIME", "EVENT", "STATE", "TRIES", "NEXT", "MESSAGE", "RESULT"].map(str::to_owned).to_vec()];
    for delivery in deliveries {
        rows.push(vec![
            time(delivery.at),
            delivery.event.to_string(),
            delivery.state.to_string(),
            delivery.tries.to_string(),
            delivery.next.map_or("-".to_owned(), time),
            delivery.message.clone(),
            delivery.result.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table(&rows)
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Add { url, url_file, events, label, out, api } => {
            let url = match (url, url_file) {
                (Some(url), _) => url,
                (None, Some(path)) => std::fs::read_to_string(&path)
                    .map_err(|error| {
                        let error = anyhow!(error)
                            .context(format!("could not read the address from {}", path.display()));
                        Failure::new(Code::Usage, error)
                    })?
                    .trim()
                    .to_owned(),
                (None, None) => unreachable!("the command line needs one of them"),
            };
            let exists = |path: &PathBuf| {
                Failure::new(Code::Usage, anyhow!("{} exists: name a new file", path.display()))
            };
            if let Some(path) = out.as_ref().filter(|path| path.exists()) {
                return Err(exists(path).into());
            }
            let api = context.api(&api)?;
            let made = api.add_webhook(&NewWebhook { url, events, label }).await.map_err(Failure::from)?;
            let secret = match &out {
                Some(path) => {
                    let written = files::create_secret(path, format!("{}\n", made.secret).as_bytes());
                    if !matches!(written, Ok(true)) {
                        // Nobody has the key, so nobody could check the signatures.
                        let _ = api.remove_webhook(&made.id).await;
                        written?;
                        return Err(exists(path).into());
                    }
                    None
                }
                None => Some(made.secret),
            };
            context.output().result(&Added { id: made.id, secret }, |added| match &added.secret {
                Some(secret) => format!(
                    "{}\nkey of the signatures, shown this once: {secret}\nnext: distd webhook test {}",
                    added.id, added.id
                ),
                None => format!("{}\nnext: distd webhook test {}", added.id, added.id),
            })
        }
        Command::Ls { api } => {
            let list = context.api(&api)?.webhooks().await.map_err(Failure::from)?;
            context.output().result(&list, |list| shown(&list.webhooks))
        }
        Command::Rm { id, api } => {
            context.api(&api)?.remove_webhook(&id).await.map_err(unknown)?;
            context.output().result(&Removed { id }, |removed| format!("{} removed", removed.id))
        }
        Command::Test { id, api } => {
            let test = context.api(&api)?.test_webhook(&id).await.map_err(unknown)?;
            if !test.delivered {
                let error = anyhow!("the receiver did not take the test: {}", test.result);
                let next = "look at the receiver, and at docs/webhooks.md for addresses that may be used";
                return Err(Failure::new(Code::Network, error).next(next).into());
            }
            context
                .output()
                .result(&test, |test| format!("taken after {} ms: {}", test.milliseconds, test.result))
        }
        Command::Log { id, api } => {
            let list = context.api(&api)?.webhook_deliveries(&id).await.map_err(unknown)?;
            context.output().result(&list, |list| log(&list.deliveries))
        }
        Command::Retry { id, api } => {
            let retried = context.api(&api)?.retry_webhook(&id).await.map_err(unknown)?;
            context.output().result(&retried, |retried| format!("{} events are tried again", retried.events))
        }
    }
}
