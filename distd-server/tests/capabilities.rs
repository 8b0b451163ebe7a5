//! Capabilities that a realm signs, as nodes check and keep them.
#![allow(missing_docs, clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use distd_core::fleet::{Capability, CapabilityError, Entitlement, Right, Rights, SignedCapability};
use distd_core::{ManifestId, NodeId};
use distd_peer::capabilities::{Capabilities, Permit};
use distd_peer::clock::unix_now;
use distd_peer::trust::capability::{CapabilityRefused, FILE, FILE_OF_ANY, open};
use distd_peer::trust::seal::SealError;
use distd_peer::trust::tuf::wire::Answer;
use distd_server::realm::Realm;
use distd_server::signer::KeyHolder;

const OWN: NodeId = NodeId([1; 16]);
const OTHER: NodeId = NodeId([2; 16]);

struct World {
    directory: tempfile::TempDir,
    realm: Realm,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let keys = KeyHolder::in_dir(directory.path());
        let realm = Realm::open(directory.path(), &keys, unix_now()).unwrap();
        Self { directory, realm }
    }

    fn signed(&self, node: Option<NodeId>, manifests: &[(u8, Rights)], seconds: u64) -> SignedCapability {
        let issued = unix_now() - 1000;
        let entitlement =
            |(n, rights): &(u8, Rights)| Entitlement { manifest: manifest(*n), rights: *rights };
        let manifests = manifests.iter().map(entitlement).collect();
        let capability = Capability { node, issued, expires: issued + 1000 + seconds, manifests };
        self.realm.sign_capability(capability).unwrap()
    }

    fn holder(&self, name: &str) -> Arc<Capabilities> {
        Capabilities::load(OWN, self.realm.ca_der().clone(), &self.path(name))
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }
}

fn manifest(n: u8) -> ManifestId {
    ManifestId([n; 32])
}

fn answer(files: &[(&str, &SignedCapability)]) -> Vec<u8> {
    let files = files.iter().map(|(name, signed)| ((*name).to_owned(), signed.encode())).collect();
    Answer { files }.encode()
}

#[test]
fn only_what_the_realm_signed_is_a_capability() {
    let (world, foreign) = (World::new(), World::new());
    let signed = world.signed(Some(OWN), &[(1, Rights::ALL)], 60);
    let ca = world.realm.ca_der();
    assert_eq!(open(&signed.encode(), ca).unwrap(), signed);
    let theirs = foreign.signed(Some(OWN), &[(1, Rights::ALL)], 60).encode();
    assert!(matches!(open(&theirs, ca), Err(CapabilityRefused::Seal(SealError::Signature))));
    // Every byte counts: of the statement and of the signature.
    let bytes = signed.encode();
    for at in 0..bytes.len() {
        let mut changed = bytes.to_vec();
        changed[at] ^= 1;
        assert!(open(&Bytes::from(changed), ca).is_err(), "byte {at}");
    }
}

