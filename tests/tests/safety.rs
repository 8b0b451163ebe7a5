//! Nothing of the user's is lost on a device: the places that `--out` accepts, the places that it
//! must not touch, and the writes of a second pull.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use distd_tests::Rng;
use distd_tests::disks::{Elsewhere, Loop, Mount, can_mount, is_root};
use distd_tests::lab::{Lab, Outcome, same};

const USAGE: i32 = 2;
const LOCAL: i32 = 7;
const INTEGRITY: i32 = 8;
const UNUSABLE: i32 = 9;

#[track_caller]
fn fails(outcome: &Outcome, code: i32, says: &str) {
    assert_eq!(outcome.code, code, "{}", outcome.stderr);
    assert!(outcome.stderr.contains(says), "{:?} is not in: {}", says, outcome.stderr);
    assert!(outcome.stderr.contains("next:"), "no advice: {}", outcome.stderr);
    assert_eq!(outcome.json["error"]["exit"], code, "{}", outcome.json);
}

/// An origin with an image `os` and a tree `t` in two versions each, and a device.
fn lab() -> Lab {
    let lab = Lab::start();
    let mut rng = Rng::announced("safety", 91);
    for version in ["1", "2"] {
        let image = lab.path(&format!("image{version}"));
        fs::write(&image, rng.bytes(3_000_000)).expect("write");
        lab.push(&image, "os", version).ok();
        let tree = lab.path(&format!("tree{version}"));
        fs::create_dir_all(tree.join("sub/data")).expect("mkdir");
        fs::write(tree.join("sub/f"), version.repeat(5000)).expect("write");
        fs::write(tree.join("conf"), format!("version={version}")).expect("write");
        lab.push(&tree, "t", version).ok();
    }
    lab.enroll("d", lab.quic());
    lab
}

/// Names in a directory.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("list")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Pulls from within another directory, with `--out` in the form `out`.
fn pull_in(lab: &Lab, dir: &Path, wanted: &str, out: &str) -> Outcome {
    let mut command = lab.command("d");
    command.current_dir(dir).args(["pull", wanted, "--out", out, "--no-share"]);
    Outcome::of(command.output().expect("run distd"))
}

#[test]
fn a_directory_that_distd_did_not_fill_is_refused_and_left_alone() {
    let lab = lab();
    let home = lab.path("home");
    for name in ["notes.txt", ".hidden", "empty/"] {
        fs::create_dir(&home).expect("mkdir");
        if name.ends_with('/') {
            fs::create_dir(home.join(name)).expect("mkdir");
        } else {
            fs::write(home.join(name), "precious").expect("write");
        }
        for (dir, out) in [("", "home"), ("", "home/"), ("home", "."), ("", "./home")] {
            let refused = pull_in(&lab, &lab.path(dir), "t@1", out);
            fails(&refused, LOCAL, "is not empty");
        }
        let plan = lab.device("d", &["plan", "t@1", "--out", &home.display().to_string()]);
        fails(&plan, LOCAL, "is not empty");
        assert_eq!(names(&home), [name.trim_end_matches('/')]);
        assert!(!names(&lab.path("")).iter().any(|name| name.starts_with("home.")), "nothing was begun");
        fs::remove_dir_all(&home).expect("remove");
    }
    // An empty directory is accepted.
    fs::create_dir(&home).expect("mkdir");
    lab.pull("d", "t@1", &home, &[]).ok();
    // A tree of distd's: it may be updated.
    lab.pull("d", "t@2", &home, &[]).ok();
    assert_eq!(fs::read(home.join("conf")).expect("read"), b"version=2");
    // Another directory under the name of a tree that was moved away.
    fs::rename(&home, lab.path("moved")).expect("rename");
    fs::create_dir(&home).expect("mkdir");
    fs::write(home.join("notes.txt"), "precious").expect("write");
    fails(&lab.pull("d", "t@1", &home, &[]), LOCAL, "does not hold what distd put there");
    assert_eq!(fs::read(home.join("notes.txt")).expect("read"), b"precious");
    // A directory beside which the manifest of a file lies.
    fs::remove_dir_all(&home).expect("remove");
    for side in ["home.distd", "home.distd-tree"] {
        fs::remove_file(lab.path(side)).expect("remove");
    }
    lab.pull("d", "os@1", &home, &[]).ok();
    fs::remove_file(&home).expect("remove");
    fs::create_dir(&home).expect("mkdir");
    fs::write(home.join("notes.txt"), "precious").expect("write");
    fails(&lab.pull("d", "t@1", &home, &[]), LOCAL, "is not empty");
    assert_eq!(names(&home), ["notes.txt"]);
}

