//! Rules for what the signer signs.
//!
//! An attacker who controls the origin's process controls every request. These rules bound what
//! such a request can gain beyond the time of the attack.

use std::collections::{BTreeSet, HashMap};

use distd_core::file_name::is_sum_line;
use distd_core::fleet::receipts::is_head_message;
use distd_core::fleet::rollout::is_turn_message;
use distd_core::fleet::{Right, is_capability_message, is_halt_message, is_statement_message};
use distd_core::role::Role;
use distd_peer::trust::identity::certificate_names;
use distd_peer::trust::revoked::revoked_message;
use distd_peer::trust::seal::is_seal_message;
use serde_json::Value;
use tough::schema::{Root, Targets};
use x509_parser::certificate::TbsCertificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::roots::KnownRoots;
use crate::tuf::{KeyRing, expires_after, key_roles};

/// Largest difference between the clocks of two processes, seconds.
const CLOCK_SECONDS: u64 = 3600;

/// Longest validity of a certificate with the origin's name, seconds.
const ORIGIN_SECONDS_MAX: u64 = 31 * 24 * 3600;

/// Longest validity of a capability, seconds.
const CAPABILITY_SECONDS_MAX: u64 = 7 * 24 * 3600;

/// How long what the signer signs may be valid, where the operator decides it. A bound that is
/// shorter than the usual one changes nothing.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// Certificates of nodes, seconds.
    pub node_seconds: u64,
    /// Snapshot, timestamp and capability in a bundle, seconds.
    pub bundle_seconds: u64,
}

