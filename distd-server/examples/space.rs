//! Pushes and retires many small releases at one origin, and prints the bytes that it stores beside
//! those that its live releases need: `space RELEASES [KEEP [CHUNKS]]`. Each release has CHUNKS
//! chunks of 16 KiB that do not compress, some of them new; a policy keeps the newest KEEP.
//! A day passes between two collections, of which there is one for each 20 releases.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use distd_core::ChunkHash;
use distd_core::api::{REMOVALS_MAX, Retention};
use distd_core::cut::CutParams;
use distd_core::manifest::Kind;
use distd_core::names::Name;
use distd_core::packing::{HashedChunk, Packer};
use distd_server::db::{ChannelMove, MoveBy};
use distd_server::ingest::{CommitRequest, Run};
use distd_server::origin::{GcOptions, Origin, Places, Tuning};
use distd_server::patches::PatchOptions;
use distd_server::publisher::Publisher;

const CHUNK_BYTES: usize = 16 << 10;
const DAY: i64 = 24 * 3600;
const RELEASES_A_DAY: u64 = 20;

type Failure = Box<dyn std::error::Error>;

fn name(text: impl ToString) -> Result<Name, Failure> {
    Ok(text.to_string().parse()?)
}

fn chunk(release: u64, position: u64) -> Vec<u8> {
    let mut raw = vec![0; CHUNK_BYTES];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&release.to_be_bytes()).update(&position.to_be_bytes());
    hasher.finalize_xof().fill(&mut raw);
    raw
}

/// Release in which a position of the artifact changed last. Some positions change in every second
/// release, others in one of sixty: chunks of all ages lie side by side in packs.
fn changed(release: u64, position: u64) -> u64 {
    let rate = 2 + position % 59;
    let draw = |at: u64| {
        (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ position.wrapping_mul(0xff51_afd7_ed55_8ccd)) >> 33
    };
    (0..=release).rev().find(|at| *at == 0 || draw(*at).is_multiple_of(rate)).unwrap_or(0)
}

async fn push(origin: &Origin, release: u64, chunks: u64, now: i64) -> Result<(), Failure> {
    let (os, ingest) = (name("os")?, origin.ingest());
    let raw: Vec<Vec<u8>> = (0..chunks).map(|n| chunk(changed(release, n), n)).collect();
    let hashes: Vec<ChunkHash> = raw.iter().map(|raw| ChunkHash::of(raw)).collect();
    let version = name(release)?;
    let upload = ingest.begin_upload(&os, &version, &Publisher::unbound("bench"), now).await?.id;
    let missing = ingest.missing(&upload, &hashes).await?;
    let mut packer = Packer::new(1);
    let new = missing.into_iter().map(|n| n as usize);
    let new = new.map(|n| HashedChunk { hash: hashes[n], packed: packer.pack(&raw[n]) }).collect();
    ingest.put_chunks(&upload, new, now).await?;
    let run = |hash: &ChunkHash| Run { hash: *hash, len: CHUNK_BYTES as u32, repeat: 1 };
    let whole = raw.concat();
    let request = CommitRequest {
        kind: Kind::File,
        cut: CutParams::default(),
        runs: hashes.iter().map(run).collect(),
        blake3: blake3::hash(&whole).into(),
        bytes: whole.len() as u64,
    };
    let done = ingest.commit(&upload, request, "bench", now).await?;
    origin.publish_release(&done).await?;
    let channel = name("stable")?;
    let wanted = ChannelMove { product: &os, channel: &channel, version: &version, downgrade: false };
    origin.set_channel(wanted, &MoveBy::origin()).await?;
    Ok(())
}

/// Bytes of all files below a directory.
fn disk(path: &Path) -> Result<u64, Failure> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { disk(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

/// Stored bytes of the chunks that the live releases name, each once.
async fn needed(origin: &Origin) -> Result<u64, Failure> {
    let mut ids = BTreeSet::new();
    for row in origin.db().releases(&name("os")?).await? {
        ids.extend(origin.ingest().manifest(&row.manifest).await?.entries().map(|at| at.entry.id));
    }
    let ids: Vec<_> = ids.into_iter().collect();
    let rows = origin.db().chunks_by_id(&ids).await?;
    Ok(rows.iter().map(|row| u64::from(row.location.stored_len)).sum())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let mut next = |default| arguments.next().unwrap_or(Ok(default));
    let (releases, keep, chunks) = (next(1000)?, next(30)?, next(64)?);
    let directory = tempfile::tempdir()?;
    let patches = PatchOptions { enabled: false, ..PatchOptions::default() };
    let gc = GcOptions { grace: Duration::from_secs(3600), period: Duration::ZERO };
    let tuning = Tuning { patches, gc, ..Tuning::default() };
    let origin = Origin::open(&Places::in_dir(directory.path()), tuning).await?;
    let (os, by) = (name("os")?, MoveBy::origin());
    let mut now = i64::try_from(distd_peer::clock::unix_now())?;
    origin.db().ensure_product(&os, CutParams::default(), now).await?;
    let packs = directory.path().join("objects/packs");
    let (begin, mut collecting, mut worst) = (Instant::now(), Duration::ZERO, 0.0f64);
    for release in 1..=releases {
        push(&origin, release, chunks, now).await?;
        if release == 1 {
            let retention = Retention { keep: Some(u32::try_from(keep)?), days: None, may_empty: false };
            origin.set_retention(&os, retention, &by).await?;
        }
        if release % RELEASES_A_DAY != 0 {
            continue;
        }
        now += DAY;
        let start = Instant::now();
        origin.collect(REMOVALS_MAX, &by, now).await?;
        origin.finish_removals(now + 3600).await?;
        while origin.ingest().compact(now + 3600).await?.more {}
        collecting += start.elapsed();
        let waiting = origin.db().pack_usage().await?.emptied;
        let ratio = (disk(&packs)? - waiting) as f64 / needed(&origin).await? as f64;
        if release > keep + RELEASES_A_DAY {
            worst = worst.max(ratio);
        }
    }
    let (stored, live) = (disk(&packs)?, needed(&origin).await?);
    now += 2 * DAY;
    while origin.ingest().compact(now).await?.more {}
    let after = disk(&packs)?;
    let ratio = |bytes: u64| bytes as f64 / live as f64;
    let copied = origin.ingest().compaction().copied_bytes.load(std::sync::atomic::Ordering::Relaxed);
    println!("releases pushed        {releases}");
    println!("releases live          {}", origin.db().releases(&os).await?.len());
    println!("needed by live ones    {live} B");
    println!("stored                 {stored} B, {:.3} x", ratio(stored));
    println!("stored a day later     {after} B, {:.3} x", ratio(after));
    println!("worst after a day's collection, without packs that wait for their readers: {worst:.3} x");
    println!("copied by compaction   {copied} B");
    println!(
        "time                   {:.1} s, of it collecting {:.1} s",
        begin.elapsed().as_secs_f64(),
        collecting.as_secs_f64()
    );
    origin.db().close().await;
    Ok(())
}