#[test]
fn what_was_added_to_a_tree_or_edited_in_it_is_kept_beside_it() {
    let lab = lab();
    let out = lab.path("out");
    lab.pull("d", "t@1", &out, &[]).ok();
    fs::write(out.join("sub/mine"), "mine").expect("write");
    fs::create_dir(out.join("var")).expect("mkdir");
    fs::write(out.join("var/.db"), "mine too").expect("write");
    fs::write(out.join("conf"), "edited on the device").expect("write");
    let update = lab.pull("d", "t@2", &out, &[]).ok();
    assert_eq!(fs::read(out.join("conf")).expect("read"), b"version=2");
    assert_eq!(names(&out), ["conf", "sub"]);
    let kept = PathBuf::from(update.json["kept"].as_str().expect("where it is kept"));
    assert_eq!(kept, fs::canonicalize(lab.path("out.distd-kept")).expect("canonical"));
    assert_eq!(fs::read(kept.join("sub/mine")).expect("read"), b"mine");
    assert_eq!(fs::read(kept.join("var/.db")).expect("read"), b"mine too");
    assert_eq!(fs::read(kept.join("conf")).expect("read"), b"edited on the device");
    assert!(!kept.join("sub/f").exists(), "what distd put there is not kept");
    assert!(!lab.path("out.distd-part").exists());
    // The user edited nothing, so nothing is kept.
    let again = lab.pull("d", "t@1", &out, &[]).ok();
    assert_eq!(again.json["kept"], serde_json::Value::Null);
    assert!(!lab.path("out.distd-kept-2").exists());
}

#[test]
fn mounts_at_or_below_out_are_refused_before_anything_is_written() {
    if !can_mount() {
        return;
    }
    let lab = lab();
    let out = lab.path("app");
    lab.pull("d", "t@1", &out, &[]).ok();
    let volume = lab.path("volume");
    fs::create_dir(&volume).expect("mkdir");
    fs::write(volume.join("db"), "keep").expect("write");
    let source = volume.display().to_string();
    let bind = ["--bind", source.as_str()];
    for at in ["sub/data", "sub", ""] {
        let _mounted = Mount::on(&bind, &out.join(at));
        for _ in 0..2 {
            fails(&lab.pull("d", "t@2", &out, &[]), LOCAL, "mounted");
        }
        assert_eq!(fs::read(volume.join("db")).expect("read"), b"keep", "{at:?}");
        assert!(!lab.path("app.distd-part").exists(), "nothing was begun");
    }
    // A mount in a namespace that this process does not see.
    let mut elsewhere = Elsewhere::mount(&["--bind", &source, &out.join("sub/data").display().to_string()]);
    fails(&lab.pull("d", "t@2", &out, &[]), LOCAL, "another mount namespace");
    elsewhere.end();
    // A file that is mounted over the target, and one below a tree.
    let file = volume.join("db").display().to_string();
    {
        let _mounted = Mount::on(&["--bind", file.as_str()], &out.join("conf"));
        fails(&lab.pull("d", "t@2", &out, &[]), LOCAL, "mounted");
        let image = lab.path("image-slot");
        lab.pull("d", "os@1", &image, &[]).ok();
        let _mounted = Mount::on(&["--bind", file.as_str()], &image);
        fails(&lab.pull("d", "os@2", &image, &[]), LOCAL, "mounted");
    }
    // A mount in the staging directory, left by an earlier program.
    let left = lab.path("app.distd-part/tree/data");
    fs::create_dir_all(&left).expect("mkdir");
    {
        let _mounted = Mount::on(&bind, &left);
        fails(&lab.pull("d", "t@2", &out, &[]), LOCAL, "mounted");
        assert_eq!(fs::read(volume.join("db")).expect("read"), b"keep");
    }
    lab.pull("d", "t@2", &out, &[]).ok();
    assert_eq!(fs::read(out.join("conf")).expect("read"), b"version=2");
    assert!(!lab.path("app.distd-part").exists());
}

