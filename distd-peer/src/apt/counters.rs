//! Counters of a proxy.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a proxy; docs/apt.md lists them.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests.
    pub requests: AtomicU64,
    /// Requests answered from the cache.
    pub hits: AtomicU64,
    /// Downloads that were begun.
    pub downloads: AtomicU64,
    /// Requests that joined a download under way.
    pub joined: AtomicU64,
    /// Requests for files that no index names, which were passed through.
    pub unlisted: AtomicU64,
    /// Requests answered with 304.
    pub not_modified: AtomicU64,
    /// Requests answered from the cache because no mirror answered.
    pub stale: AtomicU64,
    /// Requests answered with a status of 400 or above.
    pub refused: AtomicU64,
    /// Requests for hosts that are not on the list, or that lead to private addresses.
    pub hosts_refused: AtomicU64,
    /// Connections of clients that may not use the proxy.
    pub clients_refused: AtomicU64,
    /// Connections that were closed because too many were open.
    pub connections_refused: AtomicU64,
    /// Bytes of bodies that were handed to clients.
    pub sent_bytes: AtomicU64,
    /// Downloads that went on after a mirror broke off.
    pub resumed: AtomicU64,
    /// Files whose bytes were not those that the index lists.
    pub wrong: AtomicU64,
    /// Files that were passed on without being kept, for want of room.
    pub unstored: AtomicU64,
    /// Requests that went to the mirror because the relay did not help.
    pub relay_failed: AtomicU64,
    /// Files that came from a relay.
    pub relay_files: AtomicU64,
    /// Files that came from a neighbour.
    pub neighbour_files: AtomicU64,
    /// Requests of neighbours that were answered with a file.
    pub neighbours_served: AtomicU64,
    /// Indexes that were fetched for a file that none of those read names.
    pub indexes_fetched: AtomicU64,
    /// Indexes that could not be read.
    pub indexes_unread: AtomicU64,
    /// `Release` files whose signature was right.
    pub signatures_good: AtomicU64,
    /// `Release` files that were taken without a right signature.
    pub signatures_unchecked: AtomicU64,
    /// `Release` files that were refused.
    pub signatures_refused: AtomicU64,
    /// Tunnels that were opened.
    pub tunnels: AtomicU64,
    /// Tunnels that ended because nothing went through them.
    pub tunnels_idle: AtomicU64,
}

/// Adds one to a counter.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// Name, help and value of each counter, for the metrics.
    pub fn all(&self) -> [(&'static str, &'static str, &AtomicU64); 26] {
        [
            ("distd_apt_requests_total", "Requests to the proxy of apt.", &self.requests),
            ("distd_apt_hits_total", "Requests answered from the cache.", &self.hits),
            ("distd_apt_downloads_total", "Downloads that were begun.", &self.downloads),
            ("distd_apt_joined_total", "Requests that joined a download under way.", &self.joined),
            ("distd_apt_unlisted_total", "Requests for files that no index names.", &self.unlisted),
            ("distd_apt_not_modified_total", "Requests answered with 304.", &self.not_modified),
            (
                "distd_apt_stale_total",
                "Requests answered from the cache because no mirror answered.",
                &self.stale,
            ),
            ("distd_apt_refused_total", "Requests answered with a status of 400 or above.", &self.refused),
            (
                "distd_apt_hosts_refused_total",
                "Requests for hosts that may not be asked.",
                &self.hosts_refused,
            ),
            (
                "distd_apt_clients_refused_total",
                "Connections of clients without permission.",
                &self.clients_refused,
            ),
            (
                "distd_apt_connections_refused_total",
                "Connections closed because too many were open.",
                &self.connections_refused,
            ),
            ("distd_apt_sent_bytes_total", "Bytes of bodies handed to clients.", &self.sent_bytes),
            ("distd_apt_resumed_total", "Downloads that went on after a mirror broke off.", &self.resumed),
            ("distd_apt_wrong_total", "Files whose bytes were not those of the index.", &self.wrong),
            (
                "distd_apt_unstored_total",
                "Files passed on without being kept, for want of room.",
                &self.unstored,
            ),
            (
                "distd_apt_relay_failed_total",
                "Requests that went to the mirror because the relay did not help.",
                &self.relay_failed,
            ),
            ("distd_apt_relay_files_total", "Files that came from a relay.", &self.relay_files),
            ("distd_apt_neighbour_files_total", "Files that came from a neighbour.", &self.neighbour_files),
            (
                "distd_apt_neighbours_served_total",
                "Requests of neighbours answered with a file.",
                &self.neighbours_served,
            ),
            (
                "distd_apt_indexes_fetched_total",
                "Indexes fetched for a file that no index read before names.",
                &self.indexes_fetched,
            ),
            ("distd_apt_indexes_unread_total", "Indexes that could not be read.", &self.indexes_unread),
            (
                "distd_apt_signatures_good_total",
                "Release files with a right signature.",
                &self.signatures_good,
            ),
            (
                "distd_apt_signatures_unchecked_total",
                "Release files taken without a right signature.",
                &self.signatures_unchecked,
            ),
            (
                "distd_apt_signatures_refused_total",
                "Release files that were refused.",
                &self.signatures_refused,
            ),
            ("distd_apt_tunnels_total", "Tunnels that were opened.", &self.tunnels),
            (
                "distd_apt_tunnels_idle_total",
                "Tunnels that ended because nothing went through.",
                &self.tunnels_idle,
            ),
        ]
    }
}
