//! Several origins on one database and one bucket: one leads, each serves, and none of them, cut
//! off or standing still, does harm. `DISTD_TEST_ROUNDS` is the number of rounds of faults; the
//! soak takes 200 (`tests/soak/replicas.sh`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use distd_tests::Rng;
use distd_tests::forward::Path;
use distd_tests::lab::{same, wait_until, wait_within};
use distd_tests::replicas::Replicas;
use rustix::process::Signal;

#[test]
fn each_replica_serves_and_another_one_leads_when_the_leader_dies() {
    let Some(mut site) = Replicas::start(2, &[]) else { return };
    let leader = site.wait_for_leader();
    let other = 1 - leader;
    // Asked at the one that follows, which passes on what it may not do.
    let one = site.file("one", 1, 300_000);
    site.push(other, &one, "1").ok();
    site.admin(other, &["channel", "set", "os:stable", "1"]).ok();
    site.enroll("device", other);
    let (pulled, out) = site.pull("device", "os:stable");
    assert!(pulled.code == 0 && same(&one, &out), "{}", pulled.stderr);
    // A grant that the leader records holds at the other origin too.
    site.admin(leader, &["grant", "add", "everyone", "os"]).ok();
    assert!(site.admin(other, &["grant", "ls"]).ok().stdout.contains("os"));

    let began = Instant::now();
    site.members[leader].daemon.as_mut().expect("it runs").kill();
    site.members[leader].daemon = None;
    wait_within(Duration::from_secs(60), Duration::from_millis(200), "the other one leads", || {
        site.leader() == Some(other)
    });
    println!("the other one leads after {:?}", began.elapsed());
    let two = site.file("two", 2, 300_000);
    wait_until("it publishes", || site.push(other, &two, "2").code == 0);
    site.admin(other, &["channel", "set", "os:stable", "2"]).ok();
    let (pulled, out) = site.pull("device", "os:stable");
    assert!(pulled.code == 0 && same(&two, &out), "{}", pulled.stderr);

    // The first one comes back and follows.
    site.start_member(leader);
    assert_eq!(site.leader(), Some(other));
    let three = site.file("three", 3, 300_000);
    site.push(leader, &three, "3").ok();
    let (pulled, out) = site.pull("device", "os@3");
    assert!(pulled.code == 0 && same(&three, &out), "{}", pulled.stderr);
    // A leader that is stopped in good order is succeeded at once.
    site.members[other].signal(Signal::TERM);
    wait_within(Duration::from_secs(8), Duration::from_millis(100), "the first one leads again", || {
        site.leader() == Some(leader)
    });
    site.check_at_the_end();
}

#[test]
fn what_is_alone_and_what_has_no_keys_is_refused_beside_a_replica() {
    let Some(site) = Replicas::start(1, &[]) else { return };
    let refused = site.try_alone();
    assert!(refused.code != 0 && refused.stderr.contains("another distd-server"), "{}", refused.stderr);
    let refused = site.try_without_keys();
    assert!(refused.code != 0 && refused.stderr.contains("tuf-keys"), "{}", refused.stderr);
}

/// Versions of `timestamp.json` that were seen, each with its bytes.
#[derive(Default)]
struct Timestamps(BTreeMap<u64, Vec<u8>>);

impl Timestamps {
    /// Adds what is there now; panics when one version has two contents, or versions go back.
    fn look(&mut self, site: &Replicas) {
        let bytes = site.object("tuf/timestamp.json").expect("the metadata of a realm");
        let document: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        let version = document["signed"]["version"].as_u64().expect("a version");
        let newest = self.0.keys().next_back().copied().unwrap_or(0);
        assert!(version >= newest, "timestamp {version} after {newest}");
        let before = self.0.entry(version).or_insert_with(|| bytes.clone());
        assert!(*before == bytes, "two timestamps of version {version}");
    }
}

/// A fault of one round.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Freeze,
    Database(Path),
    Store(Path),
    /// The database server itself, which both use; where the test may restart it.
    Restart,
}

impl Fault {
    fn any(rng: &mut Rng) -> Self {
        let can_restart = std::env::var_os("DISTD_TEST_POSTGRES_RESTART").is_some();
        match rng.below(if can_restart { 9 } else { 8 }) {
            0 | 1 => Self::Kill,
            2 | 3 => Self::Freeze,
            4 => Self::Database(Path::Silent),
            5 => Self::Database(Path::Broken),
            6 => Self::Store(Path::Silent),
            8 => Self::Restart,
            _ => Self::Store([Path::Broken, Path::Slow, Path::Throttled][rng.below(3) as usize]),
        }
    }
}

