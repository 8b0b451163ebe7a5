//! Relays that have more askers than slots, and relays under relays.

use std::fs;
use std::path::PathBuf;

use distd_tests::artifacts;
use distd_tests::lab::{Daemon, Lab, Outcome, same, wait_until};

/// Arguments that ask for metrics on a free port.
const METRICS: [&str; 2] = ["--metrics", "127.0.0.1:0"];

fn by_source(outcome: &Outcome, source: &str) -> u64 {
    outcome.json["wire_bytes_by_source"][source].as_u64().expect("a number")
}

#[test]
fn many_askers_at_a_relay_with_two_slots_wait_without_counting_failures() {
    const DEVICES: usize = 6;
    let lab = Lab::start();
    let (v1, _) = artifacts::release_pair(lab.path("").as_path(), 111);
    lab.push(&v1, "os", "1").ok();
    let file = lab.path("relay.toml");
    fs::write(&file, "upload_slots_max = 2\n").expect("write");
    let file = file.display().to_string();
    let args = [&["--config", file.as_str()][..], &METRICS].concat();
    let relay = lab.relay_at("relay", lab.quic(), "127.0.0.1:0", &args);
    let parents = ["--parent", relay.addresses[0].as_str(), "--parent", lab.quic()];
    for n in 0..DEVICES {
        lab.enroll(&format!("d{n}"), &relay.addresses[0]);
    }
    let before = lab.served_bytes();
    for how in [&["--no-share"][..], &[]] {
        let choked = relay.metric("distd_quic_batches_choked_total");
        let outs: Vec<PathBuf> = (0..DEVICES).map(|n| lab.path(&format!("out{}-{n}", how.len()))).collect();
        let args = [&parents[..], how].concat();
        let pulls: Vec<_> = outs
            .iter()
            .enumerate()
            .map(|(n, out)| lab.start_pull(&format!("d{n}"), "os@1", out, &args))
            .collect();
        for (pull, out) in pulls.into_iter().zip(&outs) {
            let pulled = pull.wait().ok();
            assert!(same(out, &v1));
            assert!(!pulled.stderr.contains("not asked any more"), "{}", pulled.stderr);
            // If chokes counted as failures, the devices would have fetched chunks past the relay;
            // handshakes and peer records are few bytes.
            let past_the_relay = by_source(&pulled, "origin");
            assert!(past_the_relay < 20_000, "{past_the_relay} bytes: {}", pulled.json);
        }
        let choked = relay.metric("distd_quic_batches_choked_total") - choked;
        println!("{how:?}: {choked} batches choked");
        if how == ["--no-share"] {
            assert!(choked > 0, "six devices did not crowd two slots");
        }
    }
    let (origin, image) = (lab.served_bytes() - before, fs::metadata(&v1).expect("stat").len());
    assert!(origin < image, "{origin} bytes for an image of {image}");
    assert_eq!(relay.metric("distd_relay_chunks_fetched_again"), 0);
    let fetched = relay.metric("distd_fetch_bytes_total");
    assert!(fetched.abs_diff(origin) < origin / 50, "{fetched} bytes received, {origin} sent");
}

/// Three relays, each the parent of the next.
struct Stack {
    lab: Lab,
    image: PathBuf,
    relays: Vec<Daemon>,
}

impl Stack {
    /// Starts three stacked relays. `also` names further parents of the last one by number, besides
    /// the relay above it.
    fn new(rng_seed: u64, also: &[usize]) -> Self {
        let lab = Lab::start();
        let (image, _) = artifacts::release_pair(lab.path("").as_path(), rng_seed);
        lab.push(&image, "os", "1").ok();
        let mut relays: Vec<Daemon> = Vec::new();
        for n in 0..3 {
            let parent = relays.last().map_or(lab.quic(), |above| &above.addresses[0]).to_owned();
            let mut args = METRICS.to_vec();
            let more: Vec<String> =
                also.iter().filter(|_| n == 2).map(|n| relays[*n].addresses[0].clone()).collect();
            for parent in &more {
                args.extend(["--parent", parent.as_str()]);
            }
            let relay = lab.relay_at(&format!("r{n}"), &parent, "127.0.0.1:0", &args);
            relays.push(relay);
        }
        lab.enroll("d", &relays[2].addresses[0]);
        // Slow enough for a disturbance during the pull.
        lab.configure("d", "[limits]\ndownload_bytes_per_second = 2000000\n");
        Self { lab, image, relays }
    }

    /// Pulls, and calls `disturb` with the relays when some of the artifact has arrived.
    fn pull(&mut self, disturb: impl FnOnce(&Lab, &mut Vec<Daemon>)) {
        let (lab, relays) = (&self.lab, &mut self.relays);
        let (before, image) = (lab.served_bytes(), fs::metadata(&self.image).expect("stat").len());
        let out = lab.path("out");
        let pull = lab.start_pull("d", "os@1", &out, &[]);
        let journal = lab.path("out.distd-part-journal");
        wait_until("some of it is durable", || fs::metadata(&journal).is_ok_and(|meta| meta.len() > 0));
        disturb(lab, relays);
        let pulled = pull.wait().ok();
        assert!(same(&out, &self.image));
        assert_eq!(by_source(&pulled, "origin"), 0, "{}", pulled.json);
        assert_eq!(pulled.number("refetched_verified_bytes"), 0, "{}", pulled.json);
        let origin = lab.served_bytes() - before;
        println!("{origin} bytes of an image of {image}");
        // The packed image is two thirds of its length.
        assert!(origin < image * 3 / 4, "{origin} bytes for an image of {image}");
        for relay in &*relays {
            assert_eq!(relay.metric("distd_relay_chunks_fetched_again"), 0);
        }
    }
}

#[test]
fn of_three_relays_the_middle_one_dies_and_the_last_asks_the_first() {
    let mut stack = Stack::new(112, &[0]);
    stack.pull(|_, relays| drop(relays.remove(1)));
}

#[test]
fn of_three_relays_the_middle_one_dies_and_comes_back() {
    let mut stack = Stack::new(113, &[]);
    stack.pull(|lab, relays| {
        let address = relays[1].addresses[0].clone();
        relays[1].kill();
        // Long enough for all nodes to have noticed.
        std::thread::sleep(std::time::Duration::from_secs(3));
        relays[1] = lab.relay_at("r1", &relays[0].addresses[0].clone(), &address, &METRICS);
    });
}
