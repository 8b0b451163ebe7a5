//! Choice of the patch sets that are made, and their publication.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use distd_core::ManifestId;
use distd_core::error::Chain;
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use distd_peer::trust::tuf::{PatchSetRef, PatchesDoc};
use tokio_util::sync::CancellationToken;

use super::{Origin, signed};
use crate::db::{DbError, PatchSetRow, PatchSetState, ReleaseRow, SetKind};
use crate::patches::{AGAIN, NextError};
use crate::tuf::{Change, PATCHES_BYTES_MAX, PublishError};

/// Most sets listed for a product: every device reads the list.
pub(super) const SETS_MAX: u32 = 64;

/// Time between two looks for sets that workers have made.
const LIST_EVERY: Duration = Duration::from_secs(2);

/// Error of queuing a set.
#[derive(Debug, thiserror::Error)]
pub enum RequestPatchesError {
    /// This origin makes none.
    #[error("this origin makes no patches")]
    Disabled,
    /// No such release.
    #[error("{product} has no release {version}")]
    UnknownRelease {
        /// The product.
        product: Name,
        /// The version.
        version: Name,
    },
    /// Both are the same bytes.
    #[error("{from} and {to} are the same bytes: there is nothing to patch")]
    Same {
        /// The version to start from.
        from: Name,
        /// The version to get.
        to: Name,
    },
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Error that stopped the queue for a while, or a list from being signed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListPatchesError {
    #[error("the database failed")]
    Db(#[from] DbError),
    #[error("a patch set is made but could not be published: it is tried again")]
    Publish(#[from] PublishError),
}

impl Origin {
    /// Queues the set between two versions of a product, or from nothing to one. Returns its row,
    /// and whether it was queued now: one that was made or is on its way is found.
    ///
    /// # Errors
    /// [`RequestPatchesError`].
    pub async fn request_patches(
        &self,
        product: &Name,
        from: Option<&Name>,
        to: &Name,
        by: &str,
    ) -> Result<(PatchSetRow, bool), RequestPatchesError> {
        if !self.patches.options().enabled {
            return Err(RequestPatchesError::Disabled);
        }
        let find = async |version: &Name| {
            let found = self.db.release(product, version).await?;
            found.ok_or_else(|| RequestPatchesError::UnknownRelease {
                product: product.clone(),
                version: version.clone(),
            })
        };
        let Some(from) = from else { return Ok(self.queue(None, &find(to).await?, by).await?) };
        let (old, new) = (find(from).await?, find(to).await?);
        if old.manifest == new.manifest {
            return Err(RequestPatchesError::Same { from: from.clone(), to: to.clone() });
        }
        Ok(self.queue(Some(&old), &new, by).await?)
    }

    pub(super) async fn queue(
        &self,
        old: Option<&ReleaseRow>,
        new: &ReleaseRow,
        by: &str,
    ) -> Result<(PatchSetRow, bool), DbError> {
        let queued = self.db.queue_patch_set(old, new, by, signed(unix_now())).await?;
        if queued.1 {
            let from = old.map(|old| old.version.as_str());
            tracing::info!(product = %new.product, from, to = %new.version, by, "patch set queued");
            if queued.0.state == PatchSetState::Ready {
                // It was on its way out, and is listed again by the maker, which takes a turn of
                // publications of its own.
                self.relist(&new.product);
            }
            self.patches.wake(queued.0.key.kind());
        }
        Ok(queued)
    }

    /// Queues the sets that a new release should have: from the releases to which the product's
    /// channels point, or without channels from the release before it; and from nothing. A failure
    /// here is logged: the release itself stands.
    pub(super) async fn queue_for_release(&self, release: &ReleaseRow) {
        if let Err(error) = self.try_queue_for_release(release).await {
            tracing::warn!(error = %Chain(&error), "no patch sets were queued for a release");
        }
    }

    async fn try_queue_for_release(&self, release: &ReleaseRow) -> Result<(), DbError> {
        if !self.patches.options().enabled {
            return Ok(());
        }
        let mut channels = self.db.channels().await?;
        channels.retain(|channel| channel.product == release.product);
        let mut from = Vec::new();
        for channel in &channels {
            from.extend(self.db.release(&channel.product, &channel.version).await?);
        }
        if channels.is_empty() {
            let before = |row: &ReleaseRow| row.version != release.version && row.created <= release.created;
            from.extend(self.db.releases(&release.product).await?.into_iter().find(before));
        }
        for old in from {
            if old.manifest != release.manifest {
                self.queue(Some(&old), release, "release").await?;
            }
        }
        if self.patches.options().solid_sets {
            self.queue(None, release, "release").await?;
        }
        Ok(())
    }

    /// Queues the set that devices on a channel need when it moves. A failure is logged: the
    /// channel has moved.
    pub(super) async fn queue_for_move(&self, before: Option<&Name>, release: &ReleaseRow) {
        if let Err(error) = self.try_queue_for_move(before, release).await {
            tracing::warn!(error = %Chain(&error), "no patch set was queued for a channel");
        }
    }

    async fn try_queue_for_move(&self, before: Option<&Name>, release: &ReleaseRow) -> Result<(), DbError> {
        let Some(before) = before.filter(|_| self.patches.options().enabled) else { return Ok(()) };
        let old = self.db.release(&release.product, before).await?;
        if let Some(old) = old.filter(|old| old.manifest != release.manifest) {
            self.queue(Some(&old), release, "channel").await?;
        }
        Ok(())
    }

    /// Makes queued sets, one of each kind after the other, until `stop` is cancelled.
    /// Returns at once where patches are off.
    pub async fn make_patches(self: Arc<Self>, stop: CancellationToken) {
        if self.patches.options().enabled {
            tokio::join!(self.make_all(SetKind::Pair, &stop), self.make_all(SetKind::Solid, &stop));
        }
    }

    async fn make_all(&self, kind: SetKind, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            let relist = std::mem::take(&mut *self.relist.lock().unwrap_or_else(PoisonError::into_inner));
            self.list_again(relist).await;
            let wait = match self.make_next(kind, stop).await {
                Ok(true) => continue,
                Ok(false) => AGAIN,
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "no patches are made for a while");
                    // A newly queued set must not end this wait: it does not make the database
                    // answer.
                    tokio::select! {
                        () = tokio::time::sleep(AGAIN) => continue,
                        () = stop.cancelled() => return,
                    }
                }
            };
            tokio::select! {
                () = self.patches.woken(kind) => {}
                // Another process may have queued something.
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Makes and publishes the next set of a kind; `false` when nothing waits or it was told to
    /// stop.
    async fn make_next(&self, kind: SetKind, stop: &CancellationToken) -> Result<bool, ListPatchesError> {
        match self.patches.make_next(kind, stop).await {
            Ok(Some((product, made))) => {
                if made.set.is_some() {
                    self.publish_patches(&product).await?;
                }
                Ok(true)
            }
            Ok(None) => Ok(true),
            Err(NextError::Empty) => Ok(false),
            Err(NextError::Db(error)) => Err(error.into()),
        }
    }

    /// Lists the sets that workers have made, as they come, until `stop` is cancelled.
    pub async fn list_sets_of_workers(&self, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LIST_EVERY) => {}
                () = stop.cancelled() => return,
            }
            match self.db.products_to_list().await {
                Ok(products) => self.list_again(products).await,
                Err(error) => tracing::warn!(error = %Chain(&error), "new patch sets could not be read"),
            }
        }
    }

