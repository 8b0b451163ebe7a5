//! The real apt installs through the proxy of a device.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use distd_tests::apt::{Apt, Conduct, Mirror, Repository, SUITE, configuration_in_root};
use distd_tests::apt_site::{Site, noise, ok};
use distd_tests::lab::{Running, run, wait_until};
use distd_tests::later::LaterDebian;

#[test]
fn apt_installs_cold_warm_and_offline() {
    let Some(mut site) = Site::start("") else { return };
    site.trust_key();
    let repository = &site.repository;
    // Characters that apt escapes in its requests.
    let debs = [
        repository.package("plain", "1", &noise(1, 300_000)),
        repository.package("g++x", "1:2~rc1+b1", &noise(2, 3_000_000)),
    ];
    let debs = debs.map(|path| fs::read(repository.root.join(path)).expect("read"));
    repository.source("src", &noise(3, 100_000));
    repository.publish(&["xz", "gzip"], true);
    repository.flat("flat", "lone", &noise(4, 10_000));

    let first = site.apt("first");
    ok(first.update(), &site.log());
    assert!(first.download("plain").expect("downloads") == debs[0]);
    assert!(first.download("g++x").expect("downloads") == debs[1]);
    ok(first.get(&["source", "--download-only", "src"]), &site.log());
    assert_eq!(site.metric("unlisted_total"), 0, "{:?}\n{}", site.mirror.all_asked(), site.log());
    assert_eq!((site.metric("signatures_good_total"), site.metric("indexes_unread_total")), (1, 0));
    assert!(site.mirror.all_asked().keys().any(|path| path.contains("/by-hash/SHA256/")));

    // Warm: no package crosses the uplink again.
    site.mirror.forget();
    let second = site.apt("second");
    ok(second.update(), &site.log());
    assert!(second.download("g++x").expect("downloads") == debs[1]);
    ok(second.get(&["source", "--download-only", "src"]), &site.log());
    assert_eq!(site.mirror.sent(), 0, "{:?}", site.mirror.all_asked());

    // Offline, after a power cut: the last indexes are given.
    site.mirror.set(Conduct::Dead);
    site.restart();
    let third = site.apt("third");
    ok(third.update(), &site.log());
    assert!(third.download("plain").expect("downloads") == debs[0]);
    assert!(third.download("g++x").expect("downloads") == debs[1]);
    assert!(site.metric("stale_total") > 0);
    assert_eq!(site.metric("received_bytes_total"), 0);

    // The mirror is back, and nothing has changed: the question costs no bytes.
    site.mirror.set(Conduct::Good);
    site.mirror.forget();
    site.restart();
    third.set_proxy(Some(&site.proxy));
    ok(third.update(), &site.log());
    assert_eq!(site.mirror.sent(), 0, "{:?}", site.mirror.all_asked());
    assert!(site.metric("not_modified_total") > 0, "apt has it already");

    let flat = Apt::new(
        &site.lab.path("flat"),
        &format!("deb [signed-by={}] {}/flat ./\n", site.repository.keyring.display(), site.mirror.url()),
        Some(&site.proxy),
    );
    ok(flat.update(), &site.log());
    flat.download("lone").expect("downloads");
    assert_eq!(site.metric("unlisted_total"), 0, "{:?}", site.mirror.all_asked());
}

