//! What an operator does on the origin's machine: check, back up, restore, change keys and roots,
//! make an admin token.

mod backup;
mod fsck;
mod keys;
mod rebuild;
mod restore;
mod root;
mod token;

pub use backup::{Backed, BackupError, backup};
pub use fsck::{FsckError, FsckOptions, FsckReport, fsck};
pub use keys::{KeysError, renew_ca, rotate};
pub use rebuild::RebuildError;
pub use restore::{RestoreError, Restored, restore};
pub use root::{
    RootError, RootOrder, RootShown, install_root, new_root_key, prepare_root, show_root, show_root_file,
    sign_root,
};
pub use token::{TokenError, admin_token};

use std::path::Path;
use std::sync::Arc;

use crate::origin::ObjectMetadata;
use crate::store::Store;
use crate::tuf::{MetadataStore, StoreError};

/// The TUF repository in a store; `None` when none was begun there.
async fn metadata_in(store: Store) -> Result<Option<Arc<ObjectMetadata>>, StoreError> {
    let metadata = Arc::new(ObjectMetadata::new(store));
    let begun = metadata.get("timestamp.json").await?.is_some();
    Ok(begun.then_some(metadata))
}

/// Whether a directory is an origin's. The CA's key may be a signer's.
fn is_origin(data: &Path) -> bool {
    let has = |name: &str| data.join("realm").join(name).is_file();
    has("ca.pem") && (has("ca.key") || has("origin.key"))
}
