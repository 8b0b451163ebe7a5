//! The queue of patch sets: taking the next one, holding it while it is made, and recording how it
//! ended. The origin that leads and any number of workers take from it.

use std::error::Error;
use std::time::{Duration, Instant};

use distd_core::error::Chain;
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use tokio_util::sync::CancellationToken;

use super::{MakeError, PatchMaker};
use crate::db::{DbError, HELD_SECONDS, MadeSet, PatchSetKey, PatchSetRow, SetKind};
use crate::origin::signed;

/// Longest reason kept for a failure, bytes.
const REASON_BYTES_MAX: usize = 1000;

/// Time between two statements of a worker that it still makes a set.
const HOLD_EVERY: Duration = Duration::from_secs(HELD_SECONDS as u64 / 4);

impl PatchMaker {
    /// Makes the next set of a kind. Returns its product and the set, once it is recorded; `None`
    /// where the next one may be made at once but this one came to nothing.
    ///
    /// # Errors
    /// [`NextError::Empty`] when nothing waits or `stop` was cancelled, and [`NextError::Db`].
    pub async fn make_next(
        &self,
        kind: SetKind,
        stop: &CancellationToken,
    ) -> Result<Option<(Name, MadeSet)>, NextError> {
        let taken = self.db.take_patch_set(kind, &self.maker, signed(unix_now())).await?;
        let row = taken.ok_or(NextError::Empty)?;
        let (product, to) = (&row.key.product, &row.to_version);
        let from = row.from_version.as_ref().map(Name::as_str);
        let begin = Instant::now();
        match self.make_held(&row, stop).await {
            Ok(Some(made)) => {
                let (bytes, packed, patches) = (made.bytes, made.packed, made.patches);
                let seconds = begin.elapsed().as_secs();
                self.counters.took(kind, true, begin.elapsed());
                tracing::info!(%product, from, %to, patches, bytes, packed, seconds, "patch set ready");
                Ok(Some((product.clone(), made)))
            }
            Ok(None) => {
                tracing::info!(%product, from, %to, "a patch set was made elsewhere");
                Ok(None)
            }
            Err(MakeError::Stopped) => {
                // The next start of the origin that leads would queue its sets again, too.
                self.db.give_back_patch_set(&row.key, &self.maker).await?;
                Err(NextError::Empty)
            }
            Err(error) => {
                self.count_failure();
                self.counters.took(kind, false, begin.elapsed());
                tracing::error!(%product, from, %to, error = %Chain(&error), "no patch set");
                self.db.fail_patch_set(&row.key, &self.maker, &reason(&error), signed(unix_now())).await?;
                Ok(None)
            }
        }
    }

    /// Makes a set while this process says that it does. A worker that has lost the set stops.
    async fn make_held(
        &self,
        row: &PatchSetRow,
        stop: &CancellationToken,
    ) -> Result<Option<MadeSet>, MakeError> {
        if self.maker.0.is_empty() {
            return self.make(row, stop).await;
        }
        let lost = stop.child_token();
        let made = tokio::select! {
            made = self.make(row, &lost) => made,
            () = self.hold(&row.key, &lost) => unreachable!("holding ends only with the making"),
        };
        match made {
            Err(MakeError::Stopped) if !stop.is_cancelled() => Ok(None),
            made => made,
        }
    }

    /// Says again and again that this process makes a set; cancels `lost` when it is another's.
    async fn hold(&self, key: &PatchSetKey, lost: &CancellationToken) {
        loop {
            tokio::time::sleep(HOLD_EVERY).await;
            match self.db.hold_patch_set(key, &self.maker, signed(unix_now())).await {
                Ok(true) => {}
                Ok(false) => {
                    lost.cancel();
                    return std::future::pending().await;
                }
                // The set is recorded only if nobody else has taken it.
                Err(error) => tracing::warn!(error = %Chain(&error), "a patch set could not be held"),
            }
        }
    }
}

/// Reason why no set was made.
#[derive(Debug, thiserror::Error)]
pub enum NextError {
    /// Nothing waits, or the process stops.
    #[error("no patch set waits")]
    Empty,
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// An error and its causes, for people.
fn reason(error: &dyn Error) -> String {
    let mut text = Chain(error).to_string();
    while text.len() > REASON_BYTES_MAX {
        text.pop();
    }
    text
}