/// Checks TUF metadata in canonical form that a key of `role` is to sign at `now` (unix seconds).
/// The metadata may name only keys in `own`, the signer's; a root must follow the newest of
/// `roots`.
///
/// # Errors
/// The reason for the refusal.
pub(super) fn check_metadata(
    role: &str,
    message: &[u8],
    own: &KeyRing,
    roots: &KnownRoots,
    validity: Validity,
    now: u64,
) -> Result<(), String> {
    if !key_roles().any(|known| known == role) {
        return Err(format!("there is no TUF role {role:?}"));
    }
    let value: Value = serde_json::from_slice(message).map_err(|_| "the metadata is not JSON".to_owned())?;
    let kind = match role {
        "root" | "snapshot" | "timestamp" => role,
        _ => "targets",
    };
    if value.get("_type").and_then(Value::as_str) != Some(kind) {
        return Err(format!("a key of {role} signs only metadata of the type {kind}"));
    }
    let expires: Option<jiff::Timestamp> =
        value.get("expires").and_then(Value::as_str).and_then(|text| text.parse().ok());
    let expires = expires.and_then(|at| u64::try_from(at.as_second()).ok());
    let usual = expires_after(role, now);
    let latest = match role {
        "snapshot" | "timestamp" => usual.max(now.saturating_add(validity.bundle_seconds)),
        _ => usual,
    };
    let latest = latest.saturating_add(CLOCK_SECONDS);
    if expires.is_none_or(|at| at > latest) {
        return Err(format!(
            "the metadata of {role} would be valid longer than allowed: compare the clocks, and bundle_validity of origin and signer"
        ));
    }
    let foreign =
        |role: &str| Err(format!("the metadata names a key for {role} that this signer does not hold"));
    match kind {
        "root" => {
            let root: Root = serde_json::from_value(value).map_err(|_| "the root is malformed".to_owned())?;
            for (listed, role_keys) in &root.roles {
                let name = listed.to_string();
                let distinct: BTreeSet<_> = role_keys.keyids.iter().collect();
                let fits = distinct.len() == role_keys.keyids.len()
                    && role_keys.threshold.get() <= distinct.len() as u64;
                if !fits || !root.consistent_snapshot {
                    return Err(format!(
                        "this root has too few or repeated keys for {name}, or no consistent snapshots"
                    ));
                }
                if role_keys.keyids.iter().any(|id| !own.has(&name, id, root.keys.get(id))) {
                    return foreign(&name);
                }
            }
            roots.check_successor(&root, now)?;
        }
        "targets" => {
            let targets: Targets =
                serde_json::from_value(value).map_err(|_| "the metadata is malformed".to_owned())?;
            let none = HashMap::new();
            let delegations = targets.delegations.as_ref();
            let keys = delegations.map_or(&none, |delegations| &delegations.keys);
            for delegated in delegations.iter().flat_map(|delegations| &delegations.roles) {
                let key_role = crate::tuf::key_role(&delegated.name);
                if delegated.keyids.iter().any(|id| !own.has(key_role, id, keys.get(id))) {
                    return foreign(&delegated.name);
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// Checks a TBSCertificate (DER) that the CA with the subject `ca` (DER) is to sign at `now` (unix
/// seconds).
///
/// # Errors
/// The reason for the refusal.
pub(super) fn check_certificate(tbs: &[u8], ca: &[u8], validity: Validity, now: u64) -> Result<(), String> {
    let refuse = |why: &str| Err(why.to_owned());
    let Ok((rest, cert)) = TbsCertificate::from_der(tbs) else {
        return refuse("the certificate is malformed");
    };
    if !rest.is_empty() || cert.issuer.as_raw() != ca {
        return refuse("the certificate is not this CA's");
    }
    let mut names = Vec::new();
    for extension in cert.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) if !constraints.ca => {}
            ParsedExtension::KeyUsage(usage) if !usage.key_cert_sign() && !usage.crl_sign() => {}
            ParsedExtension::SubjectAlternativeName(alternatives) => {
                for name in &alternatives.general_names {
                    match name {
                        GeneralName::DNSName(name) => names.push(*name),
                        GeneralName::IPAddress(_) => names.push(""),
                        _ => {
                            return refuse(
                                "the certificate has a name that is neither a host nor an address",
                            );
                        }
                    }
                }
            }
            ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::AuthorityKeyIdentifier(_)
            | ParsedExtension::SubjectKeyIdentifier(_) => {}
            _ => return refuse("the certificate has an extension that no certificate of a node has"),
        }
    }
    let is_of = |role: Role| {
        names.len() == certificate_names(role).len()
            && names.iter().all(|n| certificate_names(role).contains(n))
    };
    let longest = if is_of(Role::Leaf) || is_of(Role::Relay) {
        validity.node_seconds
    } else if certificate_names(Role::Origin).iter().all(|name| names.contains(name))
        && !names.iter().any(|name| is_anothers(name))
    {
        ORIGIN_SECONDS_MAX
    } else {
        return refuse("the certificate has the names of no role");
    };
    let latest = i64::try_from(now.saturating_add(longest).saturating_add(CLOCK_SECONDS)).unwrap_or(i64::MAX);
    if cert.validity().not_after.timestamp() > latest {
        return refuse(
            "the certificate would be valid longer than allowed: compare the clocks, and cert_validity of origin and signer",
        );
    }
    Ok(())
}

/// Whether a name belongs to a role other than the origin's.
fn is_anothers(name: &str) -> bool {
    let of = |role: Role| certificate_names(role).contains(&name);
    (of(Role::Leaf) || of(Role::Relay)) && !of(Role::Origin)
}

/// Checks a message that the OpenPGP key is to sign. Devices take what this key signed for a list
/// of files to install, so it signs a line with one such file and nothing else: no program, no
/// package list of a distribution, no certification of another key.
///
/// # Errors
/// The reason for the refusal.
pub(super) fn check_sum(line: &[u8]) -> Result<(), String> {
    match is_sum_line(line) {
        true => Ok(()),
        false => Err("the OpenPGP key signs only one line of SHA256SUMS with the name of a file".to_owned()),
    }
}

/// Checks a message that is not a certificate and that the CA's key is to sign at `now` (unix
/// seconds).
///
/// # Errors
/// The reason for the refusal.
pub(super) fn check_statement(message: &[u8], validity: Validity, now: u64) -> Result<(), String> {
    if let Some(capability) = is_capability_message(message) {
        // Bundles are read by any node, and nothing more.
        let of_bundle = capability.node.is_none()
            && capability.manifests.iter().all(|entitled| entitled.rights.iter().eq([Right::Read]));
        let longest = match of_bundle {
            true => CAPABILITY_SECONDS_MAX.max(validity.bundle_seconds),
            false => CAPABILITY_SECONDS_MAX,
        };
        let latest = now.saturating_add(longest).saturating_add(CLOCK_SECONDS);
        return match capability.expires <= latest {
            true => Ok(()),
            false => Err("the capability would be valid longer than allowed: compare the clocks".to_owned()),
        };
    }
    let is_known = is_seal_message(message)
        || is_statement_message(message)
        || is_turn_message(message)
        || is_halt_message(message)
        || is_head_message(message)
        || message.starts_with(&revoked_message(b""));
    match is_known {
        true => Ok(()),
        false => Err(
            "the CA's key signs only certificates, seals of replies, lists of revoked nodes, capabilities, \
                      turns, halt notices, heads of the log of receipts and statements about nodes"
                .to_owned(),
        ),
    }
}
