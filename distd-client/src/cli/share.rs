//! `distd share`: gives a file or directory of this machine to whoever holds its ticket.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use distd_core::api::MEMBERS_PAGE_MAX;
use distd_core::manifest::Manifest;
use distd_core::names::Name;
use distd_core::ticket::{Audience, TicketId};
use distd_core::{ArtifactHash, ManifestId, NodeId};
use distd_peer::clock::unix_now;
use distd_peer::process::told_to_end;
use distd_peer::rates::Class;
use distd_peer::tickets::Members;
use distd_peer::trust::identity::NodeIdentity;
use distd_peer::trust::ticket::{ShareSigner, open};
use distd_peer::trust::token::sha256;
use serde::Serialize;

use super::context::{ApiArgs, Context};
use super::shown::ShownProgress;
use super::ticket::{audience_text, qr};
use crate::disk::path::{ArtifactPath, Role};
use crate::failure::{Code, Failure};
use crate::progress::Progress as _;
use crate::share::anywhere;
use crate::text::{human_bytes, table, time};
use crate::tickets::kept;
use crate::tickets::share::{Ended, TTL_MAX};
use crate::tickets::{LocalArtifact, Share, ShareEvent, ShareRequest};

/// Most nodes that a share for a group is for.
const NODES_MAX: usize = 10_000;

/// Give a file or directory to whoever holds the ticket that this prints.
///
/// The artifact is served from where it lies until the command ends, or with --agent until it is
/// removed. Fetchers serve each other, too.
#[derive(clap::Args)]
pub struct Args {
    /// File, block device or directory to share.
    #[arg(value_name = "PATH", required_unless_present_any = ["ls", "rm"])]
    path: Option<PathBuf>,
    /// Node or group of this device's realm that the ticket is for. Default: whoever holds it. Of a
    /// group, those that are members now.
    #[arg(long = "for", value_name = "NODE|GROUP")]
    audience: Option<String>,
    /// Time for which the ticket is good, such as 90s, 30m, 24h or 7d.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = ttl)]
    ttl: Duration,
    /// End with the first completed fetch.
    #[arg(long)]
    once: bool,
    /// Address to listen at. Default: a free port on all addresses.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Address at which others reach this machine, to put into the ticket; repeat for more.
    #[arg(long, value_name = "HOST[:PORT]")]
    address: Vec<String>,
    /// Also draw the ticket as a QR code.
    #[arg(long)]
    qr: bool,
    /// Have the agent of this device serve it, and end.
    #[arg(long)]
    agent: bool,
    /// List the shares that the agent serves.
    #[arg(long, conflicts_with_all = ["path", "rm"])]
    ls: bool,
    /// End a share that the agent serves.
    #[arg(long, value_name = "ID", conflicts_with = "path", value_parser = ticket_id)]
    rm: Option<TicketId>,
    #[command(flatten)]
    api: ApiArgs,
}

fn ticket_id(text: &str) -> Result<TicketId, String> {
    let mut id = [0; 8];
    hex::decode_to_slice(text, &mut id)
        .map_err(|_| "the id of a share has 16 hexadecimal digits".to_owned())?;
    Ok(TicketId(id))
}

/// Parses a time with a unit.
fn ttl(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err("give a number and a unit: 90s, 30m, 24h or 7d".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "give a number before the unit".to_owned())?;
    let ttl = Duration::from_secs(number.saturating_mul(seconds));
    match ttl {
        Duration::ZERO => Err("a ticket is good for a second at least".to_owned()),
        _ if ttl > TTL_MAX => Err("a ticket is good for 400 days at most".to_owned()),
        _ => Ok(ttl),
    }
}

/// Result of a share that ended.
#[derive(Serialize)]
struct Shared {
    path: PathBuf,
    ticket: String,
    manifest: ManifestId,
    blake3: ArtifactHash,
    bytes: u64,
    ended: &'static str,
    completed: u64,
    sent_bytes: u64,
}

impl Shared {
    fn summary(&self) -> String {
        let fetches = if self.completed == 1 { "fetch" } else { "fetches" };
        format!(
            "{}: {} {fetches} completed, {} sent",
            self.ended,
            self.completed,
            human_bytes(self.sent_bytes)
        )
    }
}

/// Prints the ticket at once, on a line of its own: scripts wait for it.
fn print_ticket(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    written.map_err(|e| anyhow::Error::new(e).context("the ticket could not be written to standard output"))
}

