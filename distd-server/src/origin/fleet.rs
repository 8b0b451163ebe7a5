//! State of the fleet: sums, and devices with the state of each of their updates (docs/fleet.md,
//! "State of the fleet").
//!
//! The database groups devices that reported the same. So the rules of a state run once for each
//! group, not for each device, unless devices are chosen by labels.

use std::collections::{BTreeMap, HashMap};

use distd_core::NodeId;
use distd_core::api::{
    FLEET_RELEASES_MAX, FleetChannel, FleetCount, FleetDevice, FleetNode, FleetPage, FleetRelease,
    FleetStatus, Node, NodeAttempt, NodeDetail, NodeLog, Word,
};
use distd_core::fleet::Selector;
use distd_core::fleet::rollout::{Held, RolloutId};
use distd_core::fleet::state::{Contact, Goal, Seen, UpdateState, update_state};
use distd_core::names::Name;
use distd_core::role::Role;
use distd_core::text::shown;

use super::Origin;
use crate::db::{
    DbError, DeviceFilter, DeviceRow, Members, NodeAttemptRow, OnChannel, StateKey, UnixSeconds,
};

/// Devices that are read from the database at once, while their labels or states are looked at.
const BATCH: u32 = 4096;

/// Part of the fleet, one in so many devices, below which those in a state are found by it.
const SELECTIVE: u64 = 20;

/// Maximum number of reports that differ and lead to one state, in one statement.
const STATES_MAX: usize = 100;

/// Longest text of a device that is shown, characters.
const DETAIL_MAX: usize = 200;

/// Kind of a failure that was reported before the rollout began.
const EARLIER: &str = "earlier";

/// Devices that a request is about, by labels and groups.
#[derive(Clone, Debug, Default)]
pub struct FleetSelection {
    /// Only devices that this selector selects.
    pub selector: Option<Selector>,
    /// Only members of this group.
    pub group: Option<Members>,
}

impl FleetSelection {
    fn is_all(&self) -> bool {
        self.group.is_none() && self.selector.as_ref().is_none_or(Selector::is_all)
    }

    /// Selectors of which each must select a device.
    fn selectors(&self) -> impl Iterator<Item = &Selector> {
        let of_group = match &self.group {
            Some(Members::Selector(selector)) => Some(selector),
            Some(Members::Listed(_)) | None => None,
        };
        self.selector.iter().chain(of_group).filter(|selector| !selector.is_all())
    }

    fn lists(&self, id: &str) -> bool {
        match &self.group {
            Some(Members::Listed(nodes)) => id.parse::<NodeId>().is_ok_and(|id| nodes.contains(&id)),
            Some(Members::Selector(_)) | None => true,
        }
    }
}

/// Devices that a request is about. A device has a channel for which product, channel, version and
/// update all hold.
#[derive(Clone, Debug, Default)]
pub struct FleetFilter {
    /// Product.
    pub product: Option<Name>,
    /// Name of a channel.
    pub channel: Option<Name>,
    /// Version that runs.
    pub version: Option<Name>,
    /// State of the update.
    pub update: Option<UpdateState>,
    /// Contact.
    pub contact: Option<Contact>,
    /// Labels and groups.
    pub selection: FleetSelection,
}

impl FleetFilter {
    /// The part of the filter that the database looks at. `states` are those that the wanted state
    /// of the update can come from, if they are known.
    fn in_sql<'a>(&'a self, states: Option<&'a [StateKey]>) -> DeviceFilter<'a> {
        let (product, channel) = (self.product.as_ref(), self.channel.as_ref());
        let selectors = self.selection.selectors().collect();
        DeviceFilter { product, channel, version: self.version.as_ref(), selectors, states }
    }

    /// Whether a device may pass because it follows no channel.
    fn takes_silent(&self) -> bool {
        self.product.is_none()
            && self.channel.is_none()
            && self.version.is_none()
            && self.update.is_none_or(|update| update == UpdateState::Unknown)
    }

    fn takes(&self, on: &OnChannel, update: UpdateState) -> bool {
        self.product.as_ref().is_none_or(|product| *product == on.product)
            && self.channel.as_ref().is_none_or(|channel| *channel == on.channel)
            && self.version.as_ref().is_none_or(|version| Some(version) == on.version.as_ref())
            && self.update.is_none_or(|wanted| wanted == update)
    }
}

/// The release to which each channel leads.
struct Goals(HashMap<(Name, Name), ChannelGoal>);

struct ChannelGoal {
    version: Name,
    attempts: u32,
    rollout: Option<RolloutId>,
}

impl Goals {
    fn of(&self, on: &OnChannel) -> Option<&ChannelGoal> {
        self.0.get(&(on.product.clone(), on.channel.clone()))
    }

