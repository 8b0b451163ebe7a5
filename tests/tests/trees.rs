//! A tree is exactly what its listing says: pushed, pulled, checked, interrupted, and without root.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use distd_tests::Rng;
use distd_tests::disks::{Mount, USER, User, can_mount, is_root};
use distd_tests::lab::{Lab, Outcome};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

const LOCAL: i32 = 7;
const INTEGRITY: i32 = 8;

#[track_caller]
fn fails(outcome: &Outcome, code: i32, says: &str) {
    assert_eq!(outcome.code, code, "{}", outcome.stderr);
    assert!(outcome.stderr.contains(says), "{:?} is not in: {}", says, outcome.stderr);
}

fn lab() -> Lab {
    let lab = Lab::start();
    lab.enroll("d", lab.quic());
    lab
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).expect("set an attribute");
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).expect("list attributes");
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65_536];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("an attribute");
            (String::from_utf8_lossy(name).into_owned(), value[..len].to_vec())
        })
        .collect()
}

fn at_time(path: &Path, seconds: i64, nanos: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("set the time");
}

/// An entry as the file system reports it.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    size: u64,
    rdev: u64,
    links: u64,
    leads: Option<PathBuf>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

fn nodes(root: &Path) -> BTreeMap<PathBuf, Node> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path).expect("stat");
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).expect("list").map(|entry| entry.expect("entry").path()));
        }
        let node = Node {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            modified: (meta.mtime(), meta.mtime_nsec()),
            size: if meta.is_dir() { 0 } else { meta.size() },
            rdev: meta.rdev(),
            links: if meta.is_dir() { 0 } else { meta.nlink() },
            leads: fs::read_link(&path).ok(),
            xattrs: xattrs(&path),
        };
        found.insert(path.strip_prefix(root).expect("below").to_owned(), node);
    }
    found
}

/// A tree with one entry of every kind.
fn everything(root: &Path) {
    fs::create_dir_all(root.join("dir/closed")).expect("mkdir");
    fs::write(root.join("dir/program"), "#!/bin/sh\n").expect("write");
    fs::write(root.join("dir/closed/secret"), "secret").expect("write");
    fs::write(root.join("empty"), "").expect("write");
    fs::hard_link(root.join("dir/program"), root.join("same")).expect("link");
    fs::hard_link(root.join("empty"), root.join("dir/empty-too")).expect("link");
    symlink("dir/program", root.join("link")).expect("link");
    let node = |name: &str, kind, dev| {
        rustix::fs::mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o620), dev).expect("mknod");
    };
    node("pipe", FileType::Fifo, 0);
    node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    let chown = |name: &str, uid, gid| {
        std::os::unix::fs::lchown(root.join(name), Some(uid), Some(gid)).expect("chown");
    };
    chown("dir/program", 5, 6);
    chown("link", 7, 8);
    chown("", 33, 34);
    mode(&root.join("dir/program"), 0o4755);
    mode(&root.join("dir/closed/secret"), 0o400);
    xattr(&root.join("dir/program"), "user.sig", b"abc");
    xattr(root, "user.root", b"of the directory itself");
    mode(&root.join("dir/closed"), 0o555);
    mode(root, 0o2751);
    for (name, seconds, nanos) in [
        ("dir/program", 1_700_000_000, 123_456_789),
        ("dir/closed/secret", -5, 0),
        ("link", 1_600_000_000, 1),
        ("pipe", 1_600_000_001, 0),
        ("dir/closed", 1_500_000_000, 0),
        ("dir", 1_400_000_000, 500),
        ("", 1_300_000_000, 0),
    ] {
        at_time(&root.join(name), seconds, nanos);
    }
}

