//! The fleet: labels and groups of nodes, and what nodes may do (docs/fleet.md). Pure functions:
//! the origin decides by them, and every node that serves checks by them.

mod capability;
mod grants;
mod labels;
mod patterns;
mod rights;
pub mod rollout;
mod selector;

pub use capability::{
    CAPABILITY_BYTES_MAX, Capability, CapabilityError, Entitlement, SignedCapability, capability_message,
    is_capability_message,
};
pub use grants::{
    Audience, EVERYONE, Grant, GrantError, Member, Selectors, by_certificate, check_grant, rights,
};
pub use labels::{
    LabelError, LabelKey, LabelMap, LabelValue, Labels, ROLE_KEY, assignable_key, assignable_label,
};
pub use patterns::{NamePattern, PatternError, ReleasePattern};
pub use rights::{Right, Rights, UnknownRight};
pub use selector::{Selector, SelectorError};
