//! The fleet: labels and groups of nodes, and what nodes may do (docs/fleet.md). Pure functions:
//! the origin decides by them, and every node that serves checks by them.

pub mod audit;
mod capability;
mod grants;
mod halt;
mod labels;
mod patterns;
pub mod receipts;
pub mod report;
mod rights;
pub mod rollout;
mod selector;
pub mod state;
mod statement;
pub mod window;

pub use capability::{
    CAPABILITY_BYTES_MAX, Capability, CapabilityError, Entitlement, SignedCapability, capability_message,
    is_capability_message,
};
pub use grants::{
    Audience, EVERYONE, Grant, GrantError, Member, Selectors, by_certificate, check_grant, rights,
};
pub use halt::{
    HALT_BYTES_MAX, HALT_SECONDS, HaltMalformed, HaltNotice, SignedHalt, halt_message, is_halt_message,
};
pub use labels::{
    LabelError, LabelKey, LabelMap, LabelValue, Labels, ROLE_KEY, assignable_key, assignable_label,
};
pub use patterns::{NamePattern, PatternError, ReleasePattern};
pub use rights::{Right, Rights, UnknownRight};
pub use selector::{Selector, SelectorError};
pub use statement::{
    NodeStatement, STATEMENT_BYTES_MAX, SignedStatement, StatementError, is_statement_message,
    statement_message,
};
