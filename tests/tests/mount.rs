//! Pulled images mount: the kernel reads an image that was installed by patches, and finds its
//! source tree.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use distd_tests::lab::{Lab, same};
use distd_tests::{Rng, artifacts};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

/// Options of `mkfs.erofs`; of several alternatives, those that it knows.
const KINDS: [(&str, &[&[&str]]); 5] = [
    ("plain", &[&[]]),
    ("lz4", &[&["-zlz4hc", "-C65536"]]),
    (
        "many",
        &[
            &["-zlz4hc,12", "-C65536", "-Eztailpacking,fragments,dedupe", "-Eforce-inode-extended"],
            &["-zlz4hc,12", "-C65536", "-Eztailpacking,fragments", "-Eforce-inode-extended"],
            &["-zlz4hc,12", "-C65536", "-Eztailpacking", "-Eforce-inode-extended"],
        ],
    ),
    ("zstd", &[&["-zzstd", "-C65536"], &["-zlz4hc,6", "-C65536"]]),
    ("deflate", &[&["-zdeflate,9", "-C65536", "-Eztailpacking"], &["-zlz4hc,5", "-C65536"]]),
];

/// The reason why this machine cannot mount; `None` where it can.
fn cannot_mount() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root may mount");
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("there are no loop devices");
    }
    // A module that is not loaded yet is not in the list.
    let _ = Command::new("modprobe").arg("erofs").output();
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.split_whitespace().all(|word| word != "erofs") { Some("the kernel has no erofs") } else { None }
}

/// A mounted image; unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: PathBuf) -> Self {
        fs::create_dir(&at).expect("create a directory");
        let output =
            Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(image).arg(&at).output();
        let output = output.expect("run mount");
        assert!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let output = Command::new("umount").arg(&self.0).output().expect("run umount");
        if !output.status.success() && !std::thread::panicking() {
            panic!("umount: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// Links, modes, owners, attributes and devices beside the ordinary files.
fn special_files(tree: &Path) {
    let dir = tree.join("special");
    fs::create_dir_all(dir.join("empty")).expect("create a directory");
    let file = |name: &str, mode: u32| {
        let path = dir.join(name);
        fs::write(&path, format!("content of {name}\n").repeat(50)).expect("write a file");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("set the mode");
        path
    };
    file("secret", 0o600);
    let program = file("program", 0o4755);
    fs::hard_link(&program, dir.join("same-program")).expect("link");
    fs::hard_link(&program, tree.join("third-name")).expect("link");
    let owned = file("owned", 0o640);
    std::os::unix::fs::chown(&owned, Some(1234), Some(70_000)).expect("change the owner");
    fs::set_permissions(dir.join("empty"), Permissions::from_mode(0o1777)).expect("set the mode");
    std::os::unix::fs::symlink("../usr/lib/part1", dir.join("to-part")).expect("link");
    std::os::unix::fs::symlink("x".repeat(3000), dir.join("far")).expect("link");
    fs::write(dir.join("a".repeat(250)), "long name").expect("write a file");
    let mut wide = vec![0; 3 << 20];
    wide[1 << 20] = 1;
    fs::write(dir.join("zeros"), wide).expect("write a file");
    let node = |name: &str, kind, dev| {
        rustix::fs::mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(0o620), dev).expect("make a node");
    };
    node("pipe", FileType::Fifo, 0);
    node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("disk", FileType::BlockDevice, rustix::fs::makedev(259, 70_000));
    let attribute = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::setxattr(path, name, value, XattrFlags::empty()).expect("the file system has attributes");
    };
    attribute(&owned, "user.note", b"short");
    attribute(&owned, "trusted.note", &[7; 900]);
    attribute(&program, "user.note", b"");
    attribute(&program, "security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    attribute(&dir, "user.directory", b"has one too");
}

/// The properties that a file system reports for one path.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    kind_and_mode: u32,
    owner: (u32, u32),
    links: Option<u64>,
    device: u64,
    content: Option<blake3::Hash>,
    link_target: Option<PathBuf>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode.
    same_as: PathBuf,
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).expect("list the attributes");
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65_536];
            let of = CString::new(name).expect("split at zeros");
            let len = rustix::fs::lgetxattr(path, of.as_c_str(), &mut value[..]).expect("read an attribute");
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}

