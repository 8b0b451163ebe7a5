//! Withdrawal and removal of releases, and removal of channels.
//!
//! A withdrawn release is marked in its row and then taken out of the signed list; its bytes stay,
//! and it can be brought back. A removed release is withdrawn, and after a grace its rows and
//! objects are deleted. So no device is ever told of an object that is not there, and a start
//! continues from any step.

use std::collections::BTreeSet;

use distd_core::ManifestId;
use distd_core::names::Name;
use distd_core::ranges::ChunkRanges;
use distd_peer::clock::unix_now;

use super::publish::custom_of;
use super::{Origin, signed};
use crate::db::{DbError, Division, Leaving, MoveBy, ReleaseRow, UnixSeconds, Unless, Withdraw};
use crate::ingest::IngestError;
use crate::tuf::{Change, Listed, PublishError};

/// Releases and patch sets that one transaction removes.
const AT_ONCE: usize = 500;

/// Error of a withdrawal or a removal. One that has begun is continued later.
#[derive(Debug, thiserror::Error)]
pub enum WithdrawError {
    /// No such release.
    #[error("{product} has no release {version}")]
    UnknownRelease {
        /// The product.
        product: Name,
        /// The version.
        version: Name,
    },
    /// No such release that is withdrawn.
    #[error("{product} has no withdrawn release {version}")]
    NotWithdrawn {
        /// The product.
        product: Name,
        /// The version.
        version: Name,
    },
    /// Channels point to it.
    #[error("channels point to {product}@{version}")]
    InUse {
        /// The product.
        product: Name,
        /// The version.
        version: Name,
        /// The channels.
        channels: Vec<Name>,
    },
    /// It is pinned.
    #[error("{product}@{version} is pinned: {why}")]
    Pinned {
        /// The product.
        product: Name,
        /// The version.
        version: Name,
        /// Why it is pinned.
        why: String,
    },
    /// Nodes run it.
    #[error("{nodes} nodes run {product}@{version} or are to run it")]
    Running {
        /// The product.
        product: Name,
        /// The version.
        version: Name,
        /// Number of the nodes.
        nodes: u64,
    },
    /// Releases come to the channel by rollouts that a second token approves.
    #[error("releases come to {product}:{channel} by rollouts that a second token approves")]
    NeedsApproval {
        /// The product.
        product: Name,
        /// The channel.
        channel: Name,
    },
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The list could not be signed.
    #[error("could not change the signed list of releases")]
    Publish(#[from] PublishError),
    /// Reading manifests or deleting objects failed.
    #[error("could not give the space of releases back")]
    Ingest(#[from] IngestError),
}

/// Order to remove a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoveOrder {
    /// Conditions besides channels and rollouts.
    pub unless: Unless,
    /// Whether its bytes go at once, without the grace.
    pub now: bool,
}

fn marked(outcome: Withdraw, product: &Name, version: &Name) -> Result<ReleaseRow, WithdrawError> {
    let (product, version) = (product.clone(), version.clone());
    match outcome {
        Withdraw::Marked(release) => Ok(release),
        Withdraw::Unknown => Err(WithdrawError::UnknownRelease { product, version }),
        Withdraw::InUse(channels) => Err(WithdrawError::InUse { product, version, channels }),
        Withdraw::Pinned(why) => Err(WithdrawError::Pinned { product, version, why }),
        Withdraw::Running(nodes) => Err(WithdrawError::Running { product, version, nodes }),
    }
}

impl Origin {
    /// Withdraws a release in the name of `by`: the signed metadata no longer lists it, and its
    /// bytes stay.
    ///
    /// # Errors
    /// [`WithdrawError`].
    pub async fn withdraw_release(
        &self,
        product: &Name,
        version: &Name,
        by: &MoveBy,
    ) -> Result<(), WithdrawError> {
        let _turn = self.publishing.lock().await;
        let now = signed(unix_now());
        let outcome = self.db.acting(by, now).mark_withdrawn(product, version, now).await?;
        let release = marked(outcome, product, version)?;
        self.delist(std::slice::from_ref(&release), []).await
    }

    /// Lists a withdrawn release again in the name of `by`, also one whose removal has begun and
    /// whose bytes are still there.
    ///
    /// # Errors
    /// [`WithdrawError`].
    pub async fn bring_back_release(
        &self,
        product: &Name,
        version: &Name,
        by: &MoveBy,
    ) -> Result<(), WithdrawError> {
        let _turn = self.publishing.lock().await;
        let now = signed(unix_now());
        let none = || WithdrawError::NotWithdrawn { product: product.clone(), version: version.clone() };
        let held = self.db.held_release(product, version).await?.ok_or_else(none)?;
        // Before the row counts again: a release whose manifest is lost cannot be listed.
        let root_node = self.ingest.manifest(&held.row.manifest).await?.root_bytes().clone();
        let release = self.db.acting(by, now).bring_back(product, version, now).await?.ok_or_else(none)?;
        let set = Change::SetRelease {
            product: product.clone(),
            version: version.clone(),
            root_node,
            custom: custom_of(&release),
        };
        let patches = self.patches_change(product).await?;
        self.repository.apply(vec![set, patches], unix_now()).await?;
        self.db.mark_published(product, version, now).await?;
        self.queue_for_release(&release).await;
        Ok(())
    }

