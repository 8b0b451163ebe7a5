//! Releases that are being withdrawn. docs/store.md, "Withdrawing", has the order and what each
//! crash leaves.

use std::collections::BTreeSet;

use distd_core::names::Name;
use distd_core::{ChunkId, ManifestId};

use super::audit::append;
use super::bulk::{LIST_MAX, padded, padded_len};
use super::ids::IdTx;
use super::releases::{self, ReleaseRow};
use super::rollouts::UNDER_WAY;
use super::row::{Columns, signed};
use super::{Db, DbError, UnixSeconds, failed};

const WHAT: &str = "withdraw the release";

/// Result of marking a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withdraw {
    /// The release is marked and no longer counts as one.
    Marked(ReleaseRow),
    /// There is no such release.
    Unknown,
    /// These channels point to the release, or a rollout brings it to their devices.
    InUse(Vec<Name>),
}

/// The last step of a withdrawal under way; no commit runs meanwhile. Dropped, it leaves everything
/// as it was.
#[derive(Debug)]
pub struct WithdrawalTx {
    ids: IdTx,
    release: ReleaseRow,
}

impl Db {
    /// Marks a release as withdrawn, unless a channel points to it or a rollout leads to it. From
    /// then on no query finds it as a release.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn mark_withdrawn(
        &self,
        product: &Name,
        version: &Name,
        now: UnixSeconds,
    ) -> Result<Withdraw, DbError> {
        let mut tx = self.begin_write().await?;
        let sql = format!(
            "SELECT channel FROM channels WHERE product = $1 AND version = $2 UNION SELECT channel FROM rollouts \
             WHERE product = $3 AND version = $4 AND {UNDER_WAY} ORDER BY channel"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(product.to_string())
            .bind(version.to_string())
            .bind(product.to_string())
            .bind(version.to_string())
            .fetch_all(&mut *tx)
            .await
            .map_err(failed(WHAT))?;
        let channels: Result<Vec<Name>, _> = rows.iter().map(|row| row.parsed("channel")).collect();
        let channels = channels.map_err(failed(WHAT))?;
        if !channels.is_empty() {
            return Ok(Withdraw::InUse(channels));
        }
        let required = self.versions_required().await?;
        let required =
            required.into_iter().filter(|(of, _, versions)| of == product && versions.contains(version));
        let channels: Vec<Name> = required.map(|(_, channel, _)| channel).collect();
        if !channels.is_empty() {
            return Ok(Withdraw::InUse(channels));
        }
        let sql = format!(
            "UPDATE releases SET withdrawn = $1 WHERE product = $2 AND version = $3 AND withdrawn IS NULL RETURNING {}",
            releases::COLUMNS
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(now)
            .bind(product.to_string())
            .bind(version.to_string())
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed(WHAT))?;
        let Some(row) = row else { return Ok(Withdraw::Unknown) };
        let release = releases::read(&row).map_err(failed(WHAT))?;
        let (subject, details) = (releases::subject(&release), releases::details(&release));
        append(&mut tx, &self.acting.at(now), "release.withdraw", &subject, &details)
            .await
            .map_err(failed(WHAT))?;
        tx.commit().await.map_err(failed(WHAT))?;
        Ok(Withdraw::Marked(release))
    }

    /// Releases that were marked and still have rows.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn withdrawn(&self) -> Result<Vec<ReleaseRow>, DbError> {
        let sql = format!(
            "SELECT {} FROM releases WHERE withdrawn IS NOT NULL ORDER BY withdrawn, product, version",
            releases::COLUMNS
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(releases::read).collect())
            .map_err(failed("list withdrawn releases"))
    }

    /// Begins the last step of a withdrawal.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn begin_withdrawal(&self, release: &ReleaseRow) -> Result<WithdrawalTx, DbError> {
        Ok(WithdrawalTx { ids: IdTx::begin(self).await?, release: release.clone() })
    }
}

