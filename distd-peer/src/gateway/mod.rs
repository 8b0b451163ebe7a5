//! Releases as files over HTTP, for programs that know nothing of distd: `GET
//! /r/PRODUCT/{VERSION|CHANNEL}/NAME` (docs/gateway.md).
//!
//! Goals: an updater that downloads by HTTP gets the bytes of a release unchanged, in every shape
//! of request that updaters use (whole, one range, many ranges, `HEAD`, resumed), also while the
//! release is still on its way. The side that has the bytes is a [`Releases`]: a device, which
//! pulls a release when it is asked for (`distd-client`), or an origin, which reads its store
//! (`distd-server`).
//!
//! Non-goals: this module resolves no release, fetches no chunk and keeps no file.
//!
//! [`Address`] is what a request asks for, `ranges` the parts of it, [`answer()`] decides status
//! and headers, [`Body`] reads the bytes as fast as the caller takes them, and [`serve()`] has the
//! connections.
//!
//! # Example
//!
//! A release of three chunks, 10 000 bytes in all, of which the device has two:
//!
//! ```text
//! GET /r/os/stable/os.erofs        Range: bytes=0-3
//!   find   os:stable is os@2, 10 000 bytes, BLAKE3 5f…
//!   open   the pull of os@2 begins; chunks 0 and 2 are copied from os@1
//!   read   bytes 0..4 lie in chunk 0, which is there: read, verified, sent
//! 206, Content-Range: bytes 0-3/10000, ETag: "5f…"
//!
//! GET /r/os/stable/os.erofs        Range: bytes=4000-4999
//!   read   bytes 4000..5000 lie in chunk 1, which is fetched at once and then sent
//! ```

mod address;
mod answer;
mod body;
mod casync;
mod ranges;
mod refusal;
mod resumed;
mod serve;
mod tokens;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::names::Name;

pub use address::{Address, AddressError, Item, Reference, shown_token, without_token};
pub use answer::{Caller, Remembered, answer};
pub use body::Body;
pub(crate) use body::Piece;
pub use ranges::{Asked, RANGES_MAX, parse_ranges};
pub use refusal::Refusal;
pub use serve::{Access, Counters, Gateway, serve};
pub use tokens::{GatewayToken, TOKENS_FILE, Tokens, TokensError};

/// A release that an address leads to.
#[derive(Clone, Debug)]
pub struct Found {
    /// Product of the release.
    pub product: Name,
    /// Version of the release.
    pub version: Name,
    /// Whether the address named a channel.
    pub by_channel: bool,
    /// Manifest of the release.
    pub manifest: ManifestId,
    /// Length of the file, bytes.
    pub bytes: u64,
    /// BLAKE3 of the file.
    pub blake3: [u8; 32],
    /// Name and sum of the file, if the product gives its files names.
    pub file: Option<NamedFile>,
}

/// Name that a product gives the file of a release, and the sum of that file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// Name of the file.
    pub name: String,
    /// Text of `SHA256SUMS`, and the OpenPGP signature over it, if the realm signed one; `None`
    /// where no channel vouches for the sum.
    pub sums: Option<(String, Option<Bytes>)>,
}

/// Bytes of a file, which may still be on their way.
#[async_trait]
pub trait FileBytes: Send + Sync {
    /// Reads verified bytes from the start of `range`: at least one, and at most as many as the
    /// range has. Waits for bytes that are on their way. `part` says that the caller asked for a
    /// part of the file and not for all of it, so these bytes should come before others.
    ///
    /// # Errors
    /// When the bytes cannot be had; whoever reads ends the response before its length.
    async fn read(&self, range: Range<u64>, part: bool) -> io::Result<Bytes>;

    /// Lengths of the chunks of the file, in its order.
    ///
    /// # Errors
    /// When the file cannot be had.
    async fn lengths(&self) -> io::Result<Vec<u32>>;
}

/// The releases that a gateway offers.
#[async_trait]
pub trait Releases: Send + Sync + 'static {
    /// Resolves an address. Fetches no bytes of the release.
    ///
    /// # Errors
    /// [`Refusal`], with the status for the caller.
    async fn find(&self, address: &Address) -> Result<Found, Refusal>;

    /// Opens the file of a release, and begins to get it where it is not there.
    ///
    /// # Errors
    /// [`Refusal`], with the status for the caller.
    async fn open(&self, found: &Found) -> Result<Arc<dyn FileBytes>, Refusal>;
}
