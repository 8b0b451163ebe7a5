//! A simulated fleet that follows channels: sites of devices, relays, an origin, rollouts and halt
//! notices in virtual time (docs/testing.md, "Simulated fleets").
//!
//! Devices and relays run the core's [`News`]; devices decide by [`RolloutDoc::decide`], and the
//! origin by [`next_step`]. Streams, links and clocks are virtual. Not simulated: bytes, TLS,
//! signatures, and looks that can bring nothing: a device looks at its next time after something
//! changed that it could see.

use std::time::Duration;

use distd_core::fleet::HaltNotice;
use distd_core::fleet::rollout::{
    Decision, Device as Deciding, Gate, ROLLOUT_FORM, RolloutDoc, RolloutId, RolloutState, Step, Threshold,
    WaveCounts, Waves, next_step, point,
};
use distd_core::names::Name;
use distd_core::swarm::{Judged, News, NewsFrom, TELL_WITHIN, Told};
use distd_core::time::Timestamp;
use distd_core::{ManifestId, NodeId};

use super::queue::Queue;
use crate::rng::Rng;

/// Neighbours that a device knows from its parents' lists, which have eight each. These know the
/// device in turn, because it has announced itself to them.
const VIEW: usize = 12;

/// Time between two looks of a device.
const POLL: Duration = Duration::from_secs(300);

/// Time between two looks of the origin at its rollouts.
const STEP: Duration = Duration::from_secs(60);

/// Time after which a silent connection is taken for dead.
const IDLE: Duration = Duration::from_secs(30);

/// Longest time for which a device fetches, seconds.
const FETCH: u64 = 20 * 60;

/// Unix time of the start.
const UNIX: u64 = 1_800_000_000;

/// News streams that the origin gives.
const ORIGIN_STREAMS: usize = 2048;

/// Sizes and shares of a fleet.
#[derive(Clone, Copy, Debug)]
pub struct FleetConfig {
    /// Number of devices in each site.
    pub sites: fn(usize) -> usize,
    /// Number of sites.
    pub count: usize,
    /// Of a thousand sites, those with a relay.
    pub relays: u64,
    /// Of a thousand devices, those on which every release fails.
    pub failing: u64,
    /// Of a thousand devices, those that are off, though neighbours know them.
    pub off: u64,
    /// Number of channels, each followed by its part of the devices.
    pub channels: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Trying,
    Has,
    Failed,
}

struct Device {
    node: NodeId,
    channel: usize,
    site: usize,
    /// Part of the site, from 0; part 0 has relay and uplink.
    part: u8,
    off: bool,
    fails: bool,
    /// Seconds by which its clock is wrong.
    clock: i64,
    view: Vec<usize>,
    /// Ids of the neighbours in its view.
    nodes: Vec<NodeId>,
    news: News,
    /// Counter of the document that it holds; 0 for none.
    held: usize,
    state: State,
    /// State that the origin knows.
    reported: State,
    /// Whether it has a place for a news stream at the origin.
    streams: bool,
    timer: Option<Timestamp>,
    look: bool,
    /// Wave by its place in the order of points, which no code of the device computes.
    wave: usize,
    /// When it heard of the halt that is measured.
    heard: Option<Timestamp>,
    /// Whether it heard a notice about the rollout of its channel.
    stopped: bool,
    tells: u32,
}

struct Relay {
    up: bool,
    held: Vec<usize>,
    news: News,
}

struct Site {
    devices: std::ops::Range<usize>,
    relay: Option<Relay>,
    uplink: bool,
}

/// A channel with all documents that the origin has signed: the counter of each is its index.
struct Channel {
    docs: Vec<RolloutDoc>,
    opened: Vec<u64>,
    counts: Vec<WaveCounts>,
    gate: Gate,
}

enum Event {
    Look(usize),
    Timer(usize),
    Ended(usize),
    Step,
    ParentGone(usize),
    Heard(usize, Vec<HaltNotice>),
    RelayHeard(usize, HaltNotice, NewsFrom),
    Newer(usize, u64),
    Arrives { to: usize, from: usize, notices: Vec<HaltNotice> },
    Answered { to: usize, by: usize, told: Told, notices: Vec<HaltNotice> },
}