    /// Why a device does not install the release to which its channel leads now.
    fn held(&self, on: &OnChannel) -> Option<Held> {
        let held = on.held.as_ref()?;
        self.of(on).map_or(Some(held.held), |goal| held.now(&goal.version))
    }

    /// State of an update, and the kind of its failure when it failed.
    fn state(&self, on: &OnChannel) -> (UpdateState, Option<String>) {
        let goal = self.of(on);
        // An attempt at a rollout that has ended says nothing about the channel now.
        let attempt = on
            .attempt
            .as_ref()
            .filter(|attempt| goal.is_some_and(|goal| goal.rollout == Some(attempt.rollout)));
        let seen = Seen {
            version: on.version.as_ref(),
            held: self.held(on),
            attempt: attempt.map(|attempt| (attempt.state, attempt.number)),
        };
        let goal = goal.map(|goal| Goal { version: &goal.version, attempts: goal.attempts });
        let state = update_state(&seen, goal.as_ref());
        let kind = attempt.map(|attempt| attempt.failure.as_str()).filter(|kind| !kind.is_empty());
        let failure = (state == UpdateState::Failed).then(|| kind.unwrap_or(EARLIER).to_owned());
        (state, failure)
    }

    fn shown(&self, on: &OnChannel) -> (UpdateState, FleetChannel) {
        let (update, failure) = self.state(on);
        let shown = FleetChannel {
            product: on.product.to_string(),
            channel: on.channel.to_string(),
            version: on.version.as_ref().map(ToString::to_string),
            wanted: self.of(on).map(|goal| goal.version.to_string()),
            update: update.into(),
            held: self.held(on).map(|held| held.to_string()),
            failure,
        };
        (update, shown)
    }
}

/// Devices by the version that they run, and those of them that are online.
type Versions = HashMap<Option<Name>, (u64, u64)>;

/// Sums under way.
#[derive(Default)]
struct Sums {
    status: FleetStatus,
    releases: BTreeMap<(Name, Name), Versions>,
    failures: BTreeMap<String, u64>,
    held: BTreeMap<&'static str, u64>,
}

/// Counts as a list, the commonest first.
fn counts(counts: BTreeMap<impl Into<String>, u64>) -> Vec<FleetCount> {
    let mut list: Vec<_> =
        counts.into_iter().map(|(word, devices)| FleetCount { word: word.into(), devices }).collect();
    list.sort_by_key(|count| std::cmp::Reverse(count.devices));
    list
}

impl Sums {
    fn at(now: UnixSeconds) -> Self {
        Self { status: FleetStatus { at: now, ..FleetStatus::default() }, ..Self::default() }
    }

    /// Adds so many devices that reported the same, and those of them that are online.
    fn add(&mut self, on: &OnChannel, (devices, online): (u64, u64), goals: &Goals) {
        let (state, failure) = goals.state(on);
        *self.status.update.of(state) += devices;
        let of_channel = self.releases.entry((on.product.clone(), on.channel.clone())).or_default();
        let release = of_channel.entry(on.version.clone()).or_default();
        *release = (release.0 + devices, release.1 + online);
        if let Some(kind) = failure {
            *self.failures.entry(kind).or_default() += devices;
        }
        if let (UpdateState::Held, Some(held)) = (state, goals.held(on)) {
            *self.held.entry(held.as_str()).or_default() += devices;
        }
    }

    fn end(self) -> FleetStatus {
        let mut releases = Vec::new();
        for ((product, channel), versions) in self.releases {
            let mut versions: Vec<_> = versions.into_iter().collect();
            versions.sort_by(|a, b| b.1.0.cmp(&a.1.0).then_with(|| a.0.cmp(&b.0)));
            releases.extend(versions.into_iter().map(|(version, (devices, online))| FleetRelease {
                product: product.to_string(),
                channel: channel.to_string(),
                version: version.map(|version| version.to_string()),
                devices,
                online,
            }));
        }
        let releases_left_out = releases.len().saturating_sub(FLEET_RELEASES_MAX) as u64;
        releases.truncate(FLEET_RELEASES_MAX);
        FleetStatus {
            releases,
            releases_left_out,
            failures: counts(self.failures),
            held: counts(self.held),
            ..self.status
        }
    }
}

fn attempt(row: NodeAttemptRow) -> NodeAttempt {
    let NodeAttemptRow { rollout, product, channel, version, attempt, received } = row;
    NodeAttempt {
        rollout: rollout.to_string(),
        product: product.to_string(),
        channel: channel.to_string(),
        version: version.to_string(),
        number: attempt.number,
        state: attempt.state.into(),
        failure: Some(attempt.failure).filter(|kind| !kind.is_empty()),
        // A device writes what it likes.
        detail: shown(&attempt.detail, DETAIL_MAX),
        seconds: attempt.seconds,
        bytes_disk: attempt.bytes.disk,
        bytes_neighbours: attempt.bytes.neighbours,
        bytes_relay: attempt.bytes.relay,
        bytes_origin: attempt.bytes.origin,
        reported: received,
    }
}