#[test]
fn a_block_device_in_use_is_not_written() {
    if !can_mount() {
        return;
    }
    let lab = lab();
    let slot = Loop::new(&lab.path("slot.img"), 32 << 20);
    let made = Command::new("mkfs.ext4").arg("-q").arg(slot.path()).status();
    assert!(made.expect("run mkfs.ext4").success());
    let node = slot.path().display().to_string();
    let link = lab.path("by-label");
    symlink(slot.path(), &link).expect("link");
    let mount = lab.path("mnt");
    for options in [&["-o", "rw"][..], &["-o", "ro"]] {
        let args: Vec<&str> = options.iter().copied().chain([node.as_str()]).collect();
        let mounted = Mount::new(&args, &mount);
        let at = fs::canonicalize(&mount).expect("canonical").display().to_string();
        for out in [slot.path(), &link] {
            fails(&lab.pull("d", "os@1", out, &[]), LOCAL, &at);
        }
        let push = lab.push(slot.path(), "torn", options[1]);
        match options[1] {
            "rw" => fails(&push, UNUSABLE, "mounted"),
            _ => drop(push.ok()),
        }
        drop(mounted);
    }
    // Mounted in another mount namespace: only the kernel and the processes there know.
    let mut elsewhere = Elsewhere::mount(&[&node, &mount.display().to_string()]);
    fails(&lab.pull("d", "os@1", slot.path(), &[]), LOCAL, "another mount namespace");
    fails(&lab.push(slot.path(), "torn", "elsewhere"), UNUSABLE, "another mount namespace");
    elsewhere.end();
    // Below another block device.
    {
        let _above = Loop::over(slot.path());
        fails(&lab.pull("d", "os@1", slot.path(), &[]), LOCAL, "is in use by");
    }
    let check = Command::new("e2fsck").args(["-fn"]).arg(slot.path()).output().expect("run e2fsck");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    // The device is free: it is written.
    lab.pull("d", "os@1", slot.path(), &[]).ok();
    let swap = Loop::new(&lab.path("swap.img"), 8 << 20);
    if Command::new("mkswap").arg(swap.path()).output().is_ok_and(|made| made.status.success())
        && Command::new("swapon").arg(swap.path()).status().is_ok_and(|on| on.success())
    {
        let refused = lab.pull("d", "os@1", swap.path(), &[]);
        let off = Command::new("swapoff").arg(swap.path()).status();
        fails(&refused, LOCAL, "swap");
        assert!(off.expect("run swapoff").success());
    }
}

#[test]
fn no_file_is_made_below_dev() {
    let lab = lab();
    let name = format!("/dev/distd-no-slot-{}", std::process::id());
    let link = lab.path("slot");
    symlink(&name, &link).expect("link");
    symlink("/dev", lab.path("devices")).expect("link");
    let through = lab.path("devices").join(name.trim_start_matches("/dev/"));
    for out in [Path::new(&name), &link, &through] {
        for wanted in ["os@1", "t@1"] {
            fails(&lab.pull("d", wanted, out, &[]), LOCAL, "is not a block device");
        }
    }
    let left = names(Path::new("/dev"));
    assert!(!left.iter().any(|name| name.starts_with("distd-no-slot")), "{left:?}");
}

#[test]
fn pipes_devices_sockets_and_streams_are_refused_at_once() {
    if !is_root() {
        return;
    }
    let lab = lab();
    let (pipe, null, socket) = (lab.path("pipe"), lab.path("null"), lab.path("socket"));
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let make = |path: &Path, kind, dev| {
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, dev).expect("make a node");
    };
    make(&pipe, rustix::fs::FileType::Fifo, 0);
    make(&null, rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("socket");
    let out = lab.path("out").display().to_string();
    for path in [&pipe, &null, &socket] {
        let path = path.display().to_string();
        let commands: [&[&str]; 5] = [
            &["pull", "os@1", "--out", &path],
            &["pull", "os@1", "--out", &out, "--seed", &path],
            &["plan", "os@1", "--out", &path],
            &["plan", "os@1", "--seed", &path],
            &["verify", &path],
        ];
        for command in commands {
            // Only the test runner would end a hang, so the command has a time limit here.
            let mut limited = Command::new("timeout");
            let distd = lab.command("d");
            limited.arg("30").arg(distd.get_program()).args(distd.get_args()).args(command);
            let outcome = Outcome::of(limited.output().expect("run timeout"));
            fails(&outcome, LOCAL, "must be a file, a directory or a block device");
        }
    }
    assert!(fs::symlink_metadata(&pipe).expect("stat").file_type().is_fifo());
    assert!(fs::symlink_metadata(&null).expect("stat").file_type().is_char_device());
    for command in [&["pull", "os@1", "--out", "-"][..], &["plan", "os@1", "--seed", "-"], &["verify", "-"]] {
        fails(&lab.device("d", command), USAGE, "stream");
    }
    assert!(!names(&lab.path("")).iter().any(|name| name.contains("distd-part")));
}

