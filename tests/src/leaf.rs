//! A device driven by a test, frame by frame.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::proto::control::ControlEvent;
use distd_core::proto::frame::PeerRecord;
use distd_core::role::Role;
use distd_peer::capabilities::Capabilities;
use distd_peer::clock::unix_now;
use distd_peer::enrollment;
use distd_peer::net::{
    Dialer, Link, LinkError, Meter, Outbound, ResetKey, SwarmLink, Transport, device_endpoint,
};
use distd_peer::trust::identity::NodeIdentity;
use distd_peer::trust::record::{RecordSigner, RecordText};
use distd_peer::trust::tls::{Credentials, quic_client, quic_neighbour};
use quinn::Endpoint;
use rcgen::{KeyPair, SigningKey};

use crate::lab::Lab;

/// A device driven by the test, which sends and serves anything the test wants.
pub struct Leaf {
    /// Identity of the device.
    pub identity: NodeIdentity,
    /// Its TLS credentials.
    pub credentials: Arc<Credentials>,
    /// Endpoint from which it dials and at which it can listen.
    pub endpoint: Endpoint,
    /// Its capabilities.
    pub capabilities: Arc<Capabilities>,
}

impl Leaf {
    /// Enrols the device `name` with the origin.
    ///
    /// # Panics
    /// When that fails.
    pub async fn enrolled(lab: &Lab, name: &str) -> Self {
        let token = lab.join_token("leaf", 1);
        let mut identity = NodeIdentity::load_or_create(&lab.path(name)).expect("identity");
        let token = token.parse().expect("a token");
        let origin = vec![lab.quic().to_owned()];
        let outbound = Outbound::direct(Transport::Auto);
        let enrolled = enrollment::enroll(&mut identity, &token, Role::Leaf, name, &origin, &outbound).await;
        enrolled.expect("enrolled");
        Self::of(identity, &lab.path(name).join("capabilities"))
    }

    /// The device with this identity, which is enrolled already. Its capabilities are kept at
    /// `capabilities`.
    ///
    /// # Panics
    /// When the identity cannot be used.
    pub fn of(identity: NodeIdentity, capabilities: &std::path::Path) -> Self {
        let credentials = Credentials::of_node(&identity).expect("credentials");
        let ca = identity.ca_der().expect("enrolled");
        let client = quic_client(credentials.clone(), ca).expect("tls");
        let server = quic_neighbour(credentials.clone(), ca).expect("tls");
        let reset = ResetKey::of_node(&identity.private_key());
        let listen = "127.0.0.1:0".parse().expect("an address");
        let endpoint = device_endpoint(listen, client, server, &reset).expect("socket");
        let capabilities = Capabilities::load(identity.node_id(), ca.clone(), capabilities);
        Self { identity, credentials, endpoint, capabilities }
    }

    /// Address at which the device can listen.
    ///
    /// # Panics
    /// When its socket has none.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().expect("bound")
    }

    /// The device's peer record with one address.
    ///
    /// # Panics
    /// When it cannot be signed.
    pub fn record(&self, address: SocketAddr) -> PeerRecord {
        let text = RecordText { site: String::new(), resident: false };
        let signer = RecordSigner::new(&self.identity, self.credentials.clone(), text).expect("a key");
        signer.sign(vec![address]).expect("signed")
    }

    /// A record with any sequence, addresses and expiry.
    ///
    /// # Panics
    /// When it cannot be signed.
    pub fn record_of(&self, sequence: u64, addresses: Vec<SocketAddr>, expires: u64) -> PeerRecord {
        let mut record = PeerRecord { sequence, addresses, expires, ..self.record(self.address()) };
        let key = KeyPair::try_from(self.identity.private_key().secret_der()).expect("the node's key");
        let signature = key.sign(&record.signed_bytes()).expect("signed");
        record.signature = signature.as_slice().try_into().expect("Ed25519");
        record
    }

    /// Connects to the parent at `address`.
    ///
    /// # Errors
    /// [`LinkError`].
    ///
    /// # Panics
    /// When TLS cannot be set up.
    pub async fn connect(&self, address: &str) -> Result<Arc<Link>, LinkError> {
        let meter = Arc::new(Meter::default());
        let (ca, outbound) = (self.identity.ca_der().expect("enrolled"), Outbound::direct(Transport::Quic));
        let dialer = Dialer::new(self.endpoint.clone(), self.credentials.clone(), ca, outbound).expect("tls");
        Link::connect(&dialer, address, &meter, &meter, unix_now()).await.map(Arc::new)
    }

    /// Joins the swarm at the origin with `record`, without a capability.
    ///
    /// # Panics
    /// When the origin cannot be reached.
    pub async fn join(&self, lab: &Lab, manifest: ManifestId, record: PeerRecord) -> SwarmLink {
        let link = self.connect(lab.quic()).await.expect("the origin");
        link.open_swarm_exchanging(manifest, Bytes::new(), record).await.expect("a swarm")
    }

    /// Asks the parent at `link` for the capability of a manifest, and returns it; empty when the
    /// parent gives none.
    ///
    /// # Panics
    /// When the parent does not answer, or not with what the realm signed.
    pub async fn capability(&self, link: &Link, manifest: ManifestId) -> Bytes {
        let question = self.capabilities.question(vec![manifest], Vec::new());
        let answer = link.metadata(question).await.expect("an answer");
        self.capabilities.take(&answer).expect("of the realm");
        self.capabilities.proof(&manifest, unix_now()).unwrap_or_default()
    }
}

/// The neighbours in the answerer's first list.
///
/// # Panics
/// When the answerer ends the swarm.
pub async fn listed(swarm: &mut SwarmLink) -> Vec<PeerRecord> {
    loop {
        match swarm.next_event().await.expect("an answer").expect("the swarm is open") {
            ControlEvent::Peers(records) => return records,
            _ => continue,
        }
    }
}
