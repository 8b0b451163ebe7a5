//! Real update clients, unchanged, install from a gateway: systemd-sysupdate and SWUpdate of Debian
//! 13, RAUC of this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use distd_tests::Rng;
use distd_tests::lab::{Daemon, Lab, binary, run, same, wait_until};
use distd_tests::later::LaterDebian;

/// Pushes a file as a release of `os`, and moves the channel to it.
fn release(lab: &Lab, version: &str, file: &Path) {
    lab.push(file, "os", version).ok();
    lab.admin(&["channel", "set", "os:stable", version]).ok();
}

fn write(lab: &Lab, name: &str, bytes: &[u8]) -> PathBuf {
    let path = lab.path(name);
    fs::write(&path, bytes).expect("write");
    path
}

/// Starts a device with a gateway; returns it and the gateway's address.
fn gateway(lab: &Lab) -> (Daemon, String) {
    lab.enroll("till", lab.quic());
    let mut command = lab.agent_command("till", "127.0.0.1:0");
    command.args(["--gateway", "127.0.0.1:0", "--offer", "os:stable", "--follow-poll-seconds", "1"]);
    let agent = Daemon::start(command, &lab.path("till.log"), "agent listening on ");
    let url = agent.said("gateway on ").trim_end_matches('/').to_owned();
    (agent, url)
}

/// Waits until a gateway names this version.
fn wait_for_version(url: &str, version: &str) {
    wait_until("the gateway has the channel's release", || {
        let listed = run(Command::new("curl")
            .args(["-sS", "--noproxy", "*"])
            .arg(format!("{url}/os/stable/SHA256SUMS")));
        listed.stdout.contains(&format!("_{version}."))
    });
}

#[test]
fn systemd_sysupdate_installs_signed_releases_and_removes_old_ones() {
    let lab = Lab::start();
    let Some(debian) = LaterDebian::open(&lab.path("debian")) else { return };
    let mut rng = Rng::new(30);
    let images: Vec<PathBuf> =
        (1..=3).map(|n| write(&lab, &format!("image-{n}"), &rng.bytes(2_000_000))).collect();
    release(&lab, "1", &images[0]);
    lab.admin(&["product", "set", "os", "--file-name", "os_@v.erofs"]).ok();
    let (agent, url) = gateway(&lab);

    let mut command = Command::new(binary("distd-server"));
    let key = command.args(["openpgp-key", "--data"]).arg(lab.path("origin")).output();
    let key = key.expect("run distd-server");
    assert!(key.status.success(), "{}", String::from_utf8_lossy(&key.stderr));
    debian.write("/etc/systemd/import-pubring.gpg", key.stdout);
    let transfer = format!(
        "[Transfer]\nVerify=yes\n[Source]\nType=url-file\nPath={url}/os/stable/\nMatchPattern=os_@v.erofs\n\
         [Target]\nType=regular-file\nPath=/var/lib/images\nMatchPattern=os_@v.erofs\nInstancesMax=2\n"
    );
    debian.write("/etc/sysupdate.d/os.transfer", transfer);
    debian.write("/var/lib/images/.keep", "");
    let sysupdate = |args: &[&str]| {
        let program: Vec<&str> = ["/usr/lib/systemd/systemd-sysupdate"].iter().chain(args).copied().collect();
        run(&mut debian.command(&program))
    };
    let installed = |version: &str| debian.changed(&format!("/var/lib/images/os_{version}.erofs"));
    for (version, image) in [("1", &images[0]), ("2", &images[1]), ("3", &images[2])] {
        release(&lab, version, image);
        wait_for_version(&url, version);
        let updated = sysupdate(&["update"]);
        assert_eq!(updated.code, 0, "{}\n{}", updated.stderr, agent.log());
        assert!(same(&installed(version), image), "version {version}");
    }
    assert!(!installed("1").exists(), "two instances stay");
    assert!(installed("2").exists());

    // The list of an attacker on the way is refused: the device trusts the realm's key alone.
    debian.write("/etc/systemd/import-pubring.gpg", "");
    fs::remove_file(installed("3")).expect("remove");
    let refused = sysupdate(&["update"]);
    assert_ne!(refused.code, 0);
    assert!(!installed("3").exists());
}

#[test]
fn swupdate_installs_a_release() {
    let lab = Lab::start();
    let Some(debian) = LaterDebian::open(&lab.path("debian")) else { return };
    let payload = Rng::new(31).bytes(500_000);
    let sha256 = sha256_of(&write(&lab, "payload", &payload));
    let description = format!(
        "software =\n{{\n  version = \"2\";\n  hardware-compatibility: [ \"1\" ];\n  files: ( {{ filename = \"payload\"; \
         path = \"/var/lib/installed\"; sha256 = \"{sha256}\"; }} );\n}}\n"
    );
    write(&lab, "sw-description", description.as_bytes());
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 30 -subj /CN=test \
                  -addext extendedKeyUsage=emailProtection -addext keyUsage=digitalSignature 2>/dev/null && \
                  openssl cms -sign -in sw-description -out sw-description.sig -signer cert.pem -inkey key.pem \
                  -outform DER -nosmimecap -binary && \
                  printf '%s\\n' sw-description sw-description.sig payload | cpio -o -H crc >os.swu";
    run(Command::new("sh").current_dir(lab.path("")).args(["-c", script])).ok();
    release(&lab, "1", &lab.path("os.swu"));
    let (agent, url) = gateway(&lab);
    debian.write("/etc/cert.pem", fs::read(lab.path("cert.pem")).expect("read"));
    let from = format!("-u {url}/os/stable/os.swu");
    let installed =
        run(&mut debian.command(&["swupdate", "-k", "/etc/cert.pem", "-H", "board:1", "-d", &from]));
    let there = fs::read(debian.changed("/var/lib/installed")).unwrap_or_default();
    assert!(there == payload, "{}\n{}\n{}", installed.stdout, installed.stderr, agent.log());
}

fn sha256_of(path: &Path) -> String {
    let sum = run(Command::new("sha256sum").arg(path)).ok();
    sum.stdout.split_whitespace().next().expect("a sum").to_owned()
}

#[test]
fn rauc_downloads_a_bundle() {
    let lab = Lab::start();
    fs::create_dir(lab.path("bundle")).expect("a directory");
    write(&lab, "bundle/rootfs.img", &Rng::new(32).bytes(1_000_000));
    let manifest = "[update]\ncompatible=board\nversion=7\n\n[image.rootfs]\nfilename=rootfs.img\n";
    write(&lab, "bundle/manifest.raucm", manifest.as_bytes());
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 30 -subj /CN=test \
                  2>/dev/null && rauc --cert=cert.pem --key=key.pem bundle bundle os.raucb";
    run(Command::new("sh").current_dir(lab.path("")).args(["-c", script])).ok();
    release(&lab, "7", &lab.path("os.raucb"));
    let (agent, url) = gateway(&lab);
    // The signature is over the whole bundle.
    let info = run(Command::new("rauc")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .arg(format!("--keyring={}", lab.path("cert.pem").display()))
        .arg("info")
        .arg(format!("{url}/os/stable/os.raucb")));
    let text = format!("{}{}", info.stdout, info.stderr);
    assert_eq!(info.code, 0, "{text}\n{}", agent.log());
    assert!(text.contains("board") && text.contains('7'), "{text}");
}
