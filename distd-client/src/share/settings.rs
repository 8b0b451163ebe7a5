//! Settings of the exchange with neighbours: the values of `client.toml` and the defaults.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use distd_peer::rates::{Class, Limits, Throttle};
use distd_peer::serve::ServeConfig;

use super::Connectivity;
use crate::config::ClientFile;

/// Default limit of the upload to neighbours, in bytes per second.
const UPLOAD_BYTES_PER_SECOND: u64 = 20_000_000;

/// Default number of batches served at once.
const UPLOAD_SLOTS: usize = 20;

/// Default number of batches served at once to one neighbour.
const UPLOAD_SLOTS_PER_PEER: usize = 4;

/// Largest number of connections from neighbours.
const CONNECTIONS_MAX: usize = 64;

/// Default time that a finished pull lingers to serve neighbours.
const LINGER: Duration = Duration::from_secs(5);

/// Default port of an agent.
const AGENT_PORT: u16 = 4434;

/// Settings of the exchange.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// Whether this device takes part in the exchange.
    pub enabled: bool,
    /// Whether this device also serves neighbours.
    pub serves: bool,
    /// Whether this device looks for neighbours by multicast DNS.
    pub mdns: bool,
    /// Networks to which packets may go.
    pub connectivity: Connectivity,
    /// Site of this device; empty when it names none.
    pub site: String,
    /// Address that an agent listens on.
    pub agent_listen: SocketAddr,
    /// Longest time for which a finished pull lingers to serve neighbours. `Linger` makes it half a
    /// second at least.
    pub linger: Duration,
    /// Rate limits of both directions.
    limits: Limits,
    /// Class of this process, which selects its rate limits.
    class: Class,
    slots: usize,
    slots_per_peer: usize,
}

impl Sharing {
    /// Takes the settings from `file`.
    pub fn of(file: &ClientFile) -> Self {
        let (share, limits) = (&file.share, &file.limits);
        let enabled = share.enabled.unwrap_or(true);
        // A file with invalid limits is refused when it is loaded, so the check succeeds here.
        let mut rates = limits.check().unwrap_or_default();
        rates.upload.all.otherwise.get_or_insert(UPLOAD_BYTES_PER_SECOND);
        Self {
            enabled,
            serves: enabled && !file.metered,
            mdns: file.mdns.unwrap_or(true),
            connectivity: file.connectivity,
            site: file.site.clone().unwrap_or_default(),
            agent_listen: share.listen.unwrap_or((Ipv6Addr::UNSPECIFIED, AGENT_PORT).into()),
            linger: share.linger_seconds.map_or(LINGER, Duration::from_secs),
            limits: rates,
            class: Class::Update,
            slots: limits.upload_slots.unwrap_or(UPLOAD_SLOTS),
            slots_per_peer: limits.upload_slots_per_peer.unwrap_or(UPLOAD_SLOTS_PER_PEER),
        }
    }

    /// Turns the exchange off: the device neither serves neighbours nor fetches from them.
    #[must_use]
    pub fn off(mut self) -> Self {
        (self.enabled, self.serves) = (false, false);
        self
    }

    /// Limits packets to `connectivity`, if it is given.
    #[must_use]
    pub fn within(mut self, connectivity: Option<Connectivity>) -> Self {
        self.connectivity = connectivity.unwrap_or(self.connectivity);
        self.enabled &= self.connectivity != Connectivity::Offline;
        self.serves &= self.enabled;
        self
    }

    /// Sets the class of the pull.
    #[must_use]
    pub fn with_class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }

    /// Returns the limit of this process's downloads; `None` if they are unlimited.
    pub fn download(&self) -> Option<Arc<Throttle>> {
        self.limits.download.for_class(Some(self.class))
    }

    /// Returns the limits of the answerer.
    pub(super) fn serve_config(&self) -> ServeConfig {
        ServeConfig {
            connections_max: CONNECTIONS_MAX,
            upload_slots_max: self.slots,
            upload_slots_per_peer: self.slots_per_peer,
            upload: self.limits.upload.for_class(Some(self.class)),
            ..ServeConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metered_device_takes_part_but_serves_nobody() {
        let plain = Sharing::of(&ClientFile::default());
        assert!(plain.enabled && plain.serves);
        let metered = Sharing::of(&ClientFile { metered: true, ..ClientFile::default() });
        assert!(metered.enabled && !metered.serves);
        let off = Sharing::of(&ClientFile::default()).off();
        assert!(!off.enabled && !off.serves);
    }
}
