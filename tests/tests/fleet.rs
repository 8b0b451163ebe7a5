//! Labels, groups and grants by the command line.

use std::process::Command;

use distd_tests::lab::{Lab, binary};
use serde_json::{Value, json};

/// Runs an administrator's command, which ends with `code` and has `word` in its error.
fn refused(lab: &Lab, args: &[&str], code: i32, word: &str) {
    let outcome = lab.admin(args);
    assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
    let error = outcome.json["error"].to_string();
    assert!(error.contains(word), "{args:?}: {error}");
}

fn ok(lab: &Lab, args: &[&str]) -> Value {
    lab.admin(args).ok().json
}

/// Enrols a device with a join token that has these labels; returns its id.
fn enrolled(lab: &Lab, device: &str, labels: &str) -> String {
    let made = ok(lab, &["token", "join", "--label", device, "--labels", labels]);
    let token = made["token"].as_str().expect("a token");
    let args = ["enroll", "--parent", lab.quic(), "--token", token, "--label", device];
    lab.device(device, &args).ok();
    let nodes = ok(lab, &["node", "ls"]);
    let nodes = nodes["nodes"].as_array().expect("a list");
    let node = nodes.iter().find(|node| node["label"] == device).expect("it is listed");
    node["id"].as_str().expect("an id").to_owned()
}

