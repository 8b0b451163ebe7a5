//! `distd receipts`: shows, exports and checks the log of receipts.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::Subcommand;
use distd_client::api::Api;
use distd_client::cli::{ApiArgs, Context};
use distd_client::failure::{Code, Failure};
use distd_client::text::{table, time};
use distd_core::api::{RECEIPTS_PAGE, RECEIPTS_PAGE_MAX, ReceiptsEntry, ReceiptsHead, ReceiptsPage};
use distd_core::fleet::receipts::{
    Entry, LogCheck, Subtree, TreeHash, completed, leaf_hash, node_hash, root,
};
use distd_peer::trust::identity::certificate_from_pem;
use distd_peer::trust::receipts::{is_signed, verify_head};
use serde::Serialize;

use super::exported::lines;

/// Longest line of an exported log, bytes. An entry of 2 kB has twice as many digits.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Largest certificate of a CA read, bytes.
const CA_BYTES_MAX: u64 = 64 << 10;

/// See and check which device ran what: the log of receipts.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the newest signed head of the log.
    Head {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List entries of the log, the first one first.
    Ls {
        /// Number of the first entry to show, from 0.
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        start: u64,
        /// Largest number of entries to show.
        #[arg(long, value_name = "N", default_value_t = RECEIPTS_PAGE, value_parser = clap::value_parser!(u32).range(1..=i64::from(RECEIPTS_PAGE_MAX)))]
        limit: u32,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Write the newest head and the whole log to a new file, for distd receipts verify and
    /// deploy/verify_receipts.py.
    Export {
        /// File to write.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Check an exported log: its head, every signature, and that no device was ahead of its wave.
    Verify {
        /// Exported log.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Certificate of the realm's CA, as in realm/ca.pem of the origin or ca.pem of a device.
        #[arg(long, value_name = "FILE")]
        ca: PathBuf,
        /// A file with heads from elsewhere that the log must continue, such as log-head.json or
        /// log-evidence.json of a device; may be given several times.
        #[arg(long, value_name = "FILE")]
        head: Vec<PathBuf>,
    },
}

#[derive(Serialize)]
struct Verified {
    size: u64,
    root: String,
    receipts: u64,
    releases: Vec<(String, u64)>,
    heads: usize,
    findings: Vec<String>,
}

fn head_text(head: &ReceiptsHead) -> String {
    let ReceiptsHead { log, size, root, at, .. } = head;
    let at = time(i64::try_from(*at).unwrap_or(i64::MAX));
    format!("log     {log}\nsize    {size}\nroot    {root}\nsigned  {at}")
}

/// Cells about an entry: kind, node or rollout, and what it says.
fn cells(entry: &ReceiptsEntry) -> Vec<String> {
    let read = hex::decode(&entry.entry).ok().and_then(|bytes| Entry::decode(&bytes).ok());
    let Some(read) = read else { return vec!["unknown".to_owned(), String::new(), String::new()] };
    let (kind, about) = read.about();
    let said = match &read {
        Entry::Receipt(signed) => {
            let receipt = &signed.receipt;
            let wave = match (receipt.rollout, receipt.wave) {
                (Some(_), 0) => ", by a rollout".to_owned(),
                (Some(_), wave) => format!(", wave {wave}"),
                (None, _) => String::new(),
            };
            format!("{}@{}, receipt {}{wave}", receipt.product, receipt.version, receipt.number)
        }
        Entry::Wave(event) => format!(
            "{}:{}@{} {}, {} of {} waves open",
            event.product,
            event.channel,
            event.version,
            event.state,
            event.open,
            event.waves.len()
        ),
        Entry::Restart(event) => event.head().map_or_else(String::new, |before| {
            format!("entries lost: the log before had {}", before.head.size)
        }),
    };
    vec![kind.to_owned(), about, said]
}

fn page_text(page: &ReceiptsPage) -> String {
    let mut rows = vec![["NUMBER", "AT", "KIND", "OF", "SAYS"].map(str::to_owned).to_vec()];
    rows.extend(
        page.entries
            .iter()
            .map(|entry| [&[entry.number.to_string(), time(entry.at)][..], &cells(entry)].concat()),
    );
    table(&rows)
}

fn local(error: anyhow::Error) -> anyhow::Error {
    Failure::new(Code::Local, error).into()
}

/// Writes the head, and the entries that it covers, to a new file: a JSON object a line.
async fn export(api: &Api, path: &Path) -> anyhow::Result<ReceiptsHead> {
    let named = || format!("could not write {}", path.display());
    let head = api.receipts_head().await.map_err(Failure::from)?;
    let mut file = File::create_new(path).with_context(named).map_err(local)?;
    let mut write = |line: serde_json::Result<String>| {
        let line = line.map_err(anyhow::Error::from)? + "\n";
        file.write_all(line.as_bytes()).with_context(named).map_err(local)
    };
    write(serde_json::to_string(&head))?;
    let mut start = Some(0);
    while let Some(number) = start.filter(|number| *number < head.size) {
        let limit = RECEIPTS_PAGE_MAX.to_string();
        let query = [("start", Some(number.to_string())), ("limit", Some(limit))];
        let page = api.receipts(&query).await.map_err(Failure::from)?;
        for entry in page.entries.iter().filter(|entry| entry.number < head.size) {
            write(serde_json::to_string(entry))?;
        }
        start = page.next;
    }
    file.sync_all().with_context(named).map_err(local)?;
    Ok(head)
}

fn wrong(text: String) -> anyhow::Error {
    let next =
        "keep this file and the heads of devices as evidence; docs/receipts.md says what each finding means";
    Failure::new(Code::Integrity, anyhow!(text)).next(next).into()
}

/// Hashes of the complete subtrees of a log that is read from its beginning.
#[derive(Default)]
struct Tree(std::collections::BTreeMap<Subtree, TreeHash>);

impl Tree {
    fn add(&mut self, number: u64, entry: &[u8]) {
        let mut hash = leaf_hash(entry);
        self.0.insert(Subtree { level: 0, place: number }, hash);
        for at in completed(number) {
            if let Some(left) = self.0.get(&Subtree { level: at.level - 1, place: at.place * 2 }) {
                hash = node_hash(left, &hash);
            }
            self.0.insert(at, hash);
        }
    }

    fn root(&self, size: u64) -> TreeHash {
        root(size, &mut |at| self.0.get(&at).copied().unwrap_or(TreeHash([0; 32])))
    }
}

/// Heads in a file that a device keeps: one, or the pairs of its evidence.
fn heads(path: &Path) -> anyhow::Result<Vec<ReceiptsHead>> {
    fn find(value: &serde_json::Value, found: &mut Vec<ReceiptsHead>) {
        if let Ok(head) = serde_json::from_value(value.clone()) {
            found.push(head);
            return;
        }
        match value {
            serde_json::Value::Array(list) => list.iter().for_each(|value| find(value, found)),
            serde_json::Value::Object(map) => map.values().for_each(|value| find(value, found)),
            _ => {}
        }
    }
    let bytes: Vec<u8> = lines(path, LINE_BYTES_MAX)?.collect::<anyhow::Result<Vec<_>>>()?.concat();
    let named = || format!("{} has no head of a log", path.display());
    let value = serde_json::from_slice(&bytes).with_context(named).map_err(local)?;
    let mut found = Vec::new();
    find(&value, &mut found);
    if found.is_empty() { Err(local(anyhow!(named()))) } else { Ok(found) }
}

fn verify(path: &Path, ca: &Path, head_files: &[PathBuf]) -> anyhow::Result<Verified> {
    let named = || format!("could not read {}", ca.display());
    let mut pem = Vec::new();
    let read = File::open(ca).and_then(|file| file.take(CA_BYTES_MAX).read_to_end(&mut pem));
    read.with_context(named).map_err(local)?;
    let ca = certificate_from_pem(&pem).with_context(named).map_err(local)?;
    let mut lines = lines(path, LINE_BYTES_MAX)?;
    let no_head = || wrong(format!("{} does not begin with the head of a log", path.display()));
    let first = lines.next().ok_or_else(no_head)??;
    let head: ReceiptsHead = serde_json::from_slice(&first).map_err(|_| no_head())?;
    let signed = head.signed().ok_or_else(no_head)?;
    verify_head(&ca, &signed).map_err(|error| wrong(error.to_string()))?;
    let (mut tree, mut check, mut findings, mut faults, mut receipts) =
        (Tree::default(), LogCheck::default(), Vec::new(), 0, 0);
    let mut number = 0;
    for line in lines {
        let entry: Option<ReceiptsEntry> = serde_json::from_slice(&line?).ok();
        let bytes =
            entry.filter(|entry| entry.number == number).and_then(|entry| hex::decode(entry.entry).ok());
        let Some(bytes) = bytes else { return Err(wrong(format!("entry {number} of the log is missing"))) };
        tree.add(number, &bytes);
        match Entry::decode(&bytes) {
            Ok(entry) => {
                if let Entry::Receipt(signed) = &entry {
                    receipts += 1;
                    if !is_signed(signed) {
                        faults += 1;
                        findings.push(format!("entry {number}: node {} did not sign it", signed.node()));
                    }
                }
                for finding in check.add(&entry) {
                    faults += u64::from(finding.is_fault());
                    findings.push(format!("entry {number}: {finding}"));
                }
            }
            // A form of a later release: the tree covers it all the same.
            Err(error) => findings.push(format!("entry {number}: {error}")),
        }
        number += 1;
    }
    if number != head.size || tree.root(number) != signed.head.root {
        return Err(wrong(format!("the {number} entries are not those of the signed head of {}", head.size)));
    }
    let mut count = 0;
    for file in head_files {
        for other in heads(file)? {
            count += 1;
            let name = format!("head of {} entries in {}", other.size, file.display());
            let fault = match other.signed() {
                None => Some("is malformed"),
                Some(signed) if verify_head(&ca, &signed).is_err() => Some("is not signed by the realm"),
                Some(signed) if signed.head.log.to_string() != head.log => Some("is of another log"),
                Some(signed) if signed.head.size > number => Some("is of a longer log: entries are gone"),
                Some(signed) if tree.root(signed.head.size) != signed.head.root => {
                    Some("is of other entries: the log was rewritten")
                }
                Some(_) => None,
            };
            if let Some(fault) = fault {
                faults += 1;
                findings.push(format!("{name} {fault}"));
            }
        }
    }
    if faults > 0 {
        return Err(wrong(format!("{faults} faults of the log:\n{}", findings.join("\n"))));
    }
    let releases = check.releases.iter();
    Ok(Verified {
        size: number,
        root: head.root,
        receipts,
        releases: releases
            .map(|((product, version), count)| (format!("{product}@{version}"), *count))
            .collect(),
        heads: count,
        findings,
    })
}

fn verified_text(verified: &Verified) -> String {
    let Verified { size, root, receipts, releases, heads, findings } = verified;
    let mut text = format!("{size} entries, {receipts} receipts, {heads} other heads fit\nroot {root}\n");
    let mut rows = vec![["RELEASE", "RECEIPTS"].map(str::to_owned).to_vec()];
    rows.extend(releases.iter().map(|(release, count)| vec![release.clone(), count.to_string()]));
    text.push_str(&table(&rows));
    for finding in findings {
        text.push_str(&format!("\nnote: {finding}"));
    }
    text
}

pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Head { api } => {
            let head = context.api(&api)?.receipts_head().await.map_err(Failure::from)?;
            context.output().result(&head, head_text)
        }
        Command::Ls { start, limit, api } => {
            let query = [("start", Some(start.to_string())), ("limit", Some(limit.to_string()))];
            let page = context.api(&api)?.receipts(&query).await.map_err(Failure::from)?;
            context.output().result(&page, page_text)?;
            if let Some(start) = page.next {
                context
                    .output()
                    .note(&format!("there are more entries; next: the same with --start {start}"));
            }
            Ok(())
        }
        Command::Export { file, api } => {
            let head = export(&context.api(&api)?, &file).await?;
            context.output().result(&head, head_text)?;
            let file = file.display();
            context.output().note(&format!("next: distd receipts verify {file} --ca FILE"));
            Ok(())
        }
        Command::Verify { file, ca, head } => {
            let verified = tokio::task::spawn_blocking(move || verify(&file, &ca, &head)).await??;
            context.output().result(&verified, verified_text)
        }
    }
}