#[test]
fn every_spelling_of_a_path_is_the_same_artifact() {
    let lab = lab();
    let work = lab.path("work");
    fs::create_dir(&work).expect("mkdir");
    for (n, out) in ["new/", "new2//", "new3/.", "./new4", "sub/../new5"].into_iter().enumerate() {
        if out.starts_with("sub") {
            fs::create_dir(work.join("sub")).expect("mkdir");
        }
        pull_in(&lab, &work, "t@1", out).ok();
        pull_in(&lab, &work, "t@2", out).ok();
        let dir = work.join(["new", "new2", "new3", "new4", "new5"][n]);
        assert_eq!(names(&dir), ["conf", "sub"], "{out}");
    }
    // The current directory.
    let here = work.join("here");
    fs::create_dir(&here).expect("mkdir");
    pull_in(&lab, &here, "t@1", ".").ok();
    assert_eq!(names(&here), ["conf", "sub"]);
    // A file with a slash at the end.
    pull_in(&lab, &work, "os@1", "image/").ok();
    assert!(same(&work.join("image"), &lab.path("image1")));
    let run = |args: &[&str]| {
        let mut command = lab.command("d");
        Outcome::of(command.current_dir(&work).args(args).output().expect("run distd"))
    };
    for path in ["new", "new/", "./new/.", "sub/../new", "image", "image/"] {
        run(&["verify", path]).ok();
    }
    let held = |seed: &str| run(&["plan", "t@2", "--seed", seed]).ok().number("held_bytes");
    assert!(held("new") > 0);
    assert_eq!(held("new/"), held("new"));
    assert_eq!(held("./new//"), held("new"));
    assert!(!names(&work).iter().any(|name| name.contains("part") || name.contains("lock")));
}

#[test]
fn links_are_followed_and_stay() {
    let lab = lab();
    let (v1, current) = (lab.path("v1"), lab.path("current"));
    fs::create_dir(&v1).expect("mkdir");
    symlink("v1", &current).expect("link");
    lab.pull("d", "t@1", &current, &[]).ok();
    lab.pull("d", "t@2", &current, &[]).ok();
    assert_eq!(fs::read(v1.join("conf")).expect("read"), b"version=2");
    fs::write(lab.path("a.img"), "old").expect("write");
    symlink("a.img", lab.path("cur.img")).expect("link");
    lab.pull("d", "os@1", &lab.path("cur.img"), &[]).ok();
    assert!(same(&lab.path("a.img"), &lab.path("image1")));
    // A link whose target does not exist yet.
    for (link, wanted) in [("tree-link", "t@1"), ("image-link", "os@1")] {
        symlink(format!("{link}.to"), lab.path(link)).expect("link");
        lab.pull("d", wanted, &lab.path(link), &[]).ok();
        assert!(lab.path(&format!("{link}.to")).exists());
        lab.device("d", &["verify", &lab.path(link).display().to_string()]).ok();
    }
    for link in ["current", "cur.img", "tree-link", "image-link"] {
        assert!(fs::symlink_metadata(lab.path(link)).expect("stat").is_symlink(), "{link}");
    }
    symlink("nowhere/at/all", lab.path("lost")).expect("link");
    fails(&lab.pull("d", "os@1", &lab.path("lost"), &[]), LOCAL, "does not exist");
}

