//! The machines of a site install with the real apt through their agents and one relay.

use std::fs;
use std::path::PathBuf;

use distd_peer::trust::identity::NodeIdentity;
use distd_tests::Rng;
use distd_tests::apt::{Apt, Conduct, Mirror, Repository, SUITE, SlowLink};
use distd_tests::lab::{Daemon, Lab, Running};

/// Length of the package that all install. `DISTD_TEST_APT_BYTES` has another: 100 MB is what
/// docs/benchmarks.md has.
fn package_bytes() -> usize {
    std::env::var("DISTD_TEST_APT_BYTES").ok().and_then(|text| text.parse().ok()).unwrap_or(5_000_000)
}

/// Id of an enrolled device.
fn node_id(lab: &Lab, device: &str) -> String {
    NodeIdentity::load_or_create(&lab.path(device)).expect("an identity").node_id().to_string()
}

struct Site {
    agents: Vec<Daemon>,
    relay: Option<Daemon>,
    mirror: Mirror,
    repository: Repository,
    lab: Lab,
}

impl Site {
    /// `None` where a tool is missing.
    fn start(agents: usize) -> Option<Self> {
        let lab = Lab::start();
        let repository = Repository::new(&lab.path(""))?;
        let mirror = Mirror::start(&repository.root);
        let section = |listen: &str| {
            format!(
                "\n[apt]\nlisten = \"{listen}\"\nprivate_hosts = [\"{}\"]\netc = \"{}\"\nmin_free_bytes = 1000000\n",
                mirror.address,
                lab.path("keys").display()
            )
        };
        fs::write(lab.path("relay.toml"), section("none")).expect("write");
        let config = lab.path("relay.toml").display().to_string();
        let args = ["--config", &config, "--metrics", "127.0.0.1:0"];
        let relay = lab.relay_at("relay", lab.quic(), "127.0.0.1:0", &args);
        let agents = (0..agents).map(|number| {
            let name = format!("agent{number}");
            lab.enroll(&name, &relay.addresses[0]);
            lab.configure(&name, &section("127.0.0.1:0"));
            let mut command = lab.agent_command(&name, "127.0.0.1:0");
            command.args(["--metrics", "127.0.0.1:0"]).env("DISTD_LOG", "info");
            Daemon::start(command, &lab.path(&format!("{name}.log")), "agent listening on ")
        });
        let agents = agents.collect();
        Some(Self { agents, relay: Some(relay), mirror, repository, lab })
    }

    fn relay(&self) -> &Daemon {
        self.relay.as_ref().expect("it runs")
    }

    fn apt(&self, name: &str, agent: Option<usize>) -> Apt {
        let proxy = agent.map(|number| self.agents[number].said("proxy for apt on "));
        let (key, url) = (self.repository.keyring.display(), self.mirror.url());
        let sources = format!("deb [signed-by={key}] {url} {SUITE} main\n");
        Apt::new(&self.lab.path(name), &sources, proxy.as_deref())
    }

    fn package(&self, name: &str, seed: u64, bytes: usize) -> (String, Vec<u8>) {
        let path = self.repository.package(name, "1", &Rng::new(seed).bytes(bytes));
        let content = fs::read(self.repository.root.join(&path)).expect("read");
        (path, content)
    }

    fn metric(&self, agent: usize, name: &str) -> u64 {
        self.agents[agent].metric(&format!("distd_apt_{name}"))
    }
}

/// Runs one command of each apt, all at once; returns how many succeeded.
fn all_at_once(apts: &[Apt], args: &[&str]) -> usize {
    let running: Vec<Running> = apts.iter().map(|apt| Running::start(apt.command("apt-get", args))).collect();
    running.into_iter().map(Running::wait).filter(|outcome| outcome.code == 0).count()
}

fn downloaded(site: &Site, apt: usize, name: &str) -> PathBuf {
    site.lab.path(&format!("apt{apt}/var/cache/apt/archives/{name}_1_amd64.deb"))
}