#[test]
fn indexes_in_every_packing_are_read_before_apt_has_them() {
    let Some(site) = Site::start("") else { return };
    for (number, packing) in
        ["gzip", "bzip2", "xz", "zstd -q", "lz4 -q", "xz --format=lzma"].into_iter().enumerate()
    {
        let tool = packing.split(' ').next().expect("a word");
        if run(Command::new("sh").args(["-c", &format!("command -v {tool}")])).code != 0 {
            eprintln!("NOT RUN: {tool} is missing");
            continue;
        }
        // A suite of its own, as a Release file is good for some seconds.
        let _ = fs::remove_dir_all(site.repository.root.join("pool"));
        let deb = site.repository.package("one", "1", &noise(1, 50_000));
        let deb = fs::read(site.repository.root.join(deb)).expect("read");
        site.repository.publish(&[packing], number % 2 == 0);
        let dists = site.repository.root.join("dists");
        let root = site.repository.root.join(format!("r{number}"));
        fs::create_dir_all(&root).expect("a directory");
        fs::rename(&dists, root.join("dists")).expect("move");
        fs::rename(site.repository.root.join("pool"), root.join("pool")).expect("move");
        // Only the packed index is there.
        fs::remove_file(root.join(format!("dists/{SUITE}/main/binary-amd64/Packages"))).expect("remove");
        let sources = format!(
            "deb [signed-by={}] {}/r{number} {SUITE} main\n",
            site.repository.keyring.display(),
            site.mirror.url()
        );
        let apt = Apt::new(&site.lab.path(&format!("apt{number}")), &sources, Some(&site.proxy));
        ok(apt.update(), &site.log());
        assert!(apt.download("one").expect(packing) == deb, "{packing}");
        assert_eq!(site.metric("unlisted_total"), 0, "{packing}: {:?}", site.mirror.all_asked());
        assert_eq!(site.metric("indexes_unread_total"), 0, "{packing}: {}", site.log());
    }
}

#[test]
fn packages_of_a_patched_index_are_listed() {
    let Some(mut site) = Site::start("") else { return };
    site.repository.fill(2000);
    site.repository.package("old", "1", &noise(1, 5000));
    site.repository.publish(&["xz"], true);
    let apt = site.apt("apt");
    ok(apt.update(), &site.log());
    let deb = site.repository.package("new", "1", &noise(2, 5000));
    let deb = fs::read(site.repository.root.join(deb)).expect("read");
    site.repository.publish_patch();
    site.mirror.forget();
    // The agent is started again because it asks for a Release file every 10 s at most.
    site.restart();
    apt.set_proxy(Some(&site.proxy));
    ok(apt.update(), &site.log());
    let asked = site.mirror.all_asked();
    assert!(asked.keys().any(|path| path.ends_with("/Packages.diff/T1.gz")), "{asked:?}");
    assert_eq!(site.metric("unlisted_total"), 0, "{asked:?}");
    // apt never asked for the index that names the package, so the proxy does.
    assert!(apt.download("new").expect("downloads") == deb, "{}", site.log());
    assert_eq!(
        (site.metric("indexes_fetched_total"), site.metric("unlisted_total")),
        (1, 0),
        "{}",
        site.log()
    );
}