/// Time of a sentence about a node, UTC.
fn time(at: UnixSeconds) -> String {
    jiff::Timestamp::from_second(at).map_or_else(|_| at.to_string(), |time| time.to_string())
}

impl Origin {
    async fn goals(&self) -> Result<Goals, DbError> {
        let mut goals = HashMap::new();
        for row in self.db.channels().await? {
            let goal = ChannelGoal { version: row.version, attempts: 1, rollout: None };
            goals.insert((row.product, row.channel), goal);
        }
        for row in self.db.rollouts_under_way().await? {
            let goal =
                ChannelGoal { version: row.version, attempts: row.policy.attempts, rollout: Some(row.id) };
            goals.insert((row.product, row.channel), goal);
        }
        Ok(Goals(goals))
    }

    /// Sums over the fleet at `now` (unix seconds): over all devices, or over those that follow a
    /// channel of this product or name and are selected.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn fleet_status(
        &self,
        product: Option<&Name>,
        channel: Option<&Name>,
        selection: &FleetSelection,
        now: UnixSeconds,
    ) -> Result<FleetStatus, DbError> {
        let goals = self.goals().await?;
        let mut sums = Sums::at(now);
        if !selection.is_all() {
            let (product, channel) = (product.cloned(), channel.cloned());
            let filter =
                FleetFilter { product, channel, selection: selection.clone(), ..FleetFilter::default() };
            self.sum_devices(&filter, &goals, now, &mut sums).await?;
            return Ok(sums.end());
        }
        let since = Contact::online_since(now);
        let groups = self.db.fleet_groups(product, channel, since).await?;
        for group in &groups {
            sums.add(&group.on, (group.devices, group.online), &goals);
        }
        // With one channel each device is in one group.
        let mut channels = groups.iter().map(|group| (&group.on.product, &group.on.channel));
        let first = channels.next();
        let is_one_channel = channels.all(|other| Some(other) == first);
        let is_part = product.is_some() || channel.is_some();
        let (devices, reported) = if is_part && is_one_channel {
            let (mut devices, mut online) = (0, 0);
            for group in &groups {
                (devices, online) = (devices + group.devices, online + group.online);
            }
            (devices, crate::db::ReportCounts { reported: devices, online, following: devices })
        } else if is_part {
            let counts = self.db.report_counts(product, channel, since).await?;
            (counts.reported, counts)
        } else {
            (self.db.device_count().await?, self.db.report_counts(None, None, since).await?)
        };
        let status = &mut sums.status;
        status.devices = devices;
        status.contact.online = reported.online;
        status.contact.offline = reported.reported.saturating_sub(reported.online);
        status.contact.unknown = devices.saturating_sub(reported.reported);
        status.update.unknown += devices.saturating_sub(reported.following);
        Ok(sums.end())
    }

    /// Adds the devices that pass a filter to sums, one after the other.
    async fn sum_devices(
        &self,
        filter: &FleetFilter,
        goals: &Goals,
        now: UnixSeconds,
        sums: &mut Sums,
    ) -> Result<(), DbError> {
        let mut after = String::new();
        loop {
            let batch = self.db.devices(&filter.in_sql(None), &after, BATCH).await?;
            let Some(last) = batch.last() else { return Ok(()) };
            after.clone_from(&last.id);
            let is_last = batch.len() < BATCH as usize;
            for device in self.selected(&filter.selection, batch).await? {
                let contact = Contact::of(device.reported, now);
                let status = &mut sums.status;
                status.devices += 1;
                match contact {
                    Contact::Online => status.contact.online += 1,
                    Contact::Offline => status.contact.offline += 1,
                    Contact::Unknown => status.contact.unknown += 1,
                }
                if device.channels.is_empty() {
                    status.update.unknown += 1;
                }
                let online = u64::from(contact == Contact::Online);
                for on in device.channels {
                    if filter.takes(&on, goals.state(&on).0) {
                        sums.add(&on, (1, online), goals);
                    }
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Devices of a batch that a selection takes.
    async fn selected(
        &self,
        selection: &FleetSelection,
        mut batch: Vec<DeviceRow>,
    ) -> Result<Vec<DeviceRow>, DbError> {
        batch.retain(|device| selection.lists(&device.id));
        if let (Some(first), Some(last), Some(_)) =
            (batch.first(), batch.last(), selection.selectors().next())
        {
            let is_narrow = selection.selectors().any(|selector| selector.required_values().next().is_some());
            let mut labels = match is_narrow {
                // The devices between these two are most of the fleet.
                true => self.db.labels_of(batch.iter().map(|device| device.id.as_str())).await?,
                false => self.db.labels_between(&first.id, &last.id).await?,
            };
            batch.retain(|device| {
                let labels = labels.remove(&device.id).unwrap_or_default();
                selection.selectors().all(|selector| selector.selects(&labels, Role::Leaf))
            });
        }
        Ok(batch)
    }

    /// Reports of the devices that are in the wanted state, if these are few of the fleet: the
    /// database finds the devices by them. `None` where a look at one device after the other ends
    /// sooner, and where a device without a report is wanted. A device that reports between this
    /// and the list is in the next list.
    async fn states_of(
        &self,
        filter: &FleetFilter,
        goals: &Goals,
        now: UnixSeconds,
    ) -> Result<Option<Vec<StateKey>>, DbError> {
        let Some(wanted) = filter.update.filter(|_| !filter.takes_silent()) else { return Ok(None) };
        let since = Contact::online_since(now);
        let groups = self.db.fleet_groups(filter.product.as_ref(), filter.channel.as_ref(), since).await?;
        let all: u64 = groups.iter().map(|group| group.devices).sum();
        let mut found = 0;
        let mut states = Vec::new();
        for group in groups.into_iter().filter(|group| goals.state(&group.on).0 == wanted) {
            found += group.devices;
            states.push(group.key);
        }
        let are_few = found <= all / SELECTIVE && states.len() <= STATES_MAX;
        Ok(are_few.then_some(states))
    }

    /// A page of the devices that pass a filter: at most `limit` with ids greater than `after`.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn fleet_page(
        &self,
        filter: &FleetFilter,
        after: &str,
        limit: u32,
        now: UnixSeconds,
    ) -> Result<FleetPage, DbError> {
        let goals = self.goals().await?;
        let states = self.states_of(filter, &goals, now).await?;
        let mut devices: Vec<FleetDevice> = Vec::new();
        let mut after = after.to_owned();
        // One more than the page, to know whether there is another.
        let wanted = limit as usize + 1;
        // A filter of the database takes all that it finds; others may drop most.
        let is_exact = filter.update.is_none() && filter.contact.is_none() && filter.selection.is_all();
        let batch_len = if is_exact { limit.saturating_add(1) } else { BATCH };
        while devices.len() < wanted {
            let batch = self.db.devices(&filter.in_sql(states.as_deref()), &after, batch_len).await?;
            let is_last = batch.len() < batch_len as usize;
            if let Some(last) = batch.last() {
                after.clone_from(&last.id);
            }
            for device in self.selected(&filter.selection, batch).await? {
                let contact = Contact::of(device.reported, now);
                if filter.contact.is_some_and(|wanted| wanted != contact) {
                    continue;
                }
                let is_silent = device.channels.is_empty();
                let mut channels = Vec::new();
                for on in &device.channels {
                    let (update, shown) = goals.shown(on);
                    if filter.takes(on, update) {
                        channels.push(shown);
                    }
                }
                if channels.is_empty() && !(is_silent && filter.takes_silent()) {
                    continue;
                }
                let DeviceRow { id, label, reported, .. } = device;
                devices.push(FleetDevice { id, label, contact: contact.into(), reported, channels });
                if devices.len() == wanted {
                    break;
                }
            }
            if is_last {
                break;
            }
        }
        let has_more = devices.len() == wanted;
        devices.truncate(limit as usize);
        let after = devices.last().filter(|_| has_more).map(|device| device.id.clone());
        Ok(FleetPage { devices, after })
    }

    /// Everything that is known about a node, beside `detail`.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn fleet_node(&self, detail: NodeDetail, now: UnixSeconds) -> Result<FleetNode, DbError> {
        let goals = self.goals().await?;
        let node: &Node = &detail.node;
        let reported = self.db.channels_of_node(&node.id).await?;
        let channels = reported.iter().map(|on| goals.shown(on).1).collect();
        let mut why: Vec<String> = node.why_silent(time).into_iter().collect();
        if why.is_empty() {
            for running in &node.running {
                let (Ok(product), Ok(channel)) = (running.product.parse(), running.channel.parse()) else {
                    continue;
                };
                let wanted = self.db.channel(&product, &channel).await?;
                why.push(node.why(running, wanted.as_ref().map(|row| row.version.as_str()), time));
            }
        }
        let attempts = self.db.attempts_of_node(&node.id).await?;
        let log = self.db.node_log(&node.id).await?.map(|row| NodeLog {
            size: row.size,
            head_at: row.head_at,
            fault: Some(row.fault).filter(|fault| !fault.is_empty()),
            hidden: row.hidden,
            reported: row.received,
        });
        Ok(FleetNode {
            contact: Word::from(Contact::of(node.reported, now)),
            channels,
            attempts: attempts.into_iter().map(attempt).collect(),
            log,
            why,
            detail,
        })
    }
}
