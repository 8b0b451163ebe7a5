//! Mirrors, clients and disks that misbehave, and a proxy for apt between them.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use distd_tests::apt::{Apt, Conduct, Mirror, SUITE};
use distd_tests::apt_site::{Site, noise, ok};
use distd_tests::lab::{Running, run, wait_until};

#[test]
fn an_index_that_cannot_be_read_is_read_once() {
    let Some(site) = Site::start("") else { return };
    site.repository.package("one", "1", &noise(1, 5000));
    site.repository.publish(&["junk() { echo junk >$2.xz; }; junk"], true);
    let url = format!("{}/dists/{SUITE}", site.mirror.url());
    assert_eq!(site.curl(&format!("{url}/InRelease"), &[]).0, 200);
    let index = format!("{url}/main/binary-amd64/Packages.xz");
    for _ in 0..3 {
        assert_eq!(site.curl(&index, &[]), (200, b"junk\n".to_vec()));
    }
    assert_eq!((site.metric("indexes_unread_total"), site.metric("hits_total")), (1, 2), "{}", site.log());
}

#[test]
fn what_a_release_lists_is_read_again_when_its_names_are_gone() {
    let Some(mut site) = Site::start("") else { return };
    let debs = ["one", "two"].map(|name| site.repository.package(name, "1", &noise(1, 5000)));
    let debs = debs.map(|path| fs::read(site.repository.root.join(path)).expect("read"));
    site.repository.publish(&["xz"], true);
    let apt = site.apt("apt");
    ok(apt.update(), &site.log());
    let forget = |site: &mut Site| {
        drop(site.agent.take());
        fs::remove_dir_all(site.lab.path("till/apt/names")).expect("remove");
        site.mirror.forget();
        site.restart();
        apt.set_proxy(Some(&site.proxy));
    };
    // apt has its indexes and asks for a package alone.
    forget(&mut site);
    assert!(apt.download("one").expect("downloads") == debs[0]);
    assert_eq!((site.metric("unlisted_total"), site.metric("indexes_fetched_total")), (0, 1));
    // The mirror says that nothing changed.
    forget(&mut site);
    apt.clean(true);
    ok(apt.update(), &site.log());
    assert!(apt.download("two").expect("downloads") == debs[1]);
    let asked = site.mirror.all_asked();
    assert_eq!((site.metric("unlisted_total"), asked.len()), (0, 2), "{asked:?}\n{}", site.log());
}

#[test]
fn a_mirror_that_is_silent_costs_one_wait() {
    let Some(mut site) = Site::start("stall_seconds = 1") else { return };
    site.repository.package("one", "1", &noise(1, 5000));
    site.repository.publish(&["xz"], true);
    let release = format!("dists/{SUITE}/InRelease");
    let ask = |site: &Site, name: &str| {
        site.curl(&format!("{}/{}", site.mirror.url(), release.replace("InRelease", name)), &[]).0
    };
    let names = ["InRelease", "Release", "Release.gpg"];
    assert_eq!(names.map(|name| ask(&site, name)), [200; 3]);
    site.mirror.forget();
    site.mirror.set(Conduct::Silent);
    // The agent is started again because it asks for a Release file every 10 s at most.
    site.restart();
    assert_eq!(names.map(|name| ask(&site, name)), [200; 3], "the last files are given");
    assert_eq!(site.metric("stale_total"), 3);
    let asked: u64 = site.mirror.all_asked().values().sum();
    assert_eq!(asked, 1, "{:?}", site.mirror.all_asked());
}

#[test]
fn the_last_release_is_given_before_apt_gives_up() {
    // A mirror may be silent for 30 s, and so long does apt wait for the proxy.
    let Some(mut site) = Site::start("") else { return };
    site.repository.package("one", "1", &noise(1, 5000));
    site.repository.publish(&["xz"], true);
    let url = format!("{}/dists/{SUITE}/InRelease", site.mirror.url());
    let first = site.curl(&url, &[]);
    site.mirror.set(Conduct::Silent);
    // The agent is started again because it asks for a Release file every 10 s at most.
    site.restart();
    assert_eq!(site.curl(&url, &["--max-time", "29"]), first, "{}", site.log());
    assert_eq!((first.0, site.metric("stale_total")), (200, 1));
}

#[test]
fn a_request_that_nobody_answers_takes_no_room() {
    let Some(site) = Site::start("stall_seconds = 1\nmax_bytes = 1000000") else { return };
    let kept = site.repository.package("kept", "1", &noise(1, 400_000));
    let kept = fs::read(site.repository.root.join(kept)).expect("read");
    let large = site.repository.package("large", "1", &noise(2, 900_000));
    site.repository.publish(&["xz"], true);
    let apt = site.apt("apt");
    ok(apt.update(), &site.log());
    assert!(apt.download("kept").expect("downloads") == kept);
    let url = format!("{}/{large}", site.mirror.url());
    for (conduct, status) in [
        (Conduct::Dead, 504),
        (Conduct::Html, 502),
        (Conduct::Stalls(0), 504),
        (Conduct::Redirects("http://127.0.0.1:1/x".into()), 403),
        (Conduct::Silent, 504),
    ] {
        site.mirror.set(conduct.clone());
        assert_eq!(site.curl(&url, &[]).0, status, "{conduct:?}");
        assert_eq!(site.metric("evicted_total"), 0, "{conduct:?}: {}", site.log());
    }
    apt.clean(false);
    assert!(apt.download("kept").expect("it is here") == kept);
    site.mirror.set(Conduct::Good);
    assert_eq!(site.curl(&url, &[]).0, 200);
    assert!(site.metric("evicted_total") > 0, "it makes room when it comes");
}

