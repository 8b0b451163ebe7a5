//! Transports below the protocol: endpoints, frames on streams, and connections to parents and
//! neighbours.

mod congestion;
mod connection;
mod dialer;
mod endpoint;
mod enroll;
mod error;
mod http2;
mod https;
mod keep_alive;
mod link;
mod local;
mod meter;
mod outbound;
mod proxy;
mod stream;
mod wire;

pub use congestion::Congestion;
pub(crate) use connection::Accepted;
pub use connection::Carrier;
pub(crate) use dialer::endpoint_of_both;
pub use dialer::{DialError, Dialer};
pub use endpoint::{
    BindError, ResetKey, Tuning, client_endpoint, device_endpoint, device_sockets, everywhere_ipv4,
    fit_send_window, is_without_ipv6, own_address, parent_sockets, resolve, server_endpoint, udp_socket,
};
pub use enroll::{EnrollError, exchange_enroll};
pub use error::{WireError, close_code, is_shut_out};
pub(crate) use https::{Accepted as HttpsAccepted, Greeted};
pub use link::{Link, LinkError, SwarmHandle, SwarmLink};
pub(crate) use local::Accepted as LocalAccepted;
pub use local::LocalParent;
pub use meter::{Meter, MeterReading};
pub use outbound::{Outbound, Transport, UnknownTransport};
pub use proxy::{Proxies, ProxyError};
pub use wire::{FrameReader, FrameWriter};