#[test]
fn fifty_machines_cost_one_download() {
    const MACHINES: usize = 50;
    let Some(site) = Site::start(5) else { return };
    let (path, content) = site.package("large", 1, package_bytes());
    site.repository.publish(&["xz"], true);
    let apts: Vec<Apt> = (0..MACHINES)
        .map(|number| site.apt(&format!("apt{number}"), Some(number % site.agents.len())))
        .collect();
    assert_eq!(all_at_once(&apts, &["update", "-o", "APT::Update::Error-Mode=any"]), MACHINES);
    assert_eq!(all_at_once(&apts, &["install", "--download-only", "large"]), MACHINES);
    for number in 0..MACHINES {
        assert!(fs::read(downloaded(&site, number, "large")).expect("there") == content, "machine {number}");
    }
    // Everything that crossed the uplink: the indexes, and the package once.
    let (sent, bytes) = (site.mirror.sent(), content.len() as u64);
    println!("uplink: {sent} bytes for a package of {bytes}");
    assert_eq!(site.mirror.asked(&format!("/{path}")), 1, "{:?}", site.mirror.all_asked());
    assert!(sent as f64 <= 1.05 * bytes as f64, "{sent} of {bytes}");
    let of_relay: u64 = (0..site.agents.len()).map(|agent| site.metric(agent, "relay_files_total")).sum();
    assert!(of_relay >= site.agents.len() as u64, "each agent got its files from the relay");
    for agent in 0..site.agents.len() {
        assert_eq!(site.metric(agent, "unlisted_total"), 0);
        assert_eq!(site.metric(agent, "relay_failed_total"), 0, "{}", site.agents[agent].log());
        // The relay's link carries the package once for each agent.
        let received = site.metric(agent, "received_bytes_total") as f64;
        assert!(received <= 1.05 * bytes as f64, "{received}");
    }
    // The same machines without the proxy succeed too, each over the uplink.
    site.mirror.forget();
    for (number, apt) in apts.iter().enumerate().take(10) {
        apt.clean(true);
        apt.set_proxy(None);
        assert_eq!(apt.update().code, 0);
        assert!(apt.download("large").expect("downloads") == content, "machine {number}");
    }
    assert_eq!(site.mirror.asked(&format!("/{path}")), 10);
}

#[test]
fn without_its_relay_a_machine_asks_the_mirror_and_without_the_mirror_the_relay() {
    let Some(mut site) = Site::start(2) else { return };
    let (_, first) = site.package("first", 1, 300_000);
    let (_, second) = site.package("second", 2, 3_000_000);
    site.repository.publish(&["xz"], true);
    let apt = site.apt("apt0", Some(0));
    assert_eq!(apt.update().code, 0);
    assert!(apt.download("first").expect("downloads") == first);
    assert_eq!(site.metric(0, "relay_failed_total"), 0, "{}", site.agents[0].log());

    // The mirror is away: the other agent has nothing, the relay has what the first one asked for.
    site.mirror.set(Conduct::Dead);
    let other = site.apt("apt1", Some(1));
    let updated = other.update();
    assert_eq!(updated.code, 0, "{}{}", updated.stdout, updated.stderr);
    assert!(other.download("first").expect("from the relay") == first);
    other.download("second").expect_err("nobody has it");
    assert_eq!(site.metric(1, "relay_files_total"), 2, "the index and the package");

    // The relay is away: the mirror is asked.
    site.mirror.set(Conduct::Good);
    drop(site.relay.take());
    assert!(apt.download("second").expect("from the mirror") == second, "{}", site.agents[0].log());
    assert!(site.metric(0, "relay_failed_total") > 0);
    assert_eq!(site.metric(0, "unlisted_total"), 0);
}

#[test]
fn wrong_bytes_of_a_relay_are_not_given() {
    let Some(site) = Site::start(2) else { return };
    let (small, first) = site.package("small", 1, 300_000);
    let (large, second) = site.package("large", 2, 3_000_000);
    site.repository.publish(&["xz"], true);
    let apt = site.apt("apt0", Some(0));
    assert_eq!(apt.update().code, 0);
    apt.download("small").expect("downloads");
    apt.download("large").expect("downloads");
    // The relay's disk goes wrong while it runs: it has verified these files.
    for (path, content) in [(&small, &first), (&large, &second)] {
        let sum = distd_tests::lab::run(
            std::process::Command::new("sha256sum").arg(site.repository.root.join(path)),
        );
        let sum = sum.stdout.split(' ').next().expect("a sum").to_owned();
        let object = site.lab.path(&format!("relay/apt/objects/{}/{sum}", &sum[..2]));
        let mut bytes = content.clone();
        bytes[100_000] ^= 1;
        fs::write(object, bytes).expect("write");
    }
    let other = site.apt("apt1", Some(1));
    assert_eq!(other.update().code, 0);
    assert!(other.download("small").expect("from the mirror at last") == first, "{}", site.agents[1].log());
    assert_eq!((site.metric(1, "wrong_total"), site.mirror.asked(&format!("/{small}"))), (1, 2));
    // The relay is not asked again.
    assert!(other.download("large").expect("from the mirror") == second);
    assert_eq!(site.metric(1, "wrong_total"), 1);
    assert!(site.relay().metric("distd_apt_requests_total") > 0);
}

