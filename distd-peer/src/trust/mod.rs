//! Identities and trust: which peer is which node, and which data is believed (docs/trust.md).
//!
//! A node has a key and a short-lived certificate of the realm CA ([`identity`]). It obtains the
//! certificate with a join token ([`token`], [`enroll`], [`seal`]) and uses it in mutual TLS
//! ([`tls`]). The content of a release is defined by signed TUF metadata ([`tuf`]), which any
//! untrusted tier may forward. What a node may fetch and serve is in its capabilities
//! ([`capability`]). Nodes sign the records of the addresses where they listen ([`record`]), and
//! devices their reports ([`report`]) and receipts, whose log every node watches ([`receipts`]).
//! The realm tells each node its labels and pins ([`statement`]), and whether it may begin a
//! rollout now ([`turn`]). Nodes that are excluded before their certificate expires are on a signed
//! list ([`revoked`]); rollouts that stand still are in signed notices ([`halt`]). A share of
//! machines without a realm is a realm of its own ([`share_realm`]), which tickets lead to
//! ([`ticket`]).

pub mod capability;
pub mod enroll;
pub mod files;
pub mod halt;
pub mod identity;
pub mod receipts;
pub mod record;
pub mod report;
pub mod revoked;
pub mod seal;
pub mod share_realm;
pub mod statement;
pub mod ticket;
pub mod tls;
pub mod token;
pub mod tuf;
pub mod turn;
