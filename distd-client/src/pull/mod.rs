//! Pull of an artifact: held chunks are copied, missing chunks are fetched, the whole is verified,
//! and then the artifact is put in place.
//!
//! `ours` decides whether the target may be overwritten, `downgrade` whether the release may be
//! installed, and `there` whether there is anything to do. `wanted` resolves the release and gets
//! its manifest; `seeds` finds held chunks. `target` is where the artifact is written, `tree` and
//! `staging` where a directory is built; `journal` records progress across kills. `copy`, `sink`
//! and `patches` fill the target through `place`. `job` is the state of one pull, `arriving`
//! what a reader sees of it, `run` the
//! sequence of its steps, `plan` the forecast of its work, and `report` its result. `export` puts
//! what a pull would fetch into a bundle; `bundles` opens one for a pull. `network` has the
//! connections, `fetch` does the same for a ticket instead of a release, and `read` gets a part.
//! `access` is the way to both.

mod access;
mod arriving;
mod attributes;
mod bundles;
mod check;
mod clean;
mod compare;
mod copy;
mod downgrade;
mod entries;
mod export;
mod fetch;
mod job;
mod journal;
mod kept;
mod layout;
mod left_out;
mod make_entry;
mod metadata;
mod network;
mod ours;
mod patches;
mod place;
mod plan;
mod read;
mod report;
mod request;
mod run;
mod seeds;
mod sink;
mod spread;
mod staging;
mod sweep;
mod target;
mod there;
mod tree;
mod verify;
mod wanted;

pub(crate) use access::SHARED_CHUNKS_MAX;
pub use access::TicketAccess;
pub use arriving::Arriving;
pub use bundles::{name_of, open as open_bundle, timestamp_ends};
pub use clean::clean;
pub use downgrade::{Downgrade, Refused};
pub(crate) use downgrade::{version_at, went_back};
pub use export::{ExportRequest, Exported, SignForBundle, export};
pub use fetch::{FetchRequest, Fetched, default_target, fetch};
pub(crate) use kept::remove_side_files;
pub use kept::{Kept, read_kept_manifest};
pub use patches::Aim;
pub use plan::plan;
pub use read::{ReadOutcome, ReadRequest, read};
pub use request::{BundleSource, Installed, LABELS_FRESH, PullRequest};
pub(crate) use run::ask_turn;
pub use run::{Look, PULL_SECONDS, look, pull, pull_watched};
pub(crate) use seeds::{SeedFile, open_artifact};
pub use verify::{verify, verify_kept};
