//! The HTTP API of a whole origin on port 0: TLS, tokens, both ways in, and everything callers get wrong.

mod process;
mod products;
mod publishers;
mod refusals;
mod releases;
mod tokens;
mod withdraw;
mod world;