#[test]
fn everything_about_a_tree_arrives_the_directory_itself_included() {
    if !is_root() {
        return;
    }
    let lab = lab();
    let tree = lab.path("tree");
    everything(&tree);
    lab.push(&tree, "t", "1").ok();
    for out in ["new", "existing"] {
        let out = lab.path(out);
        if out.ends_with("existing") {
            fs::create_dir(&out).expect("mkdir");
            mode(&out, 0o700);
        }
        let pulled = lab.pull("d", "t@1", &out, &[]).ok();
        assert_eq!(pulled.json["left_out"], serde_json::json!({}));
        let (wanted, got) = (nodes(&tree), nodes(&out));
        for (path, node) in &wanted {
            assert_eq!(Some(node), got.get(path), "{}", path.display());
        }
        assert_eq!(wanted.len(), got.len());
        lab.device("d", &["verify", &out.display().to_string()]).ok();
    }
    // An administrator's change lasts until the next pull, which restores the release.
    let out = lab.path("new");
    mode(&out, 0o700);
    fails(&lab.device("d", &["verify", &out.display().to_string()]), INTEGRITY, "error:");
    let again = lab.pull("d", "t@1", &out, &[]).ok();
    assert_eq!(again.json["already_there"], false);
    assert_eq!(nodes(&out)[Path::new("")], nodes(&tree)[Path::new("")]);
    let again = lab.pull("d", "t@1", &out, &[]).ok();
    assert_eq!(again.json["already_there"], true);
}

#[test]
fn verify_names_everything_that_differs_from_the_release() {
    if !is_root() {
        return;
    }
    let lab = lab();
    let tree = lab.path("tree");
    everything(&tree);
    lab.push(&tree, "t", "1").ok();
    let out = lab.path("out");
    let path = out.display().to_string();
    type Change<'a> = (&'a str, &'a str, &'a dyn Fn(&Path));
    let changes: [Change<'_>; 13] = [
        ("dir/program", "mode", &|out| mode(&out.join("dir/program"), 0o777)),
        ("dir/program", "belongs", &|out| {
            std::os::unix::fs::lchown(out.join("dir/program"), Some(9), None).expect("chown");
        }),
        ("link", "leads", &|out| {
            fs::remove_file(out.join("link")).expect("remove");
            symlink("/nonexistent", out.join("link")).expect("link");
        }),
        ("dir/closed/extra", "not in the release", &|out| {
            fs::write(out.join("dir/closed/extra"), "x").expect("write");
        }),
        ("pipe", "is missing", &|out| fs::remove_file(out.join("pipe")).expect("remove")),
        ("null", "character device", &|out| {
            fs::remove_file(out.join("null")).expect("remove");
            let dev = rustix::fs::makedev(1, 5);
            rustix::fs::mknodat(CWD, out.join("null"), FileType::CharacterDevice, Mode::RUSR, dev)
                .expect("mknod");
        }),
        ("dir/program", "has 14 bytes", &|out| {
            let file = fs::File::options().write(true).open(out.join("dir/program")).expect("open");
            file.write_all_at(b"more", 10).expect("write");
        }),
        ("same", "not a hard link", &|out| {
            fs::remove_file(out.join("same")).expect("remove");
            fs::copy(out.join("dir/program"), out.join("same")).expect("copy");
        }),
        ("dir/program", "user.sig", &|out| {
            rustix::fs::lremovexattr(out.join("dir/program"), "user.sig").expect("remove");
        }),
        ("dir/empty-too", "user.more", &|out| xattr(&out.join("empty"), "user.more", b"x")),
        ("dir/closed/secret", "another time", &|out| at_time(&out.join("dir/closed/secret"), 99, 0)),
        ("dir/closed/secret", "is not a regular file", &|out| {
            fs::remove_file(out.join("dir/closed/secret")).expect("remove");
            fs::create_dir(out.join("dir/closed/secret")).expect("mkdir");
        }),
        ("", "mode", &|out| mode(out, 0o700)),
    ];
    for (name, what, change) in changes {
        lab.pull("d", "t@1", &out, &[]).ok();
        lab.device("d", &["verify", &path]).ok();
        change(&out);
        let found = lab.device("d", &["verify", &path]);
        fails(&found, INTEGRITY, "does not match");
        let differences = found.json["differences"]["named"].as_array().expect("a list");
        let named = differences.iter().any(|difference| {
            difference["path"] == name && difference["what"].as_str().is_some_and(|said| said.contains(what))
        });
        assert!(named, "{name}: {what}: {}", found.json);
        assert_eq!(found.json["error"]["exit"], INTEGRITY);
    }
    // A file that is longer than its release.
    let image = lab.path("image");
    fs::write(&image, "image".repeat(10_000)).expect("write");
    lab.push(&image, "os", "1").ok();
    let slot = lab.path("slot");
    lab.pull("d", "os@1", &slot, &[]).ok();
    let bytes = fs::read(&slot).expect("read");
    for other in [[&bytes[..], b"junk"].concat(), bytes[..bytes.len() - 1].to_vec()] {
        fs::write(&slot, other).expect("write");
        fails(&lab.device("d", &["verify", &slot.display().to_string()]), INTEGRITY, "does not match");
        lab.pull("d", "os@1", &slot, &[]).ok();
        lab.device("d", &["verify", &slot.display().to_string()]).ok();
    }
}

