//! Library of relay and device, and transport of the origin: everything between the protocol core
//! (`distd_core`) and sockets, disks and certificates. The binary `distd-peer` is the relay.
//!
//! Read [`driver`] first: it fetches the chunks of one swarm. Its counterpart [`serve`] answers
//! requests. Both module pages show an example with three chunks. Then [`relay`], which combines
//! the two, and docs/architecture.md.
//!
//! Fetching:
//!
//! - [`parents`]: the configured parents of a node and the connections to them.
//! - [`neighbours`]: the nodes of the same site and the connections to them; [`mdns`] finds some of
//!   them.
//! - [`manifest_fetch`]: fetches a manifest. [`table`]: its chunks by id.
//! - [`driver`]: fetches chunks from parents and neighbours.
//! - [`quarantine`]: peers that sent wrong bytes.
//! - [`bundle`]: releases in files, which are fetched from like a parent.
//!
//! Serving:
//!
//! - [`serve`]: the answering side, for any [`serve::Content`].
//! - [`share`]: the content of a device; [`tickets`]: an artifact shared by ticket.
//! - [`relay`]: the content of a relay, and its start; [`store`] keeps its chunks on disk.
//! - [`apt`]: a proxy for apt.
//! - [`gateway`]: releases as files over HTTP; [`listener`]: bounds of the connections of an HTTP
//!   server.
//!
//! Both directions:
//!
//! - [`net`]: frames on streams of QUIC or HTTP/2, dialling, congestion control.
//! - [`rates`]: rates that a node may use of its link.
//! - [`trust`]: keys, certificates, enrolment bodies, peer records and TUF metadata; [`enrollment`]
//!   obtains and renews the certificate.
//! - [`news`]: what a node is told without asking: rollouts that stand still, newer metadata.
//! - [`capabilities`]: the capabilities of this node, and the check of those of others.
//!
//! Process:
//!
//! - [`clock`], [`process`] (memory arenas, open files), [`metrics`] (Prometheus), [`seldom`] (rate
//!   limit for log lines), [`request`] (ids in logs), [`doctor`] (what keeps a node from its work).

pub mod apt;
pub mod bundle;
pub mod capabilities;
mod changes;
pub mod clock;
pub mod doctor;
pub mod driver;
pub mod enrollment;
pub mod filesystem;
pub mod gateway;
pub mod listener;
pub mod manifest_fetch;
pub mod mdns;
pub mod metrics;
pub mod neighbours;
pub mod net;
pub mod news;
pub mod parents;
pub mod process;
pub mod quarantine;
pub mod random;
pub mod rates;
pub mod relay;
pub mod request;
pub mod seldom;
pub mod serve;
pub mod service;
pub mod settings;
pub mod share;
pub mod store;
pub mod table;
pub mod tickets;
pub mod trust;