#[test]
fn the_modes_of_signatures_take_and_refuse() {
    let Some(mut site) = Site::start("") else { return };
    site.repository.package("one", "1", &noise(1, 1000));
    site.repository.publish(&["xz"], true);
    let other = Repository::new(&site.lab.path("other")).expect("tools");
    other.package("one", "1", &noise(2, 1000));
    other.publish(&["xz"], true);
    let release = format!("dists/{SUITE}/InRelease");
    let root = site.repository.root.clone();
    let url = format!("{}/{release}", site.mirror.url());
    let ask = |site: &Site| site.curl(&url, &[]).0;
    let set_mode = |site: &mut Site, mode: &str| {
        drop(site.agent.take());
        let path = site.lab.path("till/client.toml");
        let text = fs::read_to_string(&path).expect("read");
        let text: String =
            text.lines().filter(|line| !line.starts_with("signatures")).map(|l| format!("{l}\n")).collect();
        fs::write(&path, format!("{text}signatures = \"{mode}\"\n")).expect("write");
        site.restart();
    };
    let forget = |site: &mut Site, mode: &str| {
        drop(site.agent.take());
        fs::remove_dir_all(site.lab.path("till/apt")).expect("remove");
        set_mode(site, mode);
    };
    // No key is here: auto takes it, enforce refuses it.
    assert_eq!((ask(&site), site.metric("signatures_unchecked_total")), (200, 1));
    forget(&mut site, "enforce");
    assert_eq!((ask(&site), site.metric("signatures_refused_total")), (502, 1));
    let library = site.lab.path("till/apt/names");
    assert_eq!(fs::read_dir(library).expect("a directory").count(), 0, "nothing is learnt from it");
    site.trust_key();
    assert_eq!((ask(&site), site.metric("signatures_good_total")), (200, 1), "{}", site.log());
    // The key is here now: a file that another key signed, a changed one, and one without a
    // signature are refused after this one was right.
    for mode in ["auto", "enforce"] {
        let good = fs::read(root.join(&release)).expect("read");
        let foreign = fs::read(other.root.join(&release)).expect("read");
        let text = String::from_utf8(good.clone()).expect("text");
        let changed = text.replace("Origin: Test", "Origin: Evil").into_bytes();
        let bare = fs::read(root.join(format!("dists/{SUITE}/Release"))).expect("read");
        let behind = [good.clone(), b"Suite: evil\n".to_vec()].concat();
        for (what, bytes) in [("foreign", foreign), ("changed", changed), ("bare", bare), ("behind", behind)]
        {
            forget(&mut site, mode);
            assert_eq!(ask(&site), 200);
            site.restart();
            site.repository.replace(&release, &bytes);
            assert_eq!(ask(&site), 502, "{mode}, {what}: {}", site.log());
            site.repository.replace(&release, &good);
            assert_eq!(ask(&site), 200, "{mode}, after {what}");
        }
    }
    // What a key has signed stays when the check is off, and when the plain file of the same suite
    // comes without a signature.
    let good = fs::read(root.join(&release)).expect("read");
    let plain = format!("dists/{SUITE}/Release");
    let names = |site: &Site| {
        let names = fs::read_dir(site.lab.path("till/apt/names")).expect("a directory").flatten();
        let mut names: Vec<_> =
            names.map(|entry| (entry.file_name(), entry.metadata().map(|m| m.len()).ok())).collect();
        names.sort();
        names
    };
    forget(&mut site, "auto");
    assert_eq!(ask(&site), 200);
    let signature = fs::read(root.join(format!("{plain}.gpg"))).expect("read");
    fs::remove_file(root.join(format!("{plain}.gpg"))).expect("remove");
    assert_eq!(site.curl(&url.replace("InRelease", "Release"), &[]).0, 502, "the suite has a key");
    let verified = names(&site);
    assert_eq!(verified.len(), 1);
    for mode in ["warn", "off"] {
        set_mode(&mut site, mode);
        let foreign = fs::read(other.root.join(&release)).expect("read");
        site.repository.replace(&release, &foreign);
        let (status, body) = site.curl(&url, &[]);
        assert!(status == 200 && body == foreign, "{mode}: apt decides");
        assert_eq!(site.curl(&url.replace("InRelease", "Release"), &[]).0, 200);
        assert_eq!(names(&site), verified, "{mode}: {}", site.log());
        // A file that the other one may name otherwise is not held against the verified names.
        let index = format!("dists/{SUITE}/main/binary-amd64/Packages.xz");
        let kept = fs::read(root.join(&index)).expect("read");
        site.repository.replace(&index, b"another");
        assert_eq!(site.curl(&format!("{}/{index}", site.mirror.url()), &[]), (200, b"another".to_vec()));
        site.repository.replace(&index, &kept);
        site.mirror.set(Conduct::Dead);
        site.restart();
        assert_eq!(site.curl(&url, &[]), (200, good.clone()), "{mode}, offline");
        site.mirror.set(Conduct::Good);
    }
    site.repository.replace(&release, &good);
    site.repository.replace(&format!("{plain}.gpg"), &signature);
    // A signature beside the file.
    forget(&mut site, "enforce");
    fs::remove_file(root.join(&release)).expect("remove");
    let apt = site.apt("apt");
    ok(apt.update(), &site.log());
    apt.download("one").expect("downloads");
    fs::remove_file(root.join(format!("dists/{SUITE}/Release.gpg"))).expect("remove");
    forget(&mut site, "enforce");
    assert_eq!(site.curl(&url.replace("InRelease", "Release"), &[]).0, 502);
    for mode in ["warn", "off"] {
        forget(&mut site, mode);
        assert_eq!(site.curl(&url.replace("InRelease", "Release"), &[]).0, 200, "{mode}");
        assert_eq!(site.metric("signatures_refused_total"), 0);
    }
}

