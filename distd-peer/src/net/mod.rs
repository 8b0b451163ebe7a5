//! QUIC below the protocol: endpoints, frames on streams, connections to parents and neighbours, byte rates.

mod endpoint;
mod enroll;
mod limit;
mod link;
mod meter;
mod wire;

pub use endpoint::{
    BindError, Congestion, ResetKey, Tuning, client_endpoint, device_endpoint, own_address, resolve,
    server_endpoint,
};
pub(crate) use enroll::exchange_raw;
pub use enroll::{EnrollError, exchange_enroll};
pub use limit::RateLimit;
pub use link::{Link, LinkError, SwarmHandle, SwarmLink};
pub use meter::{Meter, MeterReading};
pub use wire::{FrameReader, FrameWriter, WireError, close_code};
