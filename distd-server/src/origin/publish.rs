//! From rows to signed metadata: the last step of a release, and the moves of channels.

use std::collections::BTreeSet;

use distd_core::names::Name;
use distd_peer::clock::unix_now;
use distd_peer::trust::tuf::ChannelDoc;
use serde_json::{Map, Value, json};

use super::{Comparison, Origin, signed};
use crate::db::{ChannelRow, DbError, ReleaseRow, SetChannelOutcome};
use crate::ingest::{CommitResult, IngestError};
use crate::tuf::{Change, Listed, PublishError};

/// Why a channel was not moved.
#[derive(Debug, thiserror::Error)]
pub enum SetChannelError {
    /// No such release.
    #[error("{product} has no release {version}")]
    UnknownRelease {
        /// The product.
        product: Name,
        /// The version.
        version: Name,
    },
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The channel is moved in the database but not signed yet: the same call again, or a restart, signs it.
    #[error("could not publish the channel")]
    Publish(#[from] PublishError),
}

/// Why a commit was not published. The release is committed: the same call again, or a restart, publishes it.
#[derive(Debug, thiserror::Error)]
pub enum PublishReleaseError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Signing or storing the metadata failed.
    #[error("the release is stored but could not be published; push it again")]
    Publish(#[from] PublishError),
}

fn custom_of(release: &ReleaseRow) -> Map<String, Value> {
    let custom = json!({
        "manifest": release.manifest.to_string(),
        "blake3": release.blake3.to_string(),
        "bytes": release.bytes,
    });
    match custom {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

impl Origin {
    /// Publishes a committed release; one that was published before stays as it is.
    ///
    /// # Errors
    /// [`PublishReleaseError`].
    pub async fn publish_release(&self, committed: &CommitResult) -> Result<(), PublishReleaseError> {
        let ReleaseRow { product, version, .. } = &committed.release;
        if committed.release.published.is_some() {
            return Ok(());
        }
        let _turn = self.publishing.lock().await;
        let now = unix_now();
        let custom = custom_of(&committed.release);
        self.repository.publish_release(product, version, committed.root.clone(), custom, now).await?;
        self.db.mark_published(product, version, signed(now)).await?;
        self.queue_for_release(&committed.release).await;
        Ok(())
    }

    /// Points a channel to a release of its product.
    ///
    /// # Errors
    /// [`SetChannelError`].
    pub async fn set_channel(
        &self,
        product: &Name,
        channel: &Name,
        version: &Name,
    ) -> Result<(ChannelRow, ReleaseRow), SetChannelError> {
        let unknown =
            || SetChannelError::UnknownRelease { product: product.clone(), version: version.clone() };
        let _turn = self.publishing.lock().await;
        let now = unix_now();
        let release = self.db.release(product, version).await?.ok_or_else(unknown)?;
        let before = self.db.channel(product, channel).await?;
        let row = match self.db.set_channel(product, channel, version, signed(now)).await? {
            SetChannelOutcome::Set(row) | SetChannelOutcome::Unchanged(row) => row,
            SetChannelOutcome::UnknownRelease => return Err(unknown()),
        };
        let change = channel_change(&row, &release);
        self.repository.apply(vec![change], now).await?;
        self.queue_for_move(before.as_ref().map(|before| &before.version), &release).await;
        Ok((row, release))
    }

    /// Makes the signed metadata what the rows say: publishes what an earlier run committed and did not get to publish,
    /// and what another process lost from the list.
    pub(super) async fn publish_pending(&self, listed: &Listed) -> Result<(), super::OpenError> {
        let now = unix_now();
        let (mut changes, mut publishable) = (Vec::new(), Vec::new());
        self.take_over_channels(listed).await?;
        let mut believed: BTreeSet<(Name, Name)> =
            listed.releases.iter().map(|r| (r.product.clone(), r.version.clone())).collect();
        let pending = Comparison::of(listed, self.db.all_releases().await?, Vec::new()).unlisted;
        for release in &pending {
            if release.published.is_some() {
                let (product, version) = (&release.product, &release.version);
                tracing::warn!(%product, %version, "the release was published once and is not listed: listed again");
            }
            let root_node = match self.ingest.manifest(&release.manifest).await {
                Ok(manifest) => manifest.root_bytes().clone(),
                Err(IngestError::MissingManifest(id)) => {
                    tracing::error!(%id, "a committed release has no manifest and is not published");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            believed.insert((release.product.clone(), release.version.clone()));
            publishable.push(release);
            changes.push(Change::SetRelease {
                product: release.product.clone(),
                version: release.version.clone(),
                root_node,
                custom: custom_of(release),
            });
        }
        // Setting a channel to what it is changes nothing, so all of them are set.
        for row in self.db.channels().await? {
            let listed = believed.contains(&(row.product.clone(), row.version.clone()));
            if let Some(release) = self.db.release(&row.product, &row.version).await?.filter(|_| listed) {
                changes.push(channel_change(&row, &release));
            }
        }
        // And so are the lists of patch sets.
        for product in self.db.products().await? {
            changes.push(self.patches_change(&product.name).await?);
        }
        if !changes.is_empty() {
            self.repository.apply(changes, now).await?;
        }
        // One without its manifest stays unpublished: pushing the same bytes again heals and publishes it.
        for release in publishable {
            self.db.mark_published(&release.product, &release.version, signed(now)).await?;
            self.queue_for_release(release).await;
        }
        Ok(())
    }
}

impl Origin {
    /// Takes channels over that were moved after the database was saved: a device must not see one go back.
    async fn take_over_channels(&self, listed: &Listed) -> Result<(), DbError> {
        for doc in &listed.channels {
            let (product, channel) = (&doc.product, &doc.channel);
            let row = self.db.channel(product, channel).await?;
            if row.is_none_or(|row| row.counter < doc.counter) {
                tracing::warn!(
                    %product, %channel, version = %doc.version, counter = doc.counter,
                    "the channel is signed with a later change than the database has: taken over"
                );
                let now = signed(unix_now());
                self.db.take_over_channel(product, channel, &doc.version, doc.counter, now).await?;
            }
        }
        Ok(())
    }
}

fn channel_change(row: &ChannelRow, release: &ReleaseRow) -> Change {
    let doc = ChannelDoc {
        product: row.product.clone(),
        channel: row.channel.clone(),
        version: row.version.clone(),
        manifest: release.manifest,
        counter: row.counter,
        extra: Map::new(),
    };
    let json = serde_json::to_vec(&doc).expect("names and numbers always encode");
    Change::SetChannel { product: row.product.clone(), channel: row.channel.clone(), json: json.into() }
}