#[test]
fn only_hosts_on_the_list_are_asked_and_idle_tunnels_end() {
    // A server that answers what it is told, and one that the operator did not name.
    let echo = TcpListener::bind("127.0.0.1:0").expect("a port");
    let echo_at = echo.local_addr().expect("an address").to_string();
    let hidden = TcpListener::bind("127.0.0.1:0").expect("a port");
    let hidden_port = hidden.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in echo.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = stream.try_clone().expect("a handle");
                std::io::copy(&mut reader, &mut stream)
            });
        }
    });
    let listed = format!("tunnel_idle_seconds = 1\nhosts = [\"localhost:{hidden_port}\"]");
    let Some(site) = Site::start_with(&listed, std::slice::from_ref(&echo_at)) else { return };
    for (url, status) in [
        ("http://example.org/x".to_owned(), 403),
        (format!("http://127.0.0.1:{hidden_port}/x"), 403),
        (format!("http://localhost:{hidden_port}/x"), 403),
        ("http://169.254.169.254/latest".to_owned(), 403),
        ("http://[::ffff:127.0.0.1]/x".to_owned(), 403),
        ("http://deb.debian.org:22/x".to_owned(), 403),
        (format!("http://{}/%zz", site.mirror.address), 400),
        (format!("http://{}/../../etc/passwd", site.mirror.address), 400),
        (format!("http://{}/none", site.mirror.address), 404),
    ] {
        assert_eq!(site.curl(&url, &[]).0, status, "{url}");
    }
    let own = format!("{}/x", site.proxy);
    assert_eq!(site.curl(&own, &["--noproxy", "*"]).0, 400, "it is no server");
    assert_eq!(site.curl(&own, &[]).0, 403, "nor does it ask itself");
    assert_eq!(site.curl(&format!("{}/x", site.mirror.url()), &["-X", "POST", "-d", "x"]).0, 405);
    let refused = site.metric("hosts_refused_total");
    assert!(refused >= 6, "{refused}");

    // Tunnels.
    let at = site.proxy.trim_start_matches("http://").to_owned();
    let connect = |to: &str| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(&at).expect("connects");
        write!(stream, "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").expect("write");
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("read") == 1 {
            head.push(byte[0]);
        }
        (String::from_utf8_lossy(&head).into_owned(), stream)
    };
    for to in [
        "example.org:443".to_owned(),
        format!("localhost:{hidden_port}"),
        "deb.debian.org:25".to_owned(),
        "deb.debian.org:80".to_owned(),
        "127.0.0.1:443".to_owned(),
    ] {
        let (head, _) = connect(&to);
        assert!(head.starts_with("HTTP/1.1 403"), "{to}: {head}");
    }
    assert_eq!(site.metric("tunnels_total"), 0);
    let (head, mut stream) = connect(&echo_at);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    use std::io::{Read, Write};
    stream.write_all(b"through").expect("write");
    let mut echoed = [0; 7];
    stream.read_exact(&mut echoed).expect("read");
    assert_eq!(&echoed, b"through");
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0, "nothing moves, so the tunnel ends");
    assert_eq!((site.metric("tunnels_total"), site.metric("tunnels_idle_total")), (1, 1));
}

