//! Offices directly under an origin, without a relay: behind a NAT, behind a proxy, with isolated
//! devices, without IPv4.

use std::ops::Range;
use std::path::PathBuf;

use distd_tests::artifacts;
use distd_tests::lab::{Lab, Outcome, Running, same};
use distd_tests::office::{Numbering, Office};
use distd_tests::proxy::{PROXY_PORT, Proxy};

/// Number of devices that pull at once. One more device pulls alone, so that these devices all
/// begin alike.
const DEVICES: usize = 5;

/// Slow enough for a pull to last until the others have started.
const SLOW: &str = "[limits]\ndownload_bytes_per_second = 8000000\n";

/// An origin behind the office's router, with a release, and devices that enrolled from inside.
struct Setting {
    lab: Lab,
    office: Office,
    image: PathBuf,
}

impl Setting {
    fn new(numbering: Numbering, rng_seed: u64) -> Self {
        let office = Office::new(numbering, DEVICES + 1);
        let lab = Lab::start_at(office.beyond(), &office.origin_host());
        let (image, _) = artifacts::release_pair(lab.path("").as_path(), rng_seed);
        lab.push(&image, "os", "1").ok();
        Self { lab, office, image }
    }

    fn enroll(&self, settings: &str) {
        for n in 0..=DEVICES {
            let (name, place) = (format!("d{n}"), self.office.device(n));
            self.lab.enroll_at(Some(&place), &name, self.lab.quic(), &[]);
            self.lab.configure(&name, &format!("{settings}{SLOW}"));
        }
    }

    fn start(&self, n: usize, out: &str, args: &[&str]) -> Running {
        let out = self.lab.path(&format!("{out}-{n}"));
        let pull = self.lab.pull_command(&format!("d{n}"), "os@1", &out, args);
        Running::start(self.office.device(n).run(&pull))
    }

    /// Pulls on `devices` at once. Returns the bytes that the origin sent, and the outcomes.
    fn pull(&self, devices: Range<usize>, out: &str, args: &[&str]) -> (u64, Vec<Outcome>) {
        let before = self.lab.served_bytes();
        let started: Vec<_> = devices.clone().map(|n| self.start(n, out, args)).collect();
        let said: Vec<_> = started.into_iter().map(|pull| pull.wait().ok()).collect();
        for n in devices {
            assert!(same(&self.lab.path(&format!("{out}-{n}")), &self.image), "device {n}");
        }
        (self.lab.served_bytes() - before, said)
    }

    /// Asserts that all devices at once cost little more than one alone, and that the exchange is
    /// the reason.
    fn assert_shared(&self) {
        let (one, _) = self.pull(DEVICES..DEVICES + 1, "alone", &["--no-share"]);
        let (together, said) = self.pull(0..DEVICES, "together", &[]);
        let (apart, _) = self.pull(0..DEVICES, "apart", &["--no-share"]);
        println!("one {one}, together {together}, apart {apart}");
        let said: Vec<_> = said.iter().map(|outcome| &outcome.json).collect();
        assert!(together * 10 <= one * 11, "{together} bytes for {DEVICES} devices, {one} for one: {said:?}");
        assert!(apart > 4 * one, "{apart} bytes for {DEVICES} devices that do not exchange");
        assert_eq!(self.lab.metric("distd_quic_nodes_alone_total"), 0);
    }
}

#[test]
fn five_devices_behind_a_nat_cost_the_origin_little_more_than_one() {
    let setting = Setting::new(Numbering::Nat, 91);
    setting.enroll("");
    setting.assert_shared();
}

#[test]
fn devices_behind_a_proxy_exchange_too() {
    let setting = Setting::new(Numbering::Nat, 92);
    let port = setting.lab.quic().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let gate = setting.office.gate();
    let host = setting.office.gate_host();
    let _proxy = Proxy::start(&setting.lab.path(""), |command| gate.run(command), &host, port, "");
    let url = format!("http://{}:{PROXY_PORT}", setting.office.gate_host());
    setting.enroll(&format!("proxy_url = \"{url}\"\n"));
    setting.office.nothing_out();
    setting.assert_shared();
}

#[test]
fn isolated_devices_behind_one_address_do_not_wait_for_each_other() {
    let setting = Setting::new(Numbering::Nat, 93);
    setting.enroll("");
    setting.office.isolate();
    let (together, said) = setting.pull(0..DEVICES, "out", &[]);
    for outcome in &said {
        assert_eq!(outcome.json["wire_bytes_by_source"]["peer"], 0, "{}", outcome.json);
    }
    let seconds: Vec<_> = said.iter().map(|outcome| outcome.json["seconds"].clone()).collect();
    println!("{together} bytes, {seconds:?} s");
    assert!(setting.lab.metric("distd_quic_nodes_alone_total") > 0, "nobody was noticed to be alone");
}

#[test]
fn five_devices_without_ipv4_exchange() {
    let setting = Setting::new(Numbering::Ipv6, 94);
    setting.enroll("");
    setting.assert_shared();
}
