//! Bundles: a release, or the way from an earlier one to it, in a file that is carried to where no
//! parent is (docs/bundles.md).
//!
//! [`BundleWriter`] writes what an exporter fetched. [`Bundle`] is an open file;
//! [`add_parent`] lets this process dial it as it dials a parent, so that a device pulls from it,
//! and a relay fetches from it, by the same code as from the network, and verifies the same.

mod content;
mod format;
mod read;
mod write;

pub(crate) use content::connect;
pub use content::{add_parent, address_of};
pub use format::{BundleError, Head, MAGIC, Release};
pub use read::{Bundle, SwarmPart};
pub use write::BundleWriter;

#[cfg(test)]
mod tests;
