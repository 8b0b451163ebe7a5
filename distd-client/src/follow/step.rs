//! One look at the channel, and the attempt that follows from it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distd_core::ManifestId;
use distd_core::error::Chain;
use distd_core::fleet::report::{Attempt, AttemptState, FailureKind, FailureNote, Running, SourceBytes};
use distd_core::fleet::rollout::{Held, RolloutId};
use distd_core::names::{Name, Wanted};
use distd_peer::clock::unix_now;
use distd_peer::news::Newsroom;
use tokio::sync::watch;

use super::begin::Beginning;
use super::by_hand::Pressed;
use super::failures::{self, Failures};
use super::hooks::{About, Hook, HookError, Hooks};
use super::journal::{Entry, Journal};
use super::place::{Activated, Place};
use super::receipts::Ran;
use super::recover::CUT_OFF_MAX;
use super::reports::{Reporter, rollout_of};
use super::restart::{BootId, Restarter};
use super::simulated::SimulatedState;
use super::status::{self, Status};
use super::{FollowRequest, PlaceSettings};
use crate::disk::path::ArtifactPath;
use crate::failure::{Code, Failure, code_of};
use crate::progress::Ignored;
use crate::pull::{
    Aim, Installed, LABELS_FRESH, Look, PullRequest, look, pull, read_kept_manifest, remove_side_files,
    went_back,
};

/// Time-out of an attempt at a release that no rollout brings, seconds.
pub(super) const TIMEOUT: u64 = 24 * 3600;

/// Pause after a failed attempt at a release that no rollout brings: the reason may pass.
const AGAIN: Duration = Duration::from_secs(3600);

/// The device between two looks.
pub(super) struct Step {
    pub(super) request: FollowRequest,
    pub(super) place: Place,
    pub(super) journal: Journal,
    failures: Failures,
    reporter: Reporter,
    pub(super) hooks: Hooks,
    pub(super) held: Option<Held>,
    /// Version of the release that this keeps the device from.
    held_from: Option<Name>,
    /// Release of the last failed attempt or fetch, and when it failed.
    pub(super) paused: Option<(Name, Instant)>,
    pub(super) restarter: Restarter,
    /// Number of times that a release is started before it has failed.
    pub(super) tries: u32,
    /// This boot of the system.
    pub(super) boot: BootId,
    /// Whether the slot that runs was found to be the default since the start of this process.
    pub(super) is_adopted: bool,
    /// Version that the device is to run and the time of that look, unix seconds.
    wanted_version: Option<Name>,
    looked: Option<u64>,
    /// Why the last look failed.
    error: Option<String>,
    /// Time after which the device looks again, if that is sooner than usual.
    pub(super) sooner: Option<Duration>,
    /// Conditions that an order sets aside for this look.
    pub(super) pressed: Pressed,
    /// State of the device for those who stand before it.
    state: watch::Sender<Option<Status>>,
    news: Arc<Newsroom>,
    /// Rollout of the channel as it was last seen, with the counter of the channel.
    document: Option<(RolloutId, u64)>,
}

pub(super) fn local(error: io::Error) -> anyhow::Error {
    Failure::new(Code::Local, anyhow::Error::new(error).context("the journal cannot be written")).into()
}

pub(super) fn text(error: &anyhow::Error) -> String {
    Chain(error.as_ref()).to_string()
}

/// Kind of the failure of a hook that could not be run, which says nothing about the release;
/// `None` for one that has decided about it.
fn kind_of_hook(error: &anyhow::Error) -> Option<FailureKind> {
    match error.downcast_ref::<HookError>() {
        Some(HookError::Run(..)) => Some(FailureKind::Other),
        Some(HookError::Status { .. } | HookError::Time { .. }) | None => None,
    }
}