#[test]
fn all_names_of_a_block_device_are_one_slot() {
    if !can_mount() {
        return;
    }
    let lab = lab();
    let slot = Loop::new(&lab.path("slot.img"), 16 << 20);
    let link = lab.path("by-label");
    symlink(slot.path(), &link).expect("link");
    lab.pull("d", "os@1", &link, &[]).ok();
    let other = lab.path("second-node");
    let rdev = fs::metadata(slot.path()).expect("stat").rdev();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &other, rustix::fs::FileType::BlockDevice, mode, rdev)
        .expect("mknod");
    for name in [slot.path(), &link, &other] {
        lab.device("d", &["verify", &name.display().to_string()]).ok();
    }
    let mut command = lab.command("d");
    command.current_dir("/dev").arg("verify").arg(slot.path().file_name().expect("a name"));
    Outcome::of(command.output().expect("run distd")).ok();
    assert_eq!(names(&lab.path("d/slots")).len(), 1, "{:?}", names(&lab.path("d/slots")));
    // Again by another name: the artifact is in place, and nothing is written.
    let again = lab.pull("d", "os@1", &other, &[]).ok();
    assert_eq!(again.json["already_there"], true, "{}", again.json);
    let installed = fs::read_to_string(lab.path("d/installed.json")).expect("read");
    assert_eq!(installed.matches("\"path\"").count(), 1, "{installed}");
}

#[test]
fn a_file_that_is_replaced_keeps_owner_mode_and_attributes_and_a_new_one_is_private() {
    if !is_root() {
        return;
    }
    let lab = lab();
    let out = lab.path("out");
    let mut command = Command::new("sh");
    let distd = lab.command("d");
    command.args(["-c", "umask 000; exec \"$@\"", "sh"]).arg(distd.get_program()).args(distd.get_args());
    command.args(["pull", "os@1", "--no-share", "--out"]).arg(&out);
    Outcome::of(command.output().expect("run sh")).ok();
    for name in ["out", "out.distd"] {
        let mode = fs::metadata(lab.path(name)).expect("stat").mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    std::os::unix::fs::chown(&out, Some(33), Some(34)).expect("chown");
    fs::set_permissions(&out, fs::Permissions::from_mode(0o640)).expect("chmod");
    let set = rustix::fs::setxattr(&out, "user.note", b"kept", rustix::fs::XattrFlags::empty());
    lab.pull("d", "os@2", &out, &[]).ok();
    assert!(same(&out, &lab.path("image2")));
    let meta = fs::metadata(&out).expect("stat");
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (33, 34, 0o640));
    if set.is_ok() {
        let mut value = [0; 16];
        let len = rustix::fs::getxattr(&out, "user.note", &mut value[..]).expect("the attribute");
        assert_eq!(&value[..len], b"kept");
    }
}

#[test]
fn leftovers_of_a_pull_of_the_other_kind_are_no_obstacle() {
    let lab = lab();
    for (wanted, left_by) in [("t@1", "os@1"), ("os@1", "t@1")] {
        let out = lab.path(&format!("out-{}", &wanted[..1]));
        // The state that a killed pull leaves.
        let part = lab.path(&format!("out-{}.distd-part", &wanted[..1]));
        match left_by {
            "os@1" => fs::write(&part, "half an image").expect("write"),
            _ => {
                fs::create_dir_all(part.join("tree/sub")).expect("mkdir");
                fs::set_permissions(&part, fs::Permissions::from_mode(0o700)).expect("chmod");
                fs::write(part.join("listing"), "x").expect("write");
            }
        }
        lab.pull("d", wanted, &out, &[]).ok();
        lab.device("d", &["verify", &out.display().to_string()]).ok();
        assert!(!part.exists());
    }
    // An empty directory, which a user may have made.
    fs::create_dir(lab.path("y.distd-part")).expect("mkdir");
    lab.pull("d", "os@1", &lab.path("y"), &[]).ok();
    // A directory with anything else in it stays.
    fs::create_dir(lab.path("z.distd-part")).expect("mkdir");
    fs::write(lab.path("z.distd-part/notes.txt"), "precious").expect("write");
    for wanted in ["os@1", "t@1"] {
        fails(&lab.pull("d", wanted, &lab.path("z"), &[]), LOCAL, "notes.txt");
    }
    assert!(lab.path("z.distd-part/notes.txt").exists());
}