#[test]
fn a_relay_with_wrong_bytes_is_left_by_a_machine_without_room_too() {
    let Some(site) = Site::start(1) else { return };
    let (path, content) = site.package("large", 1, 3_000_000);
    site.repository.publish(&["xz"], true);
    let apt = site.apt("apt0", Some(0));
    assert_eq!(apt.update().code, 0);
    apt.download("large").expect("downloads");
    // The relay's disk goes wrong while it runs.
    let kept = fs::read_dir(site.lab.path("relay/apt/objects")).expect("a directory").flatten();
    let mut kept = kept.flat_map(|group| fs::read_dir(group.path()).expect("a directory").flatten());
    let kept = kept.find(|entry| entry.metadata().is_ok_and(|meta| meta.len() == content.len() as u64));
    let mut wrong = content.clone();
    wrong[100_000] ^= 1;
    fs::write(kept.expect("it is kept").path(), wrong).expect("write");

    site.lab.enroll("small", &site.relay().addresses[0]);
    let settings = format!(
        "\n[apt]\nlisten = \"127.0.0.1:0\"\nprivate_hosts = [\"{}\"]\nmin_free_bytes = 1000000\nmax_bytes = 1000000\n\
         use_neighbours = false\n",
        site.mirror.address
    );
    site.lab.configure("small", &settings);
    let mut command = site.lab.agent_command("small", "127.0.0.1:0");
    command.args(["--metrics", "127.0.0.1:0"]).env("DISTD_LOG", "info");
    let agent = Daemon::start(command, &site.lab.path("small.log"), "agent listening on ");
    let small = site.apt("apt-small", Some(0));
    small.set_proxy(Some(&agent.said("proxy for apt on ")));
    assert_eq!(small.update().code, 0);
    site.mirror.forget();
    small.download("large").expect_err("the end of a wrong file is held back");
    assert_eq!((agent.metric("distd_apt_wrong_total"), site.mirror.sent()), (1, 0), "{}", agent.log());
    small.clean(false);
    assert!(small.download("large").expect("from the mirror") == content, "{}", agent.log());
    assert_eq!(site.mirror.asked(&format!("/{path}")), 1);
}

#[test]
fn an_index_that_the_relay_has_not_right_comes_from_the_mirror() {
    let Some(site) = Site::start(2) else { return };
    site.package("one", 1, 10_000);
    site.repository.publish(&["xz"], true);
    fs::create_dir_all(site.lab.path("keys/trusted.gpg.d")).expect("a directory");
    fs::copy(&site.repository.keyring, site.lab.path("keys/trusted.gpg.d/test.gpg")).expect("copy");
    assert_eq!(site.apt("apt0", Some(0)).update().code, 0);
    // The relay gives the file that it has for 10 s, and does not read it again.
    let release = site.repository.root.join(format!("dists/{SUITE}/InRelease"));
    let content = fs::read_to_string(&release).expect("read");
    let kept = fs::read_dir(site.lab.path("relay/apt/objects")).expect("a directory").flatten();
    let kept = kept.flat_map(|group| fs::read_dir(group.path()).expect("a directory").flatten());
    let kept =
        kept.map(|entry| entry.path()).find(|path| fs::read(path).is_ok_and(|has| has == content.as_bytes()));
    fs::write(kept.expect("it is kept"), content.replace("Origin: Test", "Origin: Evil")).expect("write");
    site.mirror.forget();
    let updated = site.apt("apt1", Some(1)).update();
    assert_eq!(updated.code, 0, "{}{}\n{}", updated.stdout, updated.stderr, site.agents[1].log());
    assert!(site.mirror.asked(&format!("/dists/{SUITE}/InRelease")) > 0, "{:?}", site.mirror.all_asked());
    assert_eq!((site.metric(1, "signatures_refused_total"), site.metric(1, "signatures_good_total")), (1, 1));
    assert_eq!(site.metric(1, "relay_failed_total"), 1);
}