/// Kind of a failure to make a release the one that runs: a full or broken medium, or a boot loader
/// that does not answer, is not the release's fault.
fn kind_of_place(error: &anyhow::Error) -> FailureKind {
    match code_of(error) {
        Code::Local => FailureKind::Storage,
        Code::Usage => FailureKind::Other,
        _ => FailureKind::Activation,
    }
}

/// Kind of the failure of a pull; `None` for one that says nothing about the release: the parents
/// are away, or the channel moved meanwhile.
pub(super) fn kind_of(error: &anyhow::Error) -> Option<FailureKind> {
    match code_of(error) {
        Code::Network | Code::Conflict => None,
        Code::Refused | Code::NotFound => Some(FailureKind::Refused),
        Code::Integrity => Some(FailureKind::Integrity),
        Code::Local => Some(FailureKind::Storage),
        Code::Other | Code::Usage | Code::Unusable => Some(FailureKind::Other),
    }
}

impl Step {
    /// Reads the journal that the last process left.
    pub(super) fn open(
        request: FollowRequest,
        place: Place,
        reporter: Reporter,
        news: Arc<Newsroom>,
        state: watch::Sender<Option<Status>>,
    ) -> Self {
        let hooks = Hooks { directory: request.hooks.clone(), limit: request.hook_limit };
        let journal = Journal::load(&request.data);
        let failures = failures::load(&request.data);
        let (tries, reboot) = match &request.place {
            PlaceSettings::Directory { .. } | PlaceSettings::Simulated(_) => (1, ""),
            PlaceSettings::Slots { tries, reboot, .. } => (*tries, reboot.as_str()),
        };
        let (restarter, boot) = (Restarter::new(reboot), BootId::current());
        let mut reporter = reporter;
        if let Some(entry) = journal.last() {
            reporter.saw(entry.attempt.rollout, entry.wave);
        }
        // A restart of the system ends this process; without a pause a device that goes back for a
        // reason which is not the release's would restart for ever.
        let left = journal
            .last()
            .filter(|entry| entry.slot.is_some() && entry.attempt.state == AttemptState::RolledBack);
        let paused = left.map(|entry| (entry.attempt.version.clone(), Instant::now()));
        Self {
            place,
            journal,
            failures,
            reporter,
            hooks,
            held: None,
            held_from: None,
            paused,
            restarter,
            tries,
            boot,
            is_adopted: false,
            wanted_version: None,
            looked: None,
            error: None,
            sooner: None,
            pressed: Pressed::default(),
            state,
            news,
            document: None,
            request,
        }
    }

    fn wanted(&self) -> Wanted {
        Wanted::Channel { product: self.request.product.clone(), channel: self.request.channel.clone() }
    }

    /// Time until the next look, before the random part is taken off.
    pub(super) fn pause(&self) -> Duration {
        self.sooner.map_or(self.request.poll, |sooner| sooner.min(self.request.poll))
    }

    /// Whether an attempt at a release, or its fetch, failed a short time ago.
    pub(super) fn is_paused(&self, version: &Name) -> bool {
        self.paused.as_ref().is_some_and(|(paused, since)| paused == version && since.elapsed() < AGAIN)
    }

    pub(super) fn pull_request(&self, out: Option<(&Path, &Name)>) -> anyhow::Result<PullRequest> {
        // The agent serves the release: nothing waits for neighbours here.
        let mut sharing = self.request.sharing.clone();
        sharing.linger = Duration::ZERO;
        let target = out.map(|(path, _)| ArtifactPath::target(path)).transpose().map_err(Failure::from)?;
        Ok(PullRequest {
            wanted: self.wanted(),
            out: target.as_ref().map(|target| target.path().to_owned()).unwrap_or_default(),
            target,
            seeds: out.map_or_else(Vec::new, |(path, _)| self.place.seeds(path)),
            parents: self.request.parents.clone(),
            data: self.request.data.clone(),
            downgrade: self.request.downgrade,
            installed: Installed::Is(self.place.running()?),
            passing_failures: self.journal.passing_failures(),
            asks_for_turns: true,
            labels_fresh: LABELS_FRESH.min(self.request.poll * 2),
            expected: out.map(|(_, version)| version.clone()),
            aim: Aim::default(),
            view_memory: self.request.view_memory,
            sharing,
            outbound: self.request.outbound.clone(),
            news: Some(self.news.clone()),
            bundle: None,
        })
    }

