//! How a device exchanges with its neighbours: what `client.toml` says, and what is so unless it says otherwise.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use distd_core::swarm::rules::HAND_ON;
use distd_peer::limits::{Class, Limits, Throttle};
use distd_peer::serve::ServeConfig;

use super::Connectivity;
use crate::config::ClientFile;

/// What neighbours may have of the link unless configured, bytes a second.
const UPLOAD_BYTES_PER_SECOND: u64 = 20_000_000;

/// Most batches served at once.
const UPLOAD_SLOTS: usize = 20;

/// Most batches served at once to one neighbour.
const UPLOAD_SLOTS_PER_PEER: usize = 4;

/// Most connections of neighbours.
const CONNECTIONS_MAX: usize = 64;

/// How long a finished pull goes on serving.
const LINGER: Duration = Duration::from_secs(5);

/// Port an agent listens on.
const AGENT_PORT: u16 = 4434;

/// Settings of the exchange.
#[derive(Clone, Debug)]
pub(crate) struct Sharing {
    /// Whether this device takes part.
    pub(crate) enabled: bool,
    /// Whether it serves, too.
    pub(crate) serves: bool,
    /// Whether it looks for neighbours by multicast DNS.
    pub(crate) mdns: bool,
    /// How far it reaches.
    pub(crate) connectivity: Connectivity,
    /// Its site; empty when it names none.
    pub(crate) site: String,
    /// Where an agent listens.
    pub(crate) agent_listen: SocketAddr,
    /// How long a finished pull goes on serving; at least what it takes to hand on what it got last.
    pub(crate) linger: Duration,
    /// Rates of both directions.
    limits: Limits,
    /// What this process does, as far as rates go.
    class: Class,
    slots: usize,
    slots_per_peer: usize,
}

impl Sharing {
    /// As `file` says.
    pub(crate) fn of(file: &ClientFile) -> Self {
        let (share, limits) = (&file.share, &file.limits);
        let enabled = share.enabled.unwrap_or(true);
        // A file with limits that cannot be was not loaded.
        let mut rates = limits.check().unwrap_or_default();
        rates.upload.all.otherwise.get_or_insert(UPLOAD_BYTES_PER_SECOND);
        Self {
            enabled,
            serves: enabled && !file.metered,
            mdns: file.mdns.unwrap_or(true),
            connectivity: file.connectivity,
            site: file.site.clone().unwrap_or_default(),
            agent_listen: share.listen.unwrap_or((Ipv6Addr::UNSPECIFIED, AGENT_PORT).into()),
            linger: share.linger_seconds.map_or(LINGER, Duration::from_secs).max(HAND_ON),
            limits: rates,
            class: Class::Update,
            slots: limits.upload_slots.unwrap_or(UPLOAD_SLOTS),
            slots_per_peer: limits.upload_slots_per_peer.unwrap_or(UPLOAD_SLOTS_PER_PEER),
        }
    }

    /// Neither serves nor takes.
    #[must_use]
    pub(crate) fn off(mut self) -> Self {
        (self.enabled, self.serves) = (false, false);
        self
    }

    /// Reaches as far as said here, if anything is.
    #[must_use]
    pub(crate) fn within(mut self, connectivity: Option<Connectivity>) -> Self {
        self.connectivity = connectivity.unwrap_or(self.connectivity);
        self.enabled &= self.connectivity != Connectivity::Offline;
        self.serves &= self.enabled;
        self
    }

    /// Pulls as this class.
    #[must_use]
    pub(crate) fn with_class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }

    /// What this process takes of the link.
    pub(crate) fn download(&self) -> Option<Arc<Throttle>> {
        self.limits.download.for_class(Some(self.class))
    }

    /// Bounds of the answering side.
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
    fn a_metered_device_takes_part_and_serves_nothing() {
        let plain = Sharing::of(&ClientFile::default());
        assert!(plain.enabled && plain.serves);
        let metered = Sharing::of(&ClientFile { metered: true, ..ClientFile::default() });
        assert!(metered.enabled && !metered.serves);
        let off = Sharing::of(&ClientFile::default()).off();
        assert!(!off.enabled && !off.serves);
    }
}
