//! Withdrawal of releases, and removal of channels.
//!
//! A withdrawn release is marked in its row, then taken out of the signed list, and then its rows
//! and objects are deleted. So no device is ever told of an object that is not there, and a start
//! continues from any step.

use std::collections::BTreeSet;

use distd_core::ManifestId;
use distd_core::names::Name;
use distd_core::ranges::ChunkRanges;
use distd_peer::clock::unix_now;

use super::{Origin, signed};
use crate::db::{DbError, MoveBy, ReleaseRow, Withdraw};
use crate::ingest::IngestError;
use crate::tuf::{Change, PublishError};

/// Error of a withdrawal. A withdrawal that has begun is continued at the next start.
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
    #[error("could not take the release out of the signed list")]
    Publish(#[from] PublishError),
    /// Reading manifests or deleting objects failed.
    #[error("could not give the space of the release back")]
    Ingest(#[from] IngestError),
}

impl Origin {
    /// Withdraws a release in the name of `by`: the signed metadata no longer lists it, and objects
    /// that nothing else needs are deleted.
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
        let (product, version) = (product.clone(), version.clone());
        let now = signed(unix_now());
        match self.db.acting(by, now).mark_withdrawn(&product, &version, now).await? {
            Withdraw::Unknown => Err(WithdrawError::UnknownRelease { product, version }),
            Withdraw::InUse(channels) => Err(WithdrawError::InUse { product, version, channels }),
            Withdraw::Marked(release) => self.finish_withdrawal(&release).await,
        }
    }

    /// Goes on with what an earlier run began to withdraw.
    pub(super) async fn finish_withdrawals(&self) -> Result<(), WithdrawError> {
        let _turn = self.publishing.lock().await;
        for release in self.db.withdrawn().await? {
            let (product, version) = (&release.product, &release.version);
            tracing::info!(%product, %version, "a withdrawal goes on");
            self.finish_withdrawal(&release).await?;
        }
        Ok(())
    }

    async fn finish_withdrawal(&self, release: &ReleaseRow) -> Result<(), WithdrawError> {
        let (product, version) = (release.product.clone(), release.version.clone());
        let patches = self.patches_change(&product).await?;
        self.repository.apply(vec![patches, Change::RemoveRelease { product, version }], unix_now()).await?;

        // As much as possible is read without the lock that commits take: the other manifests may
        // be many.
        let mut seen = BTreeSet::new();
        let mut free = ChunkRanges::new();
        let (unneeded, needed) = {
            let mut tx = self.db.begin_withdrawal(release).await?;
            (tx.unneeded().await?, tx.needed().await?)
        };
        for manifest in &unneeded {
            // The chunks of a lost manifest stay.
            free.extend(&self.ingest.manifest_chunks(manifest).await?.unwrap_or_default());
        }
        self.subtract(&mut free, &needed, &mut seen).await?;
        let mut tx = self.db.begin_withdrawal(release).await?;
        // Manifests that were committed meanwhile. The store is read under the lock, the database
        // is not asked.
        let needed = tx.needed().await?;
        self.subtract(&mut free, &needed, &mut seen).await?;
        let unneeded: Vec<ManifestId> = unneeded.difference(&needed).copied().collect();
        let chunks: Vec<_> = free.ids().collect();
        let objects = tx.finish(&chunks).await?;
        self.ingest.compaction().wake();
        self.ingest.delete_all(&objects).await?;
        self.ingest.delete_unnamed_manifests(&unneeded).await?;
        Ok(())
    }

    /// Takes the chunks of `needed` out of `free`, as far as they were not `seen` before.
    ///
    /// A needed manifest that is lost keeps everything: its chunks are not known.
    async fn subtract(
        &self,
        free: &mut ChunkRanges,
        needed: &BTreeSet<ManifestId>,
        seen: &mut BTreeSet<ManifestId>,
    ) -> Result<(), IngestError> {
        for manifest in needed {
            if free.is_empty() || !seen.insert(*manifest) {
                continue;
            }
            match self.ingest.manifest_chunks(manifest).await? {
                Some(chunks) => *free = free.difference(&chunks),
                None => {
                    tracing::warn!(id = %manifest, "the manifest of another release is lost: no chunk is deleted");
                    *free = ChunkRanges::new();
                }
            }
        }
        Ok(())
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
