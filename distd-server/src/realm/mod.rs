//! The realm: its certificate authority, the enrolment of nodes, and the origin's own certificate.
//!
//! `DIR/realm/ca.key` (P-256, 0600) and `ca.pem`: ten years. `origin.key` (0600): the origin's
//! certificate is made anew at each start and before its 30 days are over, and lives in memory
//! alone. P-256 rather than Ed25519 for these two, because every HTTPS client speaks it; nodes have
//! Ed25519 keys.

mod authority;
mod ca;
mod enroll;

pub(crate) use authority::{Authority, ca_end};
pub use ca::{OriginCert, Realm, RealmError};
pub use enroll::{JoinTokens, Redemption, RegistryError, RequestRefused, Roots};
