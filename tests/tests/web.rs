//! The web page in a real browser: a person signs in with a token or at an OpenID provider, starts
//! a rollout, watches, halts and resumes it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use distd_tests::lab::{Lab, Running, run, wait_within};

const DEVICES: u64 = 12;

/// The directory of tests/web with its packages, and the browser; `None` where tests/run.sh did not
/// install them.
fn browser() -> Option<(PathBuf, String)> {
    let (Some(place), Ok(browser)) =
        (std::env::var_os("DISTD_TEST_WEB").map(PathBuf::from), std::env::var("DISTD_TEST_BROWSER"))
    else {
        eprintln!("NOT RUN: set DISTD_TEST_WEB and DISTD_TEST_BROWSER; tests/run.sh does");
        return None;
    };
    Some((place, browser))
}

#[test]
fn a_person_starts_watches_halts_and_resumes_a_rollout_in_a_browser() {
    let Some((place, browser)) = browser() else { return };
    let lab = Lab::start();
    for version in ["1", "2"] {
        let path = lab.path(&format!("release-{version}"));
        fs::write(&path, version.repeat(100_000)).expect("write");
        lab.push(&path, "os", version).ok();
    }
    lab.admin(&["channel", "set", "os:stable", "1"]).ok();
    let devices = DEVICES.to_string();
    let made = lab.admin(&["token", "join", "--uses", &devices, "--labels", "site=hamburg"]).ok().json;
    let token = lab.path("join");
    fs::write(&token, made["token"].as_str().expect("a token")).expect("write");
    let mut command = lab.command("simulator");
    command.args(["simulate", "os:stable", "--devices", &devices, "--parent", lab.quic()]);
    command.arg("--fleet").arg(lab.path("fleet")).arg("--token-file").arg(&token);
    command.args([
        "--fail",
        "0.0001%",
        "--fetch-time",
        "2s",
        "--check-time",
        "2s",
        "--follow-poll-seconds",
        "1",
    ]);
    let _fleet = Running::start(command);
    wait_within(Duration::from_secs(180), Duration::from_millis(300), "every device reports", || {
        let status = lab.admin(&["fleet", "status"]).ok().json;
        status["update"]["up_to_date"].as_u64() == Some(DEVICES)
    });
    let viewer =
        lab.admin(&["token", "create", "--scope", "read,view", "--label", "somebody who looks"]).ok().json;
    let admin = fs::read_to_string(lab.path("origin/admin.token")).expect("a token");
    let mut visit = Command::new("node");
    visit.arg(place.join("browse.mjs")).env("ORIGIN", format!("https://{}", lab.https()));
    visit.env("TOKEN", admin.trim()).env("VIEWER", viewer["token"].as_str().expect("a token"));
    visit.env("BROWSER", browser);
    if let Some(shots) = std::env::var_os("DISTD_WRITE_SHOTS") {
        visit.env("SHOTS", shots);
    }
    let visited = run(&mut visit);
    assert_eq!(visited.code, 0, "{}\n{}", visited.stdout, visited.stderr);
    // The script ended well only if it came to its last page.
    assert!(visited.stdout.contains("\"path\":\"/ui/audit\""), "{}", visited.stdout);
}

/// An OpenID provider that ends with the test.
struct Provider {
    child: Child,
    issuer: String,
    /// The provider ends when it cannot write what it has to say.
    _output: BufReader<ChildStdout>,
}

impl Provider {
    fn start(place: &std::path::Path, redirect: &str) -> Self {
        let mut command = Command::new("node");
        command
            .arg(place.join("provider.mjs"))
            .env("REDIRECT", redirect)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("node runs");
        let mut issuer = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        output.read_line(&mut issuer).expect("an address");
        Self { child, issuer: issuer.trim().to_owned(), _output: output }
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn people_sign_in_at_an_openid_provider_with_the_scopes_of_their_groups() {
    let Some((place, browser)) = browser() else { return };
    let mut lab = Lab::start();
    let origin = format!("https://{}", lab.https());
    let provider = Provider::start(&place, &format!("{origin}/ui/oidc"));
    let settings = lab.path("oidc.toml");
    let text = format!(
        "issuer = {:?}\nclient_id = \"distd\"\nclient_secret = \"a secret: with+odd&signs of 2026\"\nurl = {origin:?}\n\
         [groups]\noperators = [\"read\", \"view\"]\n",
        provider.issuer
    );
    fs::write(&settings, text).expect("write");
    fs::set_permissions(&settings, fs::Permissions::from_mode(0o600)).expect("a mode");
    lab.restart_origin_with(&["--oidc", &settings.display().to_string()]);
    let mut visit = Command::new("node");
    visit.arg(place.join("oidc.mjs")).env("ORIGIN", &origin).env("BROWSER", &browser);
    let visited = run(&mut visit);
    assert_eq!(visited.code, 0, "{}\n{}", visited.stdout, visited.stderr);
    assert_eq!(visited.stdout.trim(), "ops-anna");

    // She is a token without a secret: listed, in the audit log, and revoked as any other.
    let tokens = lab.admin(&["token", "ls"]).ok().json;
    let tokens = tokens["tokens"].as_array().expect("a list");
    let person = tokens.iter().find(|token| token["label"] == "ops-anna").expect("the person");
    assert_eq!(person["scopes"], serde_json::json!(["read", "view"]));
    let audit = lab.admin(&["audit", "ls"]).ok().json.to_string();
    assert!(audit.contains("token.person") && !audit.contains("mallory"), "{audit}");
    lab.admin(&["token", "revoke", person["id"].as_str().expect("an id")]).ok();
    let refused = run(&mut visit);
    assert_ne!(refused.code, 0, "{}", refused.stdout);
}