/// Way on which a halt first reaches a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// One device.
    Device,
    /// The relay, where there is one.
    Relay,
    /// The relay, which dies when it has told one device.
    DyingRelay,
}

/// Spread of one halt.
#[derive(Clone, Debug, Default)]
pub struct Spread {
    /// Number of sites that it reached.
    pub sites: usize,
    /// Longest time until 99 % of a site's connected devices knew; of a site of 20 to 99, all but
    /// one, since 1 % of them is less than a device.
    pub slowest: Duration,
    /// Sites in which every connected device knew within two seconds.
    pub complete: usize,
    /// Most neighbours that one device dialled.
    pub tells_max: u32,
    /// Neighbours dialled by each device on average.
    pub tells_mean: f64,
}

/// The simulated fleet.
pub struct Fleet {
    rng: Rng,
    queue: Queue<Event>,
    origin_up: bool,
    sites: Vec<Site>,
    devices: Vec<Device>,
    channels: Vec<Channel>,
    old: Name,
    events: u64,
    /// Whether devices without a parent exchange with neighbours now and then.
    exchanges: bool,
}

impl Fleet {
    /// Creates a fleet; `rng_seed` makes the run.
    pub fn new(config: FleetConfig, rng_seed: u64) -> Self {
        let mut rng = Rng::new(rng_seed);
        let (mut sites, mut devices, mut streams) = (Vec::new(), Vec::new(), ORIGIN_STREAMS);
        for site in 0..config.count {
            let (first, len) = (devices.len(), (config.sites)(site).max(1));
            let has_relay = rng.below(1000) < config.relays;
            for _ in 0..len {
                let view = (0..VIEW).map(|_| first + rng.below(len as u64) as usize);
                let view = view.filter(|other| *other != devices.len()).collect();
                let streams = has_relay || streams.checked_sub(1).map(|left| streams = left).is_some();
                devices.push(Device {
                    node: NodeId(rng.bytes(16).try_into().expect("16 bytes")),
                    channel: devices.len() % config.channels,
                    site,
                    part: 0,
                    off: rng.below(1000) < config.off,
                    fails: rng.below(1000) < config.failing,
                    clock: [0, 0, 0, -86_400, 86_400][rng.below(5) as usize],
                    view,
                    nodes: Vec::new(),
                    news: News::new(rng.next_u64()),
                    held: 0,
                    state: State::Idle,
                    reported: State::Idle,
                    streams,
                    timer: None,
                    look: false,
                    wave: 0,
                    heard: None,
                    stopped: false,
                    tells: 0,
                });
            }
            let held = vec![0; config.channels];
            let relay = has_relay.then(|| Relay { up: true, held, news: News::new(rng.next_u64()) });
            for device in first..devices.len() {
                let known = devices[device].view.clone();
                known.into_iter().for_each(|other| devices[other].view.push(device));
            }
            for device in first..devices.len() {
                devices[device].view.sort_unstable();
                devices[device].view.dedup();
                devices[device].nodes =
                    devices[device].view.iter().map(|other| devices[*other].node).collect();
            }
            sites.push(Site { devices: first..devices.len(), relay, uplink: true });
        }
        let mut queue = Queue::new();
        queue.after(STEP, Event::Step);
        let old = "1".parse().expect("a name");
        Self {
            rng,
            queue,
            origin_up: true,
            sites,
            devices,
            channels: Vec::new(),
            old,
            events: 0,
            exchanges: false,
        }
    }

