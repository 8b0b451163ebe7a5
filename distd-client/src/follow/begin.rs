//! Whether an attempt may begin now: windows, the consent of the device, and its turn among the
//! other devices of the rollout (docs/rollouts.md, "Conditions").

use std::time::{Duration, Instant};

use distd_core::error::Chain;
use distd_core::fleet::rollout::{Held, RolloutDoc, TurnAnswer};
use distd_core::fleet::window::is_open;
use distd_core::names::Name;
use distd_peer::clock::unix_now;

use super::hooks::Hook;
use super::step::{Step, kind_of};
use super::{MayNow, Windows};
use crate::pull::ask_turn;

/// Release whose attempt may begin.
pub(super) struct Beginning<'a> {
    pub(super) version: &'a Name,
    /// Document of the rollout that leads to it.
    pub(super) rollout: Option<&'a RolloutDoc>,
    /// Number of the attempt.
    pub(super) number: u32,
}

/// Freedom of a device to act now, with the windows of the rollout.
pub(super) fn may_now(windows: &Windows, rollout: Option<&RolloutDoc>, now: u64) -> MayNow {
    let own = match rollout {
        Some(doc) if doc.is_forced(now) => MayNow { download: true, install: true },
        _ => windows.now(),
    };
    let is_open = rollout.is_none_or(|doc| is_open(&doc.windows, windows.local_time()));
    MayNow { install: own.install && is_open, ..own }
}

impl Step {
    /// Reason why an attempt does not begin now; `None` when it begins. A turn is taken last, since
    /// other devices wait for its end.
    ///
    /// # Errors
    /// When the place was changed by somebody else.
    pub(super) async fn held_back(&mut self, beginning: &Beginning<'_>) -> anyhow::Result<Option<Held>> {
        let Beginning { version, rollout, number } = *beginning;
        let now = unix_now();
        let own = if self.pressed.now { &Windows::default() } else { &self.request.windows };
        let may = may_now(own, rollout, now);
        let is_forced = rollout.is_some_and(|doc| doc.is_forced(now));
        if let Some(until) = self.deferred_until().filter(|_| !is_forced && !self.pressed.now) {
            return Ok(Some(Held::Deferred { until }));
        }
        if !may.install || !(may.download || self.is_here(version)) {
            return Ok(Some(Held::Window));
        }
        if !self.pressed.now && !self.consents(version, rollout, now).await {
            return Ok(Some(Held::Consent));
        }
        let Some(doc) = rollout.filter(|doc| doc.turns) else { return Ok(None) };
        match ask_turn(&self.pull_request(None)?.unshared(), doc.id, number).await {
            Ok(TurnAnswer::Begin) => Ok(None),
            Ok(TurnAnswer::Wait(after)) => {
                self.sooner = Some(Duration::from_secs(after));
                Ok(Some(Held::Turn))
            }
            Err(error) => {
                tracing::warn!(error = %Chain(error.as_ref()), "no turn in the rollout was given; asking again");
                Ok(Some(Held::Turn))
            }
        }
    }

    /// Whether a release is where it is written, whole.
    fn is_here(&self, version: &Name) -> bool {
        self.place.holds(&self.request.product, version, &self.request.data)
    }

    /// Whether the device agrees to an attempt. A forced rollout does not ask; a soft one needs the
    /// hook, and others ask it where there is one.
    async fn consents(&self, version: &Name, rollout: Option<&RolloutDoc>, now: u64) -> bool {
        if rollout.is_some_and(|doc| doc.is_forced(now)) {
            return true;
        }
        if rollout.is_some_and(|doc| doc.is_soft(now)) && !self.hooks.has(Hook::Consent) {
            return false;
        }
        match self.run(Hook::Consent, Some(version)).await {
            Ok(()) => true,
            Err(error) => {
                tracing::info!(%version, reason = %Chain(error.as_ref()), "the device does not agree yet");
                false
            }
        }
    }

    /// Fetches a release that may not be installed yet, if that may be done now and it is not here.
    ///
    /// # Errors
    /// When the fetch failed. It is not tried again for an hour, unless its parents were away.
    pub(super) async fn fetch_early(&mut self, beginning: &Beginning<'_>) -> anyhow::Result<()> {
        let Beginning { version, rollout, .. } = *beginning;
        let may = may_now(&self.request.windows, rollout, unix_now());
        if !may.download || self.is_here(version) || self.is_paused(version) {
            return Ok(());
        }
        let fetched = self.prefetch(version).await;
        if fetched.as_ref().is_err_and(|error| kind_of(error).is_some()) {
            self.paused = Some((version.clone(), Instant::now()));
        }
        fetched
    }
}
