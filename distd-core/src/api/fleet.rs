//! State of the fleet: sums over its devices, and each device.

use serde::{Deserialize, Serialize};

use super::{NodeDetail, NodeLog, Word};
use crate::fleet::report::AttemptState;
use crate::fleet::state::{Contact, UpdateState};

/// Most devices in one page of the fleet.
pub const DEVICES_PAGE_MAX: u32 = 1000;

/// Devices in a page of the fleet when the caller does not say.
pub const DEVICES_PAGE: u32 = 100;

/// Most releases in the sums over the fleet, the commonest.
pub const FLEET_RELEASES_MAX: usize = 1000;

/// Most attempts in the answer about one node, the newest.
pub const NODE_ATTEMPTS_MAX: u32 = 100;

/// Devices by contact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetContacts {
    /// Devices whose newest report is at most 3 hours old.
    pub online: u64,
    /// Devices whose newest report is older.
    pub offline: u64,
    /// Devices that have never reported.
    pub unknown: u64,
}

/// Devices by the state of their update. A device counts once for each channel that it follows, and
/// once as unknown when it follows none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetUpdates {
    /// Devices that run the release that they are to run.
    pub up_to_date: u64,
    /// Devices that run another release and say no reason.
    pub outdated: u64,
    /// Devices with an attempt under way.
    pub updating: u64,
    /// Devices on which as many attempts as the rollout allows have failed.
    pub failed: u64,
    /// Devices that say why they do not install the release.
    pub held: u64,
    /// Devices of a channel that was removed, and devices that follow none.
    pub unknown: u64,
}

impl FleetUpdates {
    /// The count of a state.
    pub fn of(&mut self, state: UpdateState) -> &mut u64 {
        match state {
            UpdateState::UpToDate => &mut self.up_to_date,
            UpdateState::Outdated => &mut self.outdated,
            UpdateState::Updating => &mut self.updating,
            UpdateState::Failed => &mut self.failed,
            UpdateState::Held => &mut self.held,
            UpdateState::Unknown => &mut self.unknown,
        }
    }
}

/// Devices of a channel that run one release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetRelease {
    /// Product.
    pub product: String,
    /// Channel that the devices follow.
    pub channel: String,
    /// Version; null for devices that have none yet.
    pub version: Option<String>,
    /// Devices that run it.
    pub devices: u64,
    /// Devices of these that are online.
    pub online: u64,
}

/// Devices that have something in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetCount {
    /// Kind of the failure, or reason for which devices are held. `earlier` is a failure from
    /// before the rollout, whose kind is not known.
    pub word: String,
    /// Devices.
    pub devices: u64,
}

/// Sums over the fleet: over its devices that are not revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetStatus {
    /// Time of the sums, unix seconds.
    pub at: i64,
    /// Devices that the request is about.
    pub devices: u64,
    /// Devices by contact.
    pub contact: FleetContacts,
    /// Devices by the state of their update.
    pub update: FleetUpdates,
    /// Devices by channel and release, the commonest first in each channel.
    pub releases: Vec<FleetRelease>,
    /// Number of releases that are left out because there are more than 1000.
    pub releases_left_out: u64,
    /// Failed devices by the kind of the failure, the commonest first.
    pub failures: Vec<FleetCount>,
    /// Held devices by the reason, the commonest first.
    pub held: Vec<FleetCount>,
}

/// State of a device on a channel that it follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetChannel {
    /// Product.
    pub product: String,
    /// Channel.
    pub channel: String,
    /// Version that runs; null while the device has none.
    pub version: Option<String>,
    /// Version of the rollout that is under way, or else of the channel; null when the channel was
    /// removed.
    pub wanted: Option<String>,
    /// State of the update.
    #[cfg_attr(feature = "openapi", schema(value_type = UpdateState))]
    pub update: Word<UpdateState>,
    /// Why the device does not install the release; null if nothing holds it back.
    pub held: Option<String>,
    /// Kind of the failure; null unless the update failed in the rollout under way.
    pub failure: Option<String>,
}

/// A device of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetDevice {
    /// Node id.
    pub id: String,
    /// Free text for operators.
    pub label: String,
    /// Contact.
    #[cfg_attr(feature = "openapi", schema(value_type = Contact))]
    pub contact: Word<Contact>,
    /// Time at which its newest report came, unix seconds; null if it has sent none.
    pub reported: Option<i64>,
    /// The channels that it follows, as far as the request is about them.
    pub channels: Vec<FleetChannel>,
}

/// Page of the fleet's devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetPage {
    /// Devices by id.
    pub devices: Vec<FleetDevice>,
    /// Value of `after` for the next page; null at the end.
    pub after: Option<String>,
}

/// Newest attempt of a node at one rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeAttempt {
    /// Id of the rollout.
    pub rollout: String,
    /// Product.
    pub product: String,
    /// Channel.
    pub channel: String,
    /// Version that the rollout leads to.
    pub version: String,
    /// Number of the attempt on the node, from 1.
    pub number: u32,
    /// State.
    #[cfg_attr(feature = "openapi", schema(value_type = AttemptState))]
    pub state: Word<AttemptState>,
    /// Kind of the failure; null without one.
    pub failure: Option<String>,
    /// Text of the device about the failure; empty without one.
    pub detail: String,
    /// Time from its begin to its end, or so far, by the device's clock, seconds.
    pub seconds: u64,
    /// Bytes of the artifact that the device had.
    pub bytes_disk: u64,
    /// Bytes received from neighbours.
    pub bytes_neighbours: u64,
    /// Bytes received from relays.
    pub bytes_relay: u64,
    /// Bytes received from origins.
    pub bytes_origin: u64,
    /// Time at which the origin last heard of the attempt, unix seconds.
    pub reported: i64,
}

/// Everything that is known about one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetNode {
    /// The node with its labels, groups, grants and pins.
    #[serde(flatten)]
    pub detail: NodeDetail,
    /// Contact.
    #[cfg_attr(feature = "openapi", schema(value_type = Contact))]
    pub contact: Word<Contact>,
    /// The channels that it follows.
    pub channels: Vec<FleetChannel>,
    /// Its attempts, one of each rollout, the newest first; at most 100.
    pub attempts: Vec<NodeAttempt>,
    /// Its view of the log of receipts; null while it has none.
    #[serde(default)]
    pub log: Option<NodeLog>,
    /// A sentence for each channel about why it runs what it runs, or one about the node.
    pub why: Vec<String>,
}
