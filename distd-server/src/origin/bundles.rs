//! Signed metadata for bundles: what a place without an uplink needs for longer than a day.

use std::time::Duration;

use bytes::Bytes;
use distd_core::fleet::{Capability, Entitlement, Right, Rights};
use distd_core::names::{Name, release_target};
use distd_peer::clock::unix_now;
use distd_peer::trust::capability::CapabilityQuestion;

use super::{Origin, signed};
use crate::db::{DbError, MoveBy};
use crate::realm::RealmError;
use crate::tuf::{RepositoryError, SignedForBundle};

/// Error of making the metadata of a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleMetadataError {
    /// There is no such release.
    #[error("{0} has no release {1}")]
    UnknownRelease(Name, Name),
    /// The operator lets no metadata be signed for bundles.
    #[error("this origin signs no metadata for bundles")]
    Off,
    /// The metadata would be valid for longer than the operator lets it.
    #[error("metadata in a bundle is valid for {} s at most", .0.as_secs())]
    TooLong(Duration),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Signing the metadata failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// Signing the capability failed.
    #[error(transparent)]
    Realm(#[from] RealmError),
}

/// Metadata for a bundle.
pub struct ForBundle {
    /// Snapshot and timestamp.
    pub metadata: SignedForBundle,
    /// Capability of any node to read the release and the patch sets that lead to it.
    pub capability: Bytes,
    /// Time from which all is refused, unix seconds.
    pub until: u64,
}

impl Origin {
    /// Signs metadata for a bundle with a release, and a capability with which any node of the
    /// realm that has the bundle may read it, in the name of `by`.
    ///
    /// # Errors
    /// [`BundleMetadataError`].
    pub async fn sign_for_bundle(
        &self,
        product: &Name,
        version: &Name,
        validity: Duration,
        by: &MoveBy,
    ) -> Result<ForBundle, BundleMetadataError> {
        if self.bundle_validity.is_zero() {
            return Err(BundleMetadataError::Off);
        }
        if validity > self.bundle_validity {
            return Err(BundleMetadataError::TooLong(self.bundle_validity));
        }
        if self.db.release(product, version).await?.is_none() {
            return Err(BundleMetadataError::UnknownRelease(product.clone(), version.clone()));
        }
        let _turn = self.publishing.lock().await;
        let now = unix_now();
        let until = now.saturating_add(validity.as_secs());
        let nothing = CapabilityQuestion::default();
        let manifests = self.manifests_asked_for(&nothing, &[release_target(product, version)]).await?;
        let rights: Rights = [Right::Read].into_iter().collect();
        let manifests = manifests.into_iter().map(|manifest| Entitlement { manifest, rights }).collect();
        let capability = Capability { node: None, issued: now, expires: until, manifests };
        let capability = self.realm.sign_capability(capability)?.encode();
        let metadata = self.repository.sign_for_bundle(until, now).await?;
        self.db.acting(by, signed(now)).note_bundle(product, version, until).await?;
        Ok(ForBundle { metadata, capability, until })
    }
}
