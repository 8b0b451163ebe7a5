//! The real clients of hawkBit's DDI: rauc-hawkbit-updater with RAUC, and SWUpdate's suricatta.
//!
//! `tests/hawkbit/run.sh` makes roots of Debian releases with these programs and names them in
//! `DISTD_TEST_RAUC_ROOT` and `DISTD_TEST_SWUPDATE_ROOT`. Without a root the programs of this
//! machine are run, if there are any. They need root rights.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use distd_peer::trust::token::sha256;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::*;

/// Where a client's programs are.
struct Place {
    root: Option<PathBuf>,
    /// Directory of the test's files, as the programs see it.
    dir: String,
}

impl Place {
    /// The root that a variable names, or this machine if it has `program`; `None` without either.
    fn of(variable: &str, program: &str) -> Option<Self> {
        let own = format!("/tmp/distd-ddi-{}-{program}", std::process::id());
        let root = std::env::var(variable).ok().map(PathBuf::from);
        let known = Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if root.is_none() && (known.is_err() || !rustix::process::geteuid().is_root()) {
            eprintln!("skipped: {variable} names no root, and {program} is not here");
            return None;
        }
        let place = Self { root, dir: own };
        let _ = std::fs::remove_dir_all(place.path(""));
        std::fs::create_dir_all(place.path("")).expect("a directory");
        Some(place)
    }

    /// A file of the test, as this process sees it.
    fn path(&self, name: &str) -> PathBuf {
        let root = self.root.as_deref().unwrap_or(Path::new("/"));
        root.join(self.dir.trim_start_matches('/')).join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).expect("written");
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_default()
    }

    /// A shell that runs `script` in the test's directory.
    fn shell(&self, script: &str) -> Command {
        let mut command = match &self.root {
            Some(root) => {
                let mut command = Command::new("chroot");
                command.arg(root).arg("/bin/sh");
                command
            }
            None => Command::new("/bin/sh"),
        };
        command.arg("-ec").arg(format!("cd {}; {script}", self.dir));
        command
    }

    /// Runs a script to its end.
    fn run(&self, script: &str) {
        let output = self.shell(script).output().expect("a shell");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{script}\n{}{}", said(&output.stdout), said(&output.stderr));
    }

    /// Runs a script to its end with programs of this machine, in the test's directory.
    fn outside(&self, script: &str) {
        let output = Command::new("/bin/sh").arg("-ec").arg(script).current_dir(self.path("")).output();
        let output = output.expect("a shell");
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts a script whose output goes to the file `log`.
    fn start(&self, script: &str, log: &str) -> Running {
        let file = std::fs::File::create(self.path(log)).expect("a file");
        let errors = file.try_clone().expect("a file");
        let mut command = self.shell(&format!("exec {script}"));
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn().expect("a shell");
        Running(child)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(self.path(""));
        }
    }
}

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An origin with plain HTTP, which answers DDI.
async fn origin() -> World {
    let settings = [("ddi", "true"), ("http_plain", "true"), ("ddi_poll", "10s"), ("patches", "false")];
    let world = World::open_with(tempfile::tempdir().expect("tempdir"), &settings).await;
    let grant = json!({"group": "everyone", "releases": ["*"]});
    assert_eq!(world.json(Method::POST, "/v1/grants", Some(grant)).await.0, StatusCode::CREATED);
    world
}

async fn publish(world: &World, version: &str, bytes: Vec<u8>) {
    let (status, made) = world.put_content("os", version, bytes).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let path = "/v1/products/os/channels/stable";
    let (status, moved) = world.json(Method::PUT, path, Some(json!({"version": version}))).await;
    assert_eq!(status, StatusCode::OK, "{moved}");
}