#[test]
fn a_download_goes_on_at_the_mirror_of_another_asker() {
    let lab_mirror = tempfile::tempdir().expect("a directory");
    let second = Mirror::start(lab_mirror.path());
    let Some(site) = Site::start_with("", &[second.address.to_string()]) else { return };
    let path = site.repository.package("large", "1", &noise(1, 3_000_000));
    let content = fs::read(site.repository.root.join(&path)).expect("read");
    site.repository.publish(&["xz"], true);
    run(Command::new("cp").arg("-a").arg(site.repository.root.join(".")).arg(lab_mirror.path())).ok();
    ok(site.apt("first").update(), &site.log());
    let sources = site.sources().replace(&site.mirror.url(), &second.url());
    let other = Apt::new(&site.lab.path("second"), &sources, Some(&site.proxy));
    ok(other.update(), &site.log());
    second.forget();
    // The mirror of the first who asks sends a part and nothing more.
    site.mirror.set(Conduct::Stalls(1_000_000));
    let out = site.lab.path("first.deb");
    let mut command = Command::new("curl");
    command.args(["-sS", "--proxy", &site.proxy, "-o"]).arg(&out);
    let first = Running::start({
        command.arg(format!("{}/{path}", site.mirror.url()));
        command
    });
    wait_until("the first mirror is asked", || site.mirror.asked(&format!("/{path}")) == 1);
    assert!(other.download("large").expect("downloads") == content, "{}", site.log());
    assert_eq!(first.wait().code, 0, "{}", site.log());
    assert!(fs::read(&out).expect("read") == content, "the first gets the rest too");
    assert_eq!((site.mirror.asked(&format!("/{path}")), second.asked(&format!("/{path}"))), (1, 1));
    assert_eq!(second.sent(), content.len() as u64 - 1_000_000, "the rest alone");
    assert_eq!(site.metric("joined_total"), 1);
}

#[test]
fn a_mirror_that_misbehaves_fills_no_cache_and_delivers_nothing_wrong() {
    let Some(site) = Site::start("stall_seconds = 1") else { return };
    let small = site.repository.package("small", "1", &noise(1, 200_000));
    let large = site.repository.package("large", "1", &noise(2, 4_000_000));
    let bytes = |path: &str| fs::read(site.repository.root.join(path)).expect("read");
    let (small, large) = ((bytes(&small), small), (bytes(&large), large));
    site.repository.publish(&["xz"], true);
    let apt = site.apt("apt");
    ok(apt.update(), &site.log());
    let kept = site.metric("store_bytes");
    let inward = TcpListener::bind("127.0.0.1:0").expect("a port");
    let inward = format!("http://{}/secret.deb", inward.local_addr().expect("an address"));
    let url = |path: &str| format!("{}/{path}", site.mirror.url());
    let with_apt = [Conduct::Lies, Conduct::Html, Conduct::Redirects(inward.clone()), Conduct::Dead];
    for (conduct, status) in [
        (Conduct::Lies, 502),
        (Conduct::Html, 502),
        (Conduct::Redirects(inward), 403),
        (Conduct::Redirects("http://169.254.169.254/latest/meta-data".into()), 403),
        (Conduct::Redirects("http://[::ffff:127.0.0.1]/x".into()), 403),
        (Conduct::Redirects("file:///etc/passwd".into()), 403),
        (Conduct::Redirects(url(&small.1)), 403),
        (Conduct::Dead, 504),
        (Conduct::Stalls(0), 504),
        (Conduct::ClosesEarly(0, 100), 504),
    ] {
        site.mirror.set(conduct.clone());
        let (answered, body) = site.curl(&url(&small.1), &[]);
        assert_eq!(answered, status, "{conduct:?}: {}\n{}", String::from_utf8_lossy(&body), site.log());
        if with_apt.contains(&conduct) {
            apt.download("small").expect_err("nothing is delivered");
            apt.clean(false);
        }
        assert_eq!(site.metric("store_bytes"), kept, "{conduct:?}: nothing is kept");
    }
    // A large file is read while it arrives; a wrong one has no end.
    site.mirror.set(Conduct::Lies);
    let (answered, body) = site.curl(&url(&large.1), &[]);
    assert_eq!(answered, 200);
    assert!(body.len() < large.0.len(), "the last part of a wrong file is held back");
    apt.download("large").expect_err("nothing wrong is delivered");
    apt.clean(false);
    assert_eq!(site.metric("store_bytes"), kept);
    assert!(site.metric("wrong_total") >= 4, "{}", site.log());

    // A mirror that breaks off is asked for the rest.
    let before = site.metric("resumed_total");
    site.mirror.set(Conduct::ClosesEarly(1_000_000, 2));
    assert!(apt.download("large").expect("downloads") == large.0);
    assert_eq!(site.metric("resumed_total") - before, 2);
    site.mirror.set(Conduct::Good);
    assert!(apt.download("small").expect("downloads") == small.0);
    assert!(site.metric("store_bytes") > kept);
    assert_eq!(site.metric("unlisted_total"), 0);
}

