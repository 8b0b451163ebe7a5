//! Patches on the device: the available sets ([`offers`]), their payloads ([`payloads`]), and their
//! application ([`apply`]; [`stream`] for packed files, with [`transient`] for transient chunks). A
//! small set also provides the manifest ([`mod@rebuild`]).
//!
//! A patch only ever saves bytes. Any failure (a set that cannot be fetched, a payload that does
//! not decode, a damaged base) is counted, and the chunks that the patch would have rebuilt are
//! fetched instead.

mod apply;
mod offers;
mod payloads;
mod rebuild;
mod stream;
mod transient;

pub(super) use apply::{Applied, Arrivals, Work, apply_all, held};
pub use offers::Aim;
pub(super) use offers::{LinkRate, Offers, Set};
pub(super) use payloads::{PayloadSink, Payloads};
pub(super) use rebuild::{Files, Rebuilt, rebuild};
pub(super) use transient::TransientChunks;