#[test]
fn faults_of_replicas_lose_nothing_that_was_acknowledged_and_fork_no_metadata() {
    let rounds = std::env::var("DISTD_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let mut rng = Rng::announced("replicas", 16);
    let Some(mut site) = Replicas::start(2, &[]) else { return };
    site.wait_for_leader();
    let mut timestamps = Timestamps::default();
    let mut acknowledged: Vec<(String, PathBuf)> = Vec::new();
    let (mut tried, mut changes, mut leader_before) = (0, 0, site.leader());
    for round in 0..rounds {
        let fault = Fault::any(&mut rng);
        // Mostly the one that leads.
        let of = match site.leader().filter(|_| rng.below(4) > 0) {
            Some(leader) => leader,
            None => rng.below(2) as usize,
        };
        // Publications go on meanwhile, at both.
        let pushes: Vec<_> = (0..2)
            .map(|at| {
                let version = format!("{round}.{at}");
                let file = site.file(&version, 1000 + round * 2 + at as u64, 150_000);
                tried += 1;
                (version.clone(), file.clone(), site.start_push(at, &file, &version))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(rng.below(1500)));
        let lasts = Duration::from_millis(match fault {
            // Longer than a term, so that another one leads meanwhile.
            Fault::Freeze | Fault::Database(Path::Silent) => 11_000 + rng.below(3000),
            _ => 1000 + rng.below(4000),
        });
        let part = if site.leader() == Some(of) { "leads" } else { "follows" };
        println!("round {round}: {fault:?} of {of}, which {part}, for {lasts:?}");
        match fault {
            Fault::Kill => {
                site.members[of].daemon.as_mut().expect("it runs").kill();
                site.members[of].daemon = None;
            }
            Fault::Freeze => site.members[of].signal(Signal::STOP),
            Fault::Database(path) => site.members[of].database.set(path),
            Fault::Store(path) => site.members[of].store.set(path),
            Fault::Restart => {
                let program = std::env::var_os("DISTD_TEST_POSTGRES_RESTART").expect("it was there");
                assert!(std::process::Command::new(program).status().expect("run it").success());
            }
        }
        let until = Instant::now() + lasts;
        while Instant::now() < until {
            timestamps.look(&site);
            std::thread::sleep(Duration::from_millis(100));
        }
        site.members[of].mend();
        if site.members[of].daemon.is_none() {
            site.start_member(of);
        }
        for (version, file, push) in pushes {
            if push.wait().code == 0 {
                acknowledged.push((version, file));
            }
        }
        // It goes on by itself.
        let after = site.file("after", 9_000_000 + round, 100_000);
        let version = format!("{round}.after");
        wait_within(
            Duration::from_secs(60),
            Duration::from_millis(500),
            "a publication after the fault",
            || site.push(0, &after, &version).code == 0,
        );
        let kept = site.path(&version);
        std::fs::copy(&after, &kept).expect("copy");
        acknowledged.push((version, kept));
        timestamps.look(&site);
        let leader = Some(site.wait_for_leader());
        if leader != leader_before {
            (changes, leader_before) = (changes + 1, leader);
        }
    }
    // Every release that was acknowledged is there, whole, at either of them.
    site.enroll("device", 0);
    let mut wrong = Vec::new();
    for (version, file) in &acknowledged {
        let (pulled, out) = site.pull("device", &format!("os@{version}"));
        if pulled.code != 0 || !same(file, &out) {
            wrong.push(format!("{version}: {}", pulled.stderr));
        }
        // Not both copies of hundreds of releases.
        for path in [file, &out] {
            let _ = std::fs::remove_file(path);
        }
    }
    println!(
        "{rounds} rounds: {} of {} publications acknowledged, {} of them lost, {} timestamps seen, none forked, \
         {changes} changes of the leader",
        acknowledged.len(),
        tried + rounds,
        wrong.len(),
        timestamps.0.len()
    );
    assert!(wrong.is_empty(), "{wrong:?}");
    site.check_at_the_end();
}

#[test]
fn workers_make_patch_sets_for_the_origins_and_may_die() {
    let Some(mut site) = Replicas::start(1, &["--patches", "true", "--solid-sets", "false"]) else { return };
    let first = site.start_worker("worker0", &[]);
    let mut second = site.start_worker("worker1", &[]);
    let text = |seed: u64| {
        let mut rng = Rng::new(seed);
        let mut text = Rng::new(1).text(3 << 20);
        let len = text.len() as u64;
        for _ in 0..200 {
            let at = rng.below(len - 16) as usize;
            text[at..at + 8].copy_from_slice(&rng.next_u64().to_le_bytes());
        }
        text
    };
    for version in 1..=4_u64 {
        let path = site.path(&format!("os-{version}"));
        std::fs::write(&path, text(version)).expect("write");
        site.push(0, &path, &version.to_string()).ok();
        if version == 2 {
            second.daemon.as_mut().expect("it runs").kill();
        }
    }
    let ready = || {
        let listed = site.admin(0, &["patch", "ls", "os"]).ok();
        let sets = listed.json["patches"].as_array().cloned().unwrap_or_default();
        sets.len() >= 3 && sets.iter().all(|set| set["state"] == "ready")
    };
    wait_within(Duration::from_secs(150), Duration::from_millis(500), "every set is made", ready);
    // Devices use what a worker made as soon as the origin has signed its list.
    site.enroll("device", 0);
    let (pulled, old) = site.pull("device", "os@3");
    assert_eq!(pulled.code, 0, "{}", pulled.stderr);
    wait_within(Duration::from_secs(60), Duration::from_millis(500), "a set is listed", || {
        let out = site.path("device-new");
        let mut command = site.command("device");
        command.arg("pull").arg("os@4").arg("--out").arg(&out).arg("--seed").arg(&old);
        let pulled = distd_tests::lab::run(&mut command).ok();
        assert!(same(&out, &site.path("os-4")));
        // The file is pulled again until a set is used.
        std::fs::remove_file(&out).expect("remove");
        pulled.number("patches_applied") > 0
    });
    drop((first, second));
    site.check_at_the_end();
}