#[test]
fn a_checker_permits_the_node_of_a_capability_and_any_node_by_one_of_its_own() {
    let world = World::new();
    let holder = world.holder("a");
    let read: Rights = [Right::Read].into_iter().collect();
    let own = world.signed(Some(OTHER), &[(1, Rights::ALL), (2, read)], 60);
    let (shown, now) = (own.encode(), unix_now());
    let permit = holder.permit(&OTHER, &manifest(1), &shown, now).unwrap();
    assert_eq!(permit, Permit { rights: Rights::ALL, until: own.capability.expires });
    assert_eq!(holder.permit(&OTHER, &manifest(2), &shown, now).unwrap().rights, read);
    let refused = |node, n, shown: &Bytes, now| match holder.permit(&node, &manifest(n), shown, now) {
        Err(CapabilityRefused::Capability(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(OWN, 1, &shown, now), CapabilityError::OtherNode);
    assert_eq!(refused(OTHER, 3, &shown, now), CapabilityError::NotGranted);
    assert_eq!(refused(OTHER, 1, &shown, now + 60), CapabilityError::Time);
    assert_eq!(refused(OTHER, 1, &Bytes::new(), now), CapabilityError::NotGranted);
    assert_eq!(refused(OTHER, 1, &Bytes::from_static(b"junk"), now), CapabilityError::Malformed);
    // With a capability of any node here, nodes need to show none.
    let of_any = world.signed(None, &[(1, read)], 600);
    holder.take(&answer(&[(FILE_OF_ANY, &of_any)])).unwrap();
    let permit = holder.permit(&OWN, &manifest(1), &Bytes::new(), now).unwrap();
    assert_eq!(permit, Permit { rights: read, until: of_any.capability.expires });
    assert_eq!(refused(OWN, 2, &Bytes::new(), now), CapabilityError::NotGranted);
}

#[test]
fn a_node_keeps_the_newest_of_its_own_beside_one_of_any_node_and_nothing_of_another() {
    let world = World::new();
    let holder = world.holder("a");
    let take = |name: &str, signed: &SignedCapability| holder.take(&answer(&[(name, signed)]));
    let (read, now): (Rights, u64) = ([Right::Read].into_iter().collect(), unix_now());
    let of_any = world.signed(None, &[(1, read)], 6000);
    let own = world.signed(Some(OWN), &[(1, Rights::ALL)], 60);
    let held = || holder.proof(&manifest(1), unix_now());
    assert_eq!(holder.rights(&manifest(1), now), Rights::NONE);
    take(FILE_OF_ANY, &of_any).unwrap();
    assert_eq!((held(), holder.rights(&manifest(1), now)), (Some(of_any.encode()), read));
    // That of any node ends later and gives less: the node shows its own.
    take(FILE, &own).unwrap();
    assert_eq!((held(), holder.rights(&manifest(1), now)), (Some(own.encode()), Rights::ALL));
    assert!(take(FILE, &world.signed(Some(OTHER), &[(1, Rights::ALL)], 900)).is_err());
    assert_eq!(held(), Some(own.encode()));
    let later = own.capability.expires;
    assert_eq!(holder.proof(&manifest(1), later), Some(of_any.encode()));
    assert_eq!(holder.rights(&manifest(1), later), read);
    assert_eq!(holder.rights(&manifest(1), of_any.capability.expires), Rights::NONE);
    // The capability that is due first is renewed first.
    assert_eq!(holder.renew_at(&manifest(1), now), Some(own.capability.renew_at().max(now)));
}

#[test]
fn a_capability_of_any_node_that_is_good_for_long_is_not_written_again() {
    let world = World::new();
    let holder = world.holder("kept");
    let read: Rights = [Right::Read].into_iter().collect();
    let first = world.signed(None, &[(1, read)], 60_000);
    holder.take(&answer(&[(FILE_OF_ANY, &first)])).unwrap();
    let written = std::fs::metadata(world.path("kept")).unwrap().ino();
    for _ in 0..3 {
        holder.take(&answer(&[(FILE_OF_ANY, &world.signed(None, &[(1, read)], 60_001))])).unwrap();
    }
    assert_eq!(std::fs::metadata(world.path("kept")).unwrap().ino(), written);
    assert_eq!(holder.proof(&manifest(1), unix_now()), Some(first.encode()));
    // One that another node shows is kept, too.
    let other = world.signed(None, &[(2, read)], 600);
    holder.permit(&OTHER, &manifest(2), &other.encode(), unix_now()).unwrap();
    assert_eq!(holder.of_any(&[manifest(1), manifest(2)]), [first.encode(), other.encode()]);
    assert_ne!(std::fs::metadata(world.path("kept")).unwrap().ino(), written);
}

#[test]
fn capabilities_of_any_node_survive_a_restart_and_others_do_not() {
    let world = World::new();
    let holder = world.holder("kept");
    let (of_any, own) =
        (world.signed(None, &[(1, Rights::ALL)], 600), world.signed(Some(OWN), &[(2, Rights::ALL)], 600));
    holder.take(&answer(&[(FILE_OF_ANY, &of_any), (FILE, &own)])).unwrap();
    let again = world.holder("kept");
    assert!(again.proof(&manifest(1), unix_now()).is_some());
    assert!(again.proof(&manifest(2), unix_now()).is_none());
    // Bytes from the file are checked like those from the network.
    let foreign = World::new();
    let stolen = Capabilities::load(OWN, foreign.realm.ca_der().clone(), &world.path("kept"));
    assert!(stolen.proof(&manifest(1), unix_now()).is_none());
    std::fs::write(world.path("kept"), b"junk").unwrap();
    assert!(world.holder("kept").proof(&manifest(1), unix_now()).is_none());
    assert!(Path::new(&world.path("kept")).exists());
}
