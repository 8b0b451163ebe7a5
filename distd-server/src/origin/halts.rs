//! Halt notices and announcements of newer metadata (docs/rollouts.md, "Halt notices").

use std::sync::Arc;

use distd_core::error::Chain;
use distd_core::fleet::rollout::{RolloutDoc, RolloutId, RolloutState};
use distd_core::fleet::{HALT_SECONDS, HaltNotice};
use distd_core::swarm::NewsFrom;
use distd_peer::clock::unix_now;
use distd_peer::news::Newsroom;
use distd_peer::trust::halt::HaltRefused;
use distd_peer::trust::tuf::wire::version_of;

use super::Origin;
use crate::db::{ChannelRow, DbError, RolloutStage};
use crate::realm::RealmError;
use crate::tuf::MetadataStore;

/// Time for which a rollout was rolled back just now, seconds: its document is signed within it.
const JUST_NOW: u64 = 60;

/// Reason why nodes were not told.
#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Realm(#[from] RealmError),
    #[error(transparent)]
    Halt(#[from] HaltRefused),
    #[error(transparent)]
    Store(#[from] crate::tuf::StoreError),
}

impl Origin {
    /// News for the nodes that listen.
    pub fn news(&self) -> &Arc<Newsroom> {
        &self.news
    }

    /// Tells nodes of the document of a channel that has been signed. An error is logged: the
    /// document counts, and nodes find it when they look.
    pub(super) async fn tell_of_channel(&self, row: &ChannelRow, rollout: Option<&RolloutDoc>) {
        if let Err(error) = self.try_to_tell(row, rollout).await {
            let (product, channel) = (&row.product, &row.channel);
            tracing::warn!(%product, %channel, error = %Chain(&error), "nodes were not told of a change");
        }
    }

    async fn try_to_tell(&self, row: &ChannelRow, rollout: Option<&RolloutDoc>) -> Result<(), TellError> {
        if let Some(version) = self.metadata.get("timestamp.json").await?.and_then(|bytes| version_of(&bytes))
        {
            self.news.announce(version);
        }
        if let Some(id) = self.halted(row, rollout).await? {
            let notice = HaltNotice { rollout: id, counter: row.counter, made: unix_now() };
            let signed = self.realm.sign_halt(notice)?;
            self.news.take(&signed.encode(), NewsFrom::Child)?;
        }
        Ok(())
    }

    /// The rollout of a channel that stands still since its last document, and of which no notice
    /// says so yet.
    async fn halted(
        &self,
        row: &ChannelRow,
        rollout: Option<&RolloutDoc>,
    ) -> Result<Option<RolloutId>, DbError> {
        let mut since = row.counter.saturating_sub(1);
        let id = match rollout {
            Some(doc) if doc.state != RolloutState::Open => doc.id,
            Some(_) => return Ok(None),
            // A rollout that was rolled back is in no document.
            None => {
                let newest = self.db.rollouts_of(&row.product, &row.channel, 1).await?.pop();
                let over = unix_now().saturating_sub(HALT_SECONDS);
                let Some(newest) = newest.filter(|newest| newest.stage == RolloutStage::RolledBack) else {
                    return Ok(None);
                };
                let at = u64::try_from(newest.updated).unwrap_or(0);
                if at <= over {
                    return Ok(None);
                }
                // The channel may have changed since; a notice of before a `resume` does not count.
                if unix_now().saturating_sub(at) > JUST_NOW {
                    since = 0;
                }
                newest.id
            }
        };
        // The document before this one was open, or the notice of it is here.
        Ok(Some(id).filter(|id| !self.news.is_halted(id, since)))
    }

    /// Tells nodes of what was signed before this process began, in case the last one could not.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn tell_of_channels(&self) -> Result<(), DbError> {
        for row in self.db.channels().await? {
            let rollout = self.rollout_doc(&row).await?;
            self.tell_of_channel(&row, rollout.as_ref()).await;
        }
        Ok(())
    }
}