    /// Sends a report, if there is something to say.
    pub(super) async fn report(&mut self) {
        let current = self.place.running().unwrap_or_else(|error| {
            tracing::warn!(error = %Chain(error.as_ref()), "it is unknown what runs");
            None
        });
        self.note(current.clone());
        let manifest_of_current = current.as_ref().and_then(|version| self.manifest_of(version));
        if let Some(version) = current.clone() {
            let ran = Ran {
                product: self.request.product.clone(),
                manifest: manifest_of_current,
                slot: self.place.booted_slot().cloned(),
                rollout: rollout_of(&self.journal, &version),
                version,
            };
            self.reporter.ran(ran);
        }
        // While a release is checked, the one before is what runs well.
        let checked = |entry: &&Entry| entry.attempt.state == AttemptState::Checking;
        let (version, manifest) = match self.journal.under_way().filter(checked) {
            None => (current, manifest_of_current),
            Some(entry) => {
                let from = entry.from.clone();
                let manifest = from.as_ref().and_then(|version| self.manifest_of(version));
                (from, manifest)
            }
        };
        let running = Running {
            product: self.request.product.clone(),
            channel: self.request.channel.clone(),
            version,
            manifest,
            held: self.held,
            held_from: self.held_from.clone().filter(|_| self.held.is_some()),
        };
        self.reporter.send(running, &mut self.journal).await;
    }

    /// Notes how a look ended.
    pub(super) fn note_look(&mut self, error: Option<&anyhow::Error>) {
        self.error = error.map(text);
    }

    /// Notes the state of the device, which runs `version`, for those who stand before it.
    fn note(&self, version: Option<Name>) {
        if let Place::Simulated(place) = &self.place {
            let attempt = self.journal.last().map(|entry| entry.attempt.state);
            *place.device.state() = SimulatedState { version, attempt, held: self.held };
            return;
        }
        let status = Status {
            product: self.request.product.clone(),
            channel: self.request.channel.clone(),
            version,
            slot: self.place.booted_slot().cloned(),
            wanted: self.wanted_version.clone(),
            held: self.held,
            attempt: self.journal.last().map(|entry| entry.attempt.clone()),
            going_back: self.journal.under_way().is_some_and(|entry| entry.going_back.is_some()),
            looked: self.looked,
            error: self.error.clone(),
            written: unix_now(),
        };
        status::write(&status, &self.request.data);
        self.state.send_replace(Some(status));
    }

    /// State that was noted last.
    pub(super) fn last_status(&self) -> Option<Status> {
        self.state.borrow().clone()
    }

    fn manifest_of(&self, version: &Name) -> Option<ManifestId> {
        read_kept_manifest(&self.place.path_of(version), &self.request.data).map(|kept| kept.id())
    }

    /// Looks at the realm's log of receipts.
    pub(super) async fn look_at_log(&mut self) {
        self.reporter.look_at_log().await;
    }

    /// Ends what a crash cut off, looks at the channel, and installs what this device is to run.
    ///
    /// # Errors
    /// When the look failed, or the parents were away; a release that does not work is no error.
    pub(super) async fn take(&mut self) -> anyhow::Result<()> {
        self.sooner = None;
        let taken = self.take_step().await;
        self.mark_trying();
        taken
    }

