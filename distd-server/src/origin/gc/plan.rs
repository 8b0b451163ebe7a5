//! Decision which releases and patch sets go. Pure: the same facts give the same plan.

use std::collections::{BTreeMap, BTreeSet};

use distd_core::ManifestId;
use distd_core::api::{GcLot, KeepReason, Retention, SetReason};
use distd_core::names::Name;
use distd_core::patch::{Leg, route};

use crate::db::{ByRelease, ChannelRow, HeldRelease, PatchSetRow, ReleaseRow, UnixSeconds, Uses};
use crate::origin::patches::SETS_MAX;

/// Seconds of a day.
const DAY: i64 = 24 * 3600;

/// Days for which a withdrawn release is kept where the policy names no days.
const WITHDRAWN_DAYS: u32 = 30;

/// Time for which a release counts as one that devices may have after a channel has left it, and as
/// one that they may want after it was made, seconds: devices that do not report may be late, and a
/// release may wait for its channel. Only patches depend on it.
const PATCH_SECONDS: i64 = 30 * DAY;

/// Age up to which a patch set is kept, seconds: somebody has just asked for it.
const FRESH_SET_SECONDS: i64 = DAY;

/// All that a plan is made from.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Releases in any state, by product, the newest first.
    pub(super) releases: Vec<HeldRelease>,
    /// Policies of products.
    pub(super) retention: BTreeMap<Name, Retention>,
    /// Channels.
    pub(super) channels: Vec<ChannelRow>,
    /// What else uses releases.
    pub(super) uses: Uses,
    /// Patch sets that are ready, the newest first.
    pub(super) sets: Vec<PatchSetRow>,
}

/// A release and its lot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The release.
    pub release: HeldRelease,
    /// Its lot.
    pub lot: GcLot,
    /// Reasons for which it stays.
    pub kept: Vec<(KeepReason, String)>,
}

/// A patch set that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetVerdict {
    /// The set.
    pub row: PatchSetRow,
    /// Why it goes.
    pub reason: SetReason,
}

/// Decision about everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Releases in the order of the facts.
    pub verdicts: Vec<Verdict>,
    /// Patch sets that go.
    pub sets: Vec<SetVerdict>,
    /// Products of which a policy would remove every release.
    pub would_empty: BTreeSet<Name>,
}

impl Plan {
    /// Releases that go in this run.
    pub fn removed(&self) -> impl Iterator<Item = &ReleaseRow> {
        self.verdicts
            .iter()
            .filter(|verdict| verdict.lot == GcLot::Remove)
            .map(|verdict| &verdict.release.row)
    }
}

/// Decides what goes at `now`, at most `removals_max` releases, the oldest first.
pub(super) fn plan(facts: Facts, removals_max: u32, now: UnixSeconds) -> Plan {
    let mut plan = Plan::default();
    let Facts { releases, retention, channels, uses, sets } = facts;
    let mut of_product: BTreeMap<Name, Vec<HeldRelease>> = BTreeMap::new();
    for release in releases {
        of_product.entry(release.row.product.clone()).or_default().push(release);
    }
    let mut sets_of: BTreeMap<Name, Vec<PatchSetRow>> = BTreeMap::new();
    for set in sets {
        sets_of.entry(set.key.product.clone()).or_default().push(set);
    }
    let mut pending = Vec::new();
    for (product, releases) in of_product {
        let policy = retention.get(&product);
        let sets = sets_of.remove(&product).unwrap_or_default();
        let channels: Vec<&ChannelRow> = channels.iter().filter(|row| row.product == product).collect();
        let view = View { policy, channels: &channels, uses: &uses, now };
        let mut verdicts = view.judge(releases);
        let ways = Ways::of(&view, &verdicts, &sets);
        ways.keep_bases(&mut verdicts);
        if view.would_empty(&verdicts) {
            keep_all(&mut verdicts);
            plan.would_empty.insert(product);
        }
        let first = plan.verdicts.len();
        plan.verdicts.extend(verdicts);
        pending.push((ways, sets, first..plan.verdicts.len()));
    }
    bound(&mut plan.verdicts, removals_max);
    // A set of a release that goes later stays until then.
    for (ways, sets, verdicts) in pending {
        plan.sets.extend(ways.unneeded(sets, &plan.verdicts[verdicts], now));
    }
    plan
}

