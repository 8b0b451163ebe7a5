//! The HTTP API of a whole origin on port 0: TLS, tokens, both kinds of upload, and mistakes of
//! callers.

mod audit;
mod ddi;
mod ddi_clients;
mod files;
mod fleet;
mod process;
mod products;
mod publishers;
mod refusals;
mod releases;
mod space;
mod state;
mod tokens;
#[cfg(feature = "ui")]
mod ui;
mod withdraw;
mod world;
