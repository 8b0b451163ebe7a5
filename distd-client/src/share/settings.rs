//! Settings of the exchange with neighbours.

use std::sync::Arc;
use std::time::Duration;

use distd_peer::rates::{Class, Limits, Throttle};
use distd_peer::serve::ServeConfig;

use super::Connectivity;
use crate::config::Settings;

/// Default limit of the upload to neighbours, in bytes per second.
const UPLOAD_BYTES_PER_SECOND: u64 = 20_000_000;

/// Default number of batches served at once.
const UPLOAD_SLOTS: usize = 20;

/// Default number of batches served at once to one neighbour.
const UPLOAD_SLOTS_PER_PEER: usize = 4;

/// Largest number of connections from neighbours.
const CONNECTIONS_MAX: usize = 64;

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
    /// Takes the settings of a device.
    pub fn of(settings: &Settings) -> Self {
        let limits = settings.limits();
        // The check succeeds: settings with invalid limits are refused.
        let mut rates = limits.check().unwrap_or_default();
        rates.upload.all.otherwise.get_or_insert(UPLOAD_BYTES_PER_SECOND);
        let enabled = settings.share && settings.connectivity != Connectivity::Offline;
        Self {
            enabled,
            serves: enabled && !settings.metered,
            mdns: settings.mdns,
            connectivity: settings.connectivity,
            site: settings.site.clone().unwrap_or_default(),
            linger: settings.linger,
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

    /// Returns the limit of this process's uploads.
    pub fn upload(&self) -> Option<Arc<Throttle>> {
        self.limits.upload.for_class(Some(self.class))
    }

    /// Returns the limits of the answerer.
    pub(super) fn serve_config(&self) -> ServeConfig {
        ServeConfig {
            connections_max: CONNECTIONS_MAX,
            upload_slots_max: self.slots,
            upload_slots_per_peer: self.slots_per_peer,
            upload: self.upload(),
            ..ServeConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use distd_peer::trust::files;

    use super::*;
    use crate::config::FILE_NAME;

    #[test]
    fn a_metered_device_takes_part_but_serves_nobody() {
        let sharing = |text: &str| {
            let dir = tempfile::tempdir().expect("temporary directory");
            files::write_atomic(&dir.path().join(FILE_NAME), text.as_bytes(), 0o600).expect("write");
            Sharing::of(&Settings::of_file(dir.path()).expect("settings"))
        };
        let plain = sharing("");
        assert!(plain.enabled && plain.serves);
        let metered = sharing("metered = true");
        assert!(metered.enabled && !metered.serves);
        for off in [plain.off(), sharing("connectivity = \"offline\""), sharing("share.enabled = false")] {
            assert!(!off.enabled && !off.serves);
        }
    }
}
