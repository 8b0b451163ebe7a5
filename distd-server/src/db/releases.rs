//! Releases: one version of a product, naming a manifest.
//!
//! Table `releases`: product and version → manifest, BLAKE3, length; `published` once the TUF
//! repository lists it; `withdrawn` while devices may not take it, `removing` while its bytes are
//! on their way out (docs/store.md, "Withdrawing"), and `by_policy` says whether a policy began
//! that; `token` that committed it and `stored` bytes of
//! the chunks that came with it; `sequence`, its number among the product's releases
//! (docs/trust.md, "Downgrades").

use distd_core::api::EventKind;
use distd_core::manifest::{Kind, Manifest};
use distd_core::names::Name;
use distd_core::{ArtifactHash, ManifestId};
use sqlx::any::AnyRow;
use sqlx::{Any, Executor};

use super::row::{Columns, signed};
use super::{Db, DbError, UnixSeconds, failed, products, webhooks};

/// One release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseRow {
    /// The product.
    pub product: Name,
    /// The version.
    pub version: Name,
    /// Its manifest.
    pub manifest: ManifestId,
    /// BLAKE3 of the whole artifact.
    pub blake3: ArtifactHash,
    /// Length of the artifact, bytes.
    pub bytes: u64,
    /// Chunks of the artifact, repeats counted.
    pub chunk_count: u64,
    /// `file` or `tree`.
    pub kind: String,
    /// Time at which it was committed.
    pub created: UnixSeconds,
    /// Label of the token that committed it.
    pub created_by: String,
    /// Time at which the TUF repository first listed it; `None` until then.
    pub published: Option<UnixSeconds>,
    /// Its number among the product's releases: a later one has a higher one. 0 when that is not
    /// known.
    pub sequence: u64,
}

impl ReleaseRow {
    /// The row of a release that was just made, not published yet and without its number.
    pub fn of(manifest: &Manifest, product: &Name, version: &Name, by: &str, created: UnixSeconds) -> Self {
        let root = manifest.root();
        let kind = match root.kind {
            Kind::File => "file",
            Kind::Tree { .. } => "tree",
            Kind::PatchSet { .. } => "patch set",
        };
        Self {
            product: product.clone(),
            version: version.clone(),
            manifest: manifest.id(),
            blake3: root.blake3,
            bytes: root.bytes,
            chunk_count: root.chunks,
            kind: kind.to_owned(),
            created,
            created_by: by.to_owned(),
            published: None,
            sequence: 0,
        }
    }
}

pub(super) const COLUMNS: &str =
    "product, version, manifest, blake3, bytes, chunk_count, kind, created, created_by, published, sequence";

pub(super) fn read(row: &AnyRow) -> Result<ReleaseRow, sqlx::Error> {
    Ok(ReleaseRow {
        product: row.parsed("product")?,
        version: row.parsed("version")?,
        manifest: ManifestId(row.hash("manifest")?),
        blake3: ArtifactHash(row.hash("blake3")?),
        bytes: row.number("bytes")?,
        chunk_count: row.number("chunk_count")?,
        kind: row.text("kind")?,
        created: row.time("created")?,
        created_by: row.text("created_by")?,
        published: row.time_or_none("published")?,
        sequence: row.number("sequence")?,
    })
}

/// Inserts a release.
pub(super) async fn insert<'e>(
    on: impl Executor<'e, Database = Any>,
    release: &ReleaseRow,
) -> Result<(), sqlx::Error> {
    let sql = sqlx::AssertSqlSafe(format!(
        "INSERT INTO releases ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
    ));
    sqlx::query(sql)
        .bind(release.product.to_string())
        .bind(release.version.to_string())
        .bind(release.manifest.as_bytes().as_slice())
        .bind(release.blake3.as_bytes().as_slice())
        .bind(signed(release.bytes))
        .bind(signed(release.chunk_count))
        .bind(release.kind.clone())
        .bind(release.created)
        .bind(release.created_by.clone())
        .bind(release.published)
        .bind(signed(release.sequence))
        .execute(on)
        .await
        .map(drop)
}

/// Number of a release; `None` when there is no such release, or it is withdrawn.
pub(super) async fn sequence_of<'e>(
    on: impl Executor<'e, Database = Any>,
    product: &Name,
    version: &Name,
) -> Result<Option<u64>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT sequence FROM releases WHERE product = $1 AND version = $2 AND withdrawn IS NULL",
    )
    .bind(product.to_string())
    .bind(version.to_string())
    .fetch_optional(on)
    .await?;
    row.map(|row| row.number("sequence")).transpose()
}

