//! Releases in files: exported where the origin is reached, and taken where nothing is.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use distd_tests::artifacts;
use distd_tests::lab::{Lab, Outcome, binary, run, same, wait_until};

fn lab() -> Lab {
    Lab::start_with(&["--patches", "true", "--solid-sets", "false"])
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Exports `wanted` by the device `by` into a file of that name.
fn export(lab: &Lab, by: &str, wanted: &str, name: &str, more: &[&str]) -> (PathBuf, Outcome) {
    let bundle = lab.path(name);
    let to = text(&bundle);
    let args: Vec<&str> = ["export", wanted, "--out", &to].iter().chain(more).copied().collect();
    (bundle.clone(), lab.device(by, &args))
}

/// Pulls from a bundle with the origin as it is.
fn pull_from(lab: &Lab, device: &str, wanted: &str, bundle: &Path, out: &Path, more: &[&str]) -> Outcome {
    let (bundle, out) = (text(bundle), text(out));
    let args: Vec<&str> =
        ["pull", wanted, "--from", &bundle, "--out", &out].iter().chain(more).copied().collect();
    lab.device(device, &args)
}

#[test]
fn an_update_in_a_bundle_costs_what_a_pull_receives_and_needs_no_network() {
    let mut lab = lab();
    let [v1, v2, _] = artifacts::releases(&lab.path(""), 61);
    lab.push(&v1, "os", "1").ok();
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    for device in ["exporter", "d1", "d2", "fresh"] {
        lab.enroll(device, lab.quic());
    }
    for device in ["d1", "d2"] {
        lab.pull(device, "os:stable", &lab.path(&format!("{device}-slot")), &[]).ok();
    }
    lab.push(&v2, "os", "2").ok();
    lab.patches("os", 1);
    lab.admin(&["channel", "set", "os:stable", "2"]).ok();

    let (bundle, exported) = export(&lab, "exporter", "os:stable", "update.bundle", &["--since", "1"]);
    let exported = exported.ok();
    assert!(exported.number("patches") > 0, "{}", exported.json);
    let (whole, exported_whole) = export(&lab, "exporter", "os:stable", "whole.bundle", &[]);
    assert_eq!(exported_whole.ok().number("patches"), 0);
    let out = lab.path("d2-out");
    let slot = text(&lab.path("d2-slot"));
    let network = ["pull", "os:stable", "--optimize", "bytes", "--out", &text(&out), "--seed", &slot];
    let pulled = lab.device("d2", &network).ok();
    let (in_file, over_network) = (exported.number("bundle_bytes"), pulled.number("wire_bytes"));
    assert!(in_file <= over_network + over_network / 10 + 4096, "{in_file} against {over_network}");

    let shown = lab.device("exporter", &["bundle", "show", &text(&bundle)]).ok();
    assert_eq!(shown.json["since"]["version"], "1");
    assert_eq!(shown.number("valid_until"), exported.number("valid_until"));

    lab.stop_origin();
    let out = lab.path("d1-out");
    let slot = text(&lab.path("d1-slot"));
    let pulled = pull_from(&lab, "d1", "os:stable", &bundle, &out, &["--seed", &slot]).ok();
    assert!(same(&out, &v2));
    assert!(pulled.number("patches_applied") > 0 && pulled.number("patches_failed") == 0, "{}", pulled.json);
    assert_eq!(pulled.json["transport"].as_object().map(|map| map.len()), Some(1));
    let fresh = lab.path("fresh-out");
    pull_from(&lab, "fresh", "os:stable", &whole, &fresh, &[]).ok();
    assert!(same(&fresh, &v2));

    // What the bundle does not bring is said, and nothing is left that looks like an artifact.
    let nowhere = lab.path("nowhere");
    let lacking = pull_from(&lab, "fresh", "os:stable", &bundle, &nowhere, &[]);
    assert_eq!(lacking.code, 6, "{}", lacking.stderr);
    assert!(lacking.stderr.contains("--since"), "{}", lacking.stderr);
    assert!(!nowhere.exists());
    let other = pull_from(&lab, "fresh", "os:beta", &bundle, &nowhere, &[]);
    assert_eq!(other.code, 2, "{}", other.stderr);
    assert!(other.stderr.contains("os:stable (os@2)"), "{}", other.stderr);
}

#[test]
fn a_killed_export_and_a_killed_import_continue_where_they_stopped() {
    let lab = lab();
    let [v1, _, _] = artifacts::releases(&lab.path(""), 62);
    lab.push(&v1, "os", "1").ok();
    lab.enroll("exporter", lab.quic());
    lab.enroll("d1", lab.quic());
    let (bundle, exported) = export(&lab, "exporter", "os@1", "whole.bundle", &[]);
    let exported = exported.ok();
    // As a kill in the middle leaves it: half of the file, under the name of a part.
    let bytes = fs::read(&bundle).expect("read");
    fs::remove_file(&bundle).expect("remove");
    fs::write(lab.path("whole.bundle.distd-bundle-part"), &bytes[..bytes.len() / 2]).expect("write");
    let again = export(&lab, "exporter", "os@1", "whole.bundle", &[]).1.ok();
    let (kept, chunks) = (again.number("kept"), again.number("chunks"));
    assert!(kept > chunks / 4 && kept < chunks, "{}", again.json);
    assert!(again.number("wire_bytes") < exported.number("wire_bytes") * 3 / 4, "{}", again.json);
    assert_eq!(again.number("bundle_bytes"), exported.number("bundle_bytes"));
    let parts = fs::read_dir(lab.path("")).expect("list");
    let names: Vec<String> = parts.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    assert!(names.iter().all(|name| !name.contains(".distd-bundle-part")), "{names:?}");
    let refused = export(&lab, "exporter", "os@1", "whole.bundle", &[]).1;
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    export(&lab, "exporter", "os@1", "whole.bundle", &["--force"]).1.ok();

    let out = lab.path("out");
    pull_from(&lab, "d1", "os@1", &bundle, &out, &[]).ok();
    assert!(same(&out, &v1));
}

#[test]
fn a_bundle_that_is_cut_short_flipped_or_of_another_realm_leaves_nothing() {
    let lab = lab();
    let other = Lab::start();
    let [v1, _, _] = artifacts::releases(&lab.path(""), 63);
    for lab in [&lab, &other] {
        lab.push(&v1, "os", "1").ok();
        lab.enroll("d1", lab.quic());
    }
    let (bundle, exported) = export(&lab, "d1", "os@1", "whole.bundle", &[]);
    exported.ok();
    let out = other.path("out");
    let foreign = pull_from(&other, "d1", "os@1", &bundle, &out, &[]);
    assert_eq!(foreign.code, 4, "{}", foreign.stderr);

    let whole = fs::read(&bundle).expect("read");
    let damaged = lab.path("damaged.bundle");
    let mut codes = Vec::new();
    for at in [9, whole.len() / 3, whole.len() / 2, whole.len() - 3] {
        fs::write(&damaged, &whole).expect("write");
        let file = fs::OpenOptions::new().write(true).open(&damaged).expect("open");
        file.write_all_at(&[whole[at] ^ 1], at as u64).expect("flip");
        let refused = pull_from(&lab, "d1", "os@1", &damaged, &lab.path("out"), &[]);
        codes.push(refused.code);
    }
    assert!(codes.iter().all(|code| [8, 9].contains(code)), "{codes:?}");
    for len in [0, 7, 8, 12, whole.len() / 2, whole.len() - 1] {
        fs::write(&damaged, &whole[..len]).expect("write");
        let refused = pull_from(&lab, "d1", "os@1", &damaged, &lab.path("out"), &[]);
        assert!([8, 9].contains(&refused.code), "{len}: {}", refused.stderr);
    }
    for out in [out, lab.path("out")] {
        assert!(!out.exists());
        let dir = out.parent().expect("a directory");
        let left = fs::read_dir(dir).expect("list").filter_map(|e| e.ok()?.file_name().into_string().ok());
        let left: Vec<String> = left.filter(|name| name.starts_with("out")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_bundle_older_than_what_a_device_knows_is_refused() {
    let lab = lab();
    let [v1, v2, _] = artifacts::releases(&lab.path(""), 64);
    lab.push(&v1, "os", "1").ok();
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    lab.enroll("d1", lab.quic());
    let (bundle, exported) = export(&lab, "d1", "os:stable", "old.bundle", &[]);
    exported.ok();
    lab.push(&v2, "os", "2").ok();
    lab.admin(&["channel", "set", "os:stable", "2"]).ok();
    let out = lab.path("out");
    lab.pull("d1", "os:stable", &out, &[]).ok();
    let refused = pull_from(&lab, "d1", "os:stable", &bundle, &out, &[]);
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert!(same(&out, &v2));
}

/// Hands a bundle over to the relay whose state directory has this name.
fn import(lab: &Lab, relay: &str, bundle: &Path) -> Outcome {
    let mut command = Command::new(binary("distd-peer"));
    run(command.arg("import").arg(bundle).arg("--data").arg(lab.path(relay)))
}

#[test]
fn a_relay_without_an_uplink_updates_its_site_from_bundles() {
    let mut lab = lab();
    let [v1, v2, _] = artifacts::releases(&lab.path(""), 65);
    lab.push(&v1, "os", "1").ok();
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    let mut relay = lab.relay("relay", lab.quic());
    for device in ["exporter", "d1", "d2"] {
        lab.enroll(device, if device == "exporter" { lab.quic() } else { &relay.addresses[0] });
    }
    // From here on the relay is at its site.
    relay.kill();
    let (first, exported) = export(&lab, "exporter", "os:stable", "1.bundle", &[]);
    exported.ok();
    lab.push(&v2, "os", "2").ok();
    lab.patches("os", 1);
    lab.admin(&["channel", "set", "os:stable", "2"]).ok();
    let (update, exported) = export(&lab, "exporter", "os:stable", "2.bundle", &["--since", "1"]);
    exported.ok();
    let origin = lab.quic().to_owned();
    lab.stop_origin();
    let relay = lab.relay("relay", &origin);
    let pull = |device: &str, out: &Path, seeds: &[&str]| {
        let out = text(out);
        let args = ["pull", "os:stable", "--parent", &relay.addresses[0], "--out", &out];
        lab.device(device, &args.iter().chain(seeds).copied().collect::<Vec<_>>())
    };

    // The update continues a release that this relay has never seen.
    let refused = import(&lab, "relay", &update);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("os@1"), "{}", refused.stderr);
    let imported = import(&lab, "relay", &first);
    assert_eq!(imported.code, 0, "{}", imported.stderr);
    for device in ["d1", "d2"] {
        let slot = lab.path(&format!("{device}-slot"));
        pull(device, &slot, &[]).ok();
        assert!(same(&slot, &v1));
    }
    assert_eq!(import(&lab, "relay", &update).code, 0);
    let slot = lab.path("d1-slot");
    let out = lab.path("d1-out");
    let updated = pull("d1", &out, &["--seed", &text(&slot)]).ok();
    assert!(same(&out, &v2));
    assert!(updated.number("patches_applied") > 0, "{}", updated.json);
    let again = import(&lab, "relay", &first);
    assert_eq!(again.code, 1, "older than what the relay knows: {}", again.stderr);
    let waiting = fs::read_dir(lab.path("relay/import")).expect("list");
    let names: Vec<_> = waiting.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    assert_eq!(names, ["tuf"], "nothing is left");
}

#[test]
fn a_bundle_for_a_relay_that_does_not_run_waits_for_its_start() {
    let mut lab = lab();
    let [v1, _, _] = artifacts::releases(&lab.path(""), 66);
    lab.push(&v1, "os", "1").ok();
    let mut relay = lab.relay("relay", lab.quic());
    lab.enroll("d1", &relay.addresses[0]);
    let (bundle, exported) = export(&lab, "d1", "os@1", "1.bundle", &[]);
    exported.ok();
    let nobody = import(&lab, "nowhere", &bundle);
    assert_eq!(nobody.code, 1);
    assert!(nobody.stderr.contains("--data"), "{}", nobody.stderr);
    relay.kill();
    let waits = import(&lab, "relay", &bundle);
    assert!(waits.code == 0 && waits.stdout.contains("when it is started"), "{}", waits.stdout);
    lab.stop_origin();
    let relay = lab.relay("relay", lab.quic());
    let results = lab.path("relay/import");
    wait_until("the bundle is imported", || {
        let entries = fs::read_dir(&results).expect("list").flatten();
        entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|e| e == "result"))
    });
    let out = lab.path("out");
    lab.device("d1", &["pull", "os@1", "--out", &text(&out), "--parent", &relay.addresses[0]]).ok();
    assert!(same(&out, &v1));
}

#[test]
fn another_realm_takes_a_release_and_its_update_from_bundles() {
    let (lab, other) = (lab(), lab());
    let [v1, v2, _] = artifacts::releases(&lab.path(""), 67);
    lab.push(&v1, "os", "1").ok();
    lab.enroll("exporter", lab.quic());
    let (first, exported) = export(&lab, "exporter", "os@1", "1.bundle", &[]);
    exported.ok();
    lab.push(&v2, "os", "2").ok();
    lab.patches("os", 1);
    let (update, exported) = export(&lab, "exporter", "os@2", "2.bundle", &["--since", "1"]);
    exported.ok();
    let root = lab.path("root.json");
    let (status, json) = lab.curl("/tuf/1.root.json", &[]);
    assert_eq!(status, 200);
    fs::write(&root, json).expect("write");

    let kept = other.path("mirror.img");
    let import = |bundle: &Path, root: &Path, more: &[&str]| {
        let (bundle, kept, root) = (text(bundle), text(&kept), text(root));
        let args = ["import", &bundle, "--out", &kept, "--root", &root];
        other.admin(&args.iter().chain(more).copied().collect::<Vec<_>>())
    };
    let (status, json) = other.curl("/tuf/1.root.json", &[]);
    assert_eq!(status, 200);
    let wrong = other.path("wrong.json");
    fs::write(&wrong, json).expect("write");
    let refused = import(&first, &wrong, &[]);
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    import(&first, &root, &["--channel", "stable"]).ok();
    assert!(same(&kept, &v1));
    let updated = import(&update, &root, &["--channel", "stable"]).ok();
    assert!(same(&kept, &v2));
    let (sent, all) = (updated.number("uploaded_chunks"), updated.number("chunks"));
    assert!(sent < all, "{}", updated.json);
    other.enroll("d1", other.quic());
    let out = other.path("out");
    other.pull("d1", "os:stable", &out, &[]).ok();
    assert!(same(&out, &v2));
}

#[test]
fn a_bundle_is_valid_for_as_long_as_it_was_signed_for() {
    let mut lab = Lab::start_with(&["--bundle-validity", "20d"]);
    let [v1, _, _] = artifacts::releases(&lab.path(""), 68);
    lab.push(&v1, "os", "1").ok();
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    for device in ["admin", "d1", "d2"] {
        lab.enroll(device, lab.quic());
    }
    let (day, exported) = export(&lab, "admin", "os:stable", "day.bundle", &[]);
    exported.ok();
    let too_long = export(&lab, "admin", "os:stable", "no.bundle", &["--valid-for", "21d"]).1;
    assert_eq!(too_long.code, 2, "{}", too_long.stderr);
    assert!(too_long.stderr.contains("bundle_validity"), "{}", too_long.stderr);
    let (weeks, exported) = export(&lab, "admin", "os:stable", "weeks.bundle", &["--valid-for", "15d"]);
    let ends = exported.ok().number("valid_until");
    assert!(ends > 14 * 86_400 + now(), "{ends}");
    let log = lab.admin(&["audit", "ls"]).ok();
    assert!(log.json.to_string().contains("release.bundle"), "{}", log.json);
    // Nobody who is online sees the longer metadata.
    let out = lab.path("out");
    lab.pull("d2", "os:stable", &out, &[]).ok();
    let (status, timestamp) = lab.curl("/tuf/timestamp.json", &[]);
    assert_eq!(status, 200);
    let day_ahead = serde_json::from_str::<serde_json::Value>(&timestamp).expect("JSON");
    let expires = day_ahead["signed"]["expires"].as_str().expect("a time").to_owned();
    let shown = lab.device("admin", &["bundle", "show", &text(&day)]).ok().number("valid_until");
    assert!(shown < now() + 86_500, "{shown} {expires}");

    lab.stop_origin();
    let at = |days: &str, bundle: &Path, out: &Path| {
        let mut command = Command::new("faketime");
        command.args(["-f", days]).arg(binary("distd"));
        let plain = lab.command("d1");
        command.args(plain.get_args());
        plain.get_envs().filter_map(|(name, value)| Some((name, value?))).for_each(|(name, value)| {
            command.env(name, value);
        });
        command.args(["pull", "os:stable", "--from", &text(bundle), "--out", &text(out)]);
        run(command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1"))
    };
    let refused = at("+2d", &day, &lab.path("late"));
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    let refused = at("+16d", &weeks, &lab.path("late"));
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert!(!lab.path("late").exists());
    let out = lab.path("in-time");
    at("+14d", &weeks, &out).ok();
    assert!(same(&out, &v1));
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}