    async fn take_step(&mut self) -> anyhow::Result<()> {
        // An operator may have removed the file.
        self.failures = failures::load(&self.request.data);
        self.settle()?;
        let goes_on = self.recover().await?;
        // A fetch that follows may take hours.
        self.mark_trying();
        if !goes_on {
            return Ok(());
        }
        let Look { version, rollout, led_by, wave, ahead, .. } = self.look().await?;
        self.reporter.saw(rollout.as_ref().map(|doc| doc.id), wave);
        if ahead {
            // A device that is ahead of its channel stays where it is.
            return self.give_up().await;
        }
        let id = rollout.as_ref().map(|doc| doc.id);
        let continues = |entry: &Entry| entry.attempt.version == version && entry.attempt.rollout == id;
        if self.journal.under_way().is_some_and(|entry| !continues(entry)) {
            self.give_up().await?;
        }
        let current = self.place.running()?;
        if current.as_ref() == Some(&version) {
            if self.deferred_until().is_none() {
                self.end_deferral();
            }
            return Ok(());
        }
        if self.pressed.again {
            self.failures.forget(&self.request.product, &version);
            self.failures.store(&self.request.data).map_err(local)?;
        }
        let attempts = rollout.as_ref().map_or(1, |doc| doc.attempts);
        let timeout = led_by.as_ref().map_or(TIMEOUT, |doc| doc.timeout);
        let passing = id.and_then(|id| self.journal.passing_failures().get(&id).copied()).unwrap_or(0);
        let failed = self.failures.of(&self.request.product, &version).saturating_add(passing);
        if failed >= attempts && !self.pressed.again {
            self.held = Some(self.failures.why(&self.request.product, &version, failed));
            self.held_from = Some(version);
            return Ok(());
        }
        let is_new = self.journal.under_way().is_none();
        if is_new && id.is_none() && self.is_paused(&version) && !self.pressed.now {
            return Ok(());
        }
        // The origin takes no attempt with a lower number than one before.
        let number = failed.max(self.journal.last_number(id)).saturating_add(1);
        if is_new {
            // An installation of a version that the rollout requires is part of the first attempt.
            let number = if id.is_some() { number } else { 1 };
            let beginning = Beginning { version: &version, rollout: led_by.as_ref(), number };
            if let Some(held) = self.held_back(&beginning).await? {
                self.held = Some(held);
                return self.fetch_early(&beginning).await;
            }
            // An order to restart into an earlier release is void.
            self.restarter.withdraw();
            self.end_deferral();
            let attempt = Attempt {
                rollout: id,
                product: self.request.product.clone(),
                version: version.clone(),
                number,
                state: AttemptState::Fetching,
                failure: None,
                began: unix_now(),
                seconds: 0,
                bytes: SourceBytes::default(),
            };
            let entry = Entry {
                led_by: led_by.as_ref().map(|doc| doc.id),
                wave,
                ..Entry::new(attempt, current, timeout)
            };
            self.journal.begin(entry).map_err(local)?;
            tracing::info!(%version, "attempt begins");
        }
        self.report().await;
        self.install(&version).await
    }

    /// Looks at the channel, and begins nothing.
    ///
    /// # Errors
    /// When the look failed.
    pub(super) async fn look_only(&mut self) -> anyhow::Result<()> {
        let Look { rollout, wave, .. } = self.look().await?;
        self.reporter.saw(rollout.as_ref().map(|doc| doc.id), wave);
        Ok(())
    }

    /// Looks at the channel.
    async fn look(&mut self) -> anyhow::Result<Look> {
        let found = look(&self.pull_request(None)?.unshared()).await?;
        if let Some((rollout, counter)) = found.document {
            self.news.holds_document(rollout, counter);
        }
        self.document = found.document;
        self.looked = Some(unix_now());
        self.wanted_version = Some(found.version.clone());
        self.held = found.held;
        self.held_from = Some(found.rollout_version.as_ref().unwrap_or(&found.version).clone());
        Ok(found)
    }