#[test]
fn a_tree_is_updated_where_directories_cannot_be_exchanged() {
    if !can_mount() {
        return;
    }
    let lab = lab();
    for version in ["1", "2"] {
        let tree = lab.path(&format!("tree{version}"));
        fs::create_dir_all(tree.join("sub")).expect("mkdir");
        fs::write(tree.join("sub/f"), version.repeat(100)).expect("write");
        lab.push(&tree, "t", version).ok();
    }
    // A directory of a lower layer: it can be neither exchanged nor renamed.
    let layers = ["lower", "upper", "work", "merged"].map(|name| lab.path(name));
    for layer in &layers {
        fs::create_dir(layer).expect("mkdir");
    }
    fs::create_dir(layers[0].join("empty")).expect("mkdir");
    lab.pull("d", "t@1", &layers[0].join("old"), &[]).ok();
    let [lower, upper, work, merged] = layers.map(|path| path.display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let _mounted = Mount::on(&["-t", "overlay", "overlay", "-o", &options], Path::new(&merged));
    for name in ["empty", "old"] {
        let out = Path::new(&merged).join(name);
        for version in ["2", "1", "2"] {
            lab.pull("d", &format!("t@{version}"), &out, &[]).ok();
            assert_eq!(fs::read_to_string(out.join("sub/f")).expect("read"), version.repeat(100), "{name}");
            lab.device("d", &["verify", &out.display().to_string()]).ok();
        }
    }
    // A mount point is no place for a tree, and the pull says so first.
    let point = lab.path("point");
    let _mounted = Mount::new(&["-t", "tmpfs", "tmpfs"], &point);
    fails(&lab.pull("d", "t@1", &point, &[]), LOCAL, "mounted");
}

#[test]
fn without_root_a_tree_is_updated_whatever_its_modes_are_and_losses_are_counted() {
    if !is_root() {
        return;
    }
    let lab = lab();
    let user = User::new(&lab);
    for version in ["1", "2"] {
        let tree = lab.path(&format!("tree{version}"));
        fs::create_dir_all(tree.join("closed/deeper")).expect("mkdir");
        fs::write(tree.join("closed/deeper/f"), version.repeat(100)).expect("write");
        fs::write(tree.join("tool"), version.repeat(10)).expect("write");
        std::os::unix::fs::chown(tree.join("tool"), Some(5), Some(5)).expect("chown");
        xattr(&tree.join("closed/deeper/f"), "user.sig", b"abc");
        mode(&tree.join("tool"), 0o4755);
        mode(&tree.join("closed/deeper/f"), 0o444);
        for dir in ["closed/deeper", "closed", ""] {
            mode(&tree.join(dir), 0o555);
        }
        lab.push(&tree, "ro", version).ok();
    }
    let out = user.home.join("out");
    for version in ["1", "2", "1"] {
        let pulled = user.pull(&format!("ro@{version}"), &out).ok();
        let file = out.join("closed/deeper/f");
        assert_eq!(fs::read_to_string(&file).expect("read"), version.repeat(100));
        assert_eq!(xattrs(&file)["user.sig"], b"abc");
        assert_eq!(fs::metadata(&file).expect("stat").mode() & 0o7777, 0o444);
        assert_eq!(fs::metadata(&out).expect("stat").mode() & 0o7777, 0o555);
        let tool = fs::metadata(out.join("tool")).expect("stat");
        assert_eq!((tool.uid(), tool.mode() & 0o7777), (USER, 0o755), "no set-id of another owner");
        assert!(pulled.json["left_out"]["owner"]["entries"].as_u64() > Some(0), "{}", pulled.json);
        assert_eq!(pulled.json["left_out"]["mode"]["first"], "tool");
        assert!(!user.home.join("out.distd-part").exists());
        user.run(&["verify", &out.display().to_string()]).ok();
        let again = user.pull(&format!("ro@{version}"), &out).ok();
        assert_eq!(again.json["already_there"], true, "{}", again.json);
    }
    // An entry that cannot be made at all is named before anything is fetched.
    let tree = lab.path("nodes");
    fs::create_dir_all(tree.join("dev")).expect("mkdir");
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(CWD, tree.join("dev/null"), FileType::CharacterDevice, Mode::RUSR, null)
        .expect("mknod");
    fs::write(tree.join("big"), Rng::new(95).bytes(2_000_000)).expect("write");
    lab.push(&tree, "nodes", "1").ok();
    let refused = user.pull("nodes@1", &user.home.join("nodes"));
    fails(&refused, LOCAL, "dev/null");
    assert!(refused.stderr.contains("next:"), "{}", refused.stderr);
}

#[test]
fn a_pull_without_root_that_was_cut_off_at_its_end_goes_on() {
    if !is_root() {
        return;
    }
    let lab = lab();
    let user = User::new(&lab);
    let tree = lab.path("tree");
    fs::create_dir_all(tree.join("d")).expect("mkdir");
    fs::write(tree.join("d/f"), "x".repeat(1000)).expect("write");
    mode(&tree.join("d/f"), 0o444);
    mode(&tree.join("d"), 0o555);
    lab.push(&tree, "ro", "1").ok();
    let out = user.home.join("out");
    // The state that a kill right before the last step leaves: every mode is the final one.
    fs::create_dir(&out).expect("mkdir");
    fs::write(out.join("in-the-way"), "x").expect("write");
    std::os::unix::fs::chown(&out, Some(USER), Some(USER)).expect("chown");
    fails(&user.pull("ro@1", &out), LOCAL, "is not empty");
    fs::remove_dir_all(&out).expect("remove");
    let done = user.pull("ro@1", &out).ok();
    let id = done.json["manifest"].as_str().expect("an id").to_owned();
    let part = user.home.join("out.distd-part");
    fs::create_dir(&part).expect("mkdir");
    fs::rename(&out, part.join("tree")).expect("rename");
    let inode = fs::metadata(part.join("tree")).expect("stat").ino();
    fs::write(part.join("manifest"), format!("{id} {inode}")).expect("write");
    fs::write(part.join("laid"), "").expect("write");
    fs::rename(user.home.join("out.distd-tree"), part.join("listing")).expect("rename");
    fs::rename(user.home.join("out.distd"), user.home.join("out.distd-part-manifest")).expect("rename");
    for path in ["", "manifest", "laid"] {
        std::os::unix::fs::chown(part.join(path), Some(USER), Some(USER)).expect("chown");
        mode(&part.join(path), if path.is_empty() { 0o700 } else { 0o600 });
    }
    let on = user.pull("ro@1", &out).ok();
    assert_eq!(on.number("fetched_bytes"), 0, "{}", on.json);
    assert_eq!(fs::read(out.join("d/f")).expect("read"), [b'x'; 1000]);
    assert!(!part.exists());
    user.run(&["verify", &out.display().to_string()]).ok();
    // Another release is wanted then: the begun tree is removed, even if its directories are not
    // writable.
    mode(&tree.join("d"), 0o755);
    fs::write(tree.join("d/g"), "y".repeat(1000)).expect("write");
    mode(&tree.join("d"), 0o555);
    lab.push(&tree, "ro", "2").ok();
    let begun = user.home.join("other.distd-part");
    let copy = Command::new("setpriv")
        .args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "cp", "-a"])
        .arg(&out)
        .arg(user.home.join("copy"))
        .status();
    assert!(copy.expect("run cp").success());
    fs::create_dir(&begun).expect("mkdir");
    fs::rename(user.home.join("copy"), begun.join("tree")).expect("rename");
    let inode = fs::metadata(begun.join("tree")).expect("stat").ino();
    fs::write(begun.join("manifest"), format!("{id} {inode}")).expect("write");
    for path in ["", "manifest"] {
        std::os::unix::fs::chown(begun.join(path), Some(USER), Some(USER)).expect("chown");
        mode(&begun.join(path), if path.is_empty() { 0o700 } else { 0o600 });
    }
    user.pull("ro@2", &user.home.join("other")).ok();
    assert!(!begun.exists());
    assert_eq!(fs::read(user.home.join("other/d/g")).expect("read"), [b'y'; 1000]);
    // The state after a kill right behind that step: new tree, old manifest.
    fs::create_dir(&part).expect("mkdir");
    let inode = fs::metadata(&out).expect("stat").ino();
    fs::write(part.join("manifest"), format!("{id} {inode}")).expect("write");
    fs::rename(user.home.join("out.distd-tree"), part.join("listing")).expect("rename");
    fs::rename(user.home.join("out.distd"), user.home.join("out.distd-part-manifest")).expect("rename");
    let left_out = user.home.join("out.distd-left-out");
    if left_out.exists() {
        fs::rename(&left_out, part.join("left-out")).expect("rename");
    }
    for path in ["", "manifest"] {
        std::os::unix::fs::chown(part.join(path), Some(USER), Some(USER)).expect("chown");
        mode(&part.join(path), if path.is_empty() { 0o700 } else { 0o600 });
    }
    user.run(&["verify", &out.display().to_string()]).ok();
    let on = user.pull("ro@1", &out).ok();
    assert_eq!(on.json["already_there"], true, "{}", on.json);
    assert!(!part.exists() && user.home.join("out.distd").exists());
    user.run(&["verify", &out.display().to_string()]).ok();
}

