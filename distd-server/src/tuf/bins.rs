//! Where a release's target is signed: `releases` delegates to sixteen nodes by the first hexadecimal digit of the
//! SHA-256 of the target's path, each of them to 32 bins by the next five bits.
//!
//! A bin is made when its first release comes. With 10 000 releases a bin holds some twenty, so a device receives
//! twenty entries and not 10 000, and a publication writes as few. The snapshot lists bins by version alone: 33
//! bytes each.

use std::num::NonZeroU64;

use aws_lc_rs::digest::{SHA256, digest};
use tough::schema::{DelegatedRole, PathHashPrefix, PathSet};

use super::keys::SigningKey;
use super::sign::{RepositoryError, schema};

/// The role above all bins, and the name under which its keys are kept.
pub(super) const RELEASES: &str = "releases";

/// The roles on the way to a target of a release: the node, and the bin that lists it.
pub fn release_roles(target: &str) -> [String; 2] {
    let hash = digest(&SHA256, target.as_bytes());
    let [first, second, ..] = hash.as_ref() else { unreachable!("a SHA-256 has 32 bytes") };
    let node = first >> 4;
    let bin = (first & 0x0f) << 1 | second >> 7;
    [format!("{RELEASES}-{node:x}"), format!("{RELEASES}-{node:x}-{bin:02x}")]
}

/// The role above a node or bin; `None` for other names.
pub(super) fn parent_of(role: &str) -> Option<&str> {
    let rest = role.strip_prefix(RELEASES)?.strip_prefix('-')?;
    match rest.split_once('-') {
        Some((node, _)) => role.get(..RELEASES.len() + 1 + node.len()),
        None => Some(RELEASES),
    }
}

/// The role whose keys sign `role`.
pub(super) fn key_role(role: &str) -> &str {
    if parent_of(role).is_some() { RELEASES } else { role }
}

/// How the role above delegates to a node or bin.
pub(super) fn delegation(role: &str, keys: &[&SigningKey]) -> Result<DelegatedRole, RepositoryError> {
    let unknown = || schema(format!("{role} is no role of releases"));
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
    use super::*;

    #[test]
    fn each_target_is_in_the_bin_whose_prefixes_its_hash_has() {
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
