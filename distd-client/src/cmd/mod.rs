//! The commands, one file each: every command takes arguments and prints one result.

pub(crate) mod agent;
pub(crate) mod audit;
pub(crate) mod channel;
pub(crate) mod clean;
pub(crate) mod enroll;
pub(crate) mod explain;
mod exported;
pub(crate) mod fleet;
pub(crate) mod grant;
pub(crate) mod group;
pub(crate) mod login;
pub(crate) mod node;
pub(crate) mod parse;
pub(crate) mod patch;
pub(crate) mod plan;
pub(crate) mod product;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod receipts;
pub(crate) mod release;
pub(crate) mod rollout;
pub(crate) mod simulate;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod update;
pub(crate) mod verify;
pub(crate) mod why;