    /// Waits until a halt notice stops the rollout of the attempt under way.
    async fn halted(news: Arc<Newsroom>, led_by: Option<RolloutId>, document: Option<(RolloutId, u64)>) {
        let mut changes = news.changes();
        // The document that led to the attempt.
        let seen = document.filter(|(id, _)| led_by == Some(*id));
        while let Some((id, counter)) = seen {
            changes.mark_unchanged();
            if news.is_halted(&id, counter) {
                return;
            }
            // The sender lives as long as `news`.
            let _ = changes.changed().await;
        }
        std::future::pending().await
    }

    /// Fetches a release that may be installed later. No attempt begins: its time-out would pass
    /// while the device waits.
    pub(super) async fn prefetch(&mut self, version: &Name) -> anyhow::Result<()> {
        self.report().await;
        self.place.protect().await?;
        let out = self.place.target(version);
        let request = self.pull_request(Some((&out, version)))?;
        let halted = Self::halted(self.news.clone(), self.document.map(|(id, _)| id), self.document);
        let pulled = tokio::select! {
            pulled = self.get(&request) => pulled.map(drop),
            // The next look says what the device is to run.
            () = halted => Ok(()),
        };
        // A pull that ended well has recorded the release as the channel's latest here.
        self.remember_release(self.place.running()?).await?;
        pulled
    }

    /// Fetches a release; returns its bytes by source.
    async fn get(&self, request: &PullRequest) -> anyhow::Result<SourceBytes> {
        if let Place::Simulated(place) = &self.place {
            tokio::time::sleep(place.device.fetch).await;
            return Ok(SourceBytes::default());
        }
        Ok(pull(request, Arc::new(Ignored)).await?.source_bytes())
    }

    /// Ends an attempt that is under way without a result: the device is to run another release by
    /// now.
    async fn give_up(&mut self) -> anyhow::Result<()> {
        if self.journal.under_way().is_none() {
            return Ok(());
        }
        tracing::info!("the attempt is given up: the device is to run another release by now");
        self.restarter.withdraw();
        // The system may be about to start the release.
        self.place.protect().await?;
        // The pull may have recorded its release as the channel's latest here.
        self.remember_release(self.place.running()?).await?;
        self.journal.forget().map_err(local)
    }

    /// Counts failures of releases that are not counted yet.
    pub(super) fn settle(&mut self) -> anyhow::Result<()> {
        self.journal.settle(&mut self.failures, &self.request.data).map_err(local)
    }

    /// Gets the release, makes it the current one and checks it.
    async fn install(&mut self, version: &Name) -> anyhow::Result<()> {
        let Some(entry) = self.journal.under_way().cloned() else { return Ok(()) };
        let began = entry.attempt.began;
        let deadline = began.saturating_add(entry.timeout);
        if entry.attempt.state == AttemptState::Restarting {
            return match unix_now() < deadline {
                true => self.restart(version).await,
                false => {
                    let detail = format!("the system did not restart within {} s", entry.timeout);
                    self.fail(version, FailureKind::Timeout, detail).await
                }
            };
        }
        if let Err(error) = self.place.protect().await {
            return self.fail(version, FailureKind::Other, text(&error)).await;
        }
        let out = self.place.target(version);
        let request = self.pull_request(Some((&out, version)))?;
        // A clock that was set back must not make the attempt longer than its time-out.
        let left = Duration::from_secs(deadline.saturating_sub(unix_now().max(began)));
        let halted = Self::halted(self.news.clone(), entry.led_by, self.document);
        let got = tokio::select! {
            got = tokio::time::timeout(left, self.get(&request)) => got,
            () = halted => {
                tracing::info!(%version, "the rollout stands still");
                return self.give_up().await;
            }
        };
        let bytes = match got {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => match kind_of(&error) {
                None if unix_now() < deadline => return Err(error),
                None => return self.fail(version, FailureKind::Network, text(&error)).await,
                Some(kind) => return self.fail(version, kind, text(&error)).await,
            },
            Err(_) => {
                let detail = format!("not fetched within {} s", entry.timeout);
                return self.fail(version, FailureKind::Timeout, detail).await;
            }
        };
        let fetched = |entry: &mut Entry| {
            let known = entry.attempt.bytes;
            // A pull that continues one that was cut off counts from there.
            entry.attempt.bytes = SourceBytes {
                disk: bytes.disk,
                neighbours: known.neighbours.saturating_add(bytes.neighbours),
                relay: known.relay.saturating_add(bytes.relay),
                origin: known.origin.saturating_add(bytes.origin),
            };
        };
        self.journal.change(fetched).map_err(local)?;
        if !self.may_go_on(version, &entry).await? {
            return self.give_up().await;
        }
        self.activate(version).await
    }

