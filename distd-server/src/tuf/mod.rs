//! The TUF repository, whose metadata devices trust (docs/trust.md, "The repository").
//!
//! `root` → `targets` → `releases` (`releases/*/*`, and below it bins by hash), `channels`
//! (`channels/*/*`) and `patches` (`patches/*`), `snapshot`, `timestamp`; consistent snapshots. The
//! repository itself is the only state. Every operation reads the part that it needs and writes new
//! files beside the old ones, `timestamp.json` last. So a crash between two writes leaves the
//! repository as it was.

mod bins;
mod keys;
mod listed;
mod make;
mod metadata;
mod publish;
mod refresh;
mod root;
mod shared;
mod state;
mod write;

pub use distd_peer::trust::tuf::{
    AnswerError, Answerer, DirStore, MetadataStore, StoreError, is_served_name,
};

pub(crate) use bins::key_role;
pub use bins::release_roles;
pub(crate) use keys::KeyRing;
pub use keys::{KeyError, OfflineKey, read_public_key};
pub use listed::{Listed, ListedRelease};
pub use make::Options;
pub use metadata::RepositoryError;
pub(crate) use metadata::{expires_after, key_roles};
pub use publish::{Change, PATCHES_BYTES_MAX, PublishError, Published};
pub use refresh::{Refreshed, RotatableRole};
pub use root::{Missing, ROOT_KEYS_MAX, RootChange, RootFile, RootFileError};
pub use shared::SharedStore;
pub use state::TufRepository;
pub use write::SignedForBundle;
