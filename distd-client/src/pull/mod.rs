//! Pulling an artifact: what is held is copied, what is missing is fetched, all of it is verified, then it is in place.
//!
//! [`wanted`] learns the release and gets its manifest; [`seeds`] finds chunks that are held; [`target`] is where the
//! artifact grows; [`journal`] remembers across kills; [`copy`] and [`sink`] fill the target; [`run`] is the order of it all.

mod check;
mod copy;
mod entries;
mod journal;
mod kept;
mod metadata;
mod run;
mod seeds;
mod sink;
mod target;
mod tree;
mod verify;
mod wanted;

pub(crate) use kept::read_kept_manifest;
pub(crate) use run::{PullRequest, plan, pull};
pub(crate) use verify::verify;