#[test]
fn many_requests_of_one_machine_share_its_places_at_the_relay() {
    // Below the 32 connections of one address.
    const PACKAGES: usize = 30;
    let Some(site) = Site::start(1) else { return };
    let packages: Vec<_> =
        (0..PACKAGES).map(|n| site.package(&format!("p{n}"), n as u64 + 1, 1_200_000)).collect();
    site.repository.publish(&["xz"], true);
    assert_eq!(site.apt("apt0", Some(0)).update().code, 0);
    let refused = site.relay().metric("distd_quic_connections_refused_total");
    let proxy = site.agents[0].said("proxy for apt on ");
    let out = |n: usize| site.lab.path(&format!("out{n}"));
    // Each package by a connection of its own, most at once.
    let running: Vec<Running> = (0..PACKAGES)
        .map(|n| {
            let mut command = std::process::Command::new("curl");
            command.args(["-sSf", "--proxy", &proxy, "-o"]).arg(out(n));
            command.arg(format!("{}/{}", site.mirror.url(), packages[n].0));
            Running::start(command)
        })
        .collect();
    for (n, running) in running.into_iter().enumerate() {
        let outcome = running.wait();
        assert_eq!(outcome.code, 0, "{n}: {}\n{}", outcome.stderr, site.agents[0].log());
        assert!(fs::read(out(n)).expect("read") == packages[n].1, "package {n}");
        assert_eq!(site.mirror.asked(&format!("/{}", packages[n].0)), 1);
    }
    assert_eq!(site.metric(0, "relay_failed_total"), 0, "{}", site.agents[0].log());
    assert_eq!(site.relay().metric("distd_quic_connections_refused_total"), refused);
}

#[test]
fn a_neighbour_gives_what_it_has() {
    // No relay: the parent of both is the origin, which has no proxy.
    let lab = Lab::start();
    let Some(repository) = Repository::new(&lab.path("")) else { return };
    let mirror = Mirror::start(&repository.root);
    let path = repository.package("one", "1", &Rng::new(1).bytes(3_000_000));
    let content = fs::read(repository.root.join(&path)).expect("read");
    let other = repository.package("two", "1", &Rng::new(2).bytes(300_000));
    let second = fs::read(repository.root.join(&other)).expect("read");
    repository.publish(&["xz"], true);
    let start = |name: &str, settings: &str| {
        let section = format!(
            "\n[apt]\nlisten = \"127.0.0.1:0\"\nprivate_hosts = [\"{}\"]\nmin_free_bytes = 1000000\n{settings}",
            mirror.address
        );
        lab.configure(name, &section);
        let mut command = lab.agent_command(name, "127.0.0.1:0");
        command.args(["--metrics", "127.0.0.1:0"]).env("DISTD_LOG", "info");
        Daemon::start(command, &lab.path(&format!("{name}.log")), "agent listening on ")
    };
    let apt = |name: &str, agent: &Daemon| {
        let sources =
            format!("deb [signed-by={}] {} {SUITE} main\n", repository.keyring.display(), mirror.url());
        Apt::new(&lab.path(&format!("apt-{name}")), &sources, Some(&agent.said("proxy for apt on ")))
    };
    for name in ["has", "asks", "alone"] {
        lab.enroll(name, lab.quic());
    }
    let has = start("has", "");
    let first = apt("has", &has);
    assert_eq!(first.update().code, 0);
    assert!(first.download("one").expect("downloads") == content);
    assert!(first.download("two").expect("downloads") == second);
    let near = format!(
        "[{{\"node\":\"{}\",\"address\":\"{}\",\"heard\":{}}}]",
        node_id(&lab, "has"),
        has.addresses[0],
        u64::MAX >> 1
    );
    for name in ["asks", "alone"] {
        fs::write(lab.path(name).join("neighbours.json"), &near).expect("write");
    }
    mirror.forget();
    let asks = start("asks", "");
    let third = apt("asks", &asks);
    assert_eq!(third.update().code, 0);
    assert!(third.download("one").expect("from the neighbour") == content, "{}", asks.log());
    assert_eq!(mirror.asked(&format!("/{path}")), 0);
    assert_eq!(asks.metric("distd_apt_neighbour_files_total"), 2, "the index and the package");
    assert_eq!(has.metric("distd_apt_neighbours_served_total"), 2);
    // Its disk goes wrong while it runs: the mirror is asked at last, and the neighbour no more.
    let sum =
        distd_tests::lab::run(std::process::Command::new("sha256sum").arg(repository.root.join(&other)));
    let sum = sum.stdout.split(' ').next().expect("a sum").to_owned();
    let mut wrong = second.clone();
    wrong[100_000] ^= 1;
    fs::write(lab.path(&format!("has/apt/objects/{}/{sum}", &sum[..2])), wrong).expect("write");
    assert!(third.download("two").expect("from the mirror") == second, "{}", asks.log());
    assert_eq!((asks.metric("distd_apt_wrong_total"), mirror.asked(&format!("/{other}"))), (1, 1));
    // With the setting off nobody is asked.
    let alone = start("alone", "use_neighbours = false\n");
    let fourth = apt("alone", &alone);
    assert_eq!(fourth.update().code, 0);
    assert!(fourth.download("one").expect("from the mirror") == content);
    assert_eq!(mirror.asked(&format!("/{path}")), 1);
    assert_eq!(alone.metric("distd_apt_neighbour_files_total"), 0);
    // A program without a certificate of the realm gets nothing from the port of the neighbours.
    let refused = distd_tests::lab::run(std::process::Command::new("curl").args([
        "-sSk",
        "--noproxy",
        "*",
        "-m",
        "10",
        &format!("https://{}/", has.addresses[0]),
    ]));
    assert_ne!(refused.code, 0, "{}", refused.stdout);
}

