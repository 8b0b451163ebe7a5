//! Collection: releases that no policy, channel or node keeps are removed, and patch sets that
//! nobody can take.
//!
//! [`plan`] decides from what the database says; this file reads that, and carries it out.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use distd_core::ManifestId;
use distd_core::api::{GcLot, GcPatchSet, GcRelease, GcReport, Kept, Retention, RetentionSet, SetReason};
use distd_core::names::Name;
use distd_core::ranges::ChunkRanges;
use distd_peer::clock::unix_now;

use plan::Facts;
pub use plan::{Plan, SetVerdict, Verdict};

use super::withdraw::WithdrawError;
use super::{Origin, signed};
use crate::db::{DbError, MoveBy, PackUsage, PatchSetKey, UnixSeconds};
use crate::ingest::IngestError;

/// Settings of collections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcOptions {
    /// Time for which the bytes of a removed release or patch set stay, and a removal can be
    /// undone.
    pub grace: Duration,
    /// Time between two collections by the origin itself; zero: none.
    pub period: Duration,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { grace: Duration::from_secs(3600), period: Duration::from_secs(24 * 3600) }
    }
}

/// Releases that one transaction marks: other writers wait for it.
const MARKED_AT_ONCE: usize = 100;

/// Error of setting a policy.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// No such product.
    #[error("there is no product {0}")]
    UnknownProduct(Name),
    /// Nothing would be left.
    #[error("this policy would remove every release of {product}, {releases} of them")]
    WouldEmpty {
        /// The product.
        product: Name,
        /// Number of its releases.
        releases: u64,
    },
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Result of a collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Releases whose removal has begun.
    pub releases: u64,
    /// Patch sets whose removal has begun.
    pub patch_sets: u64,
    /// Releases that a later run removes.
    pub later: u64,
}

impl Origin {
    /// Settings of collections.
    pub fn gc_options(&self) -> GcOptions {
        self.gc
    }

    async fn facts(&self) -> Result<Facts, DbError> {
        Ok(Facts {
            releases: self.db.held_releases(None).await?,
            retention: self.db.retentions().await?,
            channels: self.db.channels().await?,
            uses: self.db.uses().await?,
            sets: self.db.sets_ready().await?,
        })
    }

