//! Who is who, and what may be believed: docs/trust.md.
//!
//! A node has a key and a short-lived certificate of the realm CA ([`identity`]), got with a join token
//! ([`token`], [`enroll`], [`seal`]) and used in mutual TLS ([`tls`]). What a release *is* comes from signed TUF metadata
//! ([`tuf`]), which any untrusted tier may forward. Where nodes listen, they sign themselves ([`record`]).
//! Whoever is out before its certificate ends is on a signed list ([`revoked`]).

pub mod enroll;
pub mod files;
pub mod identity;
pub mod record;
pub mod revoked;
pub mod seal;
pub mod tls;
pub mod token;
pub mod tuf;
