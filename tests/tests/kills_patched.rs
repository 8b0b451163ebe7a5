//! kill -9 of every tier during an update by patches: the image is exact, no received payload is
//! received again, and no file stays behind.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use distd_core::ChunkHash;
use distd_core::manifest::{Kind, Manifest};
use distd_tests::lab::{Lab, Outcome, same, wait_until_fetching};
use distd_tests::{Rng, artifacts};

/// Number of kills of each tier; tests/soak/kills.sh sets more.
fn kills() -> u64 {
    std::env::var("DISTD_TEST_KILLS").ok().and_then(|s| s.parse().ok()).unwrap_or(10)
}

/// An origin with two releases and the patches between them.
struct Update {
    lab: Lab,
    v1: PathBuf,
    v2: PathBuf,
}

impl Update {
    /// Makes the releases and their patches. With `with_views` the initrd in the releases has a
    /// view; without, the set is small and has an outline of its manifest.
    fn new(rng_seed: u64, with_views: bool) -> Self {
        // Solid sets would bring patches to a device without a seed too.
        let lab = Lab::start_with(&["--patches", "true", "--solid-sets", "false"]);
        let (v1, v2) = if with_views {
            let [v1, v2, _] = artifacts::releases(&lab.path(""), rng_seed);
            (v1, v2)
        } else {
            artifacts::release_pair(&lab.path(""), rng_seed)
        };
        lab.push(&v1, "os", "1").ok();
        Self { lab, v1, v2 }
    }

    fn installed(&self, device: &str) -> PathBuf {
        let slot = self.lab.path(&format!("{device}-slot"));
        self.lab.pull(device, "os@1", &slot, &[]).ok();
        assert!(same(&slot, &self.v1));
        slot
    }

    fn publish(&self) {
        self.lab.push(&self.v2, "os", "2").ok();
        self.lab.patches("os", 1);
    }

    fn command(&self, device: &str, slot: &Path, out: &Path) -> Command {
        let mut command = self.lab.command(device);
        command.args(["pull", "os@2", "--optimize", "bytes", "--seed"]).arg(slot).arg("--out").arg(out);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn pull(&self, device: &str, slot: &Path, out: &Path) -> Outcome {
        Outcome::of(self.command(device, slot, out).output().expect("run distd")).ok()
    }

    fn spawn(&self, device: &str, slot: &Path, out: &Path) -> Child {
        self.command(device, slot, out).spawn().expect("start distd")
    }

    /// The manifest of the set, from the origin's store.
    fn set(&self) -> Manifest {
        let listing = self.lab.patches("os", 1);
        let id = listing["patches"][0]["set"].as_str().expect("a set that is ready").to_owned();
        let mut open = vec![self.lab.path("origin")];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).expect("list") {
                let path = entry.expect("list").path();
                if path.ends_with(Path::new("manifests").join(&id)) {
                    let bytes = fs::read(path).expect("read");
                    return Manifest::from_file_bytes(bytes.into()).expect("the origin's own manifest");
                }
                if path.is_dir() {
                    open.push(path);
                }
            }
        }
        panic!("the origin has no manifest {id}");
    }

    fn left_behind(&self) -> Vec<String> {
        let names = fs::read_dir(self.lab.path("")).expect("list");
        names
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.contains("distd-part"))
            .collect()
    }
}

/// Bytes of payloads that are in the file beside `out`, and bytes of payloads that are not.
fn payloads(set: &Manifest, out: &Path) -> (u64, u64) {
    let Kind::PatchSet { index_bytes } = set.root().kind else { panic!("no patch set") };
    let mut name = out.as_os_str().to_owned();
    name.push(".distd-part-patches");
    let file = fs::File::open(name).ok();
    let (mut here, mut missing) = (0, 0);
    for at in set.entries().filter(|at| at.offset >= index_bytes) {
        let mut bytes = vec![0; at.entry.len as usize];
        let read = file.as_ref().is_some_and(|file| file.read_exact_at(&mut bytes, at.offset).is_ok());
        let sum = if read && ChunkHash::of(&bytes) == at.entry.hash { &mut here } else { &mut missing };
        *sum += u64::from(at.entry.len);
    }
    (here, missing)
}

fn received(outcome: &Outcome) -> u64 {
    outcome.number("chunk_bytes") + outcome.number("patch_bytes")
}

fn kill_a_device_again_and_again(with_views: bool, default_seed: u64) {
    let mut rng = Rng::announced("device kills with patches", default_seed);
    let update = Update::new(default_seed, with_views);
    let relay = update.lab.relay("relay", update.lab.quic());
    update.lab.enroll("d", &relay.addresses[0]);
    let slot = update.installed("d");
    update.publish();
    let set = update.set();
    // Afterwards the relay has everything, so that a kill finds the device at work.
    update.pull("d", &slot, &update.lab.path("first"));
    let started = Instant::now();
    let undisturbed = update.pull("d", &slot, &update.lab.path("undisturbed"));
    let usual = started.elapsed().as_micros() as u64;
    assert!(undisturbed.number("patches_applied") > 0, "{}", undisturbed.json);

    let (mut killed, mut kept, mut round) = (0, 0, 0);
    // Payloads arrive within a few milliseconds: repeat until a kill came after one.
    while killed < kills() || (kept == 0 && killed < 10 * kills()) {
        round += 1;
        let out = update.lab.path(&format!("out{round}"));
        for _ in 0..2 {
            let mut pull = update.spawn("d", &slot, &out);
            std::thread::sleep(Duration::from_micros(rng.below(usual)));
            let _ = pull.kill();
            pull.wait().expect("wait");
            killed += 1;
        }
        if out.exists() {
            assert!(same(&out, &update.v2), "what is in place is complete");
        }
        let (here, missing) = payloads(&set, &out);
        kept += here;
        let resumed = update.pull("d", &slot, &out);
        assert!(same(&out, &update.v2));
        assert_eq!(resumed.number("refetched_verified_bytes"), 0, "{}", resumed.json);
        assert_eq!(resumed.number("patches_failed"), 0, "{}", resumed.json);
        assert!(resumed.number("patch_bytes") <= missing, "{here} bytes were there: {}", resumed.json);
        assert!(received(&resumed) <= received(&undisturbed), "{}\n{}", resumed.json, undisturbed.json);
        let left = update.left_behind();
        assert!(left.is_empty(), "round {round} left {left:?}");
    }
    assert!(kept > 0, "no kill came behind a payload");
}