fn nodes(root: &Path) -> BTreeMap<PathBuf, Node> {
    let (mut found, mut first) = (BTreeMap::new(), BTreeMap::new());
    let mut open = vec![PathBuf::new()];
    while let Some(path) = open.pop() {
        let full = root.join(&path);
        let meta = fs::symlink_metadata(&full).expect("read the inode");
        if meta.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&full)
                .expect("list")
                .map(|entry| path.join(entry.expect("list").file_name()))
                .collect();
            names.sort();
            open.extend(names);
        }
        let is_device = meta.file_type().is_char_device() || meta.file_type().is_block_device();
        let node = Node {
            kind_and_mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            // For a directory, file systems report the number of its subdirectories or a constant.
            links: (!meta.is_dir()).then_some(meta.nlink()),
            device: if is_device { meta.rdev() } else { 0 },
            content: meta.is_file().then(|| blake3::hash(&fs::read(&full).expect("read"))),
            link_target: meta.is_symlink().then(|| fs::read_link(&full).expect("read the link")),
            attributes: attributes(&full),
            same_as: first.entry(meta.ino()).or_insert_with(|| path.clone()).clone(),
        };
        found.insert(path, node);
    }
    found
}

fn assert_same_tree(mounted: &Path, tree: &Path, what: &str) {
    let (mut got, mut want) = (nodes(mounted), nodes(tree));
    // The root comes from the temporary directory, not from the tree.
    for nodes in [&mut got, &mut want] {
        assert!(nodes.remove(OsStr::from_bytes(b"").as_ref() as &Path).is_some());
    }
    let names = |nodes: &BTreeMap<PathBuf, Node>| nodes.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&got), names(&want), "{what}");
    for (path, node) in &want {
        assert_eq!(&got[path], node, "{what}: {}", path.display());
    }
}

fn image(tree: &Path, image: &Path, choices: &[&[&str]]) {
    let refused: Vec<_> =
        choices.iter().map_while(|options| artifacts::try_erofs(tree, image, options).err()).collect();
    assert!(refused.len() < choices.len(), "{refused:?}");
}

#[test]
fn the_kernel_mounts_an_image_installed_by_patches_and_finds_every_file() {
    if let Some(why) = cannot_mount() {
        println!("skipped: {why}");
        return;
    }
    let lab = Lab::start_with(&["--patches", "true", "--solid-sets", "false"]);
    let mut rng = Rng::new(31);
    let tree = lab.path("tree");
    fs::create_dir(&tree).expect("create a directory");
    artifacts::system_tree(&tree, 200, &mut rng);
    special_files(&tree);
    for (kind, choices) in KINDS {
        image(&tree, &lab.path(&format!("{kind}-1")), choices);
    }
    artifacts::update_tree(&tree, &mut rng);
    for (kind, choices) in KINDS {
        image(&tree, &lab.path(&format!("{kind}-2")), choices);
    }
    lab.enroll("d", lab.quic());
    for (kind, _) in KINDS {
        let [v1, v2] = ["1", "2"].map(|version| {
            let image = lab.path(&format!("{kind}-{version}"));
            lab.push(&image, kind, version).ok();
            image
        });
        lab.patches(kind, 1);
        let slot = lab.path(&format!("{kind}-slot"));
        lab.pull("d", &format!("{kind}@1"), &slot, &[]).ok();
        assert!(same(&slot, &v1));
        let out = lab.path(&format!("{kind}-out"));
        let (out_arg, slot_arg) = (out.display().to_string(), slot.display().to_string());
        let wanted = format!("{kind}@2");
        let args = ["pull", &wanted, "--optimize", "bytes", "--out", &out_arg, "--seed", &slot_arg];
        let update = lab.device("d", &args).ok();
        assert!(update.number("patches_applied") > 0, "{kind}: {}", update.json);
        assert_eq!(update.number("patches_failed"), 0, "{kind}");
        assert!(same(&out, &v2), "{kind}");
        let mounted = Mounted::new(&out, lab.path(&format!("{kind}-mounted")));
        assert_same_tree(&mounted.0, &tree, kind);
    }
}