    /// Begins a rollout on every channel.
    pub fn start_rollouts(&mut self, waves: &str, gate: Gate) {
        let waves: Waves = waves.parse().expect("waves");
        for channel in 0..self.devices.iter().map(|device| device.channel + 1).max().unwrap_or(0) {
            let id = RolloutId(self.rng.bytes(16).try_into().expect("16 bytes"));
            let members = (0..self.devices.len()).filter(|device| self.devices[*device].channel == channel);
            let mut order: Vec<usize> = members.collect();
            let of = |device: &usize| point(&id, &self.devices[*device].node);
            let thresholds = waves.thresholds(order.iter().map(of).collect());
            order.sort_by_key(of);
            // The waves once more, by the order alone.
            let total = order.len() as u64;
            let sizes: Vec<u64> = waves
                .sizes()
                .iter()
                .map(|size| match size {
                    distd_core::fleet::rollout::Size::Share(share) => share.of(total),
                    distd_core::fleet::rollout::Size::Count(count) => (*count).min(total),
                })
                .collect();
            let mut counts = vec![WaveCounts::default(); sizes.len()];
            for (at, device) in order.iter().enumerate() {
                let wave = sizes.iter().position(|size| (at as u64) < *size).expect("the last has all");
                self.devices[*device].wave = wave;
                counts[wave].members += 1;
            }
            let doc = RolloutDoc {
                form: ROLLOUT_FORM,
                id,
                version: "2".parse().expect("a name"),
                manifest: ManifestId([2; 32]),
                state: RolloutState::Open,
                waves: thresholds.into_iter().map(Threshold).collect(),
                attempts: 1,
                timeout: 3600,
                ..RolloutDoc::unreadable()
            };
            self.channels.push(Channel { docs: vec![doc.clone()], opened: Vec::new(), counts, gate });
            self.publish(channel, doc);
        }
    }

    /// Present time of the simulation.
    pub fn now(&self) -> Duration {
        self.queue.now().since(Timestamp(0))
    }