    /// Removes a release in the name of `by`: it is withdrawn, and after the grace the objects that
    /// nothing else needs are deleted.
    ///
    /// # Errors
    /// [`WithdrawError`].
    pub async fn remove_release(
        &self,
        product: &Name,
        version: &Name,
        order: RemoveOrder,
        by: &MoveBy,
    ) -> Result<(), WithdrawError> {
        let turn = self.publishing.lock().await;
        let now = signed(unix_now());
        let outcome = self.db.acting(by, now).mark_removing(product, version, order.unless, now).await?;
        let release = marked(outcome, product, version)?;
        self.delist(std::slice::from_ref(&release), []).await?;
        drop(turn);
        if order.now || self.gc.grace.is_zero() {
            self.free(Leaving { releases: vec![release], sets: Vec::new() }).await?;
        }
        Ok(())
    }

    /// Ends the removal of this version at once, if one is under way: a publisher pushes it again.
    ///
    /// # Errors
    /// [`WithdrawError`].
    pub async fn make_way(&self, product: &Name, version: &Name) -> Result<(), WithdrawError> {
        let is_it = |row: &ReleaseRow| row.product == *product && row.version == *version;
        if self.db.held_release(product, version).await?.is_none_or(|held| held.removing.is_none()) {
            return Ok(());
        }
        let turn = self.publishing.lock().await;
        let mut releases = self.db.removing(i64::MAX).await?;
        releases.retain(is_it);
        self.delist(&releases, []).await?;
        drop(turn);
        self.free(Leaving { releases, sets: Vec::new() }).await
    }

    /// Takes what an earlier run began to withdraw out of the signed list. Bytes go later, when the
    /// origin looks after its space: a command that only mends frees none.
    pub(super) async fn resume_withdrawals(&self, listed: &Listed) -> Result<(), WithdrawError> {
        let _turn = self.publishing.lock().await;
        let listed: BTreeSet<_> =
            listed.releases.iter().map(|release| (&release.product, &release.version)).collect();
        let pointed_to: BTreeSet<_> =
            self.db.channels().await?.into_iter().map(|channel| (channel.product, channel.version)).collect();
        let mut left = Vec::new();
        for row in self.db.withdrawn().await? {
            let (product, version) = (&row.product, &row.version);
            if pointed_to.contains(&(product.clone(), version.clone())) {
                // An older database came back: the release was brought back since, and the signed
                // channel leads devices to it.
                let now = signed(unix_now());
                self.db.bring_back(product, version, now).await?;
                tracing::warn!(%product, %version, "a channel points to the withdrawn release: it counts again");
            } else if listed.contains(&(product, version)) {
                tracing::info!(%product, %version, "a withdrawal goes on");
                left.push(row);
            }
        }
        if left.is_empty() { Ok(()) } else { self.delist(&left, []).await }
    }

    /// Frees the bytes of releases and patch sets whose grace is over at `now`.
    ///
    /// # Errors
    /// [`WithdrawError`]; what is left is done next time.
    pub async fn finish_removals(&self, now: UnixSeconds) -> Result<(), WithdrawError> {
        let until = now.saturating_sub(signed(self.gc.grace.as_secs()));
        if self.db.oldest_removal().await?.is_none_or(|oldest| oldest > until) {
            return Ok(());
        }
        self.spare_what_is_run(until).await?;
        let turn = self.publishing.lock().await;
        let releases = self.db.removing(until).await?;
        let sets: Vec<_> = self.db.sets_removing(until).await?.into_iter().map(|row| row.key).collect();
        // A removal whose mark is in the database may be listed still: the process may have ended
        // in between.
        self.delist(&releases, sets.iter().map(|key| &key.product)).await?;
        // Reading manifests takes minutes in a large store, and a rollout may have to be halted.
        drop(turn);
        for releases in releases.chunks(AT_ONCE) {
            self.free(Leaving { releases: releases.to_vec(), sets: Vec::new() }).await?;
        }
        for sets in sets.chunks(AT_ONCE) {
            self.free(Leaving { releases: Vec::new(), sets: sets.to_vec() }).await?;
        }
        Ok(())
    }

    /// Brings back the releases that a policy has given up and that nodes have come to run since:
    /// a node may install what older metadata lists, and needs the release as the base of its next
    /// update.
    async fn spare_what_is_run(&self, until: UnixSeconds) -> Result<(), WithdrawError> {
        for ReleaseRow { product, version, .. } in self.db.removing_but_run(until).await? {
            tracing::info!(%product, %version, "a node runs the release that was to be removed: it counts again");
            self.bring_back_release(&product, &version, &MoveBy::origin()).await?;
        }
        Ok(())
    }

