//! The devices of a rollout: which nodes they are, and how each wave stands by what they report.

use std::collections::BTreeMap;

use distd_core::NodeId;
use distd_core::fleet::Selector;
use distd_core::fleet::rollout::{Policy, RolloutId, WaveCounts, point_of, wave_of};
use distd_core::fleet::state::{Goal, Standing, standing};
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
pub(super) struct Chosen<'a> {
    pub(super) product: &'a Name,
    pub(super) channel: &'a Name,
    pub(super) version: &'a Name,
    pub(super) selector: Option<&'a Selector>,
    /// Selector of those that come first.
    pub(super) first: Option<Selector>,
}

impl<'a> Chosen<'a> {
    /// The devices of a rollout of `version` to a channel under this policy.
    pub(super) fn of(product: &'a Name, channel: &'a Name, version: &'a Name, policy: &'a Policy) -> Self {
        let (selector, first) = (policy.selector.as_ref(), policy.conditions.first());
        Self { product, channel, version, selector, first }
    }
}

pub(super) fn count(row: &RolloutRow, waves: &[WaveRow], followers: &[Follower]) -> Vec<WaveStatus> {
    let goal = Goal { version: &row.version, attempts: row.policy.attempts };
    let thresholds: Vec<u64> = waves.iter().map(|wave| wave.upto.0).collect();
    let empty = |wave: &WaveRow| WaveStatus { row: *wave, counts: WaveCounts::default() };
    let mut counted: Vec<WaveStatus> = waves.iter().map(empty).collect();
    for follower in followers {
        let wave = wave_of(&thresholds, point_of(&row.id, &follower.node, follower.comes_first));
        let Some(wave) = wave.and_then(|wave| counted.get_mut(wave)) else { continue };
        wave.counts.members += 1;
        match standing(&follower.seen(goal.version), &goal) {
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
    /// The nodes that a rollout is for at this time, each with its attempt.
    pub(super) async fn followers_of(&self, row: &RolloutRow) -> Result<Vec<Follower>, DbError> {
        let RolloutRow { product, channel, version, policy, .. } = row;
        let chosen = Chosen::of(product, channel, version, policy);
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
        let Chosen { product, channel, version, selector, first } = chosen;
        let since = signed(now.saturating_sub(HEARD_WITHIN));
        let mut followers = self.db.followers(product, channel, rollout, since).await?;
        let pins = self.db.pins_on(product).await?;
        if !pins.is_empty() {
            let pinned = |node: &NodeId| pins.get(&node.to_string());
            followers.retain(|follower| pinned(&follower.node).is_none_or(|pin| pin == version));
        }
        if selector.is_some() || first.is_some() {
            let mut labels = self.db.labels().await?;
            followers.retain_mut(|follower| {
                let labels = labels.remove(&follower.node.to_string()).unwrap_or_default();
                let selects = |selector: &Selector| selector.selects(&labels, Role::Leaf);
                follower.comes_first = first.as_ref().is_some_and(selects);
                selector.is_none_or(selects)
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
            comes_first: false,
        };
        let fleet = ["1", "3", "2", "1", "5", "4", "2", "1", "6", "9"].map(of);
        let versions: Vec<_> = commonest(&fleet, &name("3")).into_iter().map(Name::as_str).collect();
        assert_eq!(versions, ["1", "2", "4", "5"]);
    }
}