#[test]
fn attributes_that_root_may_not_set_are_left_out_and_counted() {
    if !is_root() {
        return;
    }
    let lab = lab();
    let tree = lab.path("tree");
    fs::create_dir(&tree).expect("mkdir");
    fs::write(tree.join("f"), "x").expect("write");
    xattr(&tree.join("f"), "trusted.note", b"y");
    xattr(&tree.join("f"), "user.note", b"z");
    std::os::unix::fs::chown(tree.join("f"), Some(5), Some(5)).expect("chown");
    lab.push(&tree, "t", "1").ok();
    // Root in a user namespace can set neither this owner nor trusted attributes.
    let user = User::new(&lab);
    let out = user.home.join("out");
    let mut inside = Command::new("setpriv");
    let distd = user.command(&[]);
    let args: Vec<_> = distd.get_args().map(std::ffi::OsStr::to_owned).collect();
    // The first arguments, up to `--clear-groups`, are setpriv's own.
    let (own, rest) = args.split_at(args.iter().position(|arg| arg == "--clear-groups").expect("there") + 1);
    inside.args(own).args(["unshare", "-Ur"]).args(rest);
    inside.args(["pull", "t@1", "--no-share", "--out"]).arg(&out);
    let outcome = Outcome::of(inside.output().expect("run unshare"));
    if outcome.stderr.contains("unshare failed") {
        eprintln!("skipped: no user namespaces");
        return;
    }
    let pulled = outcome.ok();
    assert_eq!(pulled.json["left_out"]["owner"]["first"], "f", "{}", pulled.json);
    assert_eq!(pulled.json["left_out"]["attribute trusted.note"]["entries"], 1, "{}", pulled.json);
    assert_eq!(xattrs(&out.join("f"))["user.note"], b"z");
}

