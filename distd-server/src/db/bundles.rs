//! Bundles that the realm signed metadata for: entries of the audit log alone.

use distd_core::names::Name;
use serde_json::json;

use super::audit::append;
use super::{Db, DbError, failed};

impl Db {
    /// Notes in the audit log that metadata which is valid until `until` (unix seconds) was signed
    /// for a bundle with a release.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn note_bundle(&self, product: &Name, version: &Name, until: u64) -> Result<(), DbError> {
        let what = "note a bundle";
        let mut tx = self.begin_write().await?;
        let (subject, details) = (format!("{product}@{version}"), json!({"until": until}));
        append(&mut tx, &self.acting, "release.bundle", &subject, &details).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))
    }
}