#[test]
fn a_device_killed_while_it_unpacks_and_packs_goes_on_with_what_it_has() {
    kill_a_device_again_and_again(true, 41);
}

#[test]
fn a_device_killed_in_a_small_set_of_patches_goes_on_with_what_it_has() {
    kill_a_device_again_and_again(false, 42);
}

#[test]
fn a_relay_killed_under_patches_keeps_what_it_had_and_its_device_carries_on() {
    let mut rng = Rng::announced("relay kills with patches", 43);
    let update = Update::new(43, true);
    let lab = &update.lab;
    let mut relay = lab.relay("relay", lab.quic());
    let address = relay.addresses[0].clone();
    lab.enroll("d", &address);
    let slot = update.installed("d");
    update.publish();
    let (mut killed, mut caught, mut round, mut applied) = (0, 0, 0, 0);
    while killed < kills() {
        round += 1;
        let out = lab.path(&format!("out{round}"));
        let mut pull = update.spawn("d", &slot, &out);
        caught += u64::from(wait_until_fetching(&mut pull, &out));
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(rng.below(250)));
            relay.kill();
            relay = lab.relay_at("relay", lab.quic(), &address, &[]);
            killed += 1;
        }
        let outcome = Outcome::of(pull.wait_with_output().expect("wait")).ok();
        assert!(same(&out, &update.v2), "round {round}");
        assert_eq!(outcome.number("refetched_verified_bytes"), 0, "{}", outcome.json);
        applied += outcome.number("patches_applied");
        let left = update.left_behind();
        assert!(left.is_empty(), "round {round} left {left:?}");
    }
    assert!(caught > 0, "no kill struck a pull that fetched");
    assert!(applied > 0, "no update came by patches");
    // Whatever was killed, the relay's store has everything.
    update.pull("d", &slot, &lab.path("once"));
    let before = lab.served_bytes();
    update.pull("d", &slot, &lab.path("again"));
    let cost = lab.served_bytes() - before;
    assert!(cost < 20_000, "the relay fetched {cost} bytes again");
}

#[test]
fn an_origin_killed_while_it_serves_patches_serves_them_after_its_restart() {
    let mut rng = Rng::announced("origin kills with patches", 44);
    let mut update = Update::new(44, true);
    update.lab.enroll("d", update.lab.quic());
    let slot = update.installed("d");
    update.publish();
    let started = Instant::now();
    let undisturbed = update.pull("d", &slot, &update.lab.path("undisturbed"));
    let usual = started.elapsed().as_millis() as u64;
    let mut applied = 0;
    for round in 0..kills() {
        let out = update.lab.path(&format!("out{round}"));
        let pull = update.spawn("d", &slot, &out);
        std::thread::sleep(Duration::from_millis(rng.below(usual)));
        update.lab.restart_origin();
        let outcome = Outcome::of(pull.wait_with_output().expect("wait")).ok();
        assert!(same(&out, &update.v2), "round {round}");
        assert_eq!(outcome.number("refetched_verified_bytes"), 0, "{}", outcome.json);
        assert_eq!(outcome.number("patches_failed"), 0, "{}", outcome.json);
        assert!(outcome.number("patch_bytes") <= undisturbed.number("patch_bytes"), "{}", outcome.json);
        applied += outcome.number("patches_applied");
        let left = update.left_behind();
        assert!(left.is_empty(), "round {round} left {left:?}");
    }
    assert!(applied > 0, "no update came by patches");
}

#[test]
fn a_finished_pull_removes_leftovers_of_interrupted_ones_with_or_without_patches() {
    let update = Update::new(45, true);
    update.lab.enroll("d", update.lab.quic());
    let slot = update.installed("d");
    update.publish();
    for (round, with_seed) in [(1, true), (2, false)] {
        let out = update.lab.path(&format!("out{round}"));
        for file in ["patches", "patches1", "patches3", "rebuilt", "passing"] {
            let mut name = out.as_os_str().to_owned();
            name.push(format!(".distd-part-{file}"));
            fs::write(name, "left by a kill").expect("write");
        }
        let outcome = if with_seed {
            update.pull("d", &slot, &out)
        } else {
            update.lab.pull("d", "os@2", &out, &[]).ok()
        };
        assert_eq!(outcome.number("patches_applied") > 0, with_seed, "{}", outcome.json);
        assert!(same(&out, &update.v2));
        let left = update.left_behind();
        assert!(left.is_empty(), "round {round} left {left:?}");
    }
}