/// Keeps every release of a product that is not being removed.
fn keep_all(verdicts: &mut [Verdict]) {
    for verdict in verdicts.iter_mut().filter(|verdict| verdict.lot == GcLot::Remove) {
        verdict.lot = GcLot::Keep;
        verdict.kept.push((KeepReason::LastOfProduct, String::new()));
    }
}

/// Puts removals beyond the bound off, those of the newest releases first.
fn bound(verdicts: &mut [Verdict], removals_max: u32) {
    let mut going: Vec<&mut Verdict> =
        verdicts.iter_mut().filter(|verdict| verdict.lot == GcLot::Remove).collect();
    going.sort_by_key(|verdict| (verdict.release.row.created, verdict.release.row.sequence));
    for verdict in going.into_iter().skip(removals_max as usize) {
        verdict.lot = GcLot::Later;
    }
}

/// A product as a plan sees it.
struct View<'a> {
    policy: Option<&'a Retention>,
    channels: &'a [&'a ChannelRow],
    uses: &'a Uses,
    now: UnixSeconds,
}

fn of<'a, T>(by: &'a ByRelease<T>, row: &ReleaseRow) -> Option<&'a T> {
    by.get(&(row.product.clone(), row.version.clone()))
}

fn joined(names: impl IntoIterator<Item = impl ToString>) -> String {
    let names: BTreeSet<String> = names.into_iter().map(|name| name.to_string()).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

impl View<'_> {
    fn judge(&self, releases: Vec<HeldRelease>) -> Vec<Verdict> {
        let mut newer = 0;
        let judge = |release: HeldRelease| {
            if release.removing.is_some() {
                return Verdict { release, lot: GcLot::Removing, kept: Vec::new() };
            }
            let mut kept = self.used(&release);
            kept.extend(self.by_policy(&release, newer));
            if release.withdrawn.is_none() {
                newer += 1;
            }
            let lot = if kept.is_empty() { GcLot::Remove } else { GcLot::Keep };
            Verdict { release, lot, kept }
        };
        releases.into_iter().map(judge).collect()
    }

    /// Reasons that hold under every policy.
    fn used(&self, release: &HeldRelease) -> Vec<(KeepReason, String)> {
        let row = &release.row;
        let mut kept = Vec::new();
        let channels: Vec<&Name> =
            self.channels.iter().filter(|at| at.version == row.version).map(|at| &at.channel).collect();
        if !channels.is_empty() {
            kept.push((KeepReason::Channel, joined(channels)));
        }
        if let Some(channels) = of(&self.uses.rollouts, row) {
            kept.push((KeepReason::Rollout, joined(channels)));
        }
        for (reason, by) in [
            (KeepReason::Running, &self.uses.running),
            (KeepReason::NodePin, &self.uses.pinned_nodes),
            (KeepReason::Action, &self.uses.actions),
        ] {
            if let Some(count) = of(by, row).filter(|count| **count > 0) {
                kept.push((reason, count.to_string()));
            }
        }
        if let Some(why) = &release.pin {
            kept.push((KeepReason::Pinned, why.clone()));
        }
        kept
    }

    /// Reason that the policy gives. `newer` releases of the product are newer.
    fn by_policy(&self, release: &HeldRelease, newer: u32) -> Option<(KeepReason, String)> {
        let Some(policy) = self.policy else { return Some((KeepReason::NoPolicy, String::new())) };
        let within = |since: UnixSeconds, days: u32| self.now.saturating_sub(since) < i64::from(days) * DAY;
        if let Some(withdrawn) = release.withdrawn {
            let days = policy.days.unwrap_or(WITHDRAWN_DAYS);
            return within(withdrawn, days).then(|| (KeepReason::Withdrawn, String::new()));
        }
        if policy.keep.is_some_and(|keep| newer < keep) {
            return Some((KeepReason::Newest, String::new()));
        }
        let young = policy.days.is_some_and(|days| within(release.row.created, days));
        young.then(|| (KeepReason::Age, String::new()))
    }

    /// Whether the policy would leave the product without a release that devices can take.
    fn would_empty(&self, verdicts: &[Verdict]) -> bool {
        let mut live = verdicts.iter().filter(|v| v.release.withdrawn.is_none()).peekable();
        self.policy.is_some_and(|policy| !policy.may_empty)
            && live.peek().is_some()
            && live.all(|verdict| verdict.lot == GcLot::Remove)
    }
}

/// Ways of devices from release to release, over patch sets.
struct Ways {
    /// Manifests that devices may have.
    held: BTreeSet<ManifestId>,
    /// Manifests that devices may come to want.
    wanted: BTreeSet<ManifestId>,
    /// Manifests inside a route from a release that devices have to one that they are to get.
    bases: BTreeSet<ManifestId>,
    /// Start and end of the sets on such routes.
    used: BTreeSet<(ManifestId, ManifestId)>,
}

