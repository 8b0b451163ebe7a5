//! Grants: rights of a group on releases (docs/fleet.md, "Grants").

use std::collections::{BTreeMap, BTreeSet};

use super::labels::Labels;
use super::patterns::ReleasePattern;
use super::rights::{Right, Rights};
use super::selector::Selector;
use crate::names::Name;
use crate::role::Role;

/// Name of the group that always exists and selects every node.
pub const EVERYONE: &str = "everyone";

/// Rights of a group on releases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Name of the group.
    pub group: Name,
    /// The rights.
    pub rights: Rights,
    /// The releases.
    pub releases: ReleasePattern,
    /// Time from which the grant gives nothing any more, unix seconds; `None` without end.
    pub until: Option<u64>,
    /// Whether nodes need no capability for these releases, but only their certificate.
    pub by_certificate: bool,
}

impl Grant {
    /// Whether the grant gives rights on a release at `now` (unix seconds).
    pub fn covers(&self, audience: &Audience, now: u64) -> bool {
        self.until.is_none_or(|end| now < end) && self.releases.covers(&audience.product, &audience.channels)
    }
}

/// Reason why a grant cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// A grant without the right to read.
    #[error("a grant needs the right read, since seed and report are worth nothing without it: add read")]
    NoRead,
    /// A grant by certificate alone for some nodes.
    #[error(
        "a grant by certificate alone is for everyone, since certificates tell no groups apart: grant it to everyone"
    )]
    ByCertificate,
}

/// Checks what a grant says by itself.
///
/// # Errors
/// [`GrantError`].
pub fn check_grant(group: &Name, rights: Rights, by_certificate: bool) -> Result<(), GrantError> {
    if !rights.has(Right::Read) {
        return Err(GrantError::NoRead);
    }
    if by_certificate && group.as_str() != EVERYONE {
        return Err(GrantError::ByCertificate);
    }
    Ok(())
}

/// The release that a manifest belongs to. A patch set belongs to the release that it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audience {
    /// Product of the release.
    pub product: Name,
    /// Channels that point to the release or have pointed to it.
    pub channels: BTreeSet<Name>,
}

/// A node, as far as groups are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Role of its certificate.
    pub role: Role,
    /// Its labels.
    pub labels: Labels,
    /// Groups that list the node by its id.
    pub listed: BTreeSet<Name>,
}

/// Groups that have a selector, by name.
pub type Selectors = BTreeMap<Name, Selector>;

impl Member {
    /// Whether the node is in a group. Groups with facts are included.
    pub fn is_in(&self, group: &Name, selectors: &Selectors) -> bool {
        group.as_str() == EVERYONE
            || self.listed.contains(group)
            || selectors.get(group).is_some_and(|selector| selector.selects(&self.labels, self.role))
    }

    /// Whether a grant to this group is one to the node. A group whose selector has facts gives no
    /// rights: the node would choose its own.
    pub fn is_granted_as(&self, group: &Name, selectors: &Selectors) -> bool {
        !selectors.get(group).is_some_and(Selector::uses_facts) && self.is_in(group, selectors)
    }
}

/// Rights of a node on a release at `now` (unix seconds): those of all grants together.
pub fn rights<'a>(
    node: &Member,
    selectors: &Selectors,
    grants: impl IntoIterator<Item = &'a Grant>,
    audience: &Audience,
    now: u64,
) -> Rights {
    let mut sum = Rights::NONE;
    for grant in grants {
        // The pattern is compared first: it is shorter than most selectors.
        if sum.with(grant.rights) != sum
            && grant.covers(audience, now)
            && node.is_granted_as(&grant.group, selectors)
        {
            sum = sum.with(grant.rights);
        }
    }
    sum
}

