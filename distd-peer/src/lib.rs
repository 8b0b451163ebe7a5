//! distd between origin and device: endpoints, swarm driver, edge chunk store and relay.
//!
//! [`net`] puts the frames of `distd_core::proto` on QUIC or HTTP/2; [`serve`] answers them for whatever [`serve::Content`] an
//! origin or relay has; [`driver`] runs the core's fetching state machine against [`parents`]; [`store`] keeps verified
//! chunks on a disk; [`limits`] says how much of a link they take; [`relay`] puts all of it together. [`trust`] says who may talk to
//! whom.

pub mod clock;
pub mod driver;
pub mod enrollment;
mod knocks;
pub mod limits;
pub mod manifest_fetch;
pub mod mdns;
pub mod metrics;
pub mod neighbours;
pub mod net;
pub mod parents;
pub mod process;
pub mod quarantine;
pub mod relay;
pub mod seldom;
pub mod serve;
pub mod share;
pub mod store;
pub mod table;
pub mod trust;