    /// Takes releases, and the patch sets that are marked of their products and of others, out of
    /// the signed lists. The caller holds the turn of publications.
    pub(super) async fn delist<'a>(
        &self,
        releases: &'a [ReleaseRow],
        others: impl IntoIterator<Item = &'a Name>,
    ) -> Result<(), WithdrawError> {
        let products: BTreeSet<&Name> =
            releases.iter().map(|release| &release.product).chain(others).collect();
        let mut changes = Vec::new();
        for product in products {
            changes.push(self.patches_change(product).await?);
        }
        changes.extend(releases.iter().map(|release| Change::RemoveRelease {
            product: release.product.clone(),
            version: release.version.clone(),
        }));
        self.repository.apply(changes, unix_now()).await?;
        Ok(())
    }

    /// Deletes rows and objects of releases and patch sets that are marked and not listed. One that
    /// was brought back meanwhile stays: bringing back takes the lock of this removal's last step.
    pub(super) async fn free(&self, leaving: Leaving) -> Result<(), WithdrawError> {
        if leaving.is_empty() {
            return Ok(());
        }
        // As much as possible is read without the lock that commits take: the other manifests may
        // be many.
        let mut seen = BTreeSet::new();
        let mut free = ChunkRanges::new();
        let Division { unneeded, needed } = self.db.begin_removal(leaving.clone()).await?.divide().await?;
        for manifest in &unneeded {
            // The chunks of a lost manifest stay.
            free.extend(&self.ingest.manifest_chunks(manifest).await?.unwrap_or_default());
        }
        let mut is_known = self.subtract(&mut free, &needed, &mut seen).await?;
        let mut tx = self.db.begin_removal(leaving).await?;
        // Manifests that were committed meanwhile. The store is read under the lock, the database
        // is not asked.
        let before = unneeded;
        let Division { unneeded, needed } = tx.divide().await?;
        is_known &= self.subtract(&mut free, &needed, &mut seen).await?;
        // Patch sets that were made meanwhile, from or to a release that goes.
        let mut more = ChunkRanges::new();
        for manifest in unneeded.difference(&before) {
            more.extend(&self.ingest.manifest_chunks(manifest).await?.unwrap_or_default());
        }
        is_known &= self.subtract(&mut more, &needed, &mut BTreeSet::new()).await?;
        if !is_known {
            // The rows stay, so that the chunks are found once the manifest is there again.
            tracing::error!("nothing is freed while a manifest is lost: distd-server fsck says which");
            return Ok(());
        }
        free.extend(&more);
        let unneeded: Vec<ManifestId> = unneeded.into_iter().collect();
        let chunks: Vec<_> = free.ids().collect();
        let objects = tx.finish(&chunks).await?;
        self.ingest.compaction().wake();
        self.ingest.delete_all(&objects).await?;
        self.ingest.delete_unnamed_manifests(&unneeded).await?;
        Ok(())
    }

    /// Takes the chunks of `needed` out of `free`, as far as they were not `seen` before. `false`
    /// when a needed manifest is lost: its chunks are not known, and nothing may go.
    async fn subtract(
        &self,
        free: &mut ChunkRanges,
        needed: &BTreeSet<ManifestId>,
        seen: &mut BTreeSet<ManifestId>,
    ) -> Result<bool, IngestError> {
        for manifest in needed {
            if free.is_empty() || !seen.insert(*manifest) {
                continue;
            }
            match self.ingest.manifest_chunks(manifest).await? {
                Some(chunks) => *free = free.difference(&chunks),
                None => {
                    tracing::warn!(id = %manifest, "the manifest of another release is lost: no chunk is deleted");
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Removes a channel in the name of `by`; `false` when there is none.
    ///
    /// # Errors
    /// [`WithdrawError`].
    pub async fn remove_channel(
        &self,
        product: &Name,
        channel: &Name,
        by: &MoveBy,
    ) -> Result<bool, WithdrawError> {
        let _turn = self.publishing.lock().await;
        if self.db.channel(product, channel).await?.is_none() {
            return Ok(false);
        }
        if self.db.needs_approval(product, channel).await? {
            let (product, channel) = (product.clone(), channel.clone());
            return Err(WithdrawError::NeedsApproval { product, channel });
        }
        self.end_rollout(product, channel, "the channel was removed", by).await?;
        // The channel leaves the signed list first: if the row stays, the next start lists the
        // channel again, and nothing was promised.
        let (product_name, channel_name) = (product.clone(), channel.clone());
        let change = Change::RemoveChannel { product: product_name, channel: channel_name };
        let now = unix_now();
        self.repository.apply(vec![change], now).await?;
        Ok(self.db.remove_channel(product, channel, by, signed(now)).await?)
    }
}