    /// Makes a release that is whole the next one.
    async fn activate(&mut self, version: &Name) -> anyhow::Result<()> {
        let (slot, boot) = (self.place.target_slot().cloned(), self.boot.to_string());
        let activating = |entry: &mut Entry| {
            entry.attempt.state = AttemptState::Activating;
            entry.activations += 1;
            entry.boot = slot.is_some().then_some(boot);
            entry.slot = slot;
        };
        self.journal.change(activating).map_err(local)?;
        if let Err(error) = self.run(Hook::Activate, Some(version)).await {
            let kind = kind_of_hook(&error).unwrap_or(FailureKind::Activation);
            return self.fail(version, kind, text(&error)).await;
        }
        match self.place.activate(version).await {
            Ok(Activated::Now) => self.check(version).await,
            Ok(Activated::AfterRestart) => {
                let restarting = |entry: &mut Entry| {
                    entry.attempt.state = AttemptState::Restarting;
                    entry.activations = 0;
                    entry.starts += 1;
                };
                self.journal.change(restarting).map_err(local)?;
                self.mark_trying();
                self.report().await;
                self.restart(version).await
            }
            Err(error) => self.fail(version, kind_of_place(&error), text(&error)).await,
        }
    }

    /// Orders the restart into a release that is the next one.
    async fn restart(&mut self, version: &Name) -> anyhow::Result<()> {
        match self.restarter.order().await {
            Ok(_) => Ok(()),
            Err(error) => self.fail(version, FailureKind::Other, text(&error)).await,
        }
    }

    /// Whether the device is still to run the release that it has fetched: the rollout may have
    /// halted meanwhile. Without its parents it goes on.
    async fn may_go_on(&mut self, version: &Name, entry: &Entry) -> anyhow::Result<bool> {
        match self.look().await {
            Ok(found) => {
                let id = found.rollout.as_ref().map(|doc| doc.id);
                Ok(!found.ahead && found.version == *version && id == entry.attempt.rollout)
            }
            Err(error) if code_of(&error) == Code::Network => {
                let document = self.document.filter(|(id, _)| entry.led_by == Some(*id));
                Ok(document.is_none_or(|(id, counter)| !self.news.is_halted(&id, counter)))
            }
            Err(error) => Err(error),
        }
    }

    /// Checks the current release, and goes back when it does not work.
    pub(super) async fn check(&mut self, version: &Name) -> anyhow::Result<()> {
        let checking = |entry: &mut Entry| {
            entry.attempt.state = AttemptState::Checking;
            entry.checks += 1;
        };
        self.journal.change(checking).map_err(local)?;
        self.report().await;
        if let Err(error) = self.run(Hook::Health, Some(version)).await {
            // In a slot the release brings its hooks: one that cannot be run is a part of it that
            // does not work.
            let other = kind_of_hook(&error).filter(|_| self.place.booted_slot().is_none());
            let kind = other.unwrap_or(FailureKind::Health);
            return self.go_back(version, FailureNote::new(kind, &text(&error))).await;
        }
        if let Err(error) = self.place.confirm().await {
            if self.journal.under_way().is_some_and(|entry| entry.checks < CUT_OFF_MAX) {
                return Err(error.context("the release works, and its slot could not be made the default"));
            }
            let failure = FailureNote::new(kind_of_place(&error), &text(&error));
            return self.go_back(version, failure).await;
        }
        self.journal.change(|entry| entry.attempt.state = AttemptState::Succeeded).map_err(local)?;
        self.failures.forget(&self.request.product, version);
        self.failures.store(&self.request.data).map_err(local)?;
        tracing::info!(%version, "the release works");
        self.clean(version);
        Ok(())
    }