impl Ways {
    fn of(view: &View<'_>, verdicts: &[Verdict], sets: &[PatchSetRow]) -> Self {
        let has = |verdict: &Verdict, reasons: &[KeepReason]| {
            verdict.kept.iter().any(|(reason, _)| reasons.contains(reason))
        };
        let on = [KeepReason::Running, KeepReason::NodePin, KeepReason::Channel, KeepReason::Rollout];
        let to = [KeepReason::NodePin, KeepReason::Channel, KeepReason::Rollout, KeepReason::Action];
        let (mut sources, mut targets) = (BTreeSet::new(), BTreeSet::new());
        let (mut held, mut wanted) = (BTreeSet::new(), BTreeSet::new());
        let mut is_newest = true;
        for verdict in verdicts.iter().filter(|verdict| verdict.lot != GcLot::Removing) {
            let row = &verdict.release.row;
            let recent = |since: Option<UnixSeconds>| {
                since.is_some_and(|since| view.now.saturating_sub(since) < PATCH_SECONDS)
            };
            if has(verdict, &on) {
                sources.insert(row.manifest);
            }
            if has(verdict, &to) {
                targets.insert(row.manifest);
            }
            if recent(of(&view.uses.left, row).copied()) || has(verdict, &[KeepReason::Pinned]) {
                held.insert(row.manifest);
            }
            let live = verdict.release.withdrawn.is_none();
            if live && (is_newest || recent(Some(row.created))) || has(verdict, &[KeepReason::Pinned]) {
                wanted.insert(row.manifest);
            }
            is_newest &= !live;
        }
        held.extend(&sources);
        wanted.extend(&targets);
        let (mut bases, mut used) = (BTreeSet::new(), BTreeSet::new());
        let legs: Vec<Leg> = sets
            .iter()
            .filter(|set| set.set.is_some() && set.key.from != ManifestId::NOTHING)
            .take(SETS_MAX as usize)
            .map(|set| Leg { from: set.key.from, to: set.key.to, bytes: set.bytes })
            .collect();
        for source in &sources {
            for target in &targets {
                for (step, leg) in route(&legs, &[*source], *target).into_iter().enumerate() {
                    used.insert((legs[leg].from, legs[leg].to));
                    if step > 0 {
                        bases.insert(legs[leg].from);
                    }
                }
            }
        }
        Self { held, wanted, bases, used }
    }

    /// Keeps the releases inside routes: their sets would go with them.
    fn keep_bases(&self, verdicts: &mut [Verdict]) {
        for verdict in verdicts.iter_mut().filter(|verdict| verdict.lot != GcLot::Removing) {
            if self.bases.contains(&verdict.release.row.manifest) {
                verdict.kept.push((KeepReason::RouteBase, String::new()));
                verdict.lot = GcLot::Keep;
            }
        }
    }

    /// Sets that nobody can take.
    fn unneeded(&self, sets: Vec<PatchSetRow>, verdicts: &[Verdict], now: UnixSeconds) -> Vec<SetVerdict> {
        let staying: BTreeSet<ManifestId> = verdicts
            .iter()
            .filter(|verdict| matches!(verdict.lot, GcLot::Keep | GcLot::Later))
            .map(|verdict| verdict.release.row.manifest)
            .collect();
        let mut listed = 0;
        let mut out = Vec::new();
        for row in sets {
            let (from, to) = (row.key.from, row.key.to);
            let solid = from == ManifestId::NOTHING;
            let ends = (solid || staying.contains(&from)) && staying.contains(&to);
            listed += u32::from(row.set.is_some());
            let fresh = row.finished.is_some_and(|at| now.saturating_sub(at) < FRESH_SET_SECONDS);
            let reason = if !ends {
                Some(SetReason::ReleaseGoes)
            } else if fresh || self.used.contains(&(from, to)) {
                None
            } else if !solid && !self.held.contains(&from) {
                Some(SetReason::NobodyHas)
            } else if !self.wanted.contains(&to) {
                Some(SetReason::NobodyWants)
            } else {
                (row.set.is_some() && listed > SETS_MAX).then_some(SetReason::Unlisted)
            };
            out.extend(reason.map(|reason| SetVerdict { row, reason }));
        }
        out
    }
}

#[cfg(test)]
mod tests;