    /// Number of events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    fn unix(&self, device: usize) -> u64 {
        let wrong = self.devices[device].clock;
        (UNIX + self.now().as_secs()).saturating_add_signed(wrong)
    }

    fn milliseconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from * 1000 + self.rng.below((to - from) * 1000))
    }

    /// Handshake, signatures and one message on a site's network: slow devices need tens of
    /// milliseconds.
    fn dial(&mut self) -> Duration {
        self.milliseconds(10, 80)
    }

    fn relay_of(&self, device: usize) -> Option<&Relay> {
        let Device { site, part, .. } = &self.devices[device];
        self.sites[*site].relay.as_ref().filter(|relay| relay.up && *part == 0)
    }

    fn reaches_origin(&self, device: usize) -> bool {
        let Device { site, part, .. } = &self.devices[device];
        self.origin_up && self.sites[*site].uplink && *part == 0
    }

    fn listens(&self, device: usize) -> bool {
        self.relay_of(device).is_some() || (self.devices[device].streams && self.reaches_origin(device))
    }

    /// Signs a document of a channel, and announces it.
    fn publish(&mut self, channel: usize, doc: RolloutDoc) {
        let docs = &mut self.channels[channel].docs;
        docs.push(doc);
        let version = (docs.len() * 10 + channel) as u64;
        for device in 0..self.devices.len() {
            if self.devices[device].channel == channel {
                self.look_later(device);
            }
            if self.reaches_origin(device) && self.listens(device) && !self.devices[device].off {
                let delay = self.milliseconds(10, 300);
                self.queue.after(delay, Event::Newer(device, version));
            }
        }
    }

    /// The device looks at its next time.
    fn look_later(&mut self, device: usize) {
        if !self.devices[device].look && !self.devices[device].off {
            self.devices[device].look = true;
            let delay = Duration::from_millis(self.rng.below(POLL.as_millis() as u64));
            self.queue.after(delay, Event::Look(device));
        }
    }

    /// Takes the newest document that the device can reach.
    fn refresh(&mut self, device: usize) {
        let (channel, site) = (self.devices[device].channel, self.devices[device].site);
        let newest = self.channels[channel].docs.len() - 1;
        let origin = self.reaches_origin(device);
        let found = match self.sites[site].relay.as_mut().filter(|relay| relay.up) {
            Some(relay) if self.devices[device].part == 0 => {
                if origin {
                    relay.held[channel] = newest;
                }
                relay.held[channel]
            }
            _ if origin => newest,
            _ => 0,
        };
        let device = &mut self.devices[device];
        if found > device.held {
            device.held = found;
            device.news.handle_document(self.channels[channel].docs[found].id, found as u64);
        }
        if origin && device.reported != device.state {
            let counts = &mut self.channels[channel].counts[device.wave];
            let of = |counts: &mut WaveCounts, state, by: i64| {
                let field = match state {
                    State::Idle => return,
                    State::Trying => &mut counts.trying,
                    State::Has => &mut counts.succeeded,
                    State::Failed => &mut counts.failed,
                };
                *field = field.saturating_add_signed(by);
            };
            of(counts, device.reported, -1);
            of(counts, device.state, 1);
            device.reported = device.state;
        }
    }

    /// Whether the device is to run the release, by what it holds.
    fn follows(&self, device: usize) -> bool {
        let Device { node, channel, held, news, .. } = &self.devices[device];
        let doc = &self.channels[*channel].docs[*held];
        let failures = u32::from(self.devices[device].state == State::Failed);
        let deciding =
            Deciding { node, labels: None, installed: Some(&self.old), failures, asks_for_turns: false };
        if *held == 0 {
            return false;
        }
        if news.is_halted(&doc.id, *held as u64) {
            return RolloutDoc { state: RolloutState::Halted, ..doc.clone() }.decide(&deciding)
                == Decision::Follow;
        }
        doc.decide(&deciding) == Decision::Follow
    }

    /// Panics when a device does what no device may: its wave is not open in the newest document
    /// that was ever signed, or it knew that the rollout stands still.
    fn check(&self, device: usize) {
        let Device { channel, wave, stopped, held, .. } = &self.devices[device];
        let docs = &self.channels[*channel].docs;
        let open = docs.iter().map(|doc| doc.open).max().unwrap_or(0);
        assert!(*wave < open, "device {device} of wave {wave} acts while {open} waves are open");
        assert!(!stopped, "device {device} acts though it heard of the halt");
        assert!(docs[*held].state == RolloutState::Open, "device {device} acts though it holds the halt");
    }

    fn act(&mut self, device: usize) {
        if self.devices[device].state == State::Idle && self.follows(device) {
            self.check(device);
            self.devices[device].state = State::Trying;
            let fetch = Duration::from_secs(30 + self.rng.below(FETCH));
            self.queue.after(fetch, Event::Ended(device));
            self.refresh(device);
        }
    }

    /// The device has fetched: it looks once more and activates.
    fn end(&mut self, device: usize) {
        self.refresh(device);
        if self.devices[device].off {
            return;
        }
        self.devices[device].state = match (self.follows(device), self.devices[device].fails) {
            (false, _) => State::Idle,
            (true, fails) => {
                self.check(device);
                if fails { State::Failed } else { State::Has }
            }
        };
        self.refresh(device);
    }

    fn step(&mut self) {
        self.queue.after(STEP, Event::Step);
        if !self.origin_up {
            return;
        }
        let now = UNIX + self.now().as_secs();
        for channel in 0..self.channels.len() {
            let Channel { docs, opened, counts, gate } = &mut self.channels[channel];
            let mut doc = docs.last().expect("one document at least").clone();
            if doc.state != RolloutState::Open {
                continue;
            }
            match next_step(gate, 0, opened, counts, now) {
                Step::Open(wave) => {
                    opened.push(now);
                    doc.open = wave + 1;
                    self.publish(channel, doc);
                }
                Step::Halt { .. } => {
                    doc.state = RolloutState::Halted;
                    self.publish(channel, doc);
                    self.tell_all(channel);
                }
                Step::Wait(_) | Step::Complete => {}
            }
        }
    }

    fn notice(&self, channel: usize) -> HaltNotice {
        let docs = &self.channels[channel].docs;
        let made = UNIX + self.now().as_secs();
        HaltNotice { rollout: docs[0].id, counter: docs.len() as u64 - 1, made }
    }

    /// The origin tells everybody who listens of a halt.
    fn tell_all(&mut self, channel: usize) {
        let notice = self.notice(channel);
        for site in 0..self.sites.len() {
            let delay = self.milliseconds(10, 200);
            if self.sites[site].relay.as_ref().is_some_and(|relay| relay.up) && self.sites[site].uplink {
                self.queue.after(delay, Event::RelayHeard(site, notice, NewsFrom::Parent));
            }
            for device in self.sites[site].devices.clone() {
                if self.relay_of(device).is_none() && self.listens(device) {
                    self.queue.after(delay, Event::Heard(device, vec![notice]));
                }
            }
        }
    }

    /// Devices that are on and connected to the relay or uplink of their site.
    fn connected(&self, site: usize) -> Vec<usize> {
        let is_on = |device: &usize| !self.devices[*device].off && self.devices[*device].part == 0;
        self.sites[site].devices.clone().filter(is_on).collect()
    }

    /// The origin signs the halt of a channel, which reaches each site once, and dies at that
    /// moment. Runs until all had ten seconds to hear.
    pub fn halt_and_die(&mut self, channel: usize, first: First) -> Spread {
        let mut doc = self.channels[channel].docs.last().expect("a document").clone();
        doc.state = RolloutState::Halted;
        self.channels[channel].docs.push(doc);
        self.origin_up = false;
        let notice = self.notice(channel);
        for device in &mut self.devices {
            (device.tells, device.heard) = (0, None);
        }
        let (start, mut reached) = (self.queue.now(), Vec::new());
        for site in 0..self.sites.len() {
            let connected = self.connected(site);
            let relay = self.sites[site].relay.as_mut().filter(|relay| relay.up && first != First::Device);
            match (relay, connected.len()) {
                (Some(relay), _) if first == First::DyingRelay => {
                    relay.up = false;
                    let lost = connected.iter().map(|device| Event::ParentGone(*device));
                    lost.for_each(|event| self.queue.after(IDLE, event));
                }
                (Some(_), _) => {
                    self.queue.at(start, Event::RelayHeard(site, notice, NewsFrom::Parent));
                    reached.push(site);
                    continue;
                }
                _ => {}
            }
            // A device that is off hears nothing.
            if !connected.is_empty() {
                let device = connected[self.rng.below(connected.len() as u64) as usize];
                self.queue.at(start, Event::Heard(device, vec![notice]));
                reached.push(site);
            }
        }
        self.run_for(Duration::from_secs(10));
        let mut spread = Spread { sites: reached.len(), ..Spread::default() };
        for site in reached {
            let connected = self.connected(site);
            let late = Duration::from_secs(10);
            let took = |device: &usize| self.devices[*device].heard.map_or(late, |heard| heard.since(start));
            let mut times: Vec<Duration> = connected.iter().map(took).collect();
            times.sort_unstable();
            let Some(last) = times.last().copied() else { continue };
            let spare = if times.len() < 20 { 0 } else { (times.len() / 100).max(1) };
            spread.slowest = spread.slowest.max(times[times.len() - spare - 1]);
            spread.complete += usize::from(last <= Duration::from_secs(2));
        }
        let tells = self.devices.iter().map(|device| device.tells);
        spread.tells_max = tells.clone().max().unwrap_or(0);
        spread.tells_mean = f64::from(tells.sum::<u32>()) / self.devices.len() as f64;
        spread
    }

    /// Number of devices that are on and have neither heard of the halt that was measured last, nor
    /// hold the document that halts their rollout.
    pub fn unaware(&self) -> usize {
        let holds =
            |device: &Device| self.channels[device.channel].docs[device.held].state == RolloutState::Halted;
        self.devices.iter().filter(|device| !device.off && device.heard.is_none() && !holds(device)).count()
    }

    /// Number of devices that tried the release, and number of open waves, by channel.
    pub fn tried(&self, channel: usize) -> (usize, usize) {
        let tried = self.devices.iter().filter(|d| d.channel == channel && d.state != State::Idle);
        (tried.count(), self.channels[channel].docs.last().map_or(0, |doc| doc.open))
    }

    /// Number of devices in each wave of a channel.
    pub fn waves(&self, channel: usize) -> Vec<u64> {
        self.channels[channel].counts.iter().map(|counts| counts.members).collect()
    }

    /// State of the rollout of a channel in its newest document.
    pub fn state(&self, channel: usize) -> RolloutState {
        self.channels[channel].docs.last().expect("a document").state
    }

    /// Of a thousand sites, `share` at random get another state: `change` has the site, whether it
    /// has a relay that is up, and its uplink.
    fn some_sites(&mut self, share: u64, mut change: impl FnMut(&mut Self, usize)) {
        for site in 0..self.sites.len() {
            if self.rng.below(1000) < share {
                change(self, site);
            }
        }
    }

    fn links_changed(&mut self, site: usize) {
        for device in self.sites[site].devices.clone() {
            self.look_later(device);
            if self.devices[device].off {
                continue;
            }
            if self.listens(device) {
                let now = self.queue.now();
                self.devices[device].news.handle_parent(now, true);
                // Both sides send what they hold when a stream opens.
                let theirs: Vec<_> = self.devices[device].news.notices().copied().collect();
                for notice in theirs {
                    self.queue.after(IDLE / 10, Event::RelayHeard(site, notice, NewsFrom::Child));
                }
                let ours = self.relay_of(device).map(|relay| relay.news.notices().copied().collect());
                self.queue.after(IDLE / 10, Event::Heard(device, ours.unwrap_or_default()));
            } else {
                self.queue.after(IDLE, Event::ParentGone(device));
            }
        }
    }

    /// Cuts the uplinks of `share` of a thousand sites, or restores all.
    pub fn cut_uplinks(&mut self, share: u64) {
        self.some_sites(if share == 0 { 1000 } else { share }, |fleet, site| {
            fleet.sites[site].uplink = share == 0;
            fleet.links_changed(site);
        });
    }

    /// Kills the relays of `share` of a thousand sites, or restores all.
    pub fn kill_relays(&mut self, share: u64) {
        self.some_sites(if share == 0 { 1000 } else { share }, |fleet, site| {
            if let Some(relay) = &mut fleet.sites[site].relay {
                relay.up = share == 0;
                fleet.links_changed(site);
            }
        });
    }

    /// Splits `share` of a thousand sites into two parts, or joins all parts.
    pub fn split_sites(&mut self, share: u64) {
        self.some_sites(if share == 0 { 1000 } else { share }, |fleet, site| {
            for device in fleet.sites[site].devices.clone() {
                fleet.devices[device].part = u8::from(share > 0 && fleet.rng.below(10) < 4);
            }
            fleet.links_changed(site);
        });
    }

    /// Devices without a parent exchange with neighbours from now on. Before the first halt that
    /// brings nothing, and costs the simulation most of its time; while a halt is measured it would
    /// help, so the measured times are without it.
    pub fn start_exchanges(&mut self) {
        self.exchanges = true;
        (0..self.devices.len()).for_each(|device| self.queue.after(IDLE, Event::ParentGone(device)));
    }

    /// Stops or starts the origin.
    pub fn set_origin(&mut self, up: bool) {
        self.origin_up = up;
        (0..self.sites.len()).for_each(|site| self.links_changed(site));
    }

    /// Runs for a time.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.queue.now() + time;
        while let Some(event) = self.queue.pop(end) {
            self.events += 1;
            self.handle(event);
        }
        self.queue.rest_until(end);
    }

    fn handle(&mut self, event: Event) {
        let now = self.queue.now();
        match event {
            Event::Look(device) => {
                self.devices[device].look = false;
                self.refresh(device);
                self.act(device);
            }
            Event::Ended(device) => self.end(device),
            Event::Step => self.step(),
            Event::Timer(device) => {
                if self.devices[device].timer != Some(now) {
                    return;
                }
                self.devices[device].timer = None;
                if self.devices[device].news.poll_look(now) {
                    self.refresh(device);
                    self.act(device);
                }
                self.drive(device);
            }
            Event::ParentGone(device) => {
                if !self.listens(device) && self.exchanges {
                    self.devices[device].news.handle_parent(now, false);
                    self.drive(device);
                }
            }
            Event::Newer(device, version) => {
                self.devices[device].news.handle_newer(now, version);
                self.drive(device);
            }
            Event::Heard(device, notices) => self.hear(device, &notices, NewsFrom::Parent),
            Event::RelayHeard(site, notice, from) => self.relay_hears(site, notice, from),
            Event::Arrives { to, from, notices } => {
                let held: Vec<HaltNotice> = self.devices[to].news.notices().copied().collect();
                let has = |notice: &HaltNotice| {
                    held.iter().any(|h| h.rollout == notice.rollout && h.counter >= notice.counter)
                };
                let told = if notices.iter().all(has) { Told::Knew } else { Told::News };
                let node = self.devices[from].node;
                self.hear(to, &notices, NewsFrom::Neighbour(node));
                let delay = self.milliseconds(1, 10);
                self.queue.after(delay, Event::Answered { to: from, by: to, told, notices: held });
            }
            Event::Answered { to, by, told, notices } => {
                let node = self.devices[by].node;
                self.devices[to].news.handle_told(node, told);
                self.hear(to, &notices, NewsFrom::Neighbour(node));
            }
        }
    }

    fn relay_hears(&mut self, site: usize, notice: HaltNotice, from: NewsFrom) {
        let (now, unix) = (self.queue.now(), UNIX + self.now().as_secs());
        let Some(relay) = self.sites[site].relay.as_mut().filter(|relay| relay.up) else { return };
        if relay.news.handle_notice(now, unix, notice, from) == Judged::News {
            for device in self.connected(site) {
                let delay = self.milliseconds(1, 60);
                self.queue.after(delay, Event::Heard(device, vec![notice]));
            }
        }
    }

    fn hear(&mut self, device: usize, notices: &[HaltNotice], from: NewsFrom) {
        if self.devices[device].off {
            return;
        }
        let (now, unix, site) = (self.queue.now(), self.unix(device), self.devices[device].site);
        for notice in notices {
            if self.devices[device].news.handle_notice(now, unix, *notice, from) != Judged::News {
                continue;
            }
            let Device { channel, heard, stopped, .. } = &mut self.devices[device];
            // A device of another channel passes the notice on alone.
            *stopped |= self.channels[*channel].docs[0].id == notice.rollout;
            heard.get_or_insert(now);
            if self.relay_of(device).is_some() && from != NewsFrom::Parent {
                let delay = self.milliseconds(1, 10);
                self.queue.after(delay, Event::RelayHeard(site, *notice, NewsFrom::Child));
            }
        }
        self.drive(device);
    }

    /// Carries out what the news of a device decide.
    fn drive(&mut self, device: usize) {
        let now = self.queue.now();
        if self.devices[device].off {
            return;
        }
        let mut chosen: Vec<NodeId> = Vec::new();
        let Device { news, nodes, .. } = &mut self.devices[device];
        if news.wants_neighbours(now) {
            chosen.extend(news.poll_exchange(now, nodes));
            while let Some(node) = news.poll_tell(now, nodes) {
                chosen.push(node);
            }
        }
        for node in chosen {
            let Device { nodes, view, .. } = &self.devices[device];
            let to = view[nodes.iter().position(|known| *known == node).expect("one of the view")];
            self.devices[device].tells += 1;
            let reached = !self.devices[to].off && self.devices[to].part == self.devices[device].part;
            let notices: Vec<HaltNotice> = self.devices[device].news.notices().copied().collect();
            if reached {
                let delay = self.dial();
                self.queue.after(delay, Event::Arrives { to, from: device, notices });
            } else {
                let (told, notices) = (Told::Unreached, Vec::new());
                self.queue.after(TELL_WITHIN, Event::Answered { to: device, by: to, told, notices });
            }
        }
        let due = self.devices[device].news.poll_timeout(now);
        let timer = self.devices[device].timer;
        if let Some(due) = due.filter(|due| timer.is_none_or(|timer| timer > *due || timer < now)) {
            self.devices[device].timer = Some(due.max(now));
            self.queue.at(due, Event::Timer(device));
        }
    }
}
