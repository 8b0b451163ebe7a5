//! From rows to signed metadata: the last step of a release, and the moves of channels.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use bytes::Bytes;
use distd_core::fleet::rollout::RolloutDoc;
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use distd_peer::trust::tuf::{ChannelDoc, ChannelFiles, SEQUENCE};
use serde_json::{Map, Value, json};

use super::{Comparison, Origin, signed};
use crate::db::{ChannelMove, ChannelRow, DbError, MoveBy, ReleaseRow, SetChannelOutcome};
use crate::ingest::{CommitResult, IngestError};
use crate::tuf::{Change, Listed, PublishError};

/// Error of moving a channel.
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
    /// The channel has pointed to a later release, and a downgrade was not ordered.
    #[error("{product}@{version} is older than what {product}:{channel} has pointed to")]
    Older {
        /// The product.
        product: Name,
        /// The channel.
        channel: Name,
        /// The version.
        version: Name,
        /// The latest release that the channel has pointed to, as long as it is known.
        newest: Option<Name>,
    },
    /// A rollout of the channel is under way.
    #[error("a rollout of {product}@{version} to {product}:{channel} is under way")]
    RolloutUnderWay {
        /// The product.
        product: Name,
        /// The channel.
        channel: Name,
        /// The version that the rollout leads to.
        version: Name,
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
    /// The channel is moved in the database but not signed yet: the same call again, or a restart,
    /// signs it.
    #[error("could not publish the channel")]
    Publish(#[from] PublishError),
}

/// Error of signing the document of a channel.
#[derive(Debug, thiserror::Error)]
pub(super) enum PublishChannelError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Signing or storing the metadata failed.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl From<PublishChannelError> for SetChannelError {
    fn from(error: PublishChannelError) -> Self {
        match error {
            PublishChannelError::Db(error) => error.into(),
            PublishChannelError::Publish(error) => error.into(),
        }
    }
}

impl From<PublishChannelError> for super::RolloutError {
    fn from(error: PublishChannelError) -> Self {
        match error {
            PublishChannelError::Db(error) => error.into(),
            PublishChannelError::Publish(error) => error.into(),
        }
    }
}

/// Error of publishing a commit. The release is committed: the same call again, or a restart,
/// publishes it.
#[derive(Debug, thiserror::Error)]
pub enum PublishReleaseError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Signing or storing the metadata failed.
    #[error("the release is stored but could not be published; push it again")]
    Publish(#[from] PublishError),
    /// Somebody withdrew or removed the release meanwhile.
    #[error("{product}@{version} was withdrawn or removed before it was published")]
    Gone {
        /// The product.
        product: Name,
        /// The version.
        version: Name,
    },
}

pub(super) fn custom_of(release: &ReleaseRow) -> Map<String, Value> {
    let custom = json!({
        "manifest": release.manifest.to_string(),
        "blake3": release.blake3.to_string(),
        "bytes": release.bytes,
        SEQUENCE: release.sequence,
    });
    match custom {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

impl Origin {
    /// Publishes a committed release; one that is listed stays as it is. One that was published
    /// before and is not listed, because the store was restored from an older backup, is listed
    /// again.
    ///
    /// # Errors
    /// [`PublishReleaseError`].
    pub async fn publish_release(&self, committed: &CommitResult) -> Result<(), PublishReleaseError> {
        let ReleaseRow { product, version, .. } = &committed.release;
        let began = Instant::now();
        let was_published = committed.release.published.is_some();
        let _turn = self.publishing.lock().await;
        // Another one had the turn before, and may have withdrawn or removed the release.
        let is_there = self.db.release(product, version).await?;
        if is_there.is_none_or(|row| row.manifest != committed.release.manifest) {
            if was_published {
                return Ok(());
            }
            return Err(PublishReleaseError::Gone { product: product.clone(), version: version.clone() });
        }
        let now = unix_now();
        let custom = custom_of(&committed.release);
        self.repository.publish_release(product, version, committed.root.clone(), custom, now).await?;
        if was_published {
            return Ok(());
        }
        self.db.mark_published(product, version, signed(now)).await?;
        self.publications.observe(&vec![("what", "release".into())], began.elapsed());
        self.queue_for_release(&committed.release).await;
        Ok(())
    }

    /// Points a channel to a release of its product, in the name of `by`.
    ///
    /// # Errors
    /// [`SetChannelError`].
    pub async fn set_channel(
        &self,
        wanted: ChannelMove<'_>,
        by: &MoveBy,
    ) -> Result<(ChannelRow, ReleaseRow), SetChannelError> {
        let ChannelMove { product, channel, version, .. } = wanted;
        let unknown =
            || SetChannelError::UnknownRelease { product: product.clone(), version: version.clone() };
        self.prepare_files(product, [version]).await?;
        let _turn = self.publishing.lock().await;
        let now = unix_now();
        let release = self.db.release(product, version).await?.ok_or_else(unknown)?;
        self.check_no_rollout(product, channel).await?;
        // A channel that does not exist yet has no devices, and a rollout needs it.
        if self.db.needs_approval(product, channel).await?
            && self.db.channel(product, channel).await?.is_some_and(|row| row.version != *version)
        {
            let (product, channel) = (product.clone(), channel.clone());
            return Err(SetChannelError::NeedsApproval { product, channel });
        }
        let (row, before) = match self.db.set_channel(wanted, by, signed(now)).await? {
            SetChannelOutcome::Set { row, from } => (row, from),
            SetChannelOutcome::Unchanged(row) => (row.clone(), Some(row.version)),
            SetChannelOutcome::Older { newest } => {
                let (product, channel, version) = (product.clone(), channel.clone(), version.clone());
                return Err(SetChannelError::Older { product, channel, version, newest });
            }
            SetChannelOutcome::UnknownRelease => return Err(unknown()),
        };
        self.end_rollout(product, channel, &format!("the channel was set to {version}"), by).await?;
        self.publish_channel(product, channel).await?;
        self.queue_for_move(before.as_ref(), &release).await;
        Ok((row, release))
    }

    /// Makes the signed metadata agree with the rows: publishes releases that an earlier run
    /// committed and did not publish, and releases that another process dropped from the list.
    pub(super) async fn publish_pending(&self, listed: &Listed) -> Result<(), super::OpenError> {
        let now = unix_now();
        let (mut changes, mut publishable) = (Vec::new(), Vec::new());
        self.take_over_numbers(listed).await?;
        self.take_over_channels(listed).await?;
        changes.extend(self.numbers_to_sign(listed).await?);
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
                let rollout = self.rollout_doc(&row).await?;
                let files = self.channel_files(&row, rollout.as_ref()).await?;
                let document = channel_document(&row, &release, rollout, files);
                self.log_rollouts(&row.product, &row.channel, Some(&document)).await?;
                changes.push(channel_change(&row, document));
            }
        }
        // The lists of patch sets are set likewise. An earlier run may have made one and not signed
        // the list.
        let mut sets = Vec::new();
        for product in self.db.products().await? {
            sets.extend(self.db.sets_to_list(&product.name).await?);
            changes.push(self.patches_change(&product.name).await?);
        }
        if !changes.is_empty() {
            self.repository.apply(changes, now).await?;
        }
        self.db.sets_are_listed(&sets).await?;
        // A release without its manifest stays unpublished: pushing the same bytes again heals and
        // publishes it.
        for release in publishable {
            self.db.mark_published(&release.product, &release.version, signed(now)).await?;
            self.queue_for_release(release).await;
        }
        Ok(())
    }
}

impl Origin {
    /// Signs the document of a channel as the database has it, with its rollout. The caller holds
    /// the turn of publications.
    pub(super) async fn publish_channel(
        &self,
        product: &Name,
        channel: &Name,
    ) -> Result<(), PublishChannelError> {
        let began = Instant::now();
        let found = self.db.channel(product, channel).await?;
        let Some(row) = found else {
            self.log_rollouts(product, channel, None).await?;
            return Ok(self.db.rollouts_are_signed(product, channel, None).await?);
        };
        let Some(release) = self.db.release(product, &row.version).await? else { return Ok(()) };
        let rollout = self.rollout_doc(&row).await?;
        let files = self.channel_files(&row, rollout.as_ref()).await?;
        let document = channel_document(&row, &release, rollout.clone(), files);
        self.log_rollouts(product, channel, Some(&document)).await?;
        self.repository.apply(vec![channel_change(&row, document)], unix_now()).await?;
        self.publications.observe(&vec![("what", "channel".into())], began.elapsed());
        self.tell_of_channel(&row, rollout.as_ref()).await;
        Ok(self.db.rollouts_are_signed(product, channel, Some(row.counter)).await?)
    }

    /// Takes over channels that were moved after the database was saved: a device must not see a
    /// channel go back.
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
                let signed_as = ChannelRow {
                    product: product.clone(),
                    channel: channel.clone(),
                    version: doc.version.clone(),
                    counter: doc.counter,
                    updated: now,
                    downgrade_from: doc.downgrade_from,
                };
                self.take_over_rollout(doc).await?;
                if let Some(files) = &doc.files {
                    self.db.take_over_file_name(product, &files.name).await?;
                }
                self.db.take_over_channel(&signed_as, now).await?;
            }
        }
        Ok(())
    }

    /// Takes over signed numbers that differ from those in the database: devices remember the
    /// signed ones.
    async fn take_over_numbers(&self, listed: &Listed) -> Result<(), DbError> {
        let rows = self.numbers().await?;
        for release in &listed.releases {
            let (product, version) = (&release.product, &release.version);
            let Some(row) = rows.get(&(product.clone(), version.clone())) else { continue };
            if let Some(number) = release.sequence().filter(|number| *number != row.sequence) {
                tracing::warn!(%product, %version, number, "the release is signed with another number: taken over");
                self.db.take_over_sequence(product, version, number).await?;
            }
        }
        Ok(())
    }

    /// Returns the changes that sign numbers beside releases that were published before there were
    /// numbers.
    async fn numbers_to_sign(&self, listed: &Listed) -> Result<Vec<Change>, DbError> {
        let rows = self.numbers().await?;
        let unnumbered = listed.releases.iter().filter(|release| release.sequence().is_none());
        let rows = unnumbered.filter_map(|r| rows.get(&(r.product.clone(), r.version.clone())));
        let change = |row: &ReleaseRow| Change::SetCustom {
            product: row.product.clone(),
            version: row.version.clone(),
            custom: custom_of(row),
        };
        Ok(rows.map(change).collect())
    }

    /// Every release, by its name.
    async fn numbers(&self) -> Result<BTreeMap<(Name, Name), ReleaseRow>, DbError> {
        let rows = self.db.all_releases().await?;
        Ok(rows.into_iter().map(|row| ((row.product.clone(), row.version.clone()), row)).collect())
    }
}

fn channel_document(
    row: &ChannelRow,
    release: &ReleaseRow,
    rollout: Option<RolloutDoc>,
    files: Option<ChannelFiles>,
) -> Bytes {
    let doc = ChannelDoc {
        product: row.product.clone(),
        channel: row.channel.clone(),
        version: row.version.clone(),
        manifest: release.manifest,
        counter: row.counter,
        downgrade_from: row.downgrade_from,
        rollout,
        files,
        extra: Map::new(),
    };
    serde_json::to_vec(&doc).expect("names and numbers always encode").into()
}

fn channel_change(row: &ChannelRow, document: Bytes) -> Change {
    Change::SetChannel { product: row.product.clone(), channel: row.channel.clone(), json: document }
}