#[test]
fn apt_finds_the_proxy_and_does_without_it() {
    let Some(mut site) = Site::start("") else { return };
    let deb = site.repository.package("one", "1", &noise(1, 300_000));
    let bytes = fs::read(site.repository.root.join(&deb)).expect("read");
    site.repository.publish(&["xz"], true);
    let apt = Apt::new(&site.lab.path("apt"), &site.sources(), None);
    // The address has to stay the same when the agent is started again.
    let path = site.lab.path("till/client.toml");
    let text = fs::read_to_string(&path).expect("read");
    let keys = site.lab.path("keys").display().to_string();
    let listen = site.proxy.trim_start_matches("http://").to_owned();
    let text = text.replace("127.0.0.1:0", &listen).replace(&keys, &apt.etc().display().to_string());
    fs::write(&path, text).expect("write");
    site.restart();
    assert_eq!(site.distd(&["status"]).ok().json["enabled"], false);
    site.distd(&["enable"]).ok();
    assert_eq!(site.distd(&["enable"]).ok().json["changed"], false, "the second time changes nothing");
    let status = site.distd(&["status"]).ok().json;
    assert_eq!((&status["enabled"], &status["answers"]), (&true.into(), &true.into()), "{status}");

    let round = |site: &Site, what: &str| {
        apt.clean(true);
        let updated = apt.update();
        assert_eq!(updated.code, 0, "{what}: {}{}", updated.stdout, updated.stderr);
        assert!(apt.download("one").expect(what) == bytes, "{what}: {}", site.log());
    };
    round(&site, "with the agent");
    let asked = site.metric("requests_total");
    assert!(asked >= 3, "apt went through the proxy: {asked}");
    // A repository that the proxy does not ask goes on without it.
    let elsewhere = Mirror::start(&site.repository.root);
    let sources = site.sources().replace(&site.mirror.url(), &elsewhere.url());
    let other = Apt::new(&site.lab.path("other"), &sources, None);
    fs::copy(apt.etc().join("apt.conf.d/30distd"), other.etc().join("apt.conf.d/30distd")).expect("copy");
    assert_eq!(other.update().code, 0);
    assert_eq!(site.metric("requests_total"), asked);

    // Frozen: the system takes connections, and nobody answers.
    let agent = site.agent().id();
    let signal = |name: &str| run(Command::new("kill").args([name, &agent.to_string()])).ok();
    signal("-STOP");
    round(&site, "frozen");
    signal("-CONT");
    assert_eq!(site.metric("requests_total"), asked);
    // Killed in the middle of a download: that apt fails or goes on, the next one succeeds.
    site.mirror.set(Conduct::Slow(200_000));
    apt.clean(false);
    fs::remove_dir_all(site.lab.path("till/apt/objects")).expect("remove");
    let agent = site.agent.take().expect("it runs");
    drop(agent);
    site.restart();
    let mut command = apt.command("apt-get", &["install", "--download-only", "one"]);
    let mut running = command.spawn().expect("apt-get");
    wait_until("the download has begun", || site.metric("received_bytes_total") > 0);
    drop(site.agent.take());
    running.wait().expect("apt-get ends");
    site.mirror.set(Conduct::Good);
    assert!(apt.download("one").expect("the next run") == bytes);
    round(&site, "stopped");
    // Removed, with the files of the configuration left behind.
    fs::remove_dir_all(site.lab.path("till/apt")).expect("remove");
    round(&site, "removed");
    // Disabled.
    let snippet = apt.etc().join("apt.conf.d/30distd");
    fs::write(&snippet, "// mine\n").expect("write");
    let refused = site.distd(&["disable"]);
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert_eq!(fs::read_to_string(&snippet).expect("read"), "// mine\n");
    fs::remove_file(&snippet).expect("remove");
    site.distd(&["disable"]).ok();
    assert!(!apt.etc().join("distd-proxy-detect").exists());
    round(&site, "disabled");
}

