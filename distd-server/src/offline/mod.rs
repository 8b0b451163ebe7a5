//! What an operator does on the origin's machine: check, back up, restore, change keys, make an admin token.

mod backup;
mod fsck;
mod keys;
mod rebuild;
mod restore;
mod token;

pub use backup::{Backed, BackupError, backup};
pub use fsck::{FsckError, FsckOptions, FsckReport, fsck};
pub use keys::{KeysError, rotate};
pub use rebuild::RebuildError;
pub use restore::{RestoreError, Restored, restore};
pub use token::{TokenError, admin_token};

use std::path::Path;

/// Whether a directory holds an origin's keys.
fn is_origin(data: &Path) -> bool {
    data.join("realm/ca.key").is_file() && data.join("realm/ca.pem").is_file()
}