    /// Plans a collection at `now` that removes at most `removals_max` releases.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn gc_plan(&self, removals_max: u32, now: UnixSeconds) -> Result<Plan, DbError> {
        Ok(plan::plan(self.facts().await?, removals_max, now))
    }

    /// Removes what no policy, channel or node keeps, in the name of `by`: at most `removals_max`
    /// releases, and patch sets that nobody can take. Frees what the grace does not hold.
    ///
    /// # Errors
    /// [`WithdrawError`]; what is left is done by a later run.
    pub async fn collect(
        &self,
        removals_max: u32,
        by: &MoveBy,
        now: UnixSeconds,
    ) -> Result<Collected, WithdrawError> {
        let done = {
            let _turn = self.publishing.lock().await;
            let plan = self.gc_plan(removals_max, now).await?;
            let chosen: Vec<(Name, Name)> =
                plan.removed().map(|row| (row.product.clone(), row.version.clone())).collect();
            let mut marked = Vec::new();
            for chosen in chosen.chunks(MARKED_AT_ONCE) {
                marked.extend(self.db.acting(by, now).mark_all_removing(chosen, now).await?);
            }
            // The sets of a release go with it, and come back with it.
            let alone = plan.sets.iter().filter(|set| set.reason != SetReason::ReleaseGoes);
            let sets: Vec<PatchSetKey> = alone.map(|set| set.row.key.clone()).collect();
            self.db.mark_sets_removing(&sets, now).await?;
            if !marked.is_empty() || !sets.is_empty() {
                self.delist(&marked, sets.iter().map(|key| &key.product)).await?;
            }
            for row in &marked {
                let (product, version) = (&row.product, &row.version);
                tracing::info!(%product, %version, "removed: nothing keeps the release");
            }
            Collected {
                releases: marked.len() as u64,
                patch_sets: sets.len() as u64,
                later: plan.verdicts.iter().filter(|verdict| verdict.lot == GcLot::Later).count() as u64,
            }
        };
        self.finish_removals(now).await?;
        self.db.note_collection(now).await?;
        Ok(done)
    }

    /// Frees what the grace no longer holds, and collects when it is time. Returns the time until
    /// there is something to do again, seconds.
    ///
    /// # Errors
    /// [`WithdrawError`]; what is left is done next time.
    pub(super) async fn look_after_space(&self, now: UnixSeconds) -> Result<u64, WithdrawError> {
        self.finish_removals(now).await?;
        let (grace, period) = (signed(self.gc.grace.as_secs()), signed(self.gc.period.as_secs()));
        let mut next = i64::MAX;
        if period > 0 {
            let last = self.db.last_collection().await?;
            // A clock that was set back must not stop collections.
            if last > now || now - last >= period {
                let done = self.collect(distd_core::api::REMOVALS, &MoveBy::origin(), now).await?;
                if done != Collected::default() {
                    tracing::info!(?done, "collected");
                }
                // Releases that one run leaves over wait an hour, not a whole period.
                next = if done.later > 0 { period.min(3600) } else { period };
                self.db.note_collection(now - period + next).await?;
            } else {
                next = last + period - now;
            }
        }
        if let Some(oldest) = self.db.oldest_removal().await? {
            next = next.min(oldest.saturating_add(grace) - now);
        }
        Ok(u64::try_from(next).unwrap_or(0))
    }

    /// Sets the policy of a product in the name of `by`, and says what it removes.
    ///
    /// # Errors
    /// [`RetentionError`].
    pub async fn set_retention(
        &self,
        product: &Name,
        retention: Retention,
        by: &MoveBy,
    ) -> Result<RetentionSet, RetentionError> {
        let now = signed(unix_now());
        let mut facts = self.facts().await?;
        facts.retention = BTreeMap::from([(product.clone(), retention)]);
        facts.releases.retain(|release| release.row.product == *product);
        let plan = plan::plan(facts, u32::MAX, now);
        if plan.would_empty.contains(product) {
            let releases = plan.verdicts.iter().filter(|v| v.release.withdrawn.is_none()).count() as u64;
            return Err(RetentionError::WouldEmpty { product: product.clone(), releases });
        }
        if !self.db.acting(by, now).set_retention(product, Some(retention), now).await? {
            return Err(RetentionError::UnknownProduct(product.clone()));
        }
        let count = |lot| plan.verdicts.iter().filter(|verdict| verdict.lot == lot).count() as u64;
        Ok(RetentionSet { retention, keeps: count(GcLot::Keep), removes: count(GcLot::Remove) })
    }

    /// What a collection would do at `now`, with the bytes that it would free: reads every
    /// manifest.
    ///
    /// # Errors
    /// [`WithdrawError`].
    pub async fn gc_report(&self, removals_max: u32, now: UnixSeconds) -> Result<GcReport, WithdrawError> {
        let plan = self.gc_plan(removals_max, now).await?;
        let counted = self.count(&plan).await?;
        let usage = self.db.pack_usage().await?;
        let PackUsage { bytes, uploads, emptied, live, .. } = usage;
        let mut releases = Vec::new();
        for (verdict, unique) in plan.verdicts.iter().zip(&counted.unique) {
            let (_, unique_bytes) = self.db.chunks_cost(unique).await?;
            releases.push(shown_release(verdict, unique_bytes));
        }
        Ok(GcReport {
            releases,
            patch_sets: plan.sets.iter().map(shown_set).collect(),
            freed_bytes: self.db.chunks_cost(&counted.freed).await?.1,
            stored_bytes: bytes,
            live_bytes: live,
            dead_bytes: usage.dead(),
            emptied_bytes: emptied,
            upload_bytes: uploads,
            grace_seconds: self.gc.grace.as_secs(),
        })
    }

    /// Chunks that each release alone has, and those that go with what the plan removes.
    async fn count(&self, plan: &Plan) -> Result<Counted, IngestError> {
        // The chunks of a manifest that is lost are not known: they count as nobody's.
        let chunks = async |id: &ManifestId| {
            Ok::<_, IngestError>(self.ingest.manifest_chunks(id).await?.unwrap_or_default())
        };
        let mut all = Vec::with_capacity(plan.verdicts.len());
        let (mut once, mut again) = (ChunkRanges::new(), ChunkRanges::new());
        let (mut kept, mut going) = (ChunkRanges::new(), ChunkRanges::new());
        for verdict in &plan.verdicts {
            let own = chunks(&verdict.release.row.manifest).await?;
            again.extend(&once.intersection(&own));
            once.extend(&own);
            match verdict.lot {
                GcLot::Remove | GcLot::Removing => going.extend(&own),
                GcLot::Keep | GcLot::Later => kept.extend(&own),
            }
            all.push(own);
        }
        let gone: BTreeSet<&PatchSetKey> = plan.sets.iter().map(|set| &set.row.key).collect();
        for (key, manifest) in self.db.patch_sets_with_manifest().await? {
            let own = chunks(&manifest).await?;
            again.extend(&once.intersection(&own));
            once.extend(&own);
            if gone.contains(&key) { going.extend(&own) } else { kept.extend(&own) }
        }
        let unique = all.into_iter().map(|own| own.difference(&again)).collect();
        Ok(Counted { unique, freed: going.difference(&kept) })
    }
}

/// Chunks that [`Origin::count`] has counted.
struct Counted {
    /// Chunks that a release alone has, in the order of the plan.
    unique: Vec<ChunkRanges>,
    /// Chunks that nothing has after the collection.
    freed: ChunkRanges,
}

fn shown_release(verdict: &Verdict, unique_bytes: u64) -> GcRelease {
    let row = &verdict.release.row;
    let kept =
        verdict.kept.iter().map(|(reason, detail)| Kept { reason: (*reason).into(), detail: detail.clone() });
    GcRelease {
        product: row.product.to_string(),
        version: row.version.to_string(),
        lot: verdict.lot.into(),
        kept: kept.collect(),
        created: row.created,
        withdrawn: verdict.release.withdrawn,
        bytes: row.bytes,
        unique_bytes,
    }
}

fn shown_set(set: &SetVerdict) -> GcPatchSet {
    GcPatchSet {
        product: set.row.key.product.to_string(),
        from: set.row.from_version.as_ref().map(Name::to_string),
        to: set.row.to_version.to_string(),
        bytes: set.row.bytes,
        reason: set.reason.into(),
    }
}