impl Db {
    /// One release.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn release(&self, product: &Name, version: &Name) -> Result<Option<ReleaseRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM releases WHERE product = $1 AND version = $2 AND withdrawn IS NULL"
        ));
        let row = sqlx::query(sql)
            .bind(product.to_string())
            .bind(version.to_string())
            .fetch_optional(&self.pool)
            .await;
        row.and_then(|r| r.as_ref().map(read).transpose()).map_err(failed("read the release"))
    }

    /// The releases of a product, newest first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn releases(&self, product: &Name) -> Result<Vec<ReleaseRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM releases WHERE product = $1 AND withdrawn IS NULL ORDER BY sequence DESC, created DESC, version DESC"
        ));
        let rows = sqlx::query(sql).bind(product.to_string()).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the releases"))
    }

    /// Every release of every product, oldest first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn all_releases(&self) -> Result<Vec<ReleaseRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM releases WHERE withdrawn IS NULL ORDER BY created, product, version"
        ));
        let rows = sqlx::query(sql).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the releases"))
    }

    /// Every release of every product, in any state, oldest first: those that are withdrawn need
    /// their manifests and chunks too.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn every_release(&self) -> Result<Vec<ReleaseRow>, DbError> {
        let sql =
            sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM releases ORDER BY created, product, version"));
        let rows = sqlx::query(sql).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the releases"))
    }

    /// Releases of one manifest: whether it may be served, and under which names.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn releases_of_manifest(&self, manifest: &ManifestId) -> Result<Vec<ReleaseRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM releases WHERE manifest = $1 AND withdrawn IS NULL ORDER BY created, product, version"
        ));
        let rows = sqlx::query(sql).bind(manifest.as_bytes().as_slice()).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("find the manifest"))
    }

    /// Records that the TUF repository lists a release; the first time stays.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn mark_published(
        &self,
        product: &Name,
        version: &Name,
        now: UnixSeconds,
    ) -> Result<(), DbError> {
        let what = "record that the release is published";
        let mut tx = self.begin_write().await?;
        let sql = format!(
            "UPDATE releases SET published = $1 WHERE product = $2 AND version = $3 AND published IS NULL \
             RETURNING {COLUMNS}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(now)
            .bind(product.to_string())
            .bind(version.to_string())
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed(what))?;
        let Some(row) = row else { return Ok(()) };
        let release = read(&row).map_err(failed(what))?;
        let mut data = details(&release);
        data["product"] = product.as_str().into();
        data["version"] = version.as_str().into();
        data["by"] = release.created_by.clone().into();
        webhooks::emit(&mut tx, EventKind::ReleasePublished, &data, now).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))
    }

    /// Gives a release the number under which devices know it. Later releases of the product get
    /// higher numbers.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn take_over_sequence(
        &self,
        product: &Name,
        version: &Name,
        sequence: u64,
    ) -> Result<(), DbError> {
        let what = "take the release's number over";
        let mut tx = self.begin_write().await?;
        products::last_sequence(&mut *tx, product, sequence).await.map_err(failed(what))?;
        sqlx::query("UPDATE releases SET sequence = $1 WHERE product = $2 AND version = $3")
            .bind(signed(sequence))
            .bind(product.to_string())
            .bind(version.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))
    }

    /// Products of which a release or a patch set names this manifest.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn products_of_manifest(&self, manifest: &ManifestId) -> Result<Vec<Name>, DbError> {
        let rows = sqlx::query(
            "SELECT product FROM releases WHERE manifest = $1 AND withdrawn IS NULL \
             UNION SELECT product FROM patch_sets WHERE set_manifest = $2",
        )
        .bind(manifest.as_bytes().as_slice())
        .bind(manifest.as_bytes().as_slice())
        .fetch_all(&self.pool)
        .await;
        rows.and_then(|rows| rows.iter().map(|row| row.parsed("product")).collect())
            .map_err(failed("find the manifest"))
    }

    /// Whether a release or a patch set names each of these manifests, in the order given: a
    /// manifest that is named may be served.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn manifests_released(&self, manifests: &[ManifestId]) -> Result<Vec<bool>, DbError> {
        let mut released = Vec::with_capacity(manifests.len());
        for manifest in manifests {
            released.push(!self.products_of_manifest(manifest).await?.is_empty());
        }
        Ok(released)
    }

    /// Whether a release in any state, or a patch set, names each of these manifests, in the order
    /// given: such a manifest is kept.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn manifests_named(&self, manifests: &[ManifestId]) -> Result<Vec<bool>, DbError> {
        let mut named = Vec::with_capacity(manifests.len());
        for manifest in manifests {
            named.push(is_named(&self.pool, manifest).await.map_err(failed("find the manifest"))?);
        }
        Ok(named)
    }
}

/// Whether a release, also one on its way out, or a patch set has this manifest.
pub(super) async fn is_named<'e>(
    on: impl Executor<'e, Database = Any>,
    manifest: &ManifestId,
) -> Result<bool, sqlx::Error> {
    let found = sqlx::query(
        "SELECT 1 FROM releases WHERE manifest = $1 \
         UNION ALL SELECT 1 FROM patch_sets WHERE set_manifest = $2 LIMIT 1",
    )
    .bind(manifest.as_bytes().as_slice())
    .bind(manifest.as_bytes().as_slice())
    .fetch_optional(on)
    .await?;
    Ok(found.is_some())
}

/// A release in the audit log.
pub(super) fn details(release: &ReleaseRow) -> serde_json::Value {
    serde_json::json!({
        "manifest": release.manifest.to_string(),
        "blake3": release.blake3.to_string(),
        "bytes": release.bytes,
        "sequence": release.sequence,
    })
}

/// Name of a release in the audit log.
pub(super) fn subject(release: &ReleaseRow) -> String {
    format!("{}@{}", release.product, release.version)
}
