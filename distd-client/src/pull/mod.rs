//! Pulling an artifact: what is held is copied, what is missing is fetched, all of it is verified, then it is in place.
//!
//! [`wanted`] learns the release and gets its manifest; [`seeds`] finds chunks that are held; [`target`] is where the
//! artifact grows; [`journal`] remembers across kills; [`copy`], [`sink`] and [`patches`] fill the target through [`place`];
//! [`job`] is one pull's state, [`run`] the order of it all, [`plan`](mod@plan) what it would do, [`report`] what is said in the end.

mod check;
mod copy;
mod entries;
mod job;
mod journal;
mod kept;
mod metadata;
mod patches;
mod place;
mod plan;
mod report;
mod run;
mod seeds;
mod sink;
mod target;
mod tree;
mod verify;
mod wanted;

pub(crate) use kept::{read_kept_manifest, write_atomic};
pub(crate) use patches::Aim;
pub(crate) use plan::plan;
pub(crate) use run::{PullRequest, pull};
pub(crate) use seeds::{Bytes, open_artifact};
pub(crate) use verify::verify;
