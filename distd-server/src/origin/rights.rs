//! Rights of nodes on manifests, by labels, groups and grants of the database (docs/fleet.md).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use distd_core::fleet::{Audience, Grant, Rights, Selectors, by_certificate, rights};
use distd_core::names::Name;
use distd_core::{ManifestId, NodeId};
use distd_peer::clock::unix_now;
use tokio::sync::watch;

use super::Origin;
use crate::db::{Db, DbError};

/// Rights of a node on one manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRights {
    /// The manifest.
    pub manifest: ManifestId,
    /// All rights of the node, those by its certificate alone included.
    pub rights: Rights,
    /// Rights that every node of the realm has by its certificate alone. A node that is revoked has
    /// none.
    pub by_certificate: Rights,
    /// Time at which `rights` become fewer because a grant ends, unix seconds; `None` without such
    /// a time.
    pub until: Option<u64>,
    /// Time at which `by_certificate` becomes fewer because a grant ends, unix seconds.
    pub by_certificate_until: Option<u64>,
}

/// Most ends of grants that are looked at for one answer.
const ENDS_MAX: usize = 16;

/// Groups with selectors, and grants, as the database had them in one state.
#[derive(Debug)]
struct Rules {
    generation: u64,
    selectors: Selectors,
    grants: Vec<Grant>,
}

/// The rules that were read last.
#[derive(Debug, Default)]
pub(super) struct RuleCache {
    held: Mutex<Option<Arc<Rules>>>,
    /// Held while rules are read: after a change, every open swarm asks at once.
    reading: tokio::sync::Mutex<()>,
}

impl RuleCache {
    /// The rules of at least the state `generation`. Nothing is read while the state is the same;
    /// so a change by another process on the same database holds at once, too.
    async fn rules(&self, db: &Db, generation: u64) -> Result<Arc<Rules>, DbError> {
        let held = || self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fresh = |rules: &Arc<Rules>| rules.generation >= generation;
        if let Some(rules) = held().filter(fresh) {
            return Ok(rules);
        }
        let _turn = self.reading.lock().await;
        if let Some(rules) = held().filter(fresh) {
            return Ok(rules);
        }
        // The number is read first: with a change in between, the rules are read once more.
        let generation = db.fleet_generation().await?;
        let selectors = db.selectors().await?;
        let grants = db.grants().await?.into_iter().map(|row| row.grant).collect();
        let rules = Arc::new(Rules { generation, selectors, grants });
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(rules.clone());
        Ok(rules)
    }
}

impl Origin {
    /// Rights of a node on manifests of releases and patch sets, now, in the order given. A node
    /// that is revoked or unknown has none, and nobody has any on an unknown manifest.
    ///
    /// Four statements for up to 64 manifests, while groups and grants are the same.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn rights_of(
        &self,
        node: &NodeId,
        manifests: &[ManifestId],
    ) -> Result<Vec<NodeRights>, DbError> {
        let none = |manifest: &ManifestId| NodeRights {
            manifest: *manifest,
            rights: Rights::NONE,
            by_certificate: Rights::NONE,
            until: None,
            by_certificate_until: None,
        };
        let found = self.db.member(&node.to_string()).await?;
        let Some(row) = found.filter(|row| row.revoked.is_none()) else {
            return Ok(manifests.iter().map(none).collect());
        };
        let rules = self.rules.rules(&self.db, row.generation).await?;
        let audiences = self.db.audiences(manifests).await?;
        let now = unix_now();
        // Membership is the same for all manifests, and most grants are to other groups.
        let groups: BTreeSet<&Name> = rules.grants.iter().map(|grant| &grant.group).collect();
        let mine: BTreeSet<&Name> =
            groups.into_iter().filter(|group| row.member.is_granted_as(group, &rules.selectors)).collect();
        let grants: Vec<&Grant> = rules.grants.iter().filter(|grant| mine.contains(&grant.group)).collect();
        // Ends of grants that are still to come. Beyond the first ones a capability is renewed
        // anyway.
        let ends: BTreeSet<u64> =
            grants.iter().filter_map(|grant| grant.until).filter(|end| *end > now).collect();
        let of = |manifest: &ManifestId| {
            // Equal bytes may be several releases: a node that may read one of them has the bytes.
            let releases = audiences.get(manifest).map_or(&[][..], Vec::as_slice);
            let at = |time: u64| {
                releases.iter().fold((Rights::NONE, Rights::NONE), |(all, free), audience| {
                    let by = by_certificate(grants.iter().copied(), audience, time);
                    let own = rights(&row.member, &rules.selectors, grants.iter().copied(), audience, time);
                    (all.with(own).with(by), free.with(by))
                })
            };
            let (all, free) = at(now);
            let later: Vec<_> = ends.iter().take(ENDS_MAX).map(|end| (*end, at(*end))).collect();
            NodeRights {
                manifest: *manifest,
                rights: all,
                by_certificate: free,
                until: later.iter().find(|(_, (then, _))| *then != all).map(|(end, _)| *end),
                by_certificate_until: later.iter().find(|(_, (_, then))| *then != free).map(|(end, _)| *end),
            }
        };
        Ok(manifests.iter().map(of).collect())
    }

    /// Rights of a node on releases of channels, each with its product, now, in the order given;
    /// `None` for a node that is revoked or unknown.
    ///
    /// # Errors
    /// [`DbError`].
    pub(super) async fn rights_on(
        &self,
        node: &NodeId,
        channels: &[(Name, Name)],
    ) -> Result<Option<Vec<Rights>>, DbError> {
        let found = self.db.member(&node.to_string()).await?;
        let Some(row) = found.filter(|row| row.revoked.is_none()) else { return Ok(None) };
        let rules = self.rules.rules(&self.db, row.generation).await?;
        let now = unix_now();
        let of = |(product, channel): &(Name, Name)| {
            let audience = Audience { product: product.clone(), channels: [channel.clone()].into() };
            rights(&row.member, &rules.selectors, &rules.grants, &audience, now)
        };
        Ok(Some(channels.iter().map(of).collect()))
    }

    /// A number that grows with each change of labels, groups, grants and revocations of nodes that
    /// is made through this process: ask for rights again.
    pub fn fleet_changed(&self) -> watch::Receiver<u64> {
        self.db.fleet_changed()
    }
}
