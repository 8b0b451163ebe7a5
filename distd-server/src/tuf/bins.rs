//! Delegation of the nodes and bins of releases, which [`distd_peer::trust::tuf::bins`] names.

use std::num::NonZeroU64;

pub use distd_peer::trust::tuf::bins::release_roles;
pub(super) use distd_peer::trust::tuf::bins::{RELEASES, parent_of};
use tough::schema::{DelegatedRole, PathHashPrefix, PathSet};

use super::keys::SigningKey;
use super::metadata::{RepositoryError, schema};

/// Role whose keys sign `role`.
pub(crate) fn key_role(role: &str) -> &str {
    if parent_of(role).is_some() { RELEASES } else { role }
}

/// Delegation from the role above to a node or bin.
pub(super) fn delegation(role: &str, keys: &[&SigningKey]) -> Result<DelegatedRole, RepositoryError> {
    let unknown = || schema(format!("{role} is not a node or bin of releases"));
    let mut parts =
        role.strip_prefix(RELEASES).and_then(|rest| rest.strip_prefix('-')).ok_or_else(unknown)?.split('-');
    let node = parts.next().ok_or_else(unknown)?;
    let prefixes = match parts.next() {
        None => vec![node.to_owned()],
        Some(bin) => {
            let bin = u8::from_str_radix(bin, 16).map_err(schema)?;
            (0..8).map(|low| format!("{node}{:02x}", bin << 3 | low)).collect()
        }
    };
    let prefixes: Result<_, _> = prefixes.into_iter().map(PathHashPrefix::new).collect();
    Ok(DelegatedRole {
        name: role.to_owned(),
        keyids: keys.iter().map(|key| key.id.clone()).collect(),
        threshold: NonZeroU64::MIN,
        paths: PathSet::PathHashPrefixes(prefixes.map_err(schema)?),
        terminating: true,
        targets: None,
    })
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};

    use super::*;

    #[test]
    fn each_target_belongs_to_the_bin_with_the_prefix_of_its_hash() {
        for n in 0..2000 {
            let target = format!("releases/os/{n}");
            let hash = hex::encode(digest(&SHA256, target.as_bytes()));
            let roles = release_roles(&target);
            for role in &roles {
                let PathSet::PathHashPrefixes(prefixes) = delegation(role, &[]).expect("a delegation").paths
                else {
                    panic!("by hash")
                };
                let fits = prefixes.iter().filter(|prefix| hash.starts_with(prefix.value())).count();
                assert_eq!(fits, 1, "{target} in {role}");
            }
            assert_eq!(parent_of(&roles[1]), Some(roles[0].as_str()));
            assert_eq!(parent_of(&roles[0]), Some(RELEASES));
        }
        assert_eq!(
            (parent_of("releases"), parent_of("channels"), key_role("channels")),
            (None, None, "channels")
        );
    }
}
