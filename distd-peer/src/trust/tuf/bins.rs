//! Roles that sign release targets. `releases` delegates to sixteen nodes by the first hexadecimal
//! digit of the SHA-256 of the target's path, and each node delegates to 32 bins by the next five
//! bits.
//!
//! A bin is made for its first release. With 10 000 releases a bin holds about twenty. A device
//! therefore receives twenty entries instead of 10 000, and a publication writes as few. The
//! snapshot lists bins by version only, 33 bytes each.

use aws_lc_rs::digest::{SHA256, digest};

/// Role above all bins, and the name under which its keys are kept.
pub const RELEASES: &str = "releases";

/// Returns the roles on the way to a release target: the node, and the bin that lists the target.
pub fn release_roles(target: &str) -> [String; 2] {
    let hash = digest(&SHA256, target.as_bytes());
    let [first, second, ..] = hash.as_ref() else { unreachable!("a SHA-256 has 32 bytes") };
    let node = first >> 4;
    let bin = (first & 0x0f) << 1 | second >> 7;
    [format!("{RELEASES}-{node:x}"), format!("{RELEASES}-{node:x}-{bin:02x}")]
}

/// Returns the role above a node or bin; `None` for other names.
pub fn parent_of(role: &str) -> Option<&str> {
    let rest = role.strip_prefix(RELEASES)?.strip_prefix('-')?;
    match rest.split_once('-') {
        Some((node, _)) => role.get(..RELEASES.len() + 1 + node.len()),
        None => Some(RELEASES),
    }
}
