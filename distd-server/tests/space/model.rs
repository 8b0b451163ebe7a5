//! Random orders on an origin, some of them cut off, beside a model of what must be there.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use distd_core::api::{REMOVALS_MAX, Retention};
use distd_core::names::Name;
use distd_core::{ChunkHash, ChunkId, ManifestId};
use distd_server::db::{MoveBy, Unless, UploadId};
use distd_server::ingest::IngestError;
use distd_server::origin::RemoveOrder;

use crate::site::*;

/// Numbers that look random, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len().max(1) as u64) as usize)
    }
}

/// Polls a future at most `polls` times; `None` when it was not done by then, and is dropped.
async fn cut_off<F: Future>(polls: u64, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(out) => Poll::Ready(Some(out)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// A download under way: it has read some of its chunks.
struct Pull {
    version: Name,
    left: Vec<(ChunkId, ChunkHash)>,
}

/// What the test knows.
#[derive(Default)]
struct Known {
    /// Chunks of each version: the same for ever.
    contents: BTreeMap<Name, Vec<u64>>,
    /// Versions whose commit was answered, and that nothing has been ordered to remove since.
    safe: BTreeMap<Name, ManifestId>,
    /// Versions that a cut-off order may have changed.
    unknown: BTreeSet<Name>,
    channels: BTreeMap<&'static str, Name>,
    pinned: BTreeSet<Name>,
    /// Open uploads and the chunks that were sent to them.
    uploads: BTreeMap<Name, (UploadId, Vec<u64>)>,
    pulls: Vec<Pull>,
    keep: Option<u32>,
}

impl Known {
    /// A version that may be gone from now on: nothing is expected of it.
    fn doubt(&mut self, version: &Name) {
        self.safe.remove(version);
        self.unknown.insert(version.clone());
        self.pulls.retain(|pull| pull.version != *version);
    }
}

struct Run {
    site: Option<Site>,
    known: Known,
    random: Random,
    next: u64,
    now: i64,
}

impl Run {
    fn site(&self) -> &Site {
        self.site.as_ref().expect("open")
    }

    fn versions(&self) -> Vec<Name> {
        self.known.safe.keys().cloned().collect()
    }

    /// Does one order; with `polls` it is cut off after so many steps, and the origin is opened
    /// again. Returns `false` when it was cut off.
    async fn order<T>(&mut self, polls: Option<u64>, order: impl AsyncFnOnce(&Site) -> T) -> Option<T> {
        let site = self.site.take().expect("open");
        let done = match polls {
            None => Some(order(&site).await),
            Some(polls) => cut_off(polls, order(&site)).await,
        };
        self.site = Some(match done {
            Some(_) if polls.is_none() => site,
            _ => site.reopened().await,
        });
        done
    }

    async fn step(&mut self, polls: Option<u64>) {
        let versions = self.versions();
        let version = self.random.pick(&versions).cloned();
        match (self.random.below(14), version) {
            (0..=3, _) => self.push(polls).await,
            (4, _) => self.send_only(polls).await,
            (5, Some(version)) => self.point(polls, version).await,
            (6, Some(version)) => self.withdraw(polls, version).await,
            (7, Some(version)) => self.remove(polls, version).await,
            (8, Some(version)) => self.pull(version).await,
            (9, _) => self.go_on_pulling().await,
            (10, Some(version)) => self.pin(version).await,
            (11, _) => self.collect(polls).await,
            (12, _) => self.finish(polls).await,
            (13, _) => self.compact(polls).await,
            _ => {}
        }
    }

    fn new_version(&mut self) -> (Name, Vec<u64>) {
        self.next += 1;
        // Chunks of a window that moves: releases share most of them with their neighbours.
        let first = self.next * 3;
        let mut chunks: BTreeSet<u64> = (0..6).map(|_| first + self.random.below(24)).collect();
        chunks.insert(first);
        let version = name(self.next);
        let chunks: Vec<u64> = chunks.into_iter().collect();
        self.known.contents.insert(version.clone(), chunks.clone());
        (version, chunks)
    }

    async fn push(&mut self, polls: Option<u64>) {
        let open: Vec<Name> = self.known.uploads.keys().cloned().collect();
        // An upload that is open is completed now and then.
        let (version, chunks) = match self.random.pick(&open).cloned().filter(|_| self.next.is_multiple_of(2))
        {
            Some(version) => (version.clone(), self.known.contents[&version].clone()),
            None => self.new_version(),
        };
        let now = self.now;
        let done = self
            .order(polls, async |site| {
                for _ in 0..3 {
                    let upload = site.send(&version, &chunks, now).await?;
                    match site.commit(&upload, &chunks, now).await {
                        // Another release that had the chunk was removed meanwhile.
                        Err(IngestError::MissingChunk(_)) => {}
                        other => return other,
                    }
                }
                panic!("chunks that were just sent are missing")
            })
            .await;
        self.known.uploads.remove(&version);
        match done {
            Some(Ok(manifest)) => drop(self.known.safe.insert(version, manifest)),
            Some(Err(error)) => panic!("{version}: {error:?}"),
            None => self.known.doubt(&version),
        }
    }

    /// Begins an upload and leaves it open.
    async fn send_only(&mut self, polls: Option<u64>) {
        let (version, chunks) = self.new_version();
        let half = chunks[..chunks.len() / 2].to_vec();
        let now = self.now;
        let done = self.order(polls, async |site| {
            let known = site.origin.db().chunk_ids(&hashes(&half)).await.expect("asked");
            let upload = site.send(&version, &half, now).await.expect("sent");
            // Chunks that a release had were not sent, and may go with it.
            let own = half.iter().zip(known).filter(|(_, id)| id.is_none()).map(|(n, _)| *n);
            (upload, own.collect())
        });
        if let Some(upload) = done.await {
            self.known.uploads.insert(version, upload);
        }
    }

    async fn point(&mut self, polls: Option<u64>, version: Name) {
        let channel = *self.random.pick(&["stable", "beta"]).expect("one of two");
        match self.order(polls, async |site| site.point(channel, &version).await).await {
            Some(done) => {
                assert!(done, "{version} can be pointed to");
                self.known.channels.insert(channel, version);
            }
            None => drop(self.known.channels.remove(channel)),
        }
    }

    async fn withdraw(&mut self, polls: Option<u64>, version: Name) {
        let by = MoveBy::origin();
        let done = self
            .order(polls, async |site| site.origin.withdraw_release(&os(), &version, &by).await.is_ok())
            .await;
        // Its bytes stay whatever comes, until a policy gives it up.
        let back = self
            .order(None, async |site| site.origin.bring_back_release(&os(), &version, &by).await.is_ok())
            .await;
        assert!(done != Some(true) || back == Some(true), "{version} comes back");
    }

    async fn remove(&mut self, polls: Option<u64>, version: Name) {
        let order = RemoveOrder { unless: Unless::Used, now: self.random.below(3) == 0 };
        let by = MoveBy::origin();
        let held =
            self.known.pinned.contains(&version) || self.known.channels.values().any(|at| *at == version);
        let done = self
            .order(polls, async |site| site.origin.remove_release(&os(), &version, order, &by).await.is_ok())
            .await;
        assert!(!(held && done == Some(true)), "{version} is needed and was removed");
        if !held {
            // Within the grace, a pull goes on.
            let pulls = std::mem::take(&mut self.known.pulls);
            self.known.doubt(&version);
            if !order.now {
                self.known.pulls = pulls;
            }
        }
    }

    async fn pull(&mut self, version: Name) {
        let manifest = self.known.safe[&version];
        let left = self.site().entries(&manifest).await;
        self.known.pulls.push(Pull { version, left });
    }

    async fn go_on_pulling(&mut self) {
        let count = self.random.below(4);
        let mut pulls = std::mem::take(&mut self.known.pulls);
        for pull in &mut pulls {
            for _ in 0..count {
                let Some((id, hash)) = pull.left.pop() else { break };
                assert_eq!(self.site().read(id).await, Some(hash), "a pull of {} goes on", pull.version);
            }
        }
        pulls.retain(|pull| !pull.left.is_empty());
        self.known.pulls = pulls;
    }

    async fn pin(&mut self, version: Name) {
        let now = self.now;
        if !self.known.pinned.remove(&version) {
            let done = self.order(None, async |site| {
                site.origin.db().pin_release(&os(), &version, "kept", "ci", now).await.expect("asked")
            });
            assert_eq!(done.await, Some(true));
            self.known.pinned.insert(version);
        } else {
            let done = self.order(None, async |site| {
                site.origin.db().unpin_release(&os(), &version, now).await.expect("asked")
            });
            assert_eq!(done.await, Some(true));
        }
    }

    async fn collect(&mut self, polls: Option<u64>) {
        let keep = 2 + self.random.below(4) as u32;
        let retention = Retention { keep: Some(keep), days: None, may_empty: false };
        let (by, now) = (MoveBy::origin(), self.now);
        let set =
            self.order(None, async |site| site.origin.set_retention(&os(), retention, &by).await.is_ok());
        if set.await == Some(true) {
            self.known.keep = Some(keep);
        }
        let Some(keep) = self.known.keep else { return };
        // The newest by number, which commits give in their order, and what is used, must stay.
        let live = self.site().origin.db().releases(&os()).await.expect("read");
        let newest: BTreeSet<Name> = live.iter().take(keep as usize).map(|row| row.version.clone()).collect();
        let done = self
            .order(polls, async |site| site.origin.collect(REMOVALS_MAX, &by, now).await.expect("collected"))
            .await;
        for version in self.versions() {
            let used =
                self.known.pinned.contains(&version) || self.known.channels.values().any(|at| *at == version);
            if newest.contains(&version) || used {
                continue;
            }
            let pulls = std::mem::take(&mut self.known.pulls);
            self.known.doubt(&version);
            self.known.pulls = pulls;
        }
        let left = self.site().origin.db().releases(&os()).await.expect("read");
        assert!(done.is_none() || !left.is_empty() || live.is_empty(), "the product is not emptied");
    }

    /// The grace of what was removed so far is over.
    async fn finish(&mut self, polls: Option<u64>) {
        self.now = self.now.max(distd_peer::clock::unix_now() as i64) + GRACE + 1;
        let now = self.now;
        let unknown = &self.known.unknown;
        self.known.pulls.retain(|pull| !unknown.contains(&pull.version));
        self.order(polls, async |site| site.origin.finish_removals(now).await.expect("finished")).await;
    }

    async fn compact(&mut self, polls: Option<u64>) {
        self.now += 24 * 3600;
        let now = self.now;
        self.order(polls, async |site| site.origin.ingest().compact(now).await.expect("compacts")).await;
        // Uploads end a day after their last chunk; the model's stay open as long as it likes.
    }

    /// All that must be there is there.
    async fn check(&self, what: &str) {
        let site = self.site();
        let losses = site.origin.ingest().look_for_losses().await.expect("looked");
        assert!(losses.is_empty(), "{what}: {losses:?}");
        let rows: BTreeMap<Name, ManifestId> = site.rows().await.into_iter().collect();
        for (version, manifest) in &self.known.safe {
            assert_eq!(rows.get(version), Some(manifest), "{what}: {version} is there");
        }
        for (version, manifest) in &rows {
            assert!(site.is_whole(manifest).await, "{what}: {version} can be read");
        }
        for (version, (upload, chunks)) in &self.known.uploads {
            let missing = site.origin.ingest().missing(upload, &hashes(chunks)).await.expect("asked");
            assert!(missing.is_empty(), "{what}: the upload of {version} has what was sent");
        }
    }

    /// After everything is over, space is what the chunks need.
    async fn space(&mut self) {
        for upload in std::mem::take(&mut self.known.uploads).into_values() {
            self.site().origin.ingest().abort(&upload.0).await.expect("aborted");
        }
        self.finish(None).await;
        for _ in 0..3 {
            self.compact(None).await;
            self.site().origin.ingest().sweep_everything(i64::MAX / 2).await.expect("swept");
        }
        self.check("at the end").await;
        let usage = self.site().origin.db().pack_usage().await.expect("summed");
        let mut needed = BTreeSet::new();
        for (_, manifest) in self.site().rows().await {
            needed.extend(self.site().entries(&manifest).await.into_iter().map(|(id, _)| id));
        }
        assert_eq!(usage.chunks, needed.len() as u64, "every chunk that is stored is needed");
        // The index of a pack of a few small chunks is small too.
        let bound = usage.live * 11 / 10 + usage.packs * 100;
        assert!(usage.bytes <= bound, "{usage:?}");
    }
}

async fn run(seed: u64, steps: u64) {
    let directory = tempfile::tempdir().expect("tempdir");
    let site = Site::open(directory.path()).await;
    let now = distd_peer::clock::unix_now() as i64;
    let random = Random(seed);
    let mut run = Run { site: Some(site), known: Known::default(), random, next: 0, now };
    for step in 0..steps {
        // One order in four is cut off, anywhere.
        let polls = (run.random.below(4) == 0).then(|| run.random.below(60));
        run.step(polls).await;
        run.check(&format!("seed {seed}, step {step}, polls {polls:?}")).await;
    }
    run.space().await;
}

/// `DISTD_TEST_RNG_SEED` chooses the first seed, `DISTD_TEST_ROUNDS` how many there are.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_in_whatever_order_nothing_needed_is_gone() {
    let number = |key| std::env::var(key).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("DISTD_TEST_RNG_SEED").unwrap_or(1);
    for seed in first..first + number("DISTD_TEST_ROUNDS").unwrap_or(4) {
        eprintln!("seed {seed}: DISTD_TEST_RNG_SEED={seed} DISTD_TEST_ROUNDS=1 runs it again");
        run(seed, 60).await;
    }
}