#[test]
fn side_files_that_others_may_have_made_are_refused_under_any_umask() {
    if !is_root() {
        return;
    }
    let lab = lab();
    let precious = lab.path("precious");
    let small = lab.path("small");
    fs::create_dir(&small).expect("mkdir");
    for umask in ["000", "022"] {
        for side in ["", "-manifest.part", "-journal.part", "-patches", "-rebuilt", "-passing"] {
            for kind in ["link", "foreign file", "fifo", "hard link"] {
                fs::write(&precious, "precious").expect("write");
                let (out, file) = (small.join("out"), small.join(format!("out.distd-part{side}")));
                match kind {
                    "link" => symlink(&precious, &file).expect("link"),
                    "hard link" => fs::hard_link(&precious, &file).expect("link"),
                    "fifo" => {
                        let mode = rustix::fs::Mode::from_raw_mode(0o666);
                        let fifo = rustix::fs::FileType::Fifo;
                        rustix::fs::mknodat(rustix::fs::CWD, &file, fifo, mode, 0).expect("mkfifo");
                    }
                    _ => {
                        fs::write(&file, "theirs").expect("write");
                        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("chmod");
                        std::os::unix::fs::chown(&file, Some(65534), Some(65534)).expect("chown");
                    }
                }
                let what = format!("{kind} at …{side}, umask {umask}");
                let mut command = Command::new("timeout");
                let distd = lab.command("d");
                command.args(["60", "sh", "-c", &format!("umask {umask}; exec \"$@\""), "sh"]);
                command.arg(distd.get_program()).args(distd.get_args());
                command.args(["pull", "os@1", "--no-share", "--out"]).arg(&out);
                let outcome = Outcome::of(command.output().expect("run timeout"));
                assert_eq!(fs::read(&precious).expect("read"), b"precious", "{what}");
                assert_eq!(fs::metadata(&precious).expect("stat").len(), 8, "{what}");
                match outcome.code {
                    0 => {
                        let meta = fs::symlink_metadata(&out).expect("stat");
                        assert!(meta.is_file(), "{what}");
                        assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o600), "{what}");
                        assert!(same(&out, &lab.path("image1")), "{what}");
                    }
                    _ => fails(&outcome, LOCAL, "so distd may not have made it"),
                }
                if side.is_empty() {
                    assert_eq!(outcome.code, LOCAL, "{what}: {}", outcome.stderr);
                }
                fs::remove_dir_all(&small).expect("remove");
                fs::create_dir(&small).expect("mkdir");
            }
        }
    }
    // A directory in which any user may replace root's files.
    fs::set_permissions(&small, fs::Permissions::from_mode(0o777)).expect("chmod");
    fails(&lab.pull("d", "os@1", &small.join("out"), &[]), LOCAL, "others may write");
    fs::set_permissions(&small, fs::Permissions::from_mode(0o1777)).expect("chmod");
    lab.pull("d", "os@1", &small.join("out"), &[]).ok();
}

#[test]
fn a_lock_that_another_program_has_on_a_device_for_a_moment_is_waited_for() {
    if !can_mount() {
        return;
    }
    let lab = lab();
    let slot = Loop::new(&lab.path("slot.img"), 16 << 20);
    let other = fs::File::open(slot.path()).expect("open");
    other.lock_shared().expect("lock");
    let pull = lab.start_pull("d", "os@1", slot.path(), &["--no-share"]);
    // Long enough for the pull to find the lock on a busy machine; the test passes also if it does
    // not.
    std::thread::sleep(std::time::Duration::from_secs(1));
    other.unlock().expect("unlock");
    pull.wait().ok();
    // A pull does not wait for the lock of another pull.
    let lock = lab.path("held");
    let held = fs::File::create(lab.path("held.distd-lock")).expect("create");
    fs::set_permissions(lab.path("held.distd-lock"), fs::Permissions::from_mode(0o600)).expect("chmod");
    held.lock().expect("lock");
    fails(&lab.pull("d", "os@1", &lock, &[]), LOCAL, "another pull writes");
}

#[test]
fn a_plan_counts_the_bytes_that_a_pull_finds_on_a_block_device() {
    if !can_mount() {
        return;
    }
    let lab = Lab::start();
    let mut rng = Rng::announced("plans of a device", 94);
    let first = rng.bytes(3_000_000);
    let second = [&first[..2_000_000], &rng.bytes(5000), &first[2_000_000..]].concat();
    for (version, bytes) in [("1", &first), ("2", &second)] {
        let image = lab.path(version);
        fs::write(&image, bytes).expect("write");
        lab.push(&image, "os", version).ok();
    }
    lab.enroll("d", lab.quic());
    let slot = Loop::new(&lab.path("slot.img"), 16 << 20);
    let node = slot.path().display().to_string();
    lab.pull("d", "os@1", slot.path(), &[]).ok();
    let plan = lab.device("d", &["plan", "os@2", "--out", &node]).ok();
    let pull = lab.pull("d", "os@2", slot.path(), &[]).ok();
    assert_eq!(plan.number("fetch_raw_bytes"), pull.number("fetched_bytes"), "{}\n{}", plan.json, pull.json);
    assert!(pull.number("held_bytes") > 1_500_000, "{}", pull.json);
    // The device's own manifest is there too: few nodes are fetched, though nothing else is used
    // from it.
    assert!(pull.number("node_bytes") < 2000, "{}", pull.json);
}

