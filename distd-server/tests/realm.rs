//! Enrolment, renewal and mutual TLS between the realm and its nodes, on real QUIC connections.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use distd_core::role::Role;
use distd_peer::trust::enroll::{EnrollMessage, EnrollReply, EnrollRequest, Refusal, RefusalCode};
use distd_peer::trust::identity::{CertInfo, IdentityError, NodeId, NodeIdentity, PARENT_NAME};
use distd_peer::trust::seal::{SealError, SealedReply};
use distd_peer::trust::tls::{self, Credentials, PeerIdentity, PeerRefused, TrustAnchor};
use distd_peer::trust::token::{JoinToken, sha256};
use distd_server::realm::{JoinTokens, Realm, Redemption, RegistryError, Roots};

const DAY: u64 = 24 * 3600;
const ROOT_JSON: &str = "{}";

fn roots() -> Roots {
    Roots { newest: ROOT_JSON.to_owned(), sha256: vec![sha256(ROOT_JSON.as_bytes())] }
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

struct Token {
    role: Role,
    uses_left: u32,
    expires: u64,
    used_by: BTreeSet<NodeId>,
}

/// Registry with the rules of the SQL one.
#[derive(Default)]
struct Registry {
    tokens: Mutex<BTreeMap<[u8; 32], Token>>,
    nodes: Mutex<BTreeMap<NodeId, (Role, bool)>>,
}

impl Registry {
    fn token(&self, realm: &Realm, role: Role, uses_left: u32, expires: u64) -> JoinToken {
        let token = JoinToken::generate(realm.ca_fingerprint());
        let row = Token { role, uses_left, expires, used_by: BTreeSet::new() };
        self.tokens.lock().unwrap().insert(token.public_key(), row);
        token
    }

    fn revoke(&self, node: NodeId) {
        self.nodes.lock().unwrap().get_mut(&node).unwrap().1 = true;
    }
}

#[async_trait]
impl JoinTokens for Registry {
    async fn redeem(&self, r: Redemption<'_>) -> Result<(), RegistryError> {
        let refused = |code| Err(RegistryError::Refused(code));
        if self.nodes.lock().unwrap().get(&r.node_id).is_some_and(|(_, revoked)| *revoked) {
            return refused(RefusalCode::Revoked);
        }
        let mut tokens = self.tokens.lock().unwrap();
        let Some(token) = tokens.get_mut(&r.token) else { return refused(RefusalCode::UnknownToken) };
        if r.now > token.expires {
            return refused(RefusalCode::TokenExpired);
        }
        if r.role != token.role {
            return refused(RefusalCode::WrongRole);
        }
        if token.used_by.insert(r.node_id) {
            if token.uses_left == 0 {
                token.used_by.remove(&r.node_id);
                return refused(RefusalCode::TokenUsedUp);
            }
            token.uses_left -= 1;
        }
        self.nodes.lock().unwrap().insert(r.node_id, (r.role, false));
        Ok(())
    }

    async fn node_role(&self, node: NodeId) -> Result<Role, RegistryError> {
        match self.nodes.lock().unwrap().get(&node) {
            Some((role, false)) => Ok(*role),
            Some((_, true)) => Err(RegistryError::Refused(RefusalCode::Revoked)),
            None => Err(RegistryError::Refused(RefusalCode::UnknownNode)),
        }
    }

    async fn issued(&self, _cert: &CertInfo) -> Result<(), RegistryError> {
        Ok(())
    }
}

/// A request and the sealed reply to it, both as they are on the wire.
struct Exchange {
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Exchange {
    fn says(&self) -> EnrollReply {
        EnrollReply::decode(&SealedReply::decode(&self.reply).unwrap().reply).unwrap()
    }
}

async fn exchange(realm: &Realm, registry: &Registry, message: EnrollMessage, at: u64) -> Exchange {
    let request = message.encode();
    let (reply, _) = realm.handle_enroll(&request, &roots(), at, registry).await;
    Exchange { request, reply }
}

async fn ask(realm: &Realm, registry: &Registry, message: EnrollMessage, at: u64) -> EnrollReply {
    exchange(realm, registry, message, at).await.says()
}

fn code(reply: &EnrollReply) -> RefusalCode {
    match reply {
        EnrollReply::Refused(refusal) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

async fn enroll(realm: &Realm, registry: &Registry, dir: &Path, role: Role, at: u64) -> NodeIdentity {
    let token = registry.token(realm, role, 1, at + DAY);
    let mut node = NodeIdentity::load_or_create(dir).unwrap();
    let request = node.enroll_request(&token, role, "test").unwrap();
    let sent = exchange(realm, registry, EnrollMessage::Enroll(request), at).await;
    node.install_enrolled(&token, role, &sent.request, &sent.reply).unwrap();
    node
}

#[tokio::test]
async fn a_node_enrols_renews_and_is_found_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let realm = Realm::load_or_create(dir.path(), now()).unwrap();
    let registry = Registry::default();
    let data = dir.path().join("node");
    let mut node = enroll(&realm, &registry, &data, Role::Leaf, now()).await;
    let cert = node.cert().unwrap().clone();
    assert_eq!((cert.node_id, cert.role), (node.node_id(), Role::Leaf));
    assert!(cert.not_after <= now() + DAY && !node.needs_renewal(now()));
    assert!(node.needs_renewal(now() + 20 * 3600));

    let renew = EnrollMessage::Renew(node.renew_request().unwrap());
    let next = exchange(&realm, &registry, renew, now() + 20 * 3600).await;
    node.install_renewed(&next.request, &next.reply).unwrap();
    assert!(node.cert().unwrap().not_after > cert.not_after);

    let again = NodeIdentity::load_or_create(&data).unwrap();
    assert_eq!(again.cert(), node.cert());
    assert_eq!(again.root_json(), Some(ROOT_JSON.as_bytes()));
    let realm_again = Realm::load_or_create(dir.path(), now() + DAY).unwrap();
    assert_eq!(realm_again.ca_fingerprint(), realm.ca_fingerprint());

    // A device that was switched off for months can renew, too; a revoked one never can.
    let late = EnrollMessage::Renew(again.renew_request().unwrap());
    assert!(matches!(ask(&realm, &registry, late.clone(), now() + 90 * DAY).await, EnrollReply::Renewed(_)));
    assert_eq!(
        code(&ask(&realm, &registry, late.clone(), now() + 900 * DAY).await),
        RefusalCode::CertificateRefused
    );
    registry.revoke(again.node_id());
    assert_eq!(code(&ask(&realm, &registry, late, now()).await), RefusalCode::Revoked);
}

#[tokio::test]
async fn wrong_expired_and_used_up_tokens_are_refused_each_for_its_own_reason() {
    let dir = tempfile::tempdir().unwrap();
    let realm = Realm::load_or_create(dir.path(), now()).unwrap();
    let registry = Registry::default();
    let node = NodeIdentity::load_or_create(&dir.path().join("a")).unwrap();
    let other = NodeIdentity::load_or_create(&dir.path().join("b")).unwrap();
    let send = |request: EnrollRequest| ask(&realm, &registry, EnrollMessage::Enroll(request), now());

    let unknown = JoinToken::generate(realm.ca_fingerprint());
    let reply = send(node.enroll_request(&unknown, Role::Leaf, "").unwrap()).await;
    assert_eq!(code(&reply), RefusalCode::UnknownToken);
    let expired = registry.token(&realm, Role::Leaf, 1, now() - 1);
    let reply = send(node.enroll_request(&expired, Role::Leaf, "").unwrap()).await;
    assert_eq!(code(&reply), RefusalCode::TokenExpired);

    let once = registry.token(&realm, Role::Leaf, 1, now() + DAY);
    for role in [Role::Relay, Role::Origin] {
        let reply = send(node.enroll_request(&once, role, "").unwrap()).await;
        assert_eq!(code(&reply), RefusalCode::WrongRole);
    }
    for _ in 0..2 {
        let reply = send(node.enroll_request(&once, Role::Leaf, "").unwrap()).await;
        assert!(matches!(reply, EnrollReply::Enrolled(_)), "the same node enrols again: {reply:?}");
    }
    let reply = send(other.enroll_request(&once, Role::Leaf, "").unwrap()).await;
    assert_eq!(code(&reply), RefusalCode::TokenUsedUp);
}

#[tokio::test]
async fn a_relay_on_the_path_can_change_nothing_in_a_request() {
    let dir = tempfile::tempdir().unwrap();
    let realm = Realm::load_or_create(dir.path(), now()).unwrap();
    let registry = Registry::default();
    let token = registry.token(&realm, Role::Leaf, 9, now() + DAY);
    let node = NodeIdentity::load_or_create(&dir.path().join("a")).unwrap();
    let relay = NodeIdentity::load_or_create(&dir.path().join("b")).unwrap();
    let good = node.enroll_request(&token, Role::Leaf, "kiosk").unwrap();
    let mut csr = good.csr_der.clone();
    *csr.last_mut().unwrap() ^= 1;
    for bad in [
        EnrollRequest { label: "other".into(), ..good.clone() },
        EnrollRequest { role: Role::Relay, ..good.clone() },
        EnrollRequest { csr_der: relay.csr_der().unwrap(), ..good.clone() },
        EnrollRequest { csr_der: csr.clone(), ..good.clone() },
        EnrollRequest { token_signature: vec![0; 64], ..good.clone() },
        // The token signed it, but the key in the certificate request did not.
        EnrollRequest {
            token_signature: token.sign_csr(Role::Leaf, "kiosk", &csr),
            csr_der: csr,
            ..good.clone()
        },
    ] {
        let reply = ask(&realm, &registry, EnrollMessage::Enroll(bad), now()).await;
        assert_eq!(code(&reply), RefusalCode::BadSignature);
    }
    for bad in [
        EnrollRequest { token_public_key: vec![1; 31], ..good.clone() },
        EnrollRequest { label: "x".repeat(201), ..good },
    ] {
        let reply = ask(&realm, &registry, EnrollMessage::Enroll(bad), now()).await;
        assert_eq!(code(&reply), RefusalCode::BadRequest);
    }
    for label in ["a\nb", "a\u{202e}b", "a\u{200b}b", "a  b"] {
        let request = node.enroll_request(&token, Role::Leaf, label).unwrap();
        let reply = ask(&realm, &registry, EnrollMessage::Enroll(request), now()).await;
        assert_eq!(code(&reply), RefusalCode::BadLabel, "{label:?}");
    }
    let (reply, why) = realm.handle_enroll(b"junk", &roots(), now(), &registry).await;
    let junk = Exchange { request: b"junk".to_vec(), reply };
    assert_eq!(code(&junk.says()), RefusalCode::BadRequest);
    assert!(why.is_some());
    // A renewal with the certificate of another node.
    let enrolled = enroll(&realm, &registry, &dir.path().join("c"), Role::Leaf, now()).await;
    let mut renewal = enrolled.renew_request().unwrap();
    renewal.csr_der = relay.csr_der().unwrap();
    let reply = ask(&realm, &registry, EnrollMessage::Renew(renewal), now()).await;
    assert_eq!(code(&reply), RefusalCode::CertificateRefused);
}

#[tokio::test]
async fn a_reply_of_another_realm_is_not_installed() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Realm::load_or_create(&dir.path().join("ours"), now()).unwrap();
    let theirs = Realm::load_or_create(&dir.path().join("theirs"), now()).unwrap();
    let registry = Registry::default();
    let token = registry.token(&ours, Role::Leaf, 1, now() + DAY);
    let mut node = NodeIdentity::load_or_create(&dir.path().join("node")).unwrap();
    let request = node.enroll_request(&token, Role::Leaf, "").unwrap();
    let message = EnrollMessage::Enroll(request);
    let foreign = exchange(&theirs, &registry, message, now()).await;
    assert!(matches!(
        node.install_enrolled(&token, Role::Leaf, &foreign.request, &foreign.reply),
        Err(IdentityError::Seal(SealError::ForeignCa))
    ));
    assert!(node.cert().is_none() && !dir.path().join("node/node.pem").exists());

    let mut node = enroll(&ours, &registry, &dir.path().join("node"), Role::Leaf, now()).await;
    let token = registry.token(&theirs, Role::Leaf, 1, now() + DAY);
    let request = node.enroll_request(&token, Role::Leaf, "").unwrap();
    let message = EnrollMessage::Enroll(request);
    let sent = exchange(&theirs, &registry, message, now()).await;
    assert!(matches!(
        node.install_enrolled(&token, Role::Leaf, &sent.request, &sent.reply),
        Err(IdentityError::OtherRealm(_))
    ));
}

/// All files below `dir`, with their bytes.
fn state_of(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.is_file()).map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Copies of the reply, each with one changed field of the seal or of the reply within. The list
/// includes fields that are added later.
fn altered(reply: &[u8]) -> Vec<(String, Vec<u8>)> {
    let sealed = SealedReply::decode(reply).unwrap();
    let mut out = Vec::new();
    for (name, field) in [
        ("ca_der", (|s: &mut SealedReply| &mut s.ca_der) as fn(&mut SealedReply) -> &mut Vec<u8>),
        ("reply", |s| &mut s.reply),
        ("signature", |s| &mut s.signature),
    ] {
        let mut changed = sealed.clone();
        let bytes = field(&mut changed);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        out.push((name.to_owned(), changed.encode()));
    }
    let inner: serde_json::Value = serde_json::to_value(EnrollReply::decode(&sealed.reply).unwrap()).unwrap();
    let (kind, fields) = inner.as_object().unwrap().iter().next().unwrap();
    for (field, value) in fields.as_object().unwrap() {
        let mut changed = inner.clone();
        // The known attack sent another well-formed value, so this does, too.
        let other = value.as_str().map_or_else(|| "{}".to_owned(), |text| format!("{text} "));
        changed[kind][field] = serde_json::Value::String(other);
        let reply: EnrollReply = serde_json::from_value(changed).unwrap();
        let forged = SealedReply { reply: reply.encode(), ..sealed.clone() };
        out.push((format!("{kind}.{field}"), forged.encode()));
    }
    let refused = EnrollReply::Refused(Refusal { code: RefusalCode::Revoked });
    out.push(("a refusal".to_owned(), SealedReply { reply: refused.encode(), ..sealed.clone() }.encode()));
    out.push(("no seal".to_owned(), sealed.reply.clone()));
    out.push(("nothing".to_owned(), Vec::new()));
    out
}

#[tokio::test]
async fn a_relay_on_the_path_can_change_nothing_in_a_reply() {
    let dir = tempfile::tempdir().unwrap();
    let realm = Realm::load_or_create(dir.path(), now()).unwrap();
    let registry = Registry::default();
    let token = registry.token(&realm, Role::Leaf, 9, now() + DAY);
    let data = dir.path().join("node");
    let mut node = NodeIdentity::load_or_create(&data).unwrap();
    let request = node.enroll_request(&token, Role::Leaf, "kiosk").unwrap();
    let honest = exchange(&realm, &registry, EnrollMessage::Enroll(request), now()).await;
    let before = state_of(&data);
    let forgeries = altered(&honest.reply);
    assert!(forgeries.len() >= 10, "{forgeries:?}");
    for (what, forged) in &forgeries {
        let result = node.install_enrolled(&token, Role::Leaf, &honest.request, forged);
        assert!(matches!(result, Err(IdentityError::Seal(_))), "{what}: {result:?}");
        assert_eq!(state_of(&data), before, "{what}");
        assert!(node.cert().is_none(), "{what}");
    }
    // An honest reply to another request, even of the same node, is not accepted for this one.
    let again = node.enroll_request(&token, Role::Leaf, "kiosk").unwrap();
    let again = exchange(&realm, &registry, EnrollMessage::Enroll(again), now()).await;
    let result = node.install_enrolled(&token, Role::Leaf, &honest.request, &again.reply);
    assert!(matches!(result, Err(IdentityError::Seal(SealError::Signature))), "{result:?}");
    node.install_enrolled(&token, Role::Leaf, &honest.request, &honest.reply).unwrap();
    assert!(node.root_checked());

    let before = state_of(&data);
    let renew = EnrollMessage::Renew(node.renew_request().unwrap());
    let next = exchange(&realm, &registry, renew, now() + 20 * 3600).await;
    for (what, forged) in altered(&next.reply) {
        let result = node.install_renewed(&next.request, &forged);
        assert!(matches!(result, Err(IdentityError::Seal(_))), "{what}: {result:?}");
        assert_eq!(state_of(&data), before, "{what}");
    }
}

#[tokio::test]
async fn a_root_that_was_never_the_realms_is_replaced_at_the_next_renewal() {
    let dir = tempfile::tempdir().unwrap();
    let realm = Realm::load_or_create(dir.path(), now()).unwrap();
    let registry = Registry::default();
    let data = dir.path().join("node");
    enroll(&realm, &registry, &data, Role::Leaf, now()).await;
    // State as an earlier version leaves it: a root that nobody has confirmed, and metadata that
    // was verified with it.
    std::fs::write(data.join("root.json"), b"the attacker's").unwrap();
    std::fs::remove_file(data.join("root.checked")).unwrap();
    std::fs::create_dir_all(data.join("tuf/trusted")).unwrap();
    std::fs::write(data.join("tuf/trusted/root.json"), b"the attacker's").unwrap();

    let mut node = NodeIdentity::load_or_create(&data).unwrap();
    assert!(node.needs_renewal(now()), "a renewal is due at once");
    let renew = EnrollMessage::Renew(node.renew_request().unwrap());
    let next = exchange(&realm, &registry, renew, now()).await;
    node.install_renewed(&next.request, &next.reply).unwrap();
    assert_eq!(node.root_json(), Some(ROOT_JSON.as_bytes()));
    assert!(!data.join("tuf").exists() && data.join("tuf.refused-0/trusted/root.json").exists());

    let again = NodeIdentity::load_or_create(&data).unwrap();
    assert_eq!(again.root_json(), Some(ROOT_JSON.as_bytes()));
    assert!(!again.needs_renewal(now()));
    // A root that the realm did sign stays, and so does the state that was verified with it.
    std::fs::create_dir_all(data.join("tuf/trusted")).unwrap();
    let renew = EnrollMessage::Renew(node.renew_request().unwrap());
    let next = exchange(&realm, &registry, renew, now()).await;
    node.install_renewed(&next.request, &next.reply).unwrap();
    assert!(data.join("tuf").exists() && !data.join("tuf.refused-1").exists());
}

#[tokio::test]
async fn a_row_that_says_relay_makes_no_relay_of_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let realm = Realm::load_or_create(dir.path(), now()).unwrap();
    let registry = Registry::default();
    let node = enroll(&realm, &registry, &dir.path().join("node"), Role::Leaf, now()).await;
    registry.nodes.lock().unwrap().get_mut(&node.node_id()).unwrap().0 = Role::Relay;
    let renew = EnrollMessage::Renew(node.renew_request().unwrap());
    assert_eq!(code(&ask(&realm, &registry, renew, now()).await), RefusalCode::WrongRole);
}

#[tokio::test]
async fn a_node_of_an_earlier_version_still_renews_without_a_seal() {
    let dir = tempfile::tempdir().unwrap();
    let realm = Realm::load_or_create(dir.path(), now()).unwrap();
    let registry = Registry::default();
    let node = enroll(&realm, &registry, &dir.path().join("node"), Role::Leaf, now()).await;
    let mut renew = node.renew_request().unwrap();
    (renew.nonce, renew.root_sha256) = (Vec::new(), Vec::new());
    let sent = exchange(&realm, &registry, EnrollMessage::Renew(renew), now()).await;
    assert!(matches!(EnrollReply::decode(&sent.reply), Ok(EnrollReply::Renewed(_))));
}

#[test]
fn a_realm_with_a_lost_or_foreign_certificate_is_an_error_and_keys_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let realm = Realm::load_or_create(dir.path(), now()).unwrap();
    let host = ["origin.example.org".to_owned(), "192.0.2.7".to_owned()];
    let cert = realm.origin_cert(&host, now()).unwrap();
    assert_eq!(cert.info.role, Role::Origin);
    assert!(realm.origin_cert(&["not a host\u{e9}".to_owned()], now()).is_err());
    for key in ["ca.key", "origin.key"] {
        let path = dir.path().join("realm").join(key);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let ca_pem = dir.path().join("realm/ca.pem");
    let other = tempfile::tempdir().unwrap();
    Realm::load_or_create(other.path(), now()).unwrap();
    std::fs::copy(other.path().join("realm/ca.pem"), &ca_pem).unwrap();
    assert!(Realm::load_or_create(dir.path(), now()).is_err());
    std::fs::write(&ca_pem, "junk").unwrap();
    assert!(Realm::load_or_create(dir.path(), now()).is_err());
}

fn server(credentials: Arc<Credentials>, realm: &Realm) -> quinn::Endpoint {
    let config = tls::quic_server(credentials, realm.ca_der()).unwrap();
    quinn::Endpoint::server(config, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap()
}

fn client() -> quinn::Endpoint {
    quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap()
}

/// Connects and returns what each side sees of the other.
async fn meet(
    server: &quinn::Endpoint,
    config: quinn::ClientConfig,
    at: u64,
) -> (Result<PeerIdentity, String>, Result<PeerIdentity, PeerRefused>) {
    let endpoint = client();
    let dial = endpoint.connect_with(config, server.local_addr().unwrap(), PARENT_NAME).unwrap();
    let accept = async { server.accept().await.unwrap().await };
    let (dialled, accepted) = tokio::join!(dial, accept);
    let seen_by_server = match accepted {
        Ok(connection) => {
            let seen = tls::peer_identity(&connection, at);
            // Keep the connection open until the client has looked.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            seen
        }
        Err(_) => Err(PeerRefused::NoCertificate),
    };
    let seen_by_client = match dialled {
        Ok(connection) => tls::peer_identity(&connection, at).map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    };
    (seen_by_client, seen_by_server)
}

#[tokio::test]
async fn both_sides_of_a_connection_know_each_other_and_foreign_nodes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let realm = Realm::load_or_create(dir.path(), now()).unwrap();
    let registry = Registry::default();
    let origin_cert = realm.origin_cert(&[], now()).unwrap();
    let origin_credentials = realm.credentials(&origin_cert).unwrap();
    let origin = server(origin_credentials.clone(), &realm);
    let leaf = enroll(&realm, &registry, &dir.path().join("leaf"), Role::Leaf, now()).await;
    let relay = enroll(&realm, &registry, &dir.path().join("relay"), Role::Relay, now()).await;
    let config = |node: &NodeIdentity| {
        tls::quic_client(Credentials::of_node(node).unwrap(), node.ca_der().unwrap()).unwrap()
    };

    let (client_sees, server_sees) = meet(&origin, config(&leaf), now()).await;
    assert_eq!(client_sees.unwrap().role, Role::Origin);
    let seen = server_sees.unwrap();
    assert_eq!((seen.node_id, seen.role), (leaf.node_id(), Role::Leaf));
    assert_eq!(seen.expires, leaf.cert().unwrap().not_after);

    // A relay is a parent, too. A leaf's certificate has no parent name.
    let at_relay = server(Credentials::of_node(&relay).unwrap(), &realm);
    assert_eq!(meet(&at_relay, config(&leaf), now()).await.0.unwrap().role, Role::Relay);
    let at_leaf = server(Credentials::of_node(&leaf).unwrap(), &realm);
    assert!(meet(&at_leaf, config(&relay), now()).await.0.is_err());

    // A certificate that has expired, during the handshake and after it.
    let (_, late) = meet(&origin, config(&leaf), now() + 2 * DAY).await;
    assert!(matches!(late, Err(PeerRefused::NotValidNow { .. })));
    let old = enroll(&realm, &registry, &dir.path().join("old"), Role::Leaf, now() - 3 * DAY).await;
    assert!(meet(&origin, config(&old), now()).await.1.is_err());

    // A node of another realm, and an origin of another realm.
    let other = tempfile::tempdir().unwrap();
    let foreign = Realm::load_or_create(other.path(), now()).unwrap();
    let foreign_node =
        enroll(&foreign, &registry, &dir.path().join("foreign_node"), Role::Relay, now()).await;
    let credentials = Credentials::of_node(&foreign_node).unwrap();
    let trusting = tls::quic_client(credentials, realm.ca_der()).unwrap();
    assert!(meet(&origin, trusting, now()).await.1.is_err());
    assert!(meet(&origin, config(&foreign_node), now()).await.0.is_err());

    // An enrolment connection identifies the realm by fingerprint, has no client certificate, and
    // is good for nothing else.
    for (fingerprint, works) in [(realm.ca_fingerprint(), true), (foreign.ca_fingerprint(), false)] {
        let config = tls::quic_enroll_client(&TrustAnchor::Fingerprint(fingerprint));
        let endpoint = client();
        let dial = endpoint.connect_with(config, origin.local_addr().unwrap(), "anything.invalid").unwrap();
        let accept = async { origin.accept().await.unwrap().await };
        let (dialled, accepted) = tokio::join!(dial, accept);
        assert_eq!(dialled.is_ok(), works);
        if works {
            let accepted = accepted.unwrap();
            assert_eq!(tls::negotiated_alpn(&accepted).as_deref(), Some(tls::ALPN_ENROLL));
            assert_eq!(tls::peer_identity(&accepted, now()), Err(PeerRefused::Alpn));
        }
    }
    // A distd/1 connection without a certificate is recognised as such.
    let mut bare = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates({
            let mut roots = rustls::RootCertStore::empty();
            roots.add(realm.ca_der().clone()).unwrap();
            roots
        })
        .with_no_client_auth();
    bare.alpn_protocols = vec![tls::ALPN_DISTD.to_vec()];
    let bare = quinn::crypto::rustls::QuicClientConfig::try_from(bare).unwrap();
    let bare = quinn::ClientConfig::new(Arc::new(bare));
    assert_eq!(meet(&origin, bare, now()).await.1, Err(PeerRefused::NoCertificate));

    // A renewed certificate is used from the next handshake on.
    let next = realm.origin_cert(&[], now() + 600).unwrap();
    realm.replace_credentials(&origin_credentials, &next).unwrap();
    let (client_sees, _) = meet(&origin, config(&leaf), now()).await;
    assert_eq!(client_sees.unwrap().expires, next.info.not_after);
}