#[test]
fn packages_of_debian_itself_are_listed() {
    let Ok(mirror) = std::env::var("DISTD_TEST_DEBIAN_MIRROR") else {
        eprintln!("NOT RUN: set DISTD_TEST_DEBIAN_MIRROR to a mirror, as in http://deb.debian.org/debian");
        return;
    };
    // Some networks lead the name to a mirror of their own.
    let host = mirror.split('/').nth(2).expect("a host");
    let Some(site) = Site::start_with("", &[format!("{host}:80")]) else { return };
    let sources =
        format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} bookworm main\n");
    let apt = Apt::new(&site.lab.path("debian"), &sources, Some(&site.proxy));
    ok(apt.update(), &site.log());
    apt.download("hostname").expect("downloads");
    assert_eq!(
        (site.metric("unlisted_total"), site.metric("indexes_unread_total")),
        (0, 0),
        "{}",
        site.log()
    );
    let first = site.metric("received_bytes_total");
    apt.clean(true);
    ok(apt.update(), &site.log());
    apt.download("hostname").expect("downloads");
    // A mirror that knows no dates sends its Release file again, and no more.
    let again = site.metric("received_bytes_total") - first;
    assert!(again < 1_000_000, "{again} bytes");
    println!("{first} bytes; {} bytes of memory at most", site.agent().peak_bytes());
}

#[test]
fn apt_of_debian_13_installs() {
    let Some(site) = Site::start("") else { return };
    let Some(debian) = LaterDebian::open(&site.lab.path("debian")) else { return };
    let deb = site.repository.package("g++x", "2~rc1+b1", &noise(2, 3_000_000));
    let deb = fs::read(site.repository.root.join(deb)).expect("read");
    site.repository.publish(&["xz"], true);
    debian.write("/apt/key.gpg", fs::read(&site.repository.keyring).expect("read"));
    debian.write("/apt/status", "");
    for dir in [
        "etc/apt/preferences.d",
        "etc/apt/apt.conf.d",
        "var/lib/apt/lists/partial",
        "var/cache/apt/archives/partial",
    ] {
        debian.write(&format!("/apt/{dir}/.keep"), "");
    }
    let sources = format!("deb [signed-by=/apt/key.gpg] {} {SUITE} main\n", site.mirror.url());
    debian.write("/apt/etc/apt/sources.list", sources);
    debian.write("/apt/apt.conf", configuration_in_root(&site.proxy));
    let get = |args: &[&str]| {
        let mut command = debian.command(&[&["apt-get"], args].concat());
        run(command.env("APT_CONFIG", "/apt/apt.conf"))
    };
    let version = run(&mut debian.command(&["apt-get", "--version"]));
    if !version.stdout.starts_with("apt ") {
        eprintln!("NOT RUN: the later Debian has no apt");
        return;
    }
    assert!(version.stdout.starts_with("apt 3."), "{}", version.stdout);
    ok(get(&["update", "-o", "APT::Update::Error-Mode=any"]), &site.log());
    ok(get(&["install", "--download-only", "g++x"]), &site.log());
    let archives = debian.changed("/apt/var/cache/apt/archives");
    let found = fs::read_dir(archives).expect("a directory").flatten().map(|entry| entry.path());
    let found = found.into_iter().find(|path| path.to_string_lossy().contains("g++x_")).expect("a package");
    assert!(fs::read(found).expect("read") == deb);
    assert_eq!(site.metric("unlisted_total"), 0, "{:?}", site.mirror.all_asked());
    // Apt makes 10 requests at once on one connection; all were answered.
    assert_eq!(site.metric("refused_total"), 0);
}