    /// Removes the oldest releases of a directory.
    fn clean(&self, version: &Name) {
        let Place::Directory(directory) = &self.place else { return };
        let data = &self.request.data;
        let is_ours = |path: &Path| read_kept_manifest(path, data).is_some();
        let spare = self.release_before(version);
        if let Err(error) = directory.clean(spare.as_ref(), is_ours, |path| remove_side_files(path, data)) {
            tracing::warn!(error = %Chain(error.as_ref()), "old releases stay");
        }
    }

    /// The process is told to end: a check that is cut off by that says nothing about the release.
    pub(super) fn stopped(&mut self) {
        let uncount = |entry: &mut Entry| match entry.attempt.state {
            AttemptState::Checking => entry.checks = entry.checks.saturating_sub(1),
            AttemptState::Activating => entry.activations = entry.activations.saturating_sub(1),
            _ => {}
        };
        if let Err(error) = self.journal.change(uncount) {
            tracing::warn!(error = %Chain(&error), "the journal cannot be written");
        }
    }

    /// Release before the last attempt, if that was at `version`.
    pub(super) fn release_before(&self, version: &Name) -> Option<Name> {
        self.journal
            .last()
            .filter(|entry| entry.attempt.version == *version)
            .and_then(|entry| entry.from.clone())
    }

    /// Remembers that the device runs `from`, or no release, so that its channel is followed from
    /// there on.
    pub(super) async fn remember_release(&self, from: Option<Name>) -> anyhow::Result<()> {
        let (data, wanted) = (self.request.data.clone(), self.wanted());
        let out = from.map(|from| self.place.path_of(&from));
        tokio::task::spawn_blocking(move || went_back(&data, &wanted, out.as_deref())).await?
    }

    /// Ends an attempt before the release became the current one.
    pub(super) async fn fail(
        &mut self,
        version: &Name,
        kind: FailureKind,
        detail: String,
    ) -> anyhow::Result<()> {
        tracing::warn!(%version, %kind, detail, "the attempt failed");
        self.restarter.withdraw();
        if let Err(error) = self.place.protect().await {
            // Each later attempt begins with this, and the release is whole.
            tracing::warn!(error = %Chain(error.as_ref()), "the boot loader may start the release once");
        }
        // A pull that ended well has recorded the release as the channel's latest here.
        self.remember_release(self.release_before(version)).await?;
        let failed = |entry: &mut Entry| {
            entry.attempt.state = AttemptState::Failed;
            entry.attempt.failure = Some(FailureNote::new(kind, &detail));
        };
        self.journal.change(failed).map_err(local)?;
        self.paused = Some((version.clone(), Instant::now()));
        self.settle()
    }

    /// Runs the hook of a state, about a version or one that is unknown.
    ///
    /// # Errors
    /// [`HookError`].
    pub(super) async fn run(&self, hook: Hook, version: Option<&Name>) -> anyhow::Result<()> {
        let from = version.and_then(|version| self.release_before(version));
        if let Place::Simulated(place) = &self.place {
            return match (hook, version) {
                (Hook::Health, Some(version)) => place.check(version, from.is_none()).await,
                _ => Ok(()),
            };
        }
        let slot = match hook {
            Hook::Health => self.place.booted_slot(),
            Hook::Consent | Hook::Activate | Hook::RolledBack => self.place.target_slot(),
        };
        let path = match version {
            Some(version) => self.place.path_of(version),
            None => self.place.path_that_runs(),
        };
        let product = &self.request.product;
        let about = About { product, version, from: from.as_ref(), path: &path, slot };
        Ok(self.hooks.run(hook, about).await?)
    }
}