#[test]
fn hostile_clients_harm_nobody_else() {
    use std::io::{Read, Write};
    let Some(site) = Site::start("") else { return };
    let large = site.repository.package("large", "1", &noise(2, 20_000_000));
    let bytes = fs::read(site.repository.root.join(&large)).expect("read");
    site.repository.publish(&["xz"], true);
    let apt = site.apt("apt");
    ok(apt.update(), &site.log());
    let url = format!("{}/{large}", site.mirror.url());
    let at = site.proxy.trim_start_matches("http://").to_owned();
    // Clients that ask for a large file and read a byte, one after the other.
    let mut slow: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(&at).expect("connects");
            write!(stream, "GET {url} HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
            stream
        })
        .collect();
    let mut byte = [0];
    slow[39].read_exact(&mut byte).expect("a byte");
    assert!(apt.download("large").expect("downloads") == bytes);
    assert_eq!(site.mirror.asked(&format!("/{large}")), 1, "one download for all");
    assert!(site.metric("connections_refused_total") >= 8, "those above 32 of one address made room");
    drop(slow);

    for (range, status, length) in [
        ("0-9,5-14", 200, bytes.len()),
        ("0-0,0-0,0-0,0-0", 200, bytes.len()),
        ("10-99999999999999999999999", 206, bytes.len() - 10),
        ("99999999999999999999999-", 416, 0),
        ("-5", 206, 5),
        ("5-2", 200, bytes.len()),
    ] {
        let (answered, body) = site.curl(&url, &["-H", &format!("Range: bytes={range}")]);
        assert_eq!((answered, body.len()), (status, length), "{range}");
    }
    let many = (0..3000).map(|n| format!("{n}-{n}")).collect::<Vec<_>>().join(",");
    let (answered, _) = site.curl(&url, &["-H", &format!("Range: bytes={many}")]);
    assert!(answered == 431 || answered == 200, "{answered}");
    // Pieces that are no HTTP, and heads without end.
    for junk in
        [&b"\x16\x03\x01\x02"[..], b"GET http://h\x00/ HTTP/1.1\r\n\r\n", b"\r\n\r\n\r\n", &[b'a'; 70_000]]
    {
        let mut stream = std::net::TcpStream::connect(&at).expect("connects");
        let _ = stream.write_all(junk);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut out = Vec::new();
        let _ = stream.read_to_end(&mut out);
        let out = String::from_utf8_lossy(&out);
        assert!(out.is_empty() || out.starts_with("HTTP/1.1 4"), "{out}");
    }
    apt.clean(false);
    assert!(apt.download("large").expect("downloads") == bytes);
}

#[test]
fn a_full_disk_still_serves() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT RUN: only root can mount a small disk");
        return;
    }
    let Some(mut site) = Site::start("") else { return };
    drop(site.agent.take());
    let cache = site.lab.path("small");
    fs::create_dir_all(&cache).expect("a directory");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(&cache)).ok();
    let path = site.lab.path("till/client.toml");
    let text =
        fs::read_to_string(&path).expect("read").replace("min_free_bytes = 1000000", "min_free_bytes = 0");
    fs::write(&path, format!("{text}directory = \"{}\"\n", cache.display())).expect("write");
    site.restart();
    let large = site.repository.package("large", "1", &noise(2, 4_000_000));
    let bytes = fs::read(site.repository.root.join(&large)).expect("read");
    site.repository.publish(&["xz"], true);
    let apt = site.apt("apt");
    ok(apt.update(), &site.log());
    // More than the disk has: passed on, and verified on the way.
    assert!(apt.download("large").expect("downloads") == bytes, "{}", site.log());
    assert!(site.metric("unstored_total") > 0);
    apt.clean(false);
    site.mirror.set(Conduct::Lies);
    apt.download("large").expect_err("nothing wrong is delivered");
    site.mirror.set(Conduct::Good);
    // No room at all, not even for an index.
    let fill = cache.join("fill");
    let _ = fs::write(&fill, vec![0; 4 << 20]);
    let second = site.apt("second");
    ok(second.update(), &site.log());
    assert!(second.download("large").expect("downloads") == bytes, "{}", site.log());
    drop(site.agent.take());
    run(Command::new("umount").arg(&cache)).ok();
}
