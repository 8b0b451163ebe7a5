//! The devices of a rollout: which nodes they are, and how each wave stands by what they report.

use std::collections::BTreeMap;

use distd_core::NodeId;
use distd_core::fleet::Selector;
use distd_core::fleet::report::AttemptState;
use distd_core::fleet::rollout::{Held, RolloutId, WaveCounts, point, wave_of};
use distd_core::names::Name;
use distd_core::role::Role;
use distd_peer::clock::unix_now;

use super::WaveStatus;
use crate::db::{DbError, Follower, RolloutRow, WaveRow};
use crate::origin::{Origin, signed};

/// Time after its last report at which a node stops counting as a device of the channel, seconds: a
/// device in a cupboard must not hold a wave up.
const HEARD_WITHIN: u64 = 7 * 24 * 3600;

/// Most releases from which patches are made for a rollout; devices with others get chunks.
const PATCHED_FROM_MAX: usize = 4;

/// The devices that a rollout is for.
#[derive(Clone, Copy)]
pub(super) struct Chosen<'a> {
    pub(super) product: &'a Name,
    pub(super) channel: &'a Name,
    pub(super) version: &'a Name,
    pub(super) selector: Option<&'a Selector>,
}

/// Result of a device, as far as a wave is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It runs the release, and no attempt is under way.
    Succeeded,
    /// As many attempts as the rollout allows have failed, in this rollout or an earlier one.
    Failed,
    /// An attempt is under way.
    Trying,
    /// It has not begun, or is to try again.
    Waiting,
}

fn standing(follower: &Follower, version: &Name, attempts: u32) -> Standing {
    let runs_it = follower.version.as_ref() == Some(version);
    match follower.attempt {
        Some((AttemptState::Failed | AttemptState::RolledBack, number)) if number >= attempts => {
            Standing::Failed
        }
        Some((AttemptState::Succeeded, _)) | None if runs_it => Standing::Succeeded,
        // The release failed on the device before the rollout, and is not tried again.
        None if matches!(follower.held, Some(Held::Failed { .. })) => Standing::Failed,
        // A failed attempt that may be repeated is not under way: the device may be gone for good.
        Some((AttemptState::Succeeded | AttemptState::Failed | AttemptState::RolledBack, _)) | None => {
            Standing::Waiting
        }
        Some(_) => Standing::Trying,
    }
}

pub(super) fn count(row: &RolloutRow, waves: &[WaveRow], followers: &[Follower]) -> Vec<WaveStatus> {
    let thresholds: Vec<u64> = waves.iter().map(|wave| wave.upto.0).collect();
    let empty = |wave: &WaveRow| WaveStatus { row: *wave, counts: WaveCounts::default() };
    let mut counted: Vec<WaveStatus> = waves.iter().map(empty).collect();
    for follower in followers {
        let wave = wave_of(&thresholds, point(&row.id, &follower.node));
        let Some(wave) = wave.and_then(|wave| counted.get_mut(wave)) else { continue };
        wave.counts.members += 1;
        match standing(follower, &row.version, row.policy.attempts) {
            Standing::Succeeded => wave.counts.succeeded += 1,
            Standing::Failed => wave.counts.failed += 1,
            Standing::Trying => wave.counts.trying += 1,
            Standing::Waiting => {}
        }
    }
    counted
}

/// Versions that most of some devices run, the commonest first, without `but`.
pub(super) fn commonest<'a>(followers: &'a [Follower], but: &Name) -> Vec<&'a Name> {
    let mut counted: BTreeMap<&Name, usize> = BTreeMap::new();
    for version in followers.iter().filter_map(|follower| follower.version.as_ref()) {
        *counted.entry(version).or_default() += 1;
    }
    counted.remove(but);
    let mut versions: Vec<_> = counted.into_iter().collect();
    versions.sort_by_key(|(_, devices)| std::cmp::Reverse(*devices));
    versions.into_iter().map(|(version, _)| version).take(PATCHED_FROM_MAX).collect()
}

impl Origin {
    /// The nodes that a rollout is for now, each with its attempt.
    pub(super) async fn followers_of(&self, row: &RolloutRow) -> Result<Vec<Follower>, DbError> {
        let RolloutRow { product, channel, version, policy, .. } = row;
        let chosen = Chosen { product, channel, version, selector: policy.selector.as_ref() };
        self.followers(chosen, Some(&row.id), unix_now()).await
    }

    /// The nodes that a rollout is for at `now` (unix seconds): those that follow the channel, have
    /// the labels, and are pinned to no other version.
    pub(super) async fn followers(
        &self,
        chosen: Chosen<'_>,
        rollout: Option<&RolloutId>,
        now: u64,
    ) -> Result<Vec<Follower>, DbError> {
        let Chosen { product, channel, version, selector } = chosen;
        let since = signed(now.saturating_sub(HEARD_WITHIN));
        let mut followers = self.db.followers(product, channel, rollout, since).await?;
        let pins = self.db.pins_on(product).await?;
        if !pins.is_empty() {
            let pinned = |node: &NodeId| pins.get(&node.to_string());
            followers.retain(|follower| pinned(&follower.node).is_none_or(|pin| pin == version));
        }
        if let Some(selector) = selector {
            let mut labels = self.db.labels().await?;
            followers.retain(|follower| {
                let labels = labels.remove(&follower.node.to_string()).unwrap_or_default();
                selector.selects(&labels, Role::Leaf)
            });
        }
        Ok(followers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_made_from_what_most_devices_run() {
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let of = |version: &str| Follower {
            node: NodeId([0; 16]),
            version: Some(name(version)),
            held: None,
            attempt: None,
        };
        let fleet = ["1", "3", "2", "1", "5", "4", "2", "1", "6", "9"].map(of);
        let versions: Vec<_> = commonest(&fleet, &name("3")).into_iter().map(Name::as_str).collect();
        assert_eq!(versions, ["1", "2", "4", "5"]);
    }

    #[test]
    fn a_device_counts_by_its_attempt_and_what_it_runs() {
        use AttemptState::{Checking, Failed, RolledBack, Succeeded};
        let version: Name = "2".parse().expect("a name");
        let of = |runs: &str, attempt, held| {
            let runs = Some(runs.parse().expect("a name"));
            let follower = Follower { node: NodeId([0; 16]), version: runs, held, attempt };
            standing(&follower, &version, 2)
        };
        assert_eq!(of("1", None, None), Standing::Waiting);
        assert_eq!(of("2", None, None), Standing::Succeeded);
        assert_eq!(of("1", Some((Checking, 1)), None), Standing::Trying);
        assert_eq!(of("2", Some((Succeeded, 1)), None), Standing::Succeeded);
        // It went elsewhere after it had succeeded.
        assert_eq!(of("1", Some((Succeeded, 1)), None), Standing::Waiting);
        assert_eq!(of("1", Some((RolledBack, 1)), None), Standing::Waiting);
        assert_eq!(of("1", Some((RolledBack, 2)), None), Standing::Failed);
        assert_eq!(of("1", Some((Failed, 2)), None), Standing::Failed);
        assert_eq!(of("1", None, Some(Held::Failed { attempts: 1 })), Standing::Failed);
        assert_eq!(of("1", Some((AttemptState::Unknown, 1)), None), Standing::Trying);
    }
}
