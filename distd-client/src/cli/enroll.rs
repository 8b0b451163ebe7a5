//! `distd enroll`: makes this device a node of a realm.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use distd_core::role::Role;
use distd_core::text::{LABEL_SIGNS, is_label};
use distd_peer::enrollment::{self, EnrollmentError};
use distd_peer::service;
use distd_peer::settings::{Table, TableArgs, TableOptions};
use distd_peer::trust::enroll::{EnrollMessage, LABEL_BYTES_MAX};
use distd_peer::trust::identity::NodeIdentity;
use distd_peer::trust::tls::TrustAnchor;
use distd_peer::trust::token::JoinToken;
use serde::Serialize;

use super::context::Context;
use super::secret::{join_token_in, parsed_join_token};
use crate::api::{Api, ServerUrl};
use crate::config;
use crate::failure::{Code, Failure, code_of_enrollment};

/// Join a realm: get a certificate for this device with a join token.
///
/// The token names the realm's CA, so enrolment is safe on any network. Later pulls use the parents
/// given here, and an agent also the site and the channel to follow.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("whom").required(true).multiple(true).args(["server", "parent"])))]
#[command(group(clap::ArgGroup::new("join").required(true).args(["token", "token_file"])))]
pub struct Args {
    /// Relay or origin to enrol with and to pull from later; repeat for more, nearest first.
    #[arg(long, value_name = "HOST:PORT", env = "DISTD_PARENT", value_delimiter = ',',
          value_parser = config::parent)]
    parent: Vec<String>,
    /// URL of the origin's HTTP API, to enrol there instead of with a parent.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Join token. Other users of this machine can see the command line; prefer --token-file or
    /// $DISTD_JOIN_TOKEN.
    #[arg(long, value_name = "TOKEN", env = "DISTD_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File that holds the join token. Takes precedence over $DISTD_JOIN_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Name of this device for operators. Default: this machine's host name.
    #[arg(long)]
    label: Option<String>,
    /// Allow an http:// URL with a loopback address.
    #[arg(long)]
    plain_http: bool,
    /// Start the agent's systemd unit, now and at each boot.
    #[arg(long)]
    start: bool,
    #[command(flatten)]
    settings: TableArgs<EnrollOptions>,
}

/// Unit of the agent.
const UNIT: &str = "distd-agent.service";

/// Settings that are remembered where they are given: what `distd agent` is to do here.
const REMEMBERED: [&str; 4] = ["site", "metered", "follow.channel", "follow.directory"];

/// Settings that matter to an enrolment.
enum EnrollOptions {}

impl TableOptions for EnrollOptions {
    type Values = config::Values;
    const TABLE: Table<config::Values> = config::TABLE;

    fn has(key: &str) -> bool {
        ["transport", "connectivity"].contains(&key) || REMEMBERED.contains(&key)
    }
}

#[derive(Serialize)]
struct Enrolled {
    node_id: String,
    role: &'static str,
    /// Unix seconds.
    certificate_expires: u64,
    parents: Vec<String>,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let token = join_token(&args)?;
    let settings = context.settings(&args.settings.line)?;
    let label = args.label.clone().unwrap_or_else(|| distd_peer::process::host_name("device"));
    if label.len() > LABEL_BYTES_MAX {
        let error = anyhow!("the label has {} bytes; at most {LABEL_BYTES_MAX} are allowed", label.len());
        return Err(Failure::new(Code::Usage, error).into());
    }
    if !is_label(&label) {
        let error = anyhow!("the label has characters that cannot be used");
        let next = format!("choose letters, digits, single blanks and {LABEL_SIGNS}");
        return Err(Failure::new(Code::Usage, error).next(next).into());
    }
    let failed = |e: EnrollmentError| Failure::new(code_of_enrollment(&e), anyhow::Error::new(e));
    let mut identity = NodeIdentity::load_or_create(context.data()).map_err(|e| failed(e.into()))?;
    if let Some(server) = &args.server {
        let server =
            ServerUrl::parse(server, args.plain_http).map_err(|e| Failure::new(Code::Usage, e.into()))?;
        over_https(&mut identity, &token, &label, server).await?;
    } else {
        let outbound = settings.outbound(settings.connectivity)?;
        enrollment::enroll(&mut identity, &token, Role::Leaf, &label, &args.parent, &outbound)
            .await
            .map_err(failed)?;
    }
    let expires = identity.cert().map_or(0, |cert| cert.not_after);
    let node_id = identity.node_id().to_string();
    let parents = if args.parent.is_empty() {
        settings.parents.clone()
    } else {
        context.remember(&[("parents", Some(args.parent.clone().into()))])?;
        args.parent
    };
    // Each passed its check when the settings were resolved.
    let line = &args.settings.line;
    let kept = line.iter().filter(|(key, _)| REMEMBERED.contains(key)).map(|(key, texts)| {
        let text = texts.last().cloned().unwrap_or_default();
        (*key, Some(text.parse::<bool>().map_or_else(|_| text.into(), toml::Value::from)))
    });
    context.remember(&kept.collect::<Vec<_>>())?;
    let enrolled = Enrolled { node_id, role: Role::Leaf.as_str(), certificate_expires: expires, parents };
    context.output().result(&enrolled, |enrolled| {
        let until = crate::text::time(i64::try_from(enrolled.certificate_expires).unwrap_or(i64::MAX));
        format!(
            "enrolled as {} {}; certificate until {until}, renewed as needed",
            enrolled.role, enrolled.node_id
        )
    })?;
    let parent = if enrolled.parents.is_empty() { " --parent HOST:PORT" } else { "" };
    if args.start {
        let started = service::start(UNIT).context("the device is enrolled, but its agent was not started");
        return started.map_err(|e| Failure::new(Code::Local, e).into());
    }
    let next = match settings.follow.is_some() {
        true => "systemctl enable --now distd-agent, or: distd agent".to_owned(),
        false => format!("distd pull PRODUCT:CHANNEL --out FILE{parent}"),
    };
    context.output().note(&format!("next: {next}"));
    Ok(())
}

fn join_token(args: &Args) -> anyhow::Result<JoinToken> {
    match (&args.token, &args.token_file) {
        // A file named on the command line takes precedence over the environment variable.
        (_, Some(path)) => join_token_in(path),
        (Some(text), None) => parsed_join_token(text),
        (None, None) => {
            let error = anyhow!("no join token");
            let next = "name one with --token TOKEN or --token-file FILE; make one with: distd token join --role leaf";
            Err(Failure::new(Code::Usage, error).next(next).into())
        }
    }
}

async fn over_https(
    identity: &mut NodeIdentity,
    token: &JoinToken,
    label: &str,
    server: ServerUrl,
) -> anyhow::Result<()> {
    let failed = |e: EnrollmentError| Failure::new(code_of_enrollment(&e), anyhow::Error::new(e));
    let anchor = TrustAnchor::Fingerprint(*token.ca_fingerprint());
    let api = Api::anonymous(server, anchor).map_err(Failure::from)?;
    let request = identity.enroll_request(token, Role::Leaf, label).map_err(|e| failed(e.into()))?;
    let request = EnrollMessage::Enroll(request).encode();
    let reply = api.enroll(request.clone()).await.map_err(Failure::from)?;
    identity.install_enrolled(token, Role::Leaf, &request, &reply).map_err(|e| failed(e.into()).into())
}