#[test]
fn a_slow_neighbour_is_left_and_not_asked_again() {
    let lab = Lab::start();
    let Some(repository) = Repository::new(&lab.path("")) else { return };
    let mirror = Mirror::start(&repository.root);
    let paths = ["one", "two"].map(|name| {
        repository.package(
            name,
            "1",
            &Rng::new(name.len() as u64 + u64::from(name.as_bytes()[0])).bytes(3_000_000),
        )
    });
    let contents = paths.each_ref().map(|path| fs::read(repository.root.join(path)).expect("read"));
    repository.publish(&["xz"], true);
    let start = |name: &str| {
        lab.enroll(name, lab.quic());
        lab.configure(
            name,
            &format!(
                "\n[apt]\nlisten = \"127.0.0.1:0\"\nprivate_hosts = [\"{}\"]\nmin_free_bytes = 1000000\n",
                mirror.address
            ),
        );
    };
    let agent = |name: &str| {
        let mut command = lab.agent_command(name, "127.0.0.1:0");
        command.args(["--metrics", "127.0.0.1:0"]).env("DISTD_LOG", "info");
        Daemon::start(command, &lab.path(&format!("{name}.log")), "agent listening on ")
    };
    let apt = |name: &str, agent: &Daemon| {
        let sources =
            format!("deb [signed-by={}] {} {SUITE} main\n", repository.keyring.display(), mirror.url());
        Apt::new(&lab.path(&format!("apt-{name}")), &sources, Some(&agent.said("proxy for apt on ")))
    };
    start("has");
    let has = agent("has");
    let first = apt("has", &has);
    assert_eq!(first.update().code, 0);
    for (name, content) in ["one", "two"].into_iter().zip(&contents) {
        assert!(first.download(name).expect("downloads") == *content);
    }
    let link = SlowLink::start(has.addresses[0].parse().expect("an address"));
    start("asks");
    let near = format!(
        "[{{\"node\":\"{}\",\"address\":\"{}\",\"heard\":{}}}]",
        node_id(&lab, "has"),
        link.address,
        u64::MAX >> 1
    );
    fs::write(lab.path("asks/neighbours.json"), &near).expect("write");
    let asks = agent("asks");
    let second = apt("asks", &asks);
    assert_eq!(second.update().code, 0);
    assert_eq!(asks.metric("distd_apt_neighbour_files_total"), 1, "the index: {}", asks.log());
    // Its line becomes slow: what it has sent is kept, the rest comes from the mirror.
    mirror.forget();
    link.slow_down();
    assert!(second.download("one").expect("downloads") == contents[0], "{}", asks.log());
    assert_eq!(mirror.asked(&format!("/{}", paths[0])), 1);
    assert!(mirror.sent() < contents[0].len() as u64, "{} bytes", mirror.sent());
    let connections = link.connections();
    mirror.forget();
    assert!(second.download("two").expect("downloads") == contents[1]);
    assert_eq!((link.connections(), mirror.sent()), (connections, contents[1].len() as u64));
}
