//! The log of receipts: its heads and proofs, and the events of rollouts in it (docs/receipts.md).

use distd_core::fleet::receipts::{
    Entry, Hashes, LogHead, LogId, RestartEvent, SignedHead, TreeHash, WaveEvent, consistency, inclusion,
    root, subtrees_for,
};
use distd_core::fleet::rollout::Threshold;
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use distd_peer::random;
use distd_peer::trust::files::{self, FileError};
use distd_peer::trust::receipts::{LogAnswer, LogQuestion, verify_head};
use distd_peer::trust::token::sha256;
use tokio::sync::Mutex;

use super::{Origin, OwnerError, signed};
use crate::db::DbError;
use crate::realm::RealmError;
use crate::store::StoreError;

/// Object with the newest head that this origin handed out. A database with fewer entries was
/// restored to an earlier state.
const HEAD_OBJECT: &str = "log-head";

/// File in the data directory by which `distd-server restore` says that database and store are of
/// an earlier time, so that neither knows the newest head.
pub(crate) const LOG_RESTORED: &str = "log.restored";

/// Least time between two heads for peers, seconds: many devices ask at once.
const HEAD_EVERY: u64 = 2;

/// Time after which a head is signed again although nothing was added, seconds: its time says that
/// nothing is missing.
const HEAD_AGAIN: u64 = 10;

/// Most rollouts of a channel that one publication can change: one ends, and another begins.
const ROLLOUTS_CHANGED: u32 = 4;

