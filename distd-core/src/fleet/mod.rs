//! The fleet: what nodes may do (docs/fleet.md). Pure functions; the origin decides by them, and
//! every node that serves checks by them.

mod capability;
mod rights;

pub use capability::{
    CAPABILITY_BYTES_MAX, Capability, CapabilityError, Entitlement, SignedCapability, capability_message,
    is_capability_message,
};
pub use rights::{Right, Rights, UnknownRight};
