//! A revoked node is refused: at the origin at once, at a relay within a minute.

use std::time::Duration;

use distd_peer::trust::identity::{NodeIdentity, PARENT_NAME};
use distd_peer::trust::tls::{Credentials, quic_client};
use distd_tests::lab::{Lab, wait_until};
use quinn::{Connection, Endpoint};

/// A connection with the identity enrolled as `device`, and its endpoint.
async fn connect(lab: &Lab, device: &str, address: &str) -> (Endpoint, Connection) {
    let identity = NodeIdentity::load_or_create(&lab.path(device)).expect("identity");
    let credentials = Credentials::of_node(&identity).expect("credentials");
    let config = quic_client(credentials, identity.ca_der().expect("enrolled")).expect("tls");
    let endpoint = distd_peer::net::client_endpoint(false, config).expect("socket");
    let address = address.parse().expect("an address");
    let connection = endpoint.connect(address, PARENT_NAME).expect("a config").await.expect("connected");
    (endpoint, connection)
}

async fn ends(connection: &Connection) {
    let closed = tokio::time::timeout(Duration::from_secs(60), connection.closed()).await;
    closed.expect("the connection of a revoked node is ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_loses_its_connections_and_gets_no_others() {
    let lab = Lab::start();
    let artifact = lab.path("a");
    std::fs::write(&artifact, b"an artifact of a few bytes").expect("write");
    lab.push(&artifact, "os", "1").ok();
    let mut relay = lab.relay("relay", lab.quic());
    let at_relay = relay.addresses[0].clone();
    for device in ["out", "in"] {
        lab.enroll(device, &at_relay);
    }
    let out = lab.path("x").display().to_string();
    let pull = |device: &str, parent: &str| {
        let args = ["pull", "os@1", "--out", &out, "--parent", parent, "--transport", "quic"];
        tokio::task::block_in_place(|| lab.device(device, &args))
    };
    pull("out", &at_relay).ok();
    let id = NodeIdentity::load_or_create(&lab.path("out")).expect("identity").node_id().to_string();
    let origin = connect(&lab, "out", lab.quic()).await;
    let office = connect(&lab, "out", &at_relay).await;
    tokio::task::block_in_place(|| lab.admin(&["node", "revoke", &id])).ok();
    ends(&origin.1).await;
    ends(&office.1).await;
    for parent in [lab.quic(), &at_relay] {
        let refused = pull("out", parent);
        assert_eq!(refused.code, 4, "{}", refused.stderr);
        assert!(refused.stderr.contains("revoked"), "{}", refused.stderr);
        pull("in", parent).ok();
    }
    // A relay that starts without its parent still knows the revocation.
    let listen = at_relay.clone();
    relay.kill();
    let relay = tokio::task::block_in_place(|| lab.relay_at("relay", "127.0.0.1:1", &listen, &[]));
    let again = connect(&lab, "out", &relay.addresses[0]).await;
    ends(&again.1).await;
    wait_until("the list is kept", || lab.path("relay/revoked").exists());
}