/// A share of the agent, in a list.
#[derive(Serialize)]
struct Listed {
    id: String,
    path: PathBuf,
    name: String,
    bytes: u64,
    not_after: u64,
    #[serde(rename = "for")]
    audience: Option<String>,
    once: bool,
    ticket: String,
}

/// Shares of the agent.
#[derive(Serialize)]
struct List {
    shares: Vec<Listed>,
}

impl List {
    fn of(data: &Path) -> Self {
        let listed = |(id, kept): (TicketId, kept::KeptShare)| {
            let signed = open(&kept.ticket).ok()?;
            Some(Listed {
                id: id.to_string(),
                path: kept.path,
                name: signed.ticket.name.as_str().to_owned(),
                bytes: signed.ticket.bytes,
                not_after: signed.ticket.not_after,
                audience: audience_text(&signed.ticket.audience),
                once: signed.ticket.once,
                ticket: kept.ticket,
            })
        };
        Self { shares: kept::list(data).into_iter().filter_map(listed).collect() }
    }

    fn summary(&self) -> String {
        let head = ["ID", "PATH", "SIZE", "FOR", "UNTIL"].map(str::to_owned).to_vec();
        let row = |share: &Listed| {
            let until = time(i64::try_from(share.not_after).unwrap_or(i64::MAX));
            let audience = share.audience.clone().unwrap_or_else(|| "anyone".to_owned());
            vec![
                share.id.clone(),
                share.path.display().to_string(),
                human_bytes(share.bytes),
                audience,
                until,
            ]
        };
        table(&std::iter::once(head).chain(self.shares.iter().map(row)).collect::<Vec<_>>())
    }
}

#[derive(Serialize)]
struct Removed {
    removed: String,
}

/// Identity of this device, for tickets that are for nodes of its realm.
fn identity(context: &Context) -> anyhow::Result<NodeIdentity> {
    let has_key = context.data().join("node.key").exists();
    let identity = has_key.then(|| NodeIdentity::load_or_create(context.data())).transpose();
    let identity = identity.map_err(|e| Failure::refused(e.into()))?;
    identity.filter(|identity| identity.ca_der().is_some()).ok_or_else(|| {
        let error = anyhow!("this machine is in no realm, so a ticket cannot be for nodes of one");
        Failure::new(Code::Refused, error).next("enrol it first, or leave --for out").into()
    })
}

/// Resolves `--for` to an audience and the nodes in it.
async fn audience(context: &Context, args: &Args) -> anyhow::Result<(Audience, Option<Members>)> {
    let Some(text) = &args.audience else { return Ok((Audience::Anyone, None)) };
    let identity = identity(context)?;
    let ca = identity.ca_der().cloned().ok_or_else(|| anyhow!("the device has no CA certificate"))?;
    let realm = sha256(&ca);
    if let Ok(node) = text.parse::<NodeId>() {
        let members = Members { ca, nodes: [node].into() };
        return Ok((Audience::Node { realm, node }, Some(members)));
    }
    let group: Name = text.parse().map_err(|_| {
        let error = anyhow!("{text:?} is neither the id of a node nor the name of a group");
        Failure::new(Code::Usage, error).next("list them: distd node ls, distd group ls")
    })?;
    let api = context.api(&args.api)?;
    let (mut nodes, mut after) = (BTreeSet::new(), None);
    loop {
        let page = api.group(group.as_str(), after.as_deref(), MEMBERS_PAGE_MAX).await;
        let page = page.map_err(|error| match error.is_not_found() {
            true => Failure::from(error).next("list the groups: distd group ls"),
            false => Failure::from(error),
        })?;
        nodes.extend(page.nodes.iter().filter_map(|node| node.parse::<NodeId>().ok()));
        match page.after {
            Some(next) if nodes.len() < NODES_MAX => after = Some(next),
            _ => break,
        }
    }
    Ok((Audience::Group { realm, group }, Some(Members { ca, nodes })))
}

/// Hands a share over to the agent.
async fn hand_over(context: &Context, share: Share, kept: Kept<'_>) -> anyhow::Result<()> {
    let id = share.ticket().ticket.id;
    let ticket = share.ticket().to_text();
    let listen = share.address;
    // The agent takes the port.
    share.end().await;
    let path = std::path::absolute(kept.path).map_err(|e| Failure::new(Code::Local, e.into()))?;
    let record = kept::KeptShare { path, listen, ticket: ticket.clone(), nodes: kept.nodes };
    kept::keep(context.data(), &record, &kept.signer, kept.manifest)?;
    print_ticket(&ticket)?;
    context.output().note(&format!("the agent serves it; end it with: distd share --rm {id}"));
    Ok(())
}