impl WithdrawalTx {
    /// Manifests that nothing names once this release is gone: its own, and those of its patch
    /// sets.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn unneeded(&mut self) -> Result<BTreeSet<ManifestId>, DbError> {
        let needed = self.needed().await?;
        let ReleaseRow { product, manifest, .. } = &self.release;
        let mut unneeded = BTreeSet::from([*manifest]);
        let sets = sqlx::query(
            "SELECT set_manifest FROM patch_sets WHERE product = $1 AND (from_manifest = $2 OR to_manifest = $2) \
             AND set_manifest IS NOT NULL",
        )
        .bind(product.to_string())
        .bind(manifest.as_bytes().as_slice())
        .fetch_all(&mut *self.ids.tx)
        .await
        .map_err(failed(WHAT))?;
        for row in sets {
            unneeded.insert(ManifestId(row.hash("set_manifest").map_err(failed(WHAT))?));
        }
        Ok(unneeded.difference(&needed).copied().collect())
    }

    /// Manifests that something else names: releases that stay, and patch sets between those.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn needed(&mut self) -> Result<BTreeSet<ManifestId>, DbError> {
        let rows = sqlx::query(
            "SELECT manifest FROM releases WHERE withdrawn IS NULL \
             UNION SELECT set_manifest AS manifest FROM patch_sets WHERE set_manifest IS NOT NULL AND EXISTS \
             (SELECT 1 FROM releases r WHERE r.product = patch_sets.product AND r.manifest = patch_sets.to_manifest \
             AND r.withdrawn IS NULL) AND (from_version = '' OR EXISTS (SELECT 1 FROM releases r WHERE \
             r.product = patch_sets.product AND r.manifest = patch_sets.from_manifest AND r.withdrawn IS NULL))",
        )
        .fetch_all(&mut *self.ids.tx)
        .await
        .map_err(failed(WHAT))?;
        let read: Result<_, _> = rows.iter().map(|row| Ok(ManifestId(row.hash("manifest")?))).collect();
        read.map_err(failed(WHAT))
    }

    /// Deletes the release, its patch sets, these chunks, and the packs that nothing needs then.
    /// Returns the objects of those packs, which are noted as doomed.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn finish(mut self, chunks: &[ChunkId]) -> Result<Vec<String>, DbError> {
        let engine = self.ids.engine();
        let ReleaseRow { product, version, manifest, .. } = &self.release;
        let tx = &mut self.ids.tx;
        sqlx::query("DELETE FROM releases WHERE product = $1 AND version = $2 AND withdrawn IS NOT NULL")
            .bind(product.to_string())
            .bind(version.to_string())
            .execute(&mut **tx)
            .await
            .map_err(failed(WHAT))?;
        sqlx::query(
            "DELETE FROM patch_sets WHERE product = $1 AND (from_manifest = $2 OR to_manifest = $2) AND NOT EXISTS \
             (SELECT 1 FROM releases r WHERE r.product = $1 AND r.manifest = $2 AND r.withdrawn IS NULL)",
        )
        .bind(product.to_string())
        .bind(manifest.as_bytes().as_slice())
        .execute(&mut **tx)
        .await
        .map_err(failed(WHAT))?;
        let mut packs: BTreeSet<u64> = BTreeSet::new();
        for ids in chunks.chunks(LIST_MAX) {
            let list = engine.list(1, padded_len(ids));
            let sql = format!("DELETE FROM chunks WHERE id IN ({list}) RETURNING pack");
            let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
            for id in padded(ids) {
                query = query.bind(signed(id.0));
            }
            for row in query.fetch_all(&mut **tx).await.map_err(failed(WHAT))? {
                packs.insert(row.number("pack").map_err(failed(WHAT))?);
            }
        }
        let mut objects = Vec::new();
        for pack in packs {
            let row = sqlx::query(
                "DELETE FROM packs WHERE id = $1 AND upload IS NULL \
                 AND NOT EXISTS (SELECT 1 FROM chunks WHERE chunks.pack = packs.id) RETURNING object",
            )
            .bind(signed(pack))
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed(WHAT))?;
            let Some(row) = row else { continue };
            let object = row.text("object").map_err(failed(WHAT))?;
            sqlx::query("INSERT INTO doomed (object, since) VALUES ($1, 0) ON CONFLICT (object) DO NOTHING")
                .bind(object.clone())
                .execute(&mut **tx)
                .await
                .map_err(failed(WHAT))?;
            objects.push(object);
        }
        self.ids.tx.commit().await.map_err(failed(WHAT))?;
        Ok(objects)
    }
}