#[test]
fn commands_fill_show_pin_and_clear_the_cache() {
    let Some(site) = Site::start("") else { return };
    let paths =
        ["here", "there"].map(|name| site.repository.package(name, "1", &noise(name.len() as u64, 100_000)));
    let bytes = paths.each_ref().map(|path| fs::read(site.repository.root.join(path)).expect("read"));
    site.repository.publish(&["xz"], true);
    let apt = site.apt("apt");
    ok(apt.update(), &site.log());
    // A package that somebody brought on a disk is not asked for.
    let archive = site.lab.path("archive/below");
    fs::create_dir_all(&archive).expect("a directory");
    fs::write(archive.join("here_1_amd64.deb"), &bytes[0]).expect("write");
    fs::write(archive.join("note.txt"), "x").expect("write");
    let command = |args: &[&str]| run(site.lab.command("till").args(args));
    let top = site.lab.path("archive").display().to_string();
    assert_eq!(command(&["seed", "import", &top]).ok().number("imported"), 0, "not below");
    assert_eq!(command(&["seed", "import", "-r", &top]).ok().number("imported"), 1);
    assert_eq!(command(&["seed", "import", "-r", &top]).ok().number("present"), 1);
    let note = archive.join("note.txt").display().to_string();
    assert_eq!(command(&["seed", "import", &note]).code, 9, "no package");
    assert!(apt.download("here").expect("from the cache") == bytes[0]);
    assert_eq!(site.mirror.asked(&format!("/{}", paths[0])), 0);
    // What comes later is taken over as it comes.
    let watch = site.lab.path("watch");
    fs::create_dir_all(&watch).expect("a directory");
    let files = || command(&["cache", "stats"]).ok().number("files");
    let before = files();
    let mut watching = site.lab.command("till");
    watching.args(["seed", "import", "--watch"]).arg(&watch);
    let mut watching = Running::start(watching);
    let later = site.repository.package("later", "1", &noise(9, 1000));
    fs::copy(site.repository.root.join(later), watch.join("later_1_amd64.deb")).expect("copy");
    wait_until("the package is taken over", || files() == before + 1);
    watching.kill();
    command(&["cache", "rm", "later*"]);
    assert!(apt.download("there").expect("from the mirror") == bytes[1]);

    let stats = command(&["cache", "stats"]).ok();
    assert_eq!(stats.number("bytes"), site.metric("store_bytes"));
    let listed = command(&["seed", "ls"]).ok();
    if listed.json["files"].as_array().is_some_and(Vec::is_empty) {
        eprintln!("NOT RUN: names are not noted on this file system");
        return;
    }
    assert_eq!(listed.json["files"].as_array().map(Vec::len), Some(2), "{}", listed.json);
    assert_eq!(command(&["cache", "ls", "here*"]).ok().json["files"][0]["bytes"], bytes[0].len());
    assert_eq!(command(&["cache", "pin", "there*"]).ok().number("files"), 1);
    assert_eq!(command(&["cache", "pins"]).ok().json["files"].as_array().map(Vec::len), Some(1));
    assert_eq!(command(&["cache", "rm", "nothing*"]).code, 3);
    assert_eq!(command(&["cache", "rm", "here_1_amd64.deb"]).ok().number("files"), 1);
    command(&["cache", "clear"]).ok();
    let left = command(&["cache", "top"]).ok();
    assert_eq!(left.json["files"].as_array().map(Vec::len), Some(1), "{}", left.json);
    // The agent notices: what is gone comes from the mirror again, what is pinned does not.
    site.mirror.forget();
    apt.clean(false);
    assert!(apt.download("here").expect("downloads") == bytes[0], "{}", site.log());
    assert!(apt.download("there").expect("downloads") == bytes[1]);
    assert_eq!(site.mirror.asked(&format!("/{}", paths[0])), 1);
    assert_eq!(site.mirror.asked(&format!("/{}", paths[1])), 0);
    command(&["cache", "unpin", "there*"]).ok();
    command(&["cache", "clear"]).ok();
    assert_eq!(command(&["cache", "stats"]).ok().number("files"), 0);
}
