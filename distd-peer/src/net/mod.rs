//! QUIC below the protocol: endpoints, frames on streams, connections to a parent.

mod endpoint;
mod enroll;
mod link;
mod meter;
mod wire;

pub use endpoint::{BindError, ResetKey, client_endpoint, resolve, server_endpoint};
pub(crate) use enroll::exchange_raw;
pub use enroll::{EnrollError, exchange_enroll};
pub use link::{Link, LinkError, SwarmHandle, SwarmLink};
pub use meter::{Meter, MeterReading};
pub use wire::{FrameReader, FrameWriter, WireError, close_code};
