//! Capabilities that the origin gives, and its own judgement of askers (docs/fleet.md,
//! "Capabilities").

use std::collections::BTreeSet;

use distd_core::bounds::CAPABILITY_MANIFESTS_MAX;
use distd_core::fleet::{Capability, Entitlement, Right, Rights};
use distd_core::names::Wanted;
use distd_core::role::Role;
use distd_core::{ManifestId, NodeId};
use distd_peer::capabilities::Permit;
use distd_peer::clock::unix_now;
use distd_peer::trust::capability::{CapabilityQuestion, FILE, FILE_OF_ANY};
use distd_peer::trust::tls::PeerIdentity;
use distd_peer::trust::tuf::wire::Answer;

use super::Origin;
use crate::db::DbError;
use crate::realm::RealmError;

/// How long the origin's own permit for an asker holds, seconds. It is extended halfway: grants
/// that another process on the same database changes are noticed then.
const PERMIT_SECONDS: u64 = 60;

/// Validity of a capability of any node, seconds. A branch office without its origin goes on for
/// as long.
const OF_ANY_SECONDS: u64 = 24 * 3600;

/// Patch sets of one product that are looked at for those that lead to a wanted release.
const PATCH_SETS_MAX: u32 = 256;

/// Most targets of one question that are followed: the products that a device has installed.
const TARGETS_MAX: usize = 8;

/// Error of making capabilities.
#[derive(Debug, thiserror::Error)]
pub(super) enum CapabilityAnswerError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Signing failed.
    #[error(transparent)]
    Realm(#[from] RealmError),
}

impl Origin {
    /// Decides by the database what a node may do with a manifest; `None` when it may not read it.
    ///
    /// # Errors
    /// [`DbError`].
    pub(super) async fn permit(
        &self,
        node: &NodeId,
        manifest: ManifestId,
    ) -> Result<Option<Permit>, DbError> {
        let found = self.rights_of(node, &[manifest]).await?;
        let Some(found) = found.first().filter(|found| found.rights.has(Right::Read)) else {
            return Ok(None);
        };
        let until = unix_now() + PERMIT_SECONDS;
        let until = found.until.map_or(until, |end| end.min(until));
        Ok(Some(Permit { rights: found.rights, until }))
    }

    /// Answers a peer's question for capabilities: the bytes of an [`Answer`].
    ///
    /// # Errors
    /// [`CapabilityAnswerError`].
    pub(super) async fn capability_answer(
        &self,
        peer: &PeerIdentity,
        asked: &CapabilityQuestion,
        targets: &[String],
    ) -> Result<Vec<u8>, CapabilityAnswerError> {
        // Only relays ask for others.
        let node = if peer.role == Role::Relay { asked.node() } else { peer.node_id };
        let manifests = self.manifests_asked_for(asked, targets).await?;
        let rights = self.rights_of(&node, &manifests).await?;
        let reads = |rights: Rights| rights.has(Right::Read);
        let (mut own, mut of_any) = (Vec::new(), Vec::new());
        let end = |until: Option<u64>| until.unwrap_or(u64::MAX);
        let (mut own_end, mut of_any_end) = (u64::MAX, u64::MAX);
        for found in rights {
            let manifest = found.manifest;
            if reads(found.by_certificate) {
                of_any.push(Entitlement { manifest, rights: found.by_certificate });
                of_any_end = of_any_end.min(end(found.by_certificate_until));
            }
            // A node that has more rights than any node needs a capability of its own.
            if reads(found.rights) && found.rights != found.by_certificate {
                own.push(Entitlement { manifest, rights: found.rights });
                own_end = own_end.min(end(found.until));
            }
        }
        let validity = self.capability_validity.as_secs();
        let mut files = Vec::new();
        for (file, node, seconds, end, manifests) in [
            (FILE_OF_ANY, None, OF_ANY_SECONDS, of_any_end, of_any),
            (FILE, Some(node), validity, own_end, own),
        ] {
            if !manifests.is_empty() {
                let issued = unix_now();
                let expires = (issued + seconds).min(end);
                let capability = Capability { node, issued, expires, manifests };
                files.push((file.to_owned(), self.realm.sign_capability(capability)?.encode()));
            }
        }
        Ok(Answer { files }.encode())
    }

    /// The manifests of a question: those that it names, those of the releases to which its targets
    /// lead, and those of the patch sets that lead to these releases. At most
    /// [`CAPABILITY_MANIFESTS_MAX`].
    pub(super) async fn manifests_asked_for(
        &self,
        asked: &CapabilityQuestion,
        targets: &[String],
    ) -> Result<Vec<ManifestId>, DbError> {
        let mut manifests = asked.manifests.clone();
        let mut add = |manifest: ManifestId| {
            if manifests.len() < CAPABILITY_MANIFESTS_MAX && !manifests.contains(&manifest) {
                manifests.push(manifest);
            }
        };
        let distinct: BTreeSet<&String> = targets.iter().collect();
        let wanted = distinct.into_iter().filter_map(|target| Wanted::of_target(target));
        for wanted in wanted.take(TARGETS_MAX) {
            // A device of a channel may need the release of its rollout, or that of the channel.
            let (product, versions) = match wanted {
                Wanted::Release { product, version } => (product, vec![version]),
                Wanted::Channel { product, channel } => match self.db.channel(&product, &channel).await? {
                    Some(row) => {
                        let rollout = self.db.rollout_under_way(&product, &channel).await?;
                        let of_rollout = rollout
                            .into_iter()
                            .flat_map(|rollout| [rollout.version].into_iter().chain(rollout.policy.requires));
                        (product, of_rollout.chain([row.version]).collect())
                    }
                    None => continue,
                },
            };
            let sets = self.db.patch_sets_usable(&product, PATCH_SETS_MAX).await?;
            for version in versions {
                let Some(release) = self.db.release(&product, &version).await? else { continue };
                add(release.manifest);
                let leading = sets.iter().filter(|set| set.key.to == release.manifest);
                leading.filter_map(|set| set.set).for_each(&mut add);
            }
        }
        Ok(manifests)
    }
}
