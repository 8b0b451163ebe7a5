//! Releases as files for other update clients.
//!
//! Table `release_files`: digests of a release that is a file, and the last signature of its line
//! in `SHA256SUMS`. A row comes when the digests are first needed, and goes with the release.

use distd_core::file_name::FilePattern;
use distd_core::names::Name;
use serde_json::json;
use sqlx::any::AnyRow;

use super::audit::append;
use super::row::{Columns, impossible};
use super::{Db, DbError, UnixSeconds, failed};

/// Digests of a release's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileDigests {
    /// SHA-256.
    pub sha256: [u8; 32],
    /// SHA-1, which hawkBit's clients compare.
    pub sha1: [u8; 20],
    /// MD5, which hawkBit's clients may compare.
    pub md5: [u8; 16],
}

/// Signature of a release's line in `SHA256SUMS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSignature {
    /// Name of the file.
    pub name: String,
    /// Fingerprint of the OpenPGP key.
    pub signed_by: Vec<u8>,
    /// OpenPGP packets.
    pub signature: Vec<u8>,
}

fn array<const N: usize>(row: &AnyRow, column: &'static str) -> Result<[u8; N], sqlx::Error> {
    row.blob(column)?.try_into().map_err(|_| impossible(column))
}

fn read_digests(row: &AnyRow) -> Result<FileDigests, sqlx::Error> {
    Ok(FileDigests { sha256: array(row, "sha256")?, sha1: array(row, "sha1")?, md5: array(row, "md5")? })
}

fn read_signature(row: &AnyRow) -> Result<Option<FileSignature>, sqlx::Error> {
    let Some(name) = row.text_or_none("name")? else { return Ok(None) };
    Ok(Some(FileSignature { name, signed_by: row.blob("signed_by")?, signature: row.blob("signature")? }))
}

impl Db {
    /// Digests of a release; `None` while they are not computed.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn file_digests(&self, product: &Name, version: &Name) -> Result<Option<FileDigests>, DbError> {
        let row =
            sqlx::query("SELECT sha256, sha1, md5 FROM release_files WHERE product = $1 AND version = $2")
                .bind(product.to_string())
                .bind(version.to_string())
                .fetch_optional(&self.pool)
                .await;
        row.and_then(|row| row.as_ref().map(read_digests).transpose())
            .map_err(failed("read the digests of the release"))
    }

    /// Records the digests of a release; those that are there stay.
    ///
    /// # Errors
    /// [`DbError::Query`], also when the release was withdrawn meanwhile.
    pub async fn put_file_digests(
        &self,
        product: &Name,
        version: &Name,
        digests: &FileDigests,
    ) -> Result<(), DbError> {
        sqlx::query(
            "INSERT INTO release_files (product, version, sha256, sha1, md5) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (product, version) DO NOTHING",
        )
        .bind(product.to_string())
        .bind(version.to_string())
        .bind(digests.sha256.as_slice())
        .bind(digests.sha1.as_slice())
        .bind(digests.md5.as_slice())
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("record the digests of the release"))
    }

    /// The last signature of a release's line; `None` before the first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn file_signature(
        &self,
        product: &Name,
        version: &Name,
    ) -> Result<Option<FileSignature>, DbError> {
        let row = sqlx::query(
            "SELECT name, signed_by, signature FROM release_files WHERE product = $1 AND version = $2 \
             AND name IS NOT NULL",
        )
        .bind(product.to_string())
        .bind(version.to_string())
        .fetch_optional(&self.pool)
        .await;
        row.and_then(|row| row.as_ref().map_or(Ok(None), read_signature))
            .map_err(failed("read the signature of the release's file name"))
    }

    /// Records the signature of a release's line in place of the one before.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn put_file_signature(
        &self,
        product: &Name,
        version: &Name,
        signed: &FileSignature,
    ) -> Result<(), DbError> {
        sqlx::query(
            "UPDATE release_files SET name = $1, signed_by = $2, signature = $3 \
             WHERE product = $4 AND version = $5",
        )
        .bind(signed.name.clone())
        .bind(signed.signed_by.clone())
        .bind(signed.signature.clone())
        .bind(product.to_string())
        .bind(version.to_string())
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("record the signature of the release's file name"))
    }

    /// Sets or removes the file name of a product, and counts a change of the documents of its
    /// channels. Setting what is set already changes nothing. `false` when there is no such
    /// product.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn set_file_name(
        &self,
        product: &Name,
        pattern: Option<&FilePattern>,
        now: UnixSeconds,
    ) -> Result<bool, DbError> {
        let what = "change the file name of the product";
        let pattern = pattern.map(FilePattern::as_str);
        let mut tx = self.begin_write().await?;
        // The first statement locks the row.
        let row = sqlx::query("UPDATE products SET name = name WHERE name = $1 RETURNING file_name")
            .bind(product.to_string())
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed(what))?;
        let Some(row) = row else { return Ok(false) };
        if row.text_or_none("file_name").map_err(failed(what))?.as_deref() == pattern {
            return Ok(true);
        }
        sqlx::query("UPDATE products SET file_name = $1 WHERE name = $2")
            .bind(pattern.map(str::to_owned))
            .bind(product.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        sqlx::query("UPDATE channels SET counter = counter + 1, updated = $1 WHERE product = $2")
            .bind(now)
            .bind(product.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        let details = json!({"file_name": pattern});
        append(&mut tx, &self.acting.at(now), "product.set", product.as_str(), &details)
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        Ok(true)
    }

    /// Takes over the file name that a signed document of a channel has, where the product has
    /// none: the database was made again, or an older one came back.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn take_over_file_name(&self, product: &Name, pattern: &FilePattern) -> Result<(), DbError> {
        sqlx::query("UPDATE products SET file_name = $1 WHERE name = $2 AND file_name IS NULL")
            .bind(pattern.to_string())
            .bind(product.to_string())
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("take the file name of the product over"))
    }
}
