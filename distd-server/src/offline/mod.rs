//! Commands for an operator on the origin's machine: check, examine, back up, restore, change keys
//! and roots, make an admin token.
//!
//! | command | beside a running origin | writes to |
//! |---|---|---|
//! | `fsck`, `doctor`, `root show`, `backup` | `fsck` no, the others yes | nothing of its |
//! | `fsck --repair`, `keys rotate`, `restore` | no: they own the store (`own`) | everything |
//! | `admin-token` | yes; the store must belong to the database | one row |
//! | `root prepare`, `root install`, `keys renew-ca` | yes | files of the data directory |
//! | `keys export` | yes | nothing of its |
//! | `keys import` | the origin is not begun yet | the directory of its keys |
//! | `openpgp-key` | yes | the key's file, if there is none |

mod backup;
mod doctor;
mod fsck;
mod handed;
mod keys;
mod own;
mod rebuild;
mod restore;
mod root;
mod token;

pub use backup::{Backed, BackupError, backup};
pub use doctor::{answers, doctor};
pub use fsck::{FsckError, FsckOptions, FsckReport, fsck};
pub use handed::{HandedError, export_keys, import_keys};
pub use keys::{KeysError, openpgp_key, renew_ca, rotate};
pub use own::OwnError;
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

/// The TUF repository in a store, for reading alone; `None` when none was begun there.
async fn metadata_in(store: Store) -> Result<Option<Arc<ObjectMetadata>>, StoreError> {
    let metadata = Arc::new(ObjectMetadata::read_only(store));
    Ok(is_begun(&metadata).await?.then_some(metadata))
}

/// Whether there is a TUF repository.
async fn is_begun(metadata: &ObjectMetadata) -> Result<bool, StoreError> {
    Ok(metadata.get("timestamp.json").await?.is_some())
}

/// Whether a directory is an origin's. The CA's key may be a signer's.
fn is_origin(data: &Path) -> bool {
    let has = |name: &str| data.join("realm").join(name).is_file();
    has("ca.pem") && (has("ca.key") || has("origin.key"))
}
