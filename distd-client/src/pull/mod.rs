//! Pulling an artifact: what is held is copied, what is missing is fetched, all of it is verified, then it is in place.
//!
//! [`ours`] decides whether the target may be taken, [`downgrade`] whether the release may take it,
//! and [`there`] whether there is anything to do; [`wanted`] learns the release and gets its
//! manifest; [`seeds`] finds chunks that are held; [`target`] is where the artifact grows, [`tree`]
//! and [`staging`] where a directory does; [`journal`] remembers across kills; [`copy`], [`sink`]
//! and [`patches`] fill the target through [`place`]; [`job`] is one pull's state, [`run`] the
//! order of it all, [`plan`](mod@plan) what it would do, [`report`] what is said in the end.

mod attributes;
mod check;
mod clean;
mod compare;
mod copy;
mod downgrade;
mod entries;
mod job;
mod journal;
mod kept;
mod layout;
mod left_out;
mod make_entry;
mod metadata;
mod ours;
mod patches;
mod place;
mod plan;
mod report;
mod run;
mod seeds;
mod sink;
mod staging;
mod sweep;
mod target;
mod there;
mod tree;
mod verify;
mod wanted;

pub(crate) use clean::clean;
pub(crate) use downgrade::{Downgrade, Refused};
pub(crate) use kept::{Kept, read_kept_manifest};
pub(crate) use patches::Aim;
pub(crate) use plan::plan;
pub(crate) use run::{PullRequest, pull};
pub(crate) use seeds::{Bytes, open_artifact};
pub(crate) use verify::{verify, verify_kept};