#[test]
fn groups_and_grants_are_made_shown_and_withdrawn() {
    let lab = Lab::start_without_grants(&[]);
    let till = enrolled(&lab, "till-1", "site=12,kind=till");
    let kiosk = enrolled(&lab, "kiosk-1", "site=12,kind=kiosk");
    let by = |selector: &str| {
        let list = ok(&lab, &["node", "ls", "--where", selector]);
        let nodes = list["nodes"].as_array().expect("a list");
        nodes.iter().map(|node| node["label"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(by("kind=till"), ["till-1"]);
    assert_eq!(by("site=12,role!=relay").len(), 2);
    assert!(by("kind notin (till, kiosk)").is_empty());

    // A selector that selects nothing or everything is mostly a mistake.
    refused(&lab, &["group", "set", "tills", "kind=tills"], 2, "selects none of the 2 nodes");
    refused(&lab, &["group", "set", "tills", "site=12"], 2, "every node");
    refused(&lab, &["group", "set", "tills", "kind=="], 2, "character 6");
    refused(&lab, &["group", "set", "tills"], 2, "");
    ok(&lab, &["group", "set", "site", "site=12", "--yes"]);
    let set = ok(&lab, &["group", "set", "tills", "kind = till"]);
    assert_eq!((&set["selector"], &set["selected"], &set["of"]), (&json!("kind=till"), &json!(1), &json!(2)));
    let listed = ok(&lab, &["group", "set", "two", "--nodes", &format!("{till},{kiosk}")]);
    assert_eq!(listed["selected"], 2);
    let page = ok(&lab, &["group", "show", "two", "--limit", "1"]);
    let after = page["after"].as_str().expect("there are more");
    assert_eq!(
        ok(&lab, &["group", "show", "two", "--after", after])["nodes"].as_array().map(Vec::len),
        Some(1)
    );
    refused(&lab, &["group", "show", "none"], 3, "distd group ls");

    // Grants.
    assert_eq!(ok(&lab, &["grant", "ls"])["grants"], json!([]));
    let args =
        ["grant", "add", "tills", "os:stable", "app-*:*", "--rights", "read,seed", "--until", "2999-01-01"];
    let made = ok(&lab, &args);
    let grants = made["grants"].as_array().expect("a list");
    assert_eq!(grants.len(), 2);
    assert_eq!((&grants[0]["rights"], &grants[1]["releases"]), (&json!(["read", "seed"]), &json!("app-*:*")));
    let id = grants[0]["id"].to_string();
    let open = ok(&lab, &["grant", "add", "everyone", "public", "--for", "90d", "--by-certificate"]);
    assert_eq!(
        (&open["grants"][0]["by_certificate"], &open["grants"][0]["group"]),
        (&json!(true), &json!("everyone"))
    );
    refused(&lab, &["grant", "add", "none", "os"], 3, "distd group set none");
    refused(&lab, &["grant", "add", "tills", "os", "--rights", "seed"], 2, "read");
    refused(&lab, &["grant", "add", "tills", "os", "--by-certificate"], 2, "everyone");
    refused(&lab, &["grant", "add", "tills", "os", "--until", "soon"], 2, "2027-01-31");
    refused(&lab, &["grant", "add", "tills", "os@1"], 2, "pattern");
    refused(&lab, &["grant", "add", "tills", "os", "--until", "2999-01-01", "--for", "1d"], 2, "");
    refused(&lab, &["group", "rm", "tills"], 5, "distd grant rm");

    // A node's page, and an operator's label that takes it out of the group.
    let shown = ok(&lab, &["node", "show", &till]);
    assert_eq!(shown["groups"], json!(["everyone", "site", "tills", "two"]));
    assert_eq!(shown["grants"].as_array().map(Vec::len), Some(3));
    assert_eq!(shown["node"]["labels"]["token"], json!({"site": "12", "kind": "till"}));
    let labels = ok(&lab, &["node", "label", &till, "kind=spare", "note=", "none-"]);
    assert_eq!(labels["operator"], json!({"kind": "spare", "note": ""}));
    let shown = ok(&lab, &["node", "show", &till]);
    assert_eq!(shown["groups"], json!(["everyone", "site", "two"]));
    let text = as_text(&lab, &["node", "show", &till]);
    for word in ["kind=spare", "replaced by the operator's", "join token", "public", "groups"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    ok(&lab, &["node", "label", &till, "kind-", "note-"]);
    assert_eq!(by("kind=till"), ["till-1"]);
    refused(&lab, &["node", "label", &till, "role=relay"], 2, "role");
    refused(&lab, &["node", "label", &till, "kind"], 2, "KEY-");
    refused(&lab, &["node", "label", &till, "a=1", "a-"], 2, "twice");
    refused(&lab, &["node", "label", &"0".repeat(32), "a=1"], 3, "distd node ls");
    refused(&lab, &["node", "show", &"0".repeat(32)], 3, "distd node ls");

    ok(&lab, &["grant", "rm", &id]);
    refused(&lab, &["grant", "rm", &id], 3, "distd grant ls");
    ok(&lab, &["grant", "rm", &grants[1]["id"].to_string()]);
    ok(&lab, &["group", "rm", "tills"]);
    let groups = ok(&lab, &["group", "ls"]);
    let names: Vec<_> =
        groups["groups"].as_array().expect("a list").iter().map(|g| g["name"].clone()).collect();
    assert_eq!(names, ["everyone", "site", "two"]);
    for list in [["group", "ls"], ["grant", "ls"], ["node", "ls"], ["token", "ls"]] {
        assert!(as_text(&lab, &list).lines().count() > 1, "{list:?}");
    }
    refused(&lab, &["token", "join", "--labels", "site"], 2, "KEY=VALUE");
}

/// Runs an administrator's command without `--json`; returns what it prints.
fn as_text(lab: &Lab, args: &[&str]) -> String {
    let mut command = Command::new(binary("distd"));
    let output = command.arg("--data").arg(lab.path("admin")).args(args).output().expect("run distd");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_fleet_is_summed_up_listed_and_shown() {
    let lab = Lab::start_without_grants(&[]);
    let till = enrolled(&lab, "till-1", "site=12");
    enrolled(&lab, "kiosk-1", "site=13");
    let status = ok(&lab, &["fleet", "status"]);
    assert_eq!((&status["devices"], &status["contact"]["unknown"]), (&json!(2), &json!(2)));
    assert_eq!(ok(&lab, &["fleet", "status", "--where", "site=12"])["devices"], 1);
    refused(&lab, &["fleet", "status", "--group", "none"], 3, "group");
    let ids = |args: &[&str]| {
        let page = ok(&lab, &[&["fleet", "ls"], args].concat());
        page["devices"].as_array().expect("a list").len()
    };
    assert_eq!(ids(&[]), 2);
    assert_eq!(ids(&["--where", "site=12", "--contact", "unknown", "--state", "unknown"]), 1);
    assert_eq!(ids(&["--state", "failed"]), 0);
    refused(&lab, &["fleet", "ls", "--state", "late"], 2, "up_to_date");
    let page = ok(&lab, &["fleet", "ls", "--limit", "1"]);
    assert_eq!(ids(&["--after", page["after"].as_str().expect("there are more")]), 1);
    let node = ok(&lab, &["fleet", "show", &till]);
    assert_eq!(node["node"]["labels"]["token"]["site"], "12");
    assert!(node["why"][0].to_string().contains("no report"), "{node}");
    assert_eq!(ok(&lab, &["why", &till])["why"], node["why"]);
    refused(&lab, &["fleet", "show", &"0".repeat(32)], 3, "distd node ls");
}

#[test]
fn the_audit_log_is_listed_exported_and_checked() {
    let lab = Lab::start_without_grants(&[]);
    let till = enrolled(&lab, "till-1", "site=12");
    let list = ok(&lab, &["audit", "ls", "--action", "node.enrol"]);
    assert_eq!(list["entries"][0]["subject"], till.as_str());
    let head = ok(&lab, &["audit", "verify"]);
    let head = head["head"].as_str().expect("a head").to_owned();
    ok(&lab, &["node", "label", &till, "site=13"]);
    ok(&lab, &["audit", "verify", "--expect", &head]);
    let (number, _) = head.split_once(':').expect("a number");
    let other = format!("{number}:{}", "0".repeat(64));
    refused(&lab, &["audit", "verify", "--expect", &other], 8, &format!("entry {number}"));

    let exported = lab.admin(&["audit", "export"]).ok().stdout;
    let file = lab.path("audit.jsonl");
    let path = file.to_str().expect("UTF-8").to_owned();
    std::fs::write(&file, &exported).expect("write");
    let read = ok(&lab, &["audit", "verify", "--file", &path]);
    let last = read["head"].as_str().expect("a head").to_owned();
    std::fs::write(&file, exported.replacen("node.enrol", "node.label", 1)).expect("write");
    refused(&lab, &["audit", "verify", "--file", &path], 8, "not what was written");
    let lines: Vec<_> = exported.lines().collect();
    std::fs::write(&file, [&lines[..1], &lines[2..]].concat().join("\n")).expect("write");
    refused(&lab, &["audit", "verify", "--file", &path], 8, "entry 2 of the audit log is missing");
    std::fs::write(&file, lines[..lines.len() - 1].join("\n")).expect("write");
    ok(&lab, &["audit", "verify", "--file", &path]);
    refused(&lab, &["audit", "verify", "--file", &path, "--expect", &last], 8, "ends before entry");
}

#[test]
fn tokens_of_hawkbits_devices_are_made_listed_and_revoked() {
    let lab = Lab::start_without_grants(&[]);
    let image = lab.path("image");
    std::fs::write(&image, vec![7; 100_000]).expect("write");
    lab.push(&image, "os", "1").ok();
    ok(&lab, &["channel", "set", "os:stable", "1"]);
    refused(&lab, &["ddi", "token", "create", "os:none"], 3, "no channel");
    refused(&lab, &["ddi", "token", "create", "os:stable", "--target", "a/b"], 2, "no id of a device");
    let made =
        ok(&lab, &["ddi", "token", "create", "os:stable", "--target", "till-1", "--labels", "site=12"]);
    assert!(made["token"].as_str().is_some_and(|token| token.len() == 43), "{made}");
    let nodes = ok(&lab, &["node", "ls", "--where", "site=12"]);
    assert_eq!((&nodes["nodes"][0]["id"], &nodes["nodes"][0]["ddi"]), (&made["node"], &json!(true)));
    let out = lab.path("gateway.token");
    let path = out.to_str().expect("text");
    let args = ["ddi", "token", "create", "os:stable", "--admit", "5", "--label", "gateway", "--out", path];
    let gateway = ok(&lab, &args);
    assert_eq!((&gateway["token"], &gateway["node"]), (&Value::Null, &Value::Null));
    assert_eq!(std::fs::read_to_string(&out).expect("a file").trim().len(), 43);
    let id = gateway["id"].as_str().expect("an id");
    let state = |id: &str| {
        let list = ok(&lab, &["ddi", "token", "ls"]);
        let tokens = list["tokens"].as_array().expect("a list").clone();
        let token = tokens.into_iter().find(|token| token["id"] == id).expect("listed");
        (token["state"].clone(), token["admits"].clone(), token["label"].clone())
    };
    assert_eq!(state(id), (json!("valid"), json!(5), json!("gateway")));
    ok(&lab, &["ddi", "token", "rm", id]);
    assert_eq!(state(id).0, "revoked");
}
