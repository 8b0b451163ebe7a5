//! Many leaves of one relay in one process, for `tests/bench/relay.sh`.
//!
//! ```text
//! crowd STATE TOKEN PARENT MANIFEST CONNECTED FETCHING ROUNDS
//! ```
//!
//! Enrols CONNECTED devices below STATE with the join token, and opens a connection of each (over
//! QUIC, or as `DISTD_TRANSPORT` says) with the swarm of the manifest on it. Prints `connected` and
//! waits for a line on standard input. Then FETCHING of the devices fetch every chunk ROUNDS times,
//! verify and drop it, and the program prints a JSON object with the time and the bytes.

use std::error::Error;
use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use distd_core::ManifestId;
use distd_core::manifest::Entry;
use distd_core::packing::PackedChunk;
use distd_core::role::Role;
use distd_core::swarm::FetchConfig;
use distd_peer::capabilities::Capabilities;
use distd_peer::driver::{ChunkSink, Driver, SinkError};
use distd_peer::enrollment;
use distd_peer::manifest_fetch::fetch_manifest;
use distd_peer::net::{Dialer, Outbound, Transport, client_endpoint};
use distd_peer::parents::Parents;
use distd_peer::quarantine::Quarantine;
use distd_peer::table::ChunkTable;
use distd_peer::trust::identity::NodeIdentity;
use distd_peer::trust::tls::{Credentials, quic_client};
use distd_peer::trust::token::JoinToken;

type Failure = Box<dyn Error + Send + Sync>;

/// Counts received bytes in their packed form.
#[derive(Default)]
struct Counted(AtomicU64);

impl ChunkSink for Counted {
    fn accept(&self, _entry: &Entry, packed: &PackedChunk, _raw: &[u8]) -> Result<(), SinkError> {
        self.0.fetch_add(packed.bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [state, token, parent, manifest, connected, fetching, rounds] = &args[..] else {
        return Err("usage: see the top of tests/examples/crowd.rs".into());
    };
    let (connected, fetching, rounds): (usize, usize, u32) =
        (connected.parse()?, fetching.parse()?, rounds.parse()?);
    let manifest: ManifestId = manifest.parse()?;
    let token: JoinToken = token.parse()?;
    let transport = std::env::var("DISTD_TRANSPORT").map_or(Ok(Transport::Quic), |text| text.parse())?;
    let outbound = Outbound::direct(transport);
    let quarantine = Arc::new(Quarantine::load(&Path::new(state).join("crowd-quarantine.json")));

    let mut leaves = Vec::new();
    let mut swarms = Vec::new();
    for n in 0..connected {
        let mut identity = NodeIdentity::load_or_create(&Path::new(state).join(format!("crowd-{n}")))?;
        let asked = std::slice::from_ref(parent);
        enrollment::enroll(&mut identity, &token, Role::Leaf, "crowd", asked, &outbound).await?;
        let ca = identity.ca_der().ok_or("not enrolled")?.clone();
        let credentials = Credentials::of_node(&identity)?;
        let endpoint = client_endpoint(false, quic_client(credentials.clone(), &ca)?)?;
        let dialer = Dialer::new(endpoint, credentials, &ca, outbound.clone())?;
        let kept = Path::new(state).join(format!("crowd-{n}/capabilities"));
        let capabilities = Capabilities::load(identity.node_id(), ca, &kept);
        let parents = Arc::new(Parents::new(dialer, vec![parent.clone()], quarantine.clone(), capabilities));
        let capability = parents.capability(manifest).await;
        swarms.push(parents.link(0).await?.open_swarm(manifest, capability).await?);
        leaves.push(parents);
    }
    let swarm = swarms.first().ok_or("at least one is to be connected")?;
    let table = Arc::new(ChunkTable::of(&fetch_manifest(&swarm.handle(), manifest, None, &[]).await?));
    println!("connected");
    std::io::stdin().lock().read_line(&mut String::new())?;

    let sink = Arc::new(Counted::default());
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for parents in leaves.iter().take(fetching) {
        let (parents, table, sink) = (parents.clone(), table.clone(), sink.clone());
        tasks.spawn(async move {
            for _ in 0..rounds {
                let (driver, _handle) = Driver::new(
                    parents.clone(),
                    manifest,
                    table.clone(),
                    sink.clone(),
                    FetchConfig::default(),
                );
                driver.fetch_all(table.ids().clone()).await?;
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    println!(
        "{{\"seconds\":{:.3},\"bytes\":{}}}",
        start.elapsed().as_secs_f64(),
        sink.0.load(Ordering::Relaxed)
    );
    Ok(())
}