#[test]
fn inherited_access_lists_are_not_in_the_tree() {
    if !is_root() {
        return;
    }
    let lab = lab();
    let tree = lab.path("tree");
    fs::create_dir_all(tree.join("sub")).expect("mkdir");
    fs::write(tree.join("sub/f"), "x").expect("write");
    lab.push(&tree, "t", "1").ok();
    let parent = lab.path("parent");
    fs::create_dir(&parent).expect("mkdir");
    // user::rwx, user:65534:rwx, group::r-x, mask::rwx, other::r-x (linux/posix_acl_xattr.h).
    let mut acl = 2u32.to_le_bytes().to_vec();
    let none = u32::MAX;
    for (tag, perm, id) in [(1u16, 7u16, none), (2, 7, 65534), (4, 5, none), (16, 7, none), (32, 5, none)] {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let set = rustix::fs::setxattr(&parent, "system.posix_acl_default", &acl, XattrFlags::empty());
    if set.is_err() {
        eprintln!("skipped: this file system has no access lists");
        return;
    }
    let out = parent.join("out");
    for _ in 0..2 {
        lab.pull("d", "t@1", &out, &[]).ok();
        for path in ["", "sub", "sub/f"] {
            let names: Vec<String> = xattrs(&out.join(path)).into_keys().collect();
            assert!(!names.iter().any(|name| name.contains("acl")), "{path}: {names:?}");
        }
        lab.device("d", &["verify", &out.display().to_string()]).ok();
        fs::remove_dir_all(&out).expect("remove");
    }
    // An access list that the release states is in place.
    xattr(&tree.join("sub"), "system.posix_acl_default", &acl);
    lab.push(&tree, "t", "2").ok();
    lab.pull("d", "t@2", &out, &[]).ok();
    assert_eq!(xattrs(&out.join("sub"))["system.posix_acl_default"], acl);
    assert!(xattrs(&out.join("sub/f")).is_empty());
}

#[test]
fn a_huge_hole_costs_the_same_in_a_tree_as_in_a_file() {
    let lab = lab();
    let tree = lab.path("tree");
    fs::create_dir(&tree).expect("mkdir");
    let sparse = fs::File::create(tree.join("lastlog")).expect("create");
    sparse.set_len(2 << 30).expect("size");
    sparse.write_all_at(b"somewhere", 1 << 30).expect("write");
    let pushed = lab.push(&tree, "t", "1").ok();
    assert!(pushed.number("uploaded_bytes") < 100_000, "{}", pushed.json);
    let out = lab.path("out");
    lab.pull("d", "t@1", &out, &[]).ok();
    let meta = fs::metadata(out.join("lastlog")).expect("stat");
    assert_eq!(meta.len(), 2 << 30);
    assert!(meta.blocks() * 512 < 4 << 20, "{} blocks", meta.blocks());
    let mut bytes = [0; 9];
    fs::File::open(out.join("lastlog")).and_then(|f| f.read_exact_at(&mut bytes, 1 << 30)).expect("read");
    assert_eq!(&bytes, b"somewhere");
}

#[test]
fn unchanged_files_keep_their_time() {
    let lab = lab();
    let tree = lab.path("tree");
    fs::create_dir_all(tree.join("sub")).expect("mkdir");
    fs::write(tree.join("sub/m.py"), "x=1").expect("write");
    at_time(&tree.join("sub/m.py"), 1_704_067_200, 0);
    lab.push(&tree, "py", "1").ok();
    fs::write(tree.join("other"), "y").expect("write");
    lab.push(&tree, "py", "2").ok();
    let out = lab.path("out");
    for version in ["1", "2"] {
        lab.pull("d", &format!("py@{version}"), &out, &[]).ok();
        assert_eq!(fs::metadata(out.join("sub/m.py")).expect("stat").mtime(), 1_704_067_200);
    }
}

#[test]
fn a_path_near_the_systems_limit_travels() {
    let lab = lab();
    let tree = lab.path("tree");
    fs::create_dir(&tree).expect("mkdir");
    let script =
        "set -e; n=$(printf 'd%.0s' $(seq 200)); for i in $(seq 19); do mkdir $n; cd $n; done; echo deep >f";
    let made = Command::new("bash").args(["-c", script]).current_dir(&tree).status();
    assert!(made.expect("run bash").success());
    let mut push = lab.command("admin");
    push.current_dir(&tree).args(["push", ".", "--product", "deep", "--version", "1"]);
    Outcome::of(push.output().expect("run distd")).ok();
    let name = "o".repeat(200);
    for _ in 0..2 {
        lab.pull("d", "deep@1", &lab.path(&name), &[]).ok();
    }
    lab.device("d", &["verify", &lab.path(&name).display().to_string()]).ok();
    let script = "n=$(printf 'd%.0s' $(seq 200)); for i in $(seq 19); do cd $n || exit 1; done; cat f";
    let read = Command::new("bash").args(["-c", script]).current_dir(lab.path(&name)).output();
    assert_eq!(read.expect("run bash").stdout, b"deep\n");
    // Deeper than a listing may be: the push refuses it and names the path.
    let script = "n=$(printf 'd%.0s' $(seq 200)); for i in $(seq 19); do cd $n; done; mkdir -p $n/$n && cd $n/$n && echo x >f";
    let made = Command::new("bash").args(["-c", script]).current_dir(&tree).status();
    assert!(made.expect("run bash").success());
    let refused = lab.push(&tree, "deep", "2");
    fails(&refused, 9, "too long");
    for root in [&tree, &lab.path(&name)] {
        assert!(Command::new("rm").arg("-rf").arg(root).status().expect("run rm").success());
    }
}

#[test]
fn mounts_below_a_pushed_tree_are_left_out_and_counted() {
    if !can_mount() {
        return;
    }
    let lab = lab();
    let tree = lab.path("tree");
    fs::create_dir_all(tree.join("proc")).expect("mkdir");
    fs::create_dir_all(tree.join("data")).expect("mkdir");
    fs::write(tree.join("f"), "x").expect("write");
    fs::write(tree.join("resolv.conf"), "x").expect("write");
    let other = lab.path("other");
    fs::create_dir(&other).expect("mkdir");
    fs::write(other.join("secret"), "secret").expect("write");
    let _proc = Mount::on(&["-t", "proc", "proc"], &tree.join("proc"));
    let _bind = Mount::on(&["--bind", &other.display().to_string()], &tree.join("data"));
    let file = other.join("secret").display().to_string();
    let _file = Mount::on(&["--bind", &file], &tree.join("resolv.conf"));
    let pushed = lab.push(&tree, "t", "1").ok();
    assert_eq!(pushed.number("mounts_skipped"), 3, "{}", pushed.json);
    let out = lab.path("out");
    lab.pull("d", "t@1", &out, &[]).ok();
    let mut names: Vec<_> =
        fs::read_dir(&out).expect("list").map(|e| e.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["data", "f", "proc"]);
    for dir in ["data", "proc"] {
        assert_eq!(fs::read_dir(out.join(dir)).expect("list").count(), 0, "{dir}");
    }
}

#[test]
fn a_seed_is_used_as_far_as_it_still_matches_whatever_it_is() {
    let lab = lab();
    let mut rng = Rng::announced("seeds", 97);
    let tree = lab.path("tree");
    fs::create_dir(&tree).expect("mkdir");
    fs::write(tree.join("blob"), rng.bytes(4_000_000)).expect("write");
    fs::write(tree.join("zz.conf"), "a=1").expect("write");
    lab.push(&tree, "b", "1").ok();
    fs::write(tree.join("new"), rng.bytes(64_000)).expect("write");
    lab.push(&tree, "b", "2").ok();
    let out = lab.path("out");
    let update = |out: &Path, seeds: &[&Path]| {
        let plan: Vec<String> = ["plan", "b@2", "--out"].map(str::to_owned).to_vec();
        let mut command = lab.command("d");
        command.args(plan).arg(out);
        for seed in seeds {
            command.arg("--seed").arg(seed);
        }
        let planned = Outcome::of(command.output().expect("run distd")).ok();
        let pulled = lab.pull("d", "b@2", out, seeds).ok();
        assert!(pulled.number("fetched_bytes") < 200_000, "{}", pulled.json);
        assert_eq!(planned.number("fetch_raw_bytes"), pulled.number("fetched_bytes"), "{}", planned.json);
        assert_eq!(fs::read(out.join("zz.conf")).expect("read"), b"a=1");
    };
    type Edit<'a> = (&'a str, &'a dyn Fn(&Path));
    let edits: [Edit<'_>; 4] = [
        ("a file of the same length", &|out| fs::write(out.join("zz.conf"), "a=2").expect("write")),
        ("a longer file", &|out| fs::write(out.join("zz.conf"), "a=22222").expect("write")),
        ("a file that is gone", &|out| fs::remove_file(out.join("zz.conf")).expect("remove")),
        ("a file more", &|out| fs::write(out.join("aa"), "more").expect("write")),
    ];
    for (what, edit) in edits {
        lab.pull("d", "b@1", &out, &[]).ok();
        edit(&out);
        eprintln!("{what}");
        update(&out, &[]);
    }
    // A tree that distd did not put there, and one file of it.
    let copy = lab.path("copy");
    let copied = Command::new("cp").arg("-r").arg(&tree).arg(&copy).status();
    assert!(copied.expect("run cp").success());
    fs::remove_file(copy.join("new")).expect("remove");
    update(&lab.path("from-copy"), &[&copy]);
    update(&lab.path("from-file"), &[&copy.join("blob")]);
}

/// A file system without links, owners and modes, with times in seconds, and with names that ignore
/// case: exFAT.
fn exfat(lab: &Lab) -> Option<(PathBuf, Mount)> {
    if !can_mount() {
        return None;
    }
    let image = lab.path("fat.img");
    fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("create");
    let has = |program: &str| Command::new(program).arg("-V").output().is_ok();
    if !has("mkfs.exfat") || !has("mount.exfat-fuse") || !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: no exFAT here");
        return None;
    }
    assert!(Command::new("mkfs.exfat").arg(&image).output().expect("run mkfs.exfat").status.success());
    let point = lab.path("fat");
    let mounted = Mount::new(&["-o", "loop", "-t", "exfat-fuse", &image.display().to_string()], &point);
    Some((point, mounted))
}