/// Parts that the agent needs to serve a share.
struct Kept<'k> {
    path: &'k Path,
    nodes: Option<Vec<String>>,
    signer: ShareSigner,
    manifest: &'k Manifest,
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let output = context.output();
    if args.ls {
        return output.result(&List::of(context.data()), List::summary);
    }
    if let Some(id) = args.rm {
        kept::remove(context.data(), id)?;
        let removed = Removed { removed: id.to_string() };
        return output.result(&removed, |removed| format!("share {} is removed", removed.removed));
    }
    let Some(path) = args.path.clone() else { return Err(anyhow!("clap demands a path")) };
    // The path must exist, and is kept as it was typed: its name goes into the ticket.
    ArtifactPath::existing(&path, Role::Artifact).map_err(Failure::from)?;
    if args.agent {
        identity(context)?;
    }
    let (audience, members) = audience(context, &args).await?;
    let settings = context.settings(&args.api.settings.line)?;
    let limits = settings.limits().check().unwrap_or_default();
    let progress = Arc::new(ShownProgress::new(output));
    let (cut, shown) = (path.clone(), progress.clone());
    let local = tokio::task::spawn_blocking(move || LocalArtifact::cut(&cut, &*shown)).await??;
    progress.end();
    let manifest = local.manifest().clone();
    let key = |e| Failure::new(Code::Other, anyhow::Error::new(e).context("could not make a key"));
    let signer = ShareSigner::generate().map_err(key)?;
    let kept = match args.agent {
        true => Some(Kept {
            path: &path,
            nodes: members.as_ref().map(|members| members.nodes.iter().map(NodeId::to_string).collect()),
            signer: ShareSigner::from_pem(signer.to_pem().as_bytes()).map_err(key)?,
            manifest: &manifest,
        }),
        false => None,
    };
    let request = ShareRequest {
        path: path.clone(),
        listen: args.listen.unwrap_or_else(|| anywhere(0)),
        addresses: args.address.clone(),
        not_after: unix_now().saturating_add(args.ttl.as_secs()),
        once: args.once,
        audience,
        members,
        signer,
        ticket: None,
        upload: limits.upload.for_class(Some(Class::Interactive)),
    };
    let share = Share::start(local, request).await?;
    if args.qr {
        output.note(&qr(share.ticket())?);
    }
    match kept {
        Some(kept) => hand_over(context, share, kept).await,
        None => serve(context, share, &path, &manifest).await,
    }
}

/// Serves a share until it ends.
async fn serve(context: &Context, share: Share, path: &Path, manifest: &Manifest) -> anyhow::Result<()> {
    let output = context.output();
    let ticket = share.ticket().to_text();
    print_ticket(&ticket)?;
    output.note(&format!("serving {} until ctrl-c; fetch it with: distd fetch TICKET", path.display()));
    let on = |event| {
        let text = match event {
            ShareEvent::Admitted(count) => format!("fetchers that came: {count}"),
            ShareEvent::Completed(count) => format!("fetches completed: {count}"),
            ShareEvent::Changed(chunks) => {
                format!("{} changed: {chunks} chunks no longer match and are not served", path.display())
            }
        };
        output.note(&text);
    };
    let told = async {
        if told_to_end().await.is_err() {
            std::future::pending().await
        }
    };
    let ended = match share.run(told, &on).await {
        Ended::Expired => "expired",
        Ended::Once => "fetched",
        Ended::Told => "ended",
    };
    let (completed, sent_bytes) = (share.completed(), share.sent_bytes());
    share.end().await;
    let root = manifest.root();
    let shared = Shared {
        path: path.to_owned(),
        ticket,
        manifest: manifest.id(),
        blake3: root.blake3,
        bytes: root.bytes,
        ended,
        completed,
        sent_bytes,
    };
    output.result(&shared, Shared::summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_number_and_a_unit() {
        assert_eq!(ttl("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(ttl("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in
            ["", "7", "d", "0h", "1w", "-1d", "401d", "99999999999999999999d", "9999999999999999999d"]
        {
            assert!(ttl(wrong).is_err(), "{wrong}");
        }
    }
}