    /// Signs the lists of products anew. A failure is logged.
    async fn list_again(&self, products: impl IntoIterator<Item = Name>) {
        for product in products {
            if let Err(error) = self.publish_patches(&product).await {
                tracing::error!(error = %Chain(&error), "patch sets could not be listed again");
            }
        }
    }

    /// Has the maker sign the list of a product anew at its next turn.
    fn relist(&self, product: &Name) {
        self.relist.lock().unwrap_or_else(PoisonError::into_inner).insert(product.clone());
    }

    /// Signs the list of a product's sets. One that fails is tried again at the maker's next turn.
    async fn publish_patches(&self, product: &Name) -> Result<(), ListPatchesError> {
        let _turn = self.publishing.lock().await;
        self.list_patches(product).await.inspect_err(|_| self.relist(product))
    }

    /// Signs the list of a product's sets. The caller holds the turn of publications.
    pub(super) async fn list_patches(&self, product: &Name) -> Result<(), ListPatchesError> {
        // Read before the list is made, which then has them.
        let new = self.db.sets_to_list(product).await?;
        let change = self.patches_change(product).await?;
        self.repository.apply(vec![change], unix_now()).await?;
        Ok(self.db.sets_are_listed(&new).await?)
    }

    /// The list of a product's sets as devices are to see it.
    pub(super) async fn patches_change(&self, product: &Name) -> Result<Change, DbError> {
        // Sets from or to a release that is on its way out go with it.
        let releases: BTreeSet<ManifestId> =
            self.db.releases(product).await?.into_iter().map(|release| release.manifest).collect();
        let stays = |row: &PatchSetRow| {
            let from = row.key.from == ManifestId::NOTHING || releases.contains(&row.key.from);
            from && releases.contains(&row.key.to)
        };
        let rows = self.db.patch_sets_usable(product, SETS_MAX).await?.into_iter().filter(stays);
        let set = |row: PatchSetRow| {
            let bytes = row.bytes;
            row.set.map(|set| PatchSetRef { from: row.key.from, to: row.key.to, set, bytes })
        };
        let mut doc = PatchesDoc { product: product.clone(), sets: rows.filter_map(set).collect() };
        loop {
            let json = serde_json::to_vec(&doc).expect("names and numbers always encode");
            if json.len() <= PATCHES_BYTES_MAX {
                return Ok(Change::SetPatches { product: product.clone(), json: json.into() });
            }
            // The oldest goes.
            doc.sets.pop();
        }
    }
}