#[test]
fn a_tree_can_be_installed_on_a_file_system_without_modes_and_links() {
    let lab = lab();
    let Some((point, _mounted)) = exfat(&lab) else { return };
    let tree = lab.path("tree");
    fs::create_dir_all(tree.join("sub")).expect("mkdir");
    fs::write(tree.join("sub/f"), "x").expect("write");
    fs::write(tree.join("File"), "y").expect("write");
    at_time(&tree.join("sub/f"), 1_700_000_001, 500_000_000);
    lab.push(&tree, "t", "1").ok();
    fs::write(tree.join("File"), "z").expect("write");
    lab.push(&tree, "t", "2").ok();
    let out = point.join("out");
    for version in ["1", "2"] {
        let wanted = format!("t@{version}");
        let pulled = lab.pull("d", &wanted, &out, &[]).ok();
        // The system shows 0777 for everything, and the result says so. Times are kept to the
        // second.
        assert_eq!(pulled.json["left_out"]["mode"]["entries"], 4, "{}", pulled.json);
        assert!(pulled.json["left_out"]["time"].is_null(), "{}", pulled.json);
        assert!(pulled.json["kept"].is_null(), "nothing of the user's is in it: {}", pulled.json);
        assert_eq!(fs::metadata(out.join("sub/f")).expect("there").mtime(), 1_700_000_001);
        let again = lab.pull("d", &wanted, &out, &[]).ok();
        assert_eq!(again.json["already_there"], true, "{}", again.json);
        lab.device("d", &["verify", &out.display().to_string()]).ok();
    }
    // The device's state directory is on that file system too, and a file beside it.
    lab.enroll("fat/state", lab.quic());
    lab.push(&tree.join("File"), "file", "1").ok();
    lab.pull("fat/state", "file@1", &point.join("file"), &[]).ok();
    assert_eq!(fs::read(point.join("file")).expect("read"), b"z");
}