#[test]
fn a_pull_that_was_cut_off_before_it_kept_the_manifest_is_completed_and_is_a_seed() {
    let lab = lab();
    let out = lab.path("slot");
    for finish in [true, false] {
        lab.pull("d", "os@1", &out, &[]).ok();
        // The state right before the last rename.
        fs::rename(lab.path("slot.distd"), lab.path("slot.distd-part-manifest")).expect("rename");
        let path = out.display().to_string();
        lab.device("d", &["verify", &path]).ok();
        if finish {
            let again = lab.pull("d", "os@1", &out, &[]).ok();
            assert_eq!(again.json["already_there"], true, "{}", again.json);
            assert!(lab.path("slot.distd").exists() && !lab.path("slot.distd-part-manifest").exists());
        } else {
            let other = lab.path("other");
            let copied = lab.pull("d", "os@1", &other, &[&out]).ok();
            assert_eq!(copied.number("fetched_bytes") + copied.number("node_bytes"), 0, "{}", copied.json);
        }
    }
}

#[test]
fn an_agent_says_what_it_cannot_serve() {
    let lab = lab();
    let out = lab.path("slot");
    lab.pull("d", "os@1", &out, &[]).ok();
    // The view of an agent whose service has a /tmp of its own.
    fs::rename(lab.path("slot.distd"), lab.path("elsewhere")).expect("rename");
    let mut agent = lab.agent("d");
    agent.wait_for("installed, but not served");
    assert!(agent.log().contains(&fs::canonicalize(&out).expect("canonical").display().to_string()));
    agent.kill();
}

/// Traces of writing: inode, change and modification times of everything below `path`.
fn traces(path: &Path) -> Vec<(PathBuf, u64, i64, i64, i64, i64)> {
    let mut found = Vec::new();
    let mut open = vec![path.to_owned()];
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path).expect("stat");
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).expect("list").map(|entry| entry.expect("entry").path()));
        }
        found.push((path, meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()));
    }
    found.sort();
    found
}

#[test]
fn a_pull_of_an_installed_release_writes_nothing_and_needs_no_parent() {
    let mut lab = lab();
    let (image, tree) = (lab.path("slot"), lab.path("out"));
    let device = can_mount().then(|| Loop::new(&lab.path("slot.img"), 16 << 20));
    let mut targets = vec![("os@2", image.clone()), ("t@2", tree.clone())];
    targets.extend(device.as_ref().map(|device| ("os@2", device.path().to_owned())));
    for (wanted, out) in &targets {
        lab.pull("d", wanted, out, &[]).ok();
    }
    let before = (traces(&image), traces(&tree));
    let written = |device: &Loop| {
        let name = device.path().file_name().expect("a name").to_string_lossy().into_owned();
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).expect("statistics");
        stat.split_whitespace().nth(6).expect("sectors written").to_owned()
    };
    let sectors = device.as_ref().map(written);
    let again = |lab: &Lab, more: &[&str]| {
        for (wanted, out) in &targets {
            let mut command = lab.pull_command("d", wanted, out, more);
            let outcome = Outcome::of(command.output().expect("run distd")).ok();
            assert_eq!(outcome.json["already_there"], true, "{}", outcome.json);
            assert_eq!(outcome.number("node_bytes"), 0, "{}", outcome.json);
            assert_eq!(outcome.number("fetched_bytes"), 0);
            assert_eq!(outcome.number("wire_bytes"), outcome.number("metadata_bytes"), "{}", outcome.json);
        }
        assert!(before == (traces(&image), traces(&tree)), "nothing was touched");
        assert_eq!(device.as_ref().map(written), sectors);
    };
    again(&lab, &[]);
    again(&lab, &["--connectivity", "offline"]);
    // A complete seed is enough without any peer.
    let copy = lab.path("copy");
    let mut command = lab.pull_command("d", "os@2", &copy, &["--connectivity", "offline", "--seed"]);
    let copied = Outcome::of(command.arg(&image).output().expect("run distd")).ok();
    assert!(same(&copy, &lab.path("image2")), "{}", copied.json);
    let copy = lab.path("copied-tree");
    let mut command = lab.pull_command("d", "t@2", &copy, &["--connectivity", "offline", "--seed"]);
    Outcome::of(command.arg(&tree).output().expect("run distd")).ok();
    assert_eq!(fs::read(copy.join("conf")).expect("read"), b"version=2");
    lab.stop_origin();
    again(&lab, &[]);
    // A damaged tree does not count as in place.
    fs::write(tree.join("conf"), "version=3").expect("write");
    let verify = lab.device("d", &["verify", &tree.display().to_string()]);
    assert_eq!(verify.code, INTEGRITY);
}

