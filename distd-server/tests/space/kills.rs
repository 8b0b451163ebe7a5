//! A process that pushes, collects and compacts, killed at any moment: what was acknowledged and is
//! to be kept is whole afterwards.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use distd_core::api::{REMOVALS_MAX, Retention};
use distd_core::names::Name;
use distd_server::db::MoveBy;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::site::*;

/// Releases that the policy keeps.
const KEEP: usize = 5;

/// Chunks of a version: releases share most of theirs with their neighbours.
fn chunks(version: u64) -> Vec<u64> {
    (version * 4..version * 4 + 12).collect()
}

fn number(key: &str) -> Option<u64> {
    std::env::var(key).ok().and_then(|text| text.parse().ok())
}

/// What the children have said.
#[derive(Default)]
struct Said {
    /// The last version whose push began.
    begun: u64,
    /// Versions whose push was acknowledged.
    pushed: Vec<u64>,
    /// Versions to which the channel was ordered to point, and whether that was acknowledged.
    stable: Vec<(u64, bool)>,
    lines: u64,
}

impl Said {
    fn hear(&mut self, line: &str) -> Option<String> {
        let (word, version) = line.split_once("said ")?.1.split_once(' ')?;
        let version: u64 = version.trim().parse().ok()?;
        match word {
            "push" => self.begun = version,
            "pushed" => self.pushed.push(version),
            "point" => self.stable.push((version, false)),
            "pointed" => self.stable.push((version, true)),
            _ => {}
        }
        self.lines += 1;
        Some(word.to_owned())
    }
}

/// `DISTD_TEST_KILLS` sets the number of kills; tests/soak/space.sh has 100.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_kept_is_lost_when_a_collection_is_killed() {
    let directory = tempfile::tempdir().expect("tempdir");
    let me = std::env::current_exe().expect("own path");
    let mut said = Said::default();
    let kills = number("DISTD_TEST_KILLS").unwrap_or(10);
    let seed = number("DISTD_TEST_RNG_SEED").unwrap_or(7);
    for round in 0..kills {
        let mut child = tokio::process::Command::new(&me)
            .args(["--ignored", "--exact", "kills::child_that_collects_until_killed", "--nocapture"])
            .env("DISTD_TEST_CHILD_DIR", directory.path())
            .env("DISTD_TEST_CHILD_ROUND", round.to_string())
            .env("DISTD_TEST_CHILD_FIRST", (said.begun + 1).to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("spawn");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        // The kill comes some milliseconds after the child has begun one of these.
        let draw = blake3::hash(&[seed.to_be_bytes(), round.to_be_bytes()].concat());
        let draw = draw.as_bytes();
        let word = ["collect", "finish", "compact", "collect", "push"][usize::from(draw[0]) % 5];
        let mut nth = 1 + draw[1] % 3;
        while let Some(line) = lines.next_line().await.expect("read") {
            if said.hear(&line).as_deref() == Some(word) {
                nth -= 1;
                if nth == 0 {
                    break;
                }
            }
        }
        assert_eq!(nth, 0, "round {round}: the child ended by itself");
        tokio::time::sleep(Duration::from_millis(u64::from(draw[2]) % 60)).await;
        child.start_kill().expect("kill");
        while let Some(line) = lines.next_line().await.expect("read") {
            said.hear(&line);
        }
        child.wait().await.expect("wait");
        check(directory.path(), &said, round).await;
    }
    eprintln!("{kills} kills, {} releases acknowledged, none lost that was kept", said.pushed.len());
}

async fn check(directory: &std::path::Path, said: &Said, round: u64) {
    let site = Site::open(directory).await;
    let losses = site.origin.ingest().look_for_losses().await.expect("looked");
    assert!(losses.is_empty(), "round {round}: {losses:?}");
    for (version, manifest) in site.rows().await {
        assert!(site.is_whole(&manifest).await, "round {round}: {version} can be read");
    }
    let live = site.origin.db().releases(&os()).await.expect("read");
    let live: BTreeSet<Name> = live.into_iter().map(|row| row.version).collect();
    // Pushes that were cut off may be newer releases: one of each round.
    for version in said.pushed.iter().filter(|version| said.begun - *version < KEEP as u64) {
        let begun = said.begun;
        assert!(
            live.contains(&name(*version)),
            "round {round}: {version} of {begun} is gone; {live:?} are live"
        );
    }
    let channel = site.origin.db().channel(&os(), &name("stable")).await.expect("read");
    if let Some((last, acknowledged)) = said.stable.last() {
        let at = channel.map(|row| row.version);
        let is_last = at == Some(name(*last));
        assert!(is_last || !acknowledged, "round {round}: the channel is at {at:?}");
        assert!(at.is_none_or(|at| live.contains(&at)), "round {round}: the channel's release is there");
    }
    site.origin.db().check_audit().await.expect("read").expect("a whole audit log");
    site.origin.db().close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by nothing_that_is_kept_is_lost_when_a_collection_is_killed"]
async fn child_that_collects_until_killed() {
    let Ok(directory) = std::env::var("DISTD_TEST_CHILD_DIR") else { return };
    let (round, first) = (number("DISTD_TEST_CHILD_ROUND"), number("DISTD_TEST_CHILD_FIRST"));
    let (round, first) = (round.expect("a round"), first.expect("a version"));
    let site = Site::open(std::path::Path::new(&directory)).await;
    let by = MoveBy::origin();
    // Each order comes a day after the one before, also after a kill.
    let mut now = distd_peer::clock::unix_now() as i64 + round as i64 * 365 * 24 * 3600;
    for version in first.. {
        now += 24 * 3600;
        println!("said push {version}");
        let wanted = chunks(version);
        let upload = site.send(&name(version), &wanted, now).await.expect("sent");
        site.commit(&upload, &wanted, now).await.expect("committed");
        println!("said pushed {version}");
        if version == first {
            let retention = Retention { keep: Some(KEEP as u32), days: None, may_empty: false };
            site.origin.set_retention(&os(), retention, &by).await.expect("set");
        }
        if version % 3 == 0 {
            println!("said point {version}");
            assert!(site.point("stable", &name(version)).await);
            println!("said pointed {version}");
        }
        println!("said collect {version}");
        site.origin.collect(REMOVALS_MAX, &by, now).await.expect("collected");
        println!("said finish {version}");
        site.origin.finish_removals(now + GRACE).await.expect("finished");
        println!("said compact {version}");
        site.origin.ingest().compact(now).await.expect("compacted");
    }
}