#[test]
fn times_that_a_file_system_does_not_keep_are_left_out_and_nothing_is_taken_for_edited() {
    if !distd_tests::faults::can_trace() {
        return;
    }
    let lab = lab();
    let tree = lab.path("tree");
    fs::create_dir(&tree).expect("mkdir");
    fs::write(tree.join("f"), "x").expect("write");
    at_time(&tree.join("f"), 1_700_000_001, 0);
    lab.push(&tree, "t", "1").ok();
    let out = lab.path("out");
    let pull = lab.pull_command("d", "t@1", &out, &[]);
    // The call claims success without doing anything.
    let ignoring = ["-e", "trace=utimensat", "-e", "inject=utimensat:retval=0"];
    let pulled = distd_tests::faults::traced(&pull, &ignoring, Path::new("/dev/null"));
    let pulled = distd_tests::faults::run(pulled, &lab.path("")).ok();
    assert_eq!(pulled.json["left_out"]["time"]["first"], "f", "{}", pulled.json);
    assert_ne!(fs::metadata(out.join("f")).expect("there").mtime(), 1_700_000_001);
    let again = lab.pull("d", "t@1", &out, &[]).ok();
    assert_eq!(again.json["already_there"], true, "{}", again.json);
    lab.device("d", &["verify", &out.display().to_string()]).ok();
}

#[test]
fn names_that_the_file_system_takes_for_one_are_found_before_anything_is_fetched() {
    let lab = lab();
    let Some((point, _mounted)) = exfat(&lab) else { return };
    let tree = lab.path("tree");
    fs::create_dir(&tree).expect("mkdir");
    fs::write(tree.join("Readme"), "a").expect("write");
    lab.push(&tree, "t", "1").ok();
    let out = point.join("out");
    lab.pull("d", "t@1", &out, &[]).ok();
    fs::write(tree.join("README"), "b").expect("write");
    lab.push(&tree, "t", "2").ok();
    for _ in 0..2 {
        fails(&lab.pull("d", "t@2", &out, &[]), LOCAL, "does not tell some names");
        assert_eq!(fs::read(out.join("Readme")).expect("as it was"), b"a");
    }
    lab.device("d", &["verify", &out.display().to_string()]).ok();
    assert_eq!(lab.pull("d", "t@1", &out, &[]).ok().json["already_there"], true);
}
