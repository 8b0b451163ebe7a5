//! Patches on the device: which sets there are ([`offers`]), their payloads ([`payloads`]), and applying them ([`apply`];
//! [`stream`] for packed files, with [`passing`] for what nobody wants to keep). A small set gives the manifest too ([`mod@rebuild`]).
//!
//! A patch only ever saves bytes. Whatever is wrong with one - a set that cannot be had, a payload that does not decode, a
//! base that rotted - is counted, and the chunks it would have rebuilt are fetched instead.

mod apply;
mod offers;
mod passing;
mod payloads;
mod rebuild;
mod stream;

pub(super) use apply::{Applied, Arrivals, Work, apply_all, held};
pub(crate) use offers::Aim;
pub(super) use offers::{Link, Offers};
pub(super) use passing::Passing;
pub(super) use payloads::{PayloadSink, Payloads};
pub(super) use rebuild::{Files, Rebuilt, rebuild};