/// Error of reading or signing the log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Signing failed.
    #[error(transparent)]
    Realm(#[from] RealmError),
    /// The object store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another process signs for this store now.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// A file of the data directory cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The newest head that this process signed.
pub(super) type NewestHead = Mutex<Option<SignedHead>>;

impl Origin {
    /// Calculates with the hashes of the log that `make` asks for.
    async fn with_hashes<T>(&self, make: impl Fn(&mut Hashes<'_>) -> T) -> Result<T, DbError> {
        let hashes = self.db.log_hashes(&subtrees_for(&make)).await?;
        Ok(make(&mut |at| hashes.get(&at).copied().unwrap_or(TreeHash([0; 32]))))
    }

    /// Root of the first `size` entries of the log, which has as many.
    ///
    /// # Errors
    /// [`DbError`].
    async fn log_root(&self, size: u64) -> Result<TreeHash, DbError> {
        self.with_hashes(|hashes| root(size, hashes)).await
    }

    /// Proof that the first `from` entries of the log are the beginning of the first `to`; `None`
    /// when the log has fewer.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn log_consistency(&self, from: u64, to: u64) -> Result<Option<Vec<TreeHash>>, DbError> {
        if from > to || to > self.db.log_size().await? {
            return Ok(None);
        }
        self.with_hashes(|hashes| consistency(from, to, hashes)).await.map(Some)
    }

    /// Number of the entry with the hash `leaf`, and the proof that the first `size` entries
    /// include it; `None` when they do not.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn log_inclusion(
        &self,
        leaf: &TreeHash,
        size: u64,
    ) -> Result<Option<(u64, Vec<TreeHash>)>, DbError> {
        let number = self.db.log_number(leaf).await?.filter(|number| *number < size);
        let Some(number) = number else { return Ok(None) };
        if size > self.db.log_size().await? {
            return Ok(None);
        }
        let proof = self.with_hashes(|hashes| inclusion(number, size, hashes)).await?;
        Ok(Some((number, proof)))
    }

    /// Signed head of the whole log.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn log_head(&self) -> Result<SignedHead, LogError> {
        self.log_head_within(0).await
    }

    /// Signed head of the log that may lack what was added within the last `every` seconds.
    async fn log_head_within(&self, every: u64) -> Result<SignedHead, LogError> {
        let mut newest = self.newest_head.lock().await;
        let now = unix_now();
        let mut size = self.db.log_size().await?;
        if newest.as_ref().is_some_and(|signed| size < signed.head.size) {
            // The database lost entries while this process ran, as after a failover. The one that
            // signs metadata says so in the log.
            if !self.follows() {
                self.resume_log().await?;
                size = self.db.log_size().await?;
            }
            *newest = None;
        }
        let before = newest.as_ref().map_or(0, |signed| signed.head.at);
        if let Some(signed) = newest.as_ref() {
            let age = now.saturating_sub(signed.head.at);
            let is_enough = if signed.head.size == size { age < HEAD_AGAIN } else { age < every };
            if is_enough {
                return Ok(signed.clone());
            }
        }
        // The log is the database's, so every replica signs heads of it.
        if !self.follows() {
            self.owner.check().await?;
        }
        let log = self.db.log_id(LogId(random::bytes()), signed(now)).await?;
        // A head has a later time than one before it, whatever the clock says.
        let at = now.max(before.saturating_add(1));
        let head = LogHead { log, size, root: self.log_root(size).await?, at };
        let signed = self.realm.sign_log_head(head)?;
        if newest.as_ref().is_none_or(|before| before.head.size != size) {
            // Kept before anybody sees it: no head is unknown to the next start.
            self.keep_head(&signed).await?;
        }
        *newest = Some(signed.clone());
        Ok(signed)
    }

    /// Stores a head that is to be handed out. A replica that follows leaves a longer one, which
    /// another has stored.
    async fn keep_head(&self, signed: &SignedHead) -> Result<(), LogError> {
        let store = self.ingest.store();
        if self.follows()
            && let Some(bytes) = store.get(HEAD_OBJECT).await?
            && let Ok(kept) = SignedHead::decode(&bytes)
            && verify_head(self.realm.ca_der(), &kept).is_ok()
            && kept.head.log == signed.head.log
            && kept.head.size >= signed.head.size
        {
            return Ok(());
        }
        Ok(store.put(HEAD_OBJECT, signed.encode()).await?)
    }

    /// Answers a peer's question about the log.
    ///
    /// # Errors
    /// [`LogError`].
    pub(super) async fn log_answer(&self, asked: &LogQuestion) -> Result<bytes::Bytes, LogError> {
        let head = match asked.to {
            0 => Some(self.log_head_within(HEAD_EVERY).await?),
            _ => None,
        };
        let to = head.as_ref().map_or(asked.to, |signed| signed.head.size);
        let inclusion = match asked.leaf() {
            Some(leaf) => self.log_inclusion(&leaf, to).await?,
            None => None,
        };
        let consistency = self.log_consistency(asked.from, to).await?;
        Ok(LogAnswer { head, consistency, inclusion }.encode())
    }

    /// Compares the log with the newest head that the origin handed out. A database that was
    /// restored to an earlier state lacks entries: the log continues under another id, and says so.
    pub(super) async fn resume_log(&self) -> Result<(), LogError> {
        let now = unix_now();
        let log = self.db.log_id(LogId(random::bytes()), signed(now)).await?;
        let mark = self.data.join(LOG_RESTORED);
        let is_restored = files::read(&mark)?.is_some();
        let Some(bytes) = self.ingest.store().get(HEAD_OBJECT).await? else {
            return Ok(files::remove(&mark)?);
        };
        let Some(before) =
            SignedHead::decode(&bytes).ok().filter(|signed| verify_head(self.realm.ca_der(), signed).is_ok())
        else {
            tracing::error!(
                "the object {HEAD_OBJECT} is no head of this realm's log of receipts: it is not used"
            );
            return Ok(());
        };
        let LogHead { log: log_before, size, root, .. } = before.head;
        let size_now = self.db.log_size().await?;
        let is_whole = log == log_before && size <= size_now && self.log_root(size).await? == root;
        if !is_restored && (is_whole || self.db.had_log_id(&log_before, &log).await?) {
            return Ok(());
        }
        let id = LogId(random::bytes());
        tracing::error!(
            before = size,
            entries = size_now,
            log = %id,
            "the database was restored: entries of the log of receipts are lost, and it continues under another id; \
             devices that saw more report it for a week (docs/receipts.md, \"A database that was restored\")"
        );
        let event = RestartEvent { at: now, log: id.to_string(), before: hex::encode(before.encode()) };
        self.db.restart_log(id, &Entry::Restart(event), signed(now)).await?;
        Ok(files::remove(&mark)?)
    }

    /// Adds the changes of a channel's rollouts to the log. Called before `document`, which tells
    /// devices of them, is published; `None` for a channel that is gone.
    pub(super) async fn log_rollouts(
        &self,
        product: &Name,
        channel: &Name,
        document: Option<&[u8]>,
    ) -> Result<(), DbError> {
        let now = unix_now();
        let mut rows = self.db.rollouts_of(product, channel, ROLLOUTS_CHANGED).await?;
        rows.reverse();
        for row in rows {
            let last = self.db.last_log_entry("wave", &row.id.to_string()).await?;
            let last = last.and_then(|row| match Entry::decode(&row.entry) {
                Ok(Entry::Wave(event)) => Some(event),
                _ => None,
            });
            let waves = self.db.rollout_waves(&row.id).await?;
            let open = waves.iter().take_while(|wave| wave.opened.is_some()).count();
            let has_ended = row.stage.as_seen().is_none();
            let manifest = match (&last, self.db.release(product, &row.version).await?) {
                // Rollouts that ended before there was a log are not in it.
                (None, _) if has_ended => continue,
                (Some(last), _) if last.state == row.stage.as_str() && last.open == open => continue,
                (Some(last), _) => last.manifest,
                (None, Some(release)) => release.manifest,
                (None, None) => continue,
            };
            let event = WaveEvent {
                at: now,
                rollout: row.id,
                product: product.clone(),
                channel: channel.clone(),
                version: row.version,
                manifest,
                state: row.stage.as_str().to_owned(),
                open,
                first: row.policy.conditions.first.is_some(),
                waves: waves.iter().map(|wave| Threshold(wave.upto.0)).collect(),
                document: document.map_or_else(String::new, |bytes| hex::encode(sha256(bytes))),
            };
            self.db.add_log_entry(&Entry::Wave(event), signed(now)).await?;
        }
        Ok(())
    }
}