/// Rights of every node of the realm on a release at `now` (unix seconds), by its certificate
/// alone.
pub fn by_certificate<'a>(
    grants: impl IntoIterator<Item = &'a Grant>,
    audience: &Audience,
    now: u64,
) -> Rights {
    let given = grants.into_iter().filter(|grant| {
        grant.by_certificate && grant.group.as_str() == EVERYONE && grant.covers(audience, now)
    });
    given.fold(Rights::NONE, |sum, grant| sum.with(grant.rights))
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::option;
    use proptest::prelude::*;

    use super::super::labels::assignable_label;
    use super::*;

    fn name(s: &str) -> Name {
        s.parse().expect("a name")
    }

    fn grant(group: &str, rights: &str, releases: &str) -> Grant {
        Grant {
            group: name(group),
            rights: rights.parse().expect("rights"),
            releases: releases.parse().expect("a pattern"),
            until: None,
            by_certificate: false,
        }
    }

    fn audience(product: &str, channels: &[&str]) -> Audience {
        Audience { product: name(product), channels: channels.iter().map(|c| name(c)).collect() }
    }

    fn node(labels: &[&str]) -> Member {
        let token = labels.iter().map(|l| assignable_label(l).expect("a label")).collect();
        Member {
            role: Role::Leaf,
            labels: Labels { token, ..Labels::default() },
            listed: BTreeSet::from([name("listed")]),
        }
    }

    #[test]
    fn rights_are_those_of_all_grants_to_the_nodes_groups() {
        let selectors = Selectors::from([
            (name("tills"), "kind=till".parse().expect("a selector")),
            (name("boasters"), "fact.kind=till".parse().expect("a selector")),
        ]);
        let grants = [
            grant("tills", "read", "os:stable"),
            grant("listed", "read,seed", "os:stable"),
            grant("boasters", "read,seed,report", "*"),
            grant("gone", "read,seed,report", "*"),
            grant("everyone", "read", "public"),
            Grant { until: Some(100), ..grant("everyone", "read,report", "os:beta") },
        ];
        let of = |node: &Member, product: &str, channels: &[&str], now: u64| {
            rights(node, &selectors, &grants, &audience(product, channels), now).to_string()
        };
        let mut till = node(&["kind=till"]);
        till.labels.facts = till.labels.token.clone();
        assert_eq!(of(&till, "os", &["stable"], 5), "read,seed");
        assert_eq!(of(&till, "os", &["beta"], 99), "read,report");
        assert_eq!(of(&till, "os", &["beta"], 100), "");
        assert_eq!(of(&till, "os", &[], 5), "");
        assert_eq!(of(&till, "public", &[], 5), "read");
        till.listed.clear();
        assert_eq!(of(&till, "os", &["stable", "beta"], 99), "read,report");
        assert!(till.is_in(&name("boasters"), &selectors) && !till.is_in(&name("gone"), &selectors));
    }

    #[test]
    fn rights_by_certificate_are_for_everyone_alone() {
        let by = |group: &str, rights: &str| Grant { by_certificate: true, ..grant(group, rights, "os") };
        let grants =
            [by("everyone", "read"), by("tills", "read,seed"), grant("everyone", "read,report", "os")];
        let os = audience("os", &[]);
        assert_eq!(by_certificate(&grants, &os, 5).to_string(), "read");
        assert_eq!(by_certificate(&grants, &audience("app", &[]), 5), Rights::NONE);
        assert_eq!(check_grant(&name("tills"), Rights::ALL, true), Err(GrantError::ByCertificate));
        assert_eq!(check_grant(&name("everyone"), Rights::ALL, true), Ok(()));
        let no_read = "seed,report".parse().expect("rights");
        assert_eq!(check_grant(&name("tills"), no_read, false), Err(GrantError::NoRead));
    }

    fn any_grant() -> impl Strategy<Value = Grant> {
        let group = prop_oneof![Just("everyone"), Just("tills"), Just("listed"), Just("facts")];
        let releases = prop_oneof![Just("*"), Just("os"), Just("os:stable"), Just("a*:*")];
        (group, 0u8..8, releases, option::of(0u64..4), any::<bool>()).prop_map(
            |(group, bits, releases, until, by_certificate)| Grant {
                rights: Rights::from_bits(bits),
                until,
                by_certificate,
                ..grant(group, "", releases)
            },
        )
    }

    proptest! {
        /// Each right is there exactly when one grant gives it.
        #[test]
        fn rights_are_as_defined(
            grants in vec(any_grant(), 0..6), till in any::<bool>(), listed in any::<bool>(),
            product in "os|app", channels in btree_set("stable|beta", 0..3), now in 0u64..4
        ) {
            let selectors = Selectors::from([
                (name("tills"), "kind=till".parse().expect("a selector")),
                (name("facts"), "!fact.none".parse().expect("a selector")),
            ]);
            let mut node = node(if till { &["kind=till"] } else { &[] });
            if !listed {
                node.listed.clear();
            }
            let audience = Audience { product: name(&product), channels: channels.iter().map(|c| name(c)).collect() };
            for right in Right::ALL {
                let gives = |grant: &Grant| {
                    let member = match grant.group.as_str() {
                        "everyone" => true,
                        "tills" => till,
                        "listed" => listed,
                        _ => false,
                    };
                    let covered = match grant.releases.to_string().as_str() {
                        "*" => true,
                        "os" => product == "os",
                        "os:stable" => product == "os" && channels.contains("stable"),
                        _ => product == "app" && !channels.is_empty(),
                    };
                    member && covered && grant.rights.has(right) && grant.until.is_none_or(|end| now < end)
                };
                let expected = grants.iter().any(gives);
                prop_assert_eq!(rights(&node, &selectors, &grants, &audience, now).has(right), expected);
                let expected = grants.iter().any(|g| gives(g) && g.by_certificate && g.group.as_str() == EVERYONE);
                prop_assert_eq!(by_certificate(&grants, &audience, now).has(right), expected);
            }
        }
    }
}
