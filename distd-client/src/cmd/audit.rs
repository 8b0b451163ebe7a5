//! `distd audit`: lists, checks and exports the audit log of the origin.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::Subcommand;
use distd_client::api::Api;
use distd_client::cli::parse::moment;
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::{Code, Failure};
use distd_client::text::{table, time};
use distd_core::api::{AUDIT_PAGE, AUDIT_PAGE_MAX, AuditEntry, AuditPage};
use distd_core::fleet::audit::{AuditChain, AuditHead};
use serde::Serialize;

use super::exported::lines;

/// Longest line of an exported log, bytes. A description of a release or grant takes a few hundred.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// See and check who changed what: rights, rollouts, releases, tokens.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List entries of the audit log, the newest first.
    Ls {
        /// Only entries of this time or later: 2027-01-31 or 2027-01-31T18:00:00Z.
        #[arg(long, value_name = "WHEN", value_parser = moment)]
        since: Option<i64>,
        /// Only acts of this actor, such as origin, or of the token with this label.
        #[arg(long, value_name = "ACTOR")]
        actor: Option<String>,
        /// Only this act, such as grant.add, or all of a kind, such as grant.
        #[arg(long, value_name = "ACTION")]
        action: Option<String>,
        /// Only acts on this thing, such as os:stable or a node's id.
        #[arg(long, value_name = "SUBJECT")]
        subject: Option<String>,
        /// Show only entries with lower numbers than this one.
        #[arg(long, value_name = "NUMBER")]
        before: Option<u64>,
        /// Largest number of entries to show.
        #[arg(long, value_name = "N", default_value_t = AUDIT_PAGE, value_parser = clap::value_parser!(u32).range(1..=i64::from(AUDIT_PAGE_MAX)))]
        limit: u32,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Check that no entry was changed or taken out, and print the last one as NUMBER:HASH. Note
    /// that elsewhere: with it a later check finds out whether the end was cut off.
    Verify {
        /// An entry that the log must have, as an earlier check printed it.
        #[arg(long, value_name = "NUMBER:HASH")]
        expect: Option<AuditHead>,
        /// Check an exported log instead of the origin's.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Print the whole log, the oldest entry first, one JSON object a line.
    Export {
        #[command(flatten)]
        api: ApiArgs,
    },
}

#[derive(Serialize)]
struct Verified {
    entries: u64,
    head: String,
}

/// Gives all entries of the log to `take`, the oldest first.
async fn each_entry(
    api: &Api,
    mut take: impl FnMut(&AuditEntry) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut after = Some(0_u64);
    while let Some(number) = after {
        let query = [("after", Some(number.to_string())), ("limit", Some(AUDIT_PAGE_MAX.to_string()))];
        let page = api.audit(&query).await.map_err(Failure::from)?;
        page.entries.iter().try_for_each(&mut take)?;
        after = page.next;
    }
    Ok(())
}

fn add(chain: &mut AuditChain, entry: &AuditEntry) -> anyhow::Result<()> {
    let wrong = |error: anyhow::Error| {
        let next = "compare with an exported log or a backup: distd audit export";
        Failure::new(Code::Integrity, error).next(next)
    };
    let hash = entry.hash.parse().map_err(|_| wrong(anyhow!("entry {} has no hash", entry.number)))?;
    chain.add(&entry.record(), hash).map_err(|fault| wrong(fault.into()).into())
}

/// Adds all lines of an exported log.
fn add_file(chain: &mut AuditChain, path: &Path) -> anyhow::Result<()> {
    let named = || format!("could not read {}", path.display());
    for line in lines(path, LINE_BYTES_MAX)? {
        let entry: AuditEntry = serde_json::from_slice(&line?)
            .with_context(named)
            .map_err(|error| Failure::new(Code::Local, error))?;
        add(chain, &entry)?;
    }
    Ok(())
}

fn page_text(page: &AuditPage) -> String {
    let mut rows =
        vec![["NUMBER", "AT", "ACTOR", "LABEL", "ACTION", "SUBJECT", "DETAILS"].map(str::to_owned).to_vec()];
    rows.extend(page.entries.iter().map(|entry| {
        let AuditEntry { number, at, actor, label, action, subject, details, .. } = entry.clone();
        vec![number.to_string(), time(at), actor, label, action, subject, details]
    }));
    table(&rows)
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Ls { since, actor, action, subject, before, limit, api } => {
            let query = [
                ("since", since.map(|at| at.to_string())),
                ("actor", actor),
                ("action", action),
                ("subject", subject),
                ("before", before.map(|number| number.to_string())),
                ("limit", Some(limit.to_string())),
            ];
            let page = context.api(&api)?.audit(&query).await.map_err(Failure::from)?;
            context.output().result(&page, page_text)?;
            if let Some(before) = page.next {
                let text = format!("there are more entries; next: the same with --before {before}");
                context.output().note(&text);
            }
            Ok(())
        }
        Command::Verify { expect, file, api } => {
            let mut chain = AuditChain::begin(expect);
            match &file {
                Some(path) => add_file(&mut chain, path)?,
                None => each_entry(&context.api(&api)?, |entry| add(&mut chain, entry)).await?,
            }
            let head = chain.end().map_err(|fault| {
                let next = "restore the database from a backup that has this entry";
                Failure::new(Code::Integrity, fault.into()).next(next)
            })?;
            let verified = Verified { entries: head.number, head: head.to_string() };
            context.output().result(&verified, |verified| {
                format!("{} entries, none changed, none missing\nhead {}", verified.entries, verified.head)
            })?;
            context
                .output()
                .note("next: note the head elsewhere, for distd audit verify --expect NUMBER:HASH");
            Ok(())
        }
        Command::Export { api } => {
            let line = |entry: &AuditEntry| serde_json::to_string(entry).unwrap_or_default();
            each_entry(&context.api(&api)?, |entry| context.output().result(entry, line)).await
        }
    }
}