#[test]
fn free_space_is_checked_before_anything_is_fetched() {
    if !can_mount() {
        return;
    }
    let lab = lab();
    let small = lab.path("small");
    let _mounted = Mount::new(&["-t", "tmpfs", "-o", "size=2m", "tmpfs"], &small);
    let before = lab.served_bytes();
    let mut rng = Rng::new(92);
    let big = lab.path("big");
    fs::create_dir(&big).expect("mkdir");
    fs::write(big.join("f"), rng.bytes(3_000_000)).expect("write");
    lab.push(&big, "big", "1").ok();
    for wanted in ["os@1", "big@1"] {
        let refused = lab.pull("d", wanted, &small.join("out"), &[]);
        fails(&refused, LOCAL, &fs::canonicalize(&small).expect("canonical").display().to_string());
        assert!(!small.join("out.distd-part").exists());
    }
    let cost = lab.served_bytes() - before;
    assert!(cost < 200_000, "{cost} bytes were served for nothing");
    // Hard links are one file: three names fit where three files do not.
    let linked = lab.path("linked");
    fs::create_dir(&linked).expect("mkdir");
    fs::write(linked.join("a"), rng.bytes(1_000_000)).expect("write");
    for name in ["b", "c"] {
        fs::hard_link(linked.join("a"), linked.join(name)).expect("link");
    }
    lab.push(&linked, "linked", "1").ok();
    lab.pull("d", "linked@1", &small.join("linked"), &[]).ok();
    assert_eq!(fs::metadata(small.join("linked/c")).expect("stat").nlink(), 3);
}

#[test]
fn a_small_state_directory_does_not_fail_a_complete_slot() {
    if !can_mount() {
        return;
    }
    let lab = Lab::start();
    let image = lab.path("huge");
    artifacts_of(&image, 40 << 20);
    lab.push(&image, "huge", "1").ok();
    let slot = Loop::new(&lab.path("slot.img"), 64 << 20);
    // A manifest of 40 MB has some 100 kB: one fits beside the device's identity, and two do not.
    for (size, works) in [("260k", true), ("110k", false)] {
        let state = lab.path(&format!("state-{size}"));
        let _mounted = Mount::new(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], &state);
        lab.enroll(&format!("state-{size}"), lab.quic());
        let pulled = lab.pull(&format!("state-{size}"), "huge@1", slot.path(), &[]);
        if works {
            pulled.ok();
            lab.device(&format!("state-{size}"), &["verify", &slot.path().display().to_string()]).ok();
        } else if pulled.code != 0 {
            fails(&pulled, LOCAL, &state.display().to_string());
        }
    }
}

fn artifacts_of(path: &Path, bytes: usize) {
    let mut rng = Rng::new(93);
    fs::write(path, rng.bytes(bytes)).expect("write");
}

#[test]
fn a_name_of_any_length_works() {
    let lab = lab();
    for (wanted, letter) in [("os@1", "o"), ("t@1", "t")] {
        for len in [200, 235, 249, 255] {
            let out = lab.path(&letter.repeat(len));
            lab.pull("d", wanted, &out, &[]).ok();
            lab.device("d", &["verify", &out.display().to_string()]).ok();
        }
    }
    // The longest product and version that a push accepts.
    let (product, version) = ("p".repeat(100), "1".repeat(100));
    let artifact = lab.path("long-names");
    artifacts_of(&artifact, 20_000);
    lab.push(&artifact, &product, &version).ok();
    let out = lab.path("long-names.out");
    lab.pull("d", &format!("{product}@{version}"), &out, &[]).ok();
    assert!(same(&out, &artifact));
}