async fn token(world: &World, more: Value) -> String {
    let mut body = json!({"product": "os", "channel": "stable"});
    body.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
    let (status, made) = world.json(Method::POST, "/v1/ddi/tokens", Some(body)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    text(&made["token"])
}

/// What the fleet knows about the one device.
async fn seen(world: &World) -> Value {
    let (_, nodes) = world.get("/v1/nodes").await;
    let Some(node) = nodes["nodes"].get(0) else { return Value::Null };
    world.get(&format!("/v1/fleet/nodes/{}", text(&node["id"]))).await.1
}

/// Waits, longer than for events of this process, until `holds` of what the fleet knows.
async fn until(world: &World, place: &Place, log: &str, what: &str, holds: impl Fn(&Value) -> bool) {
    for _ in 0..600 {
        if holds(&seen(world).await) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never: {what}\n{}\n{:#}", String::from_utf8_lossy(&place.read(log)), seen(world).await);
}

fn runs(version: &'static str) -> impl Fn(&Value) -> bool {
    move |seen| seen["channels"][0]["version"] == version && seen["channels"][0]["update"] == "up_to_date"
}

/// Begins a rollout in one wave.
async fn roll_out(world: &World, version: &str, bytes: Vec<u8>) {
    let (status, made) = world.put_content("os", version, bytes).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let body = json!({"version": version, "waves": "100%", "soak": 0, "halt_on": "9", "attempts": 1});
    let path = "/v1/products/os/channels/stable/rollouts";
    let (status, begun) = world.json(Method::POST, path, Some(body)).await;
    assert_eq!(status, StatusCode::CREATED, "{begun}");
}

/// Makes an update for SWUpdate, signed as Debian's build wants it: CMS, a certificate in place of
/// a key, and a hardware revision. Its image has the hash `sum`, or its own.
fn swu(place: &Place, version: &str, image: &[u8], sum: Option<&str>) -> Vec<u8> {
    let hash = sum.map_or_else(|| hex::encode(sha256(image)), str::to_owned);
    place.write("image.bin", image);
    place.write(
        "sw-description",
        format!(
            "software = {{ version = \"{version}\"; hardware-compatibility: [\"1.0\"]; images: ({{ filename = \
             \"image.bin\"; device = \"{}/slot\"; type = \"raw\"; sha256 = \"{hash}\"; }}); }}\n",
            place.dir
        ),
    );
    place.write("slot", vec![0; 800_000]);
    place.outside(
        "[ -e key.pem ] || openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 3650 \
         -subj /CN=test -addext extendedKeyUsage=emailProtection -addext keyUsage=digitalSignature 2>/dev/null\n\
         openssl cms -sign -in sw-description -out sw-description.sig -signer cert.pem -inkey key.pem -outform DER \
         -nosmimecap -binary\n\
         printf 'sw-description\\nsw-description.sig\\nimage.bin\\n' | cpio -o -H crc > bundle.swu 2>/dev/null",
    );
    place.read("bundle.swu")
}

#[tokio::test(flavor = "multi_thread")]
async fn swupdate_installs_and_tells_of_failures() {
    let Some(place) = Place::of("DISTD_TEST_SWUPDATE_ROOT", "swupdate") else { return };
    let world = origin().await;
    let image = |seed| noise(seed, 700_000);
    publish(&world, "1", swu(&place, "1", &image(1), None)).await;
    let name = json!({"name": "os_@v.swu"});
    assert_eq!(world.json(Method::PUT, "/v1/products/os/file-name", Some(name)).await.0, StatusCode::OK);
    let token = token(&world, json!({"target": "till-1"})).await;
    place.write(
        "swupdate.cfg",
        format!(
            "globals : {{ verbose = true; loglevel = 5; public-key-file = \"{}/cert.pem\"; }};\n\
             suricatta : {{ tenant = \"default\"; id = \"till-1\"; targettoken = \"{token}\"; }};\n\
             identify : ( {{ name = \"model\"; value = \"T1\"; }} );\n",
            place.dir
        ),
    );
    // Later releases have several modules, of which one is named.
    let help = place.shell("swupdate --help 2>&1 || true").output().expect("a shell").stdout;
    let module = if String::from_utf8_lossy(&help).contains("-S, --server") { "-S hawkbit" } else { "" };
    let start = |confirm: &str| {
        let arguments = format!("{module} {confirm} -u http://{}", world.running.http);
        let script = format!("swupdate -v -H till:1.0 -f swupdate.cfg -u '{}'", arguments.trim());
        place.start(&script, "log")
    };
    let log = || String::from_utf8_lossy(&place.read("log")).into_owned();
    // Attributes come at the start. The first poll after it, ten seconds later, installs.
    let client = start("");
    until(&world, &place, "log", "attributes come", |seen| seen["node"]["labels"]["facts"]["model"] == "T1")
        .await;
    let wrote = |seed: u64| place.read("slot").get(..700_000) == Some(&image(seed)[..]);
    for _ in 0..600 {
        if wrote(1) && log().contains("SWUPDATE successful") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(wrote(1), "{}", log());
    // SWUpdate closes the action at its next start, as after a restart into what it installed.
    assert_eq!(seen(&world).await["channels"][0]["version"], Value::Null);
    drop(client);
    let client = start("-c 2");
    until(&world, &place, "log", "the first release runs", runs("1")).await;

    // A rollout whose image is not what its description says.
    roll_out(&world, "2", swu(&place, "2", &image(2), Some(&"ab".repeat(32)))).await;
    until(&world, &place, "log", "the attempt fails", |seen| seen["attempts"][0]["state"] == "failed").await;
    let found = seen(&world).await;
    assert_eq!(found["channels"][0]["update"], "failed", "{found:#}");
    assert_ne!(found["attempts"][0]["detail"], "", "{found:#}");
    drop(client);
}

#[tokio::test(flavor = "multi_thread")]
async fn rauc_hawkbit_updater_installs_and_tells_of_progress_and_failures() {
    let Some(place) = Place::of("DISTD_TEST_RAUC_ROOT", "rauc-hawkbit-updater") else { return };
    let world = origin().await;
    place.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 3650 -subj /CN=test \
         -addext keyUsage=digitalSignature 2>/dev/null; truncate -s 2M slot0 slot1; mkdir data",
    );
    let dir = &place.dir;
    place.write(
        "boot.sh",
        format!(
            "#!/bin/sh\ncase \"$1\" in\nget-primary) cat {dir}/primary 2>/dev/null || echo A;;\n\
             set-primary) echo \"$2\" > {dir}/primary;;\nget-state) echo good;;\nget-current) echo A;;\nesac\n"
        ),
    );
    place.write(
        "system.conf",
        format!(
            "[system]\ncompatible=distd-test\nbootloader=custom\nbundle-formats=plain verity\ndata-directory={dir}/data\n\
             mountprefix={dir}/mnt\n[handlers]\nbootloader-custom-backend={dir}/boot.sh\n[keyring]\npath={dir}/cert.pem\n\
             check-purpose=any\n[slot.rootfs.0]\ndevice={dir}/slot0\ntype=raw\nbootname=A\n[slot.rootfs.1]\n\
             device={dir}/slot1\ntype=raw\nbootname=B\n"
        ),
    );
    place.write(
        "bus.conf",
        format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN\" \
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n<busconfig><type>system</type>\
             <listen>unix:path={dir}/bus</listen><policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/>\
             <allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>\n"
        ),
    );
    let image = |seed| noise(seed, 900_000);
    let bundle = |version: &str, compatible: &str, seed| {
        place.run("rm -rf in bundle.raucb; mkdir in; chmod +x boot.sh");
        place.write("in/image.img", image(seed));
        place.write(
            "in/manifest.raucm",
            format!(
                "[update]\ncompatible={compatible}\nversion={version}\n[bundle]\nformat=plain\n[image.rootfs]\nfilename=image.img\n"
            ),
        );
        place.run("rauc bundle --cert=cert.pem --key=key.pem in bundle.raucb 2>/dev/null");
        place.read("bundle.raucb")
    };
    publish(&world, "1", bundle("1", "distd-test", 1)).await;
    let name = json!({"name": "os_@v.raucb"});
    assert_eq!(world.json(Method::PUT, "/v1/products/os/file-name", Some(name)).await.0, StatusCode::OK);
    let token = token(&world, json!({"admits": 1})).await;
    place.write(
        "updater.conf",
        format!(
            "[client]\nhawkbit_server={}\nssl=false\ntenant_id=DEFAULT\ntarget_name=till-1\ngateway_token={token}\n\
             bundle_download_location={dir}/download.raucb\nretry_wait=1\nconnect_timeout=20\ntimeout=60\n\
             post_update_reboot=false\nlog_level=debug\n[device]\nmodel=T1\n",
            world.running.http
        ),
    );
    let bus = format!("DBUS_SYSTEM_BUS_ADDRESS=unix:path={dir}/bus");
    let _bus = place.start(&format!("dbus-daemon --config-file={dir}/bus.conf --nofork"), "bus.log");
    eventually("the bus listens", async || place.path("bus").exists()).await;
    let _rauc = place.start(&format!("env {bus} rauc -c {dir}/system.conf service"), "rauc.log");
    let rauc_is_up = async || String::from_utf8_lossy(&place.read("rauc.log")).contains("Booted into");
    eventually("RAUC serves", rauc_is_up).await;
    let _updater = place.start(&format!("env {bus} rauc-hawkbit-updater -c {dir}/updater.conf"), "log");
    until(&world, &place, "log", "the first release runs", runs("1")).await;
    assert!(place.read("slot1").get(..900_000) == Some(&image(1)[..]), "RAUC wrote the image");
    assert_eq!(seen(&world).await["node"]["labels"]["facts"]["model"], "T1");

    // Progress comes through while a rollout installs, and its end.
    roll_out(&world, "2", bundle("2", "distd-test", 2)).await;
    until(&world, &place, "log", "the rollout's release runs", runs("2")).await;
    let attempt = seen(&world).await["attempts"][0].clone();
    assert_eq!((&attempt["state"], &attempt["number"]), (&json!("succeeded"), &json!(1)));
    assert!(attempt["bytes_origin"].as_u64().expect("a number") > 900_000, "{attempt}");
    eventually("the rollout completes", async || {
        world.get("/v1/products/os/channels/stable/rollout").await.1["rollout"]["state"] == "complete"
    })
    .await;

    // A bundle for another system: RAUC refuses it, and the reason comes through.
    roll_out(&world, "3", bundle("3", "something-else", 3)).await;
    until(&world, &place, "log", "the attempt fails", |seen| seen["attempts"][0]["state"] == "failed").await;
    let found = seen(&world).await;
    assert_eq!(found["channels"][0]["update"], "failed", "{found:#}");
    assert_ne!(found["attempts"][0]["detail"], "", "{found:#}");
}
