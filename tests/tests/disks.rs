//! Disk images end to end: an ESP with a unified kernel image, a root file system and its hash
//! tree. Needs gdisk, dosfstools, mtools, binutils and cryptsetup-bin.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use distd_tests::artifacts;
use distd_tests::lab::{Lab, same};

const MIB: u64 = 1 << 20;

/// First mebibyte and length in mebibytes of the ESP, of the slots of root, and of the hash tree.
const ESP: (u64, u64) = (1, 12);
const ROOT: [(u64, u64); 2] = [(13, 12), (25, 12)];
const TREE: (u64, u64) = (37, 3);

fn run(program: &str, args: &[&str]) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; tests/run.sh installs it"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}

/// Makes a unified kernel image of a kernel and an initrd.
fn kernel(dir: &Path, kernel: &Path, initrd: &Path) -> PathBuf {
    let at = |name: &str| dir.join(name);
    fs::write(at("s.s"), ".globl _start\n_start: ret\n").expect("write a file");
    run("as", &["-o", text(&at("s.o")), text(&at("s.s"))]);
    run("objcopy", &["-O", "pe-x86-64", text(&at("s.o")), text(&at("p.o"))]);
    run(
        "ld",
        &["-m", "i386pep", "--subsystem", "10", "-e", "_start", "-o", text(&at("stub")), text(&at("p.o"))],
    );
    let section = |name: &str, file: &Path, address: &str| {
        [
            format!("--add-section={name}={}", text(file)),
            format!("--change-section-vma={name}={address}"),
            format!("--set-section-flags={name}=contents,alloc,load,readonly,data"),
        ]
    };
    let mut args = section(".linux", kernel, "0x150000000").to_vec();
    args.extend(section(".initrd", initrd, "0x160000000"));
    args.extend([text(&at("stub")).to_owned(), text(&at("linux.efi")).to_owned()]);
    run("objcopy", &args.iter().map(String::as_str).collect::<Vec<_>>());
    at("linux.efi")
}

/// Makes a disk with the kernel of `system` and with `root`, its image, in a slot. The hash tree
/// has a random salt, as always by default.
fn disk(dir: &Path, system: &Path, name: &str, root: &Path, slot: usize) -> PathBuf {
    let (disk, esp, tree) = (dir.join(name), dir.join("esp"), dir.join("hash-tree"));
    let file = File::create(&disk).expect("create a file");
    file.set_len((TREE.0 + TREE.1 + 1) * MIB).expect("set a length");
    // The root file system has the kernel's parts too, as systems have them before they are joined.
    let version = name.trim_matches(|c: char| !c.is_ascii_digit());
    let efi = kernel(dir, &system.join("usr/lib/program0"), &system.join("boot/initrd.img"));
    File::create(&esp).and_then(|esp| esp.set_len(ESP.1 * MIB)).expect("create a file");
    run("mkfs.vfat", &["-F", "16", "-s", "1", "-i", "12345678", text(&esp)]);
    run("mmd", &["-i", text(&esp), "::EFI", "::EFI/Linux"]);
    run("mcopy", &["-i", text(&esp), text(&efi), &format!("::EFI/Linux/system_{version}.efi")]);
    let _ = fs::remove_file(&tree);
    let options = ["format", "--hash=sha512", "--data-block-size=1024", "--hash-block-size=4096"];
    run("veritysetup", &[&options[..], &[text(root), text(&tree)]].concat());
    let labels = [format!("root-{version}"), "_empty".to_owned()];
    let part = |number: usize, (at, len): (u64, u64), kind: &str, label: &str| {
        let (first, last) = (at * MIB / 512, (at + len) * MIB / 512 - 1);
        [
            format!("--new={number}:{first}:{last}"),
            format!("--typecode={number}:{kind}"),
            format!("--change-name={number}:{label}"),
        ]
    };
    let mut args = part(1, ESP, "ef00", "esp").to_vec();
    args.extend(part(2, ROOT[slot], "8304", &labels[0]));
    args.extend(part(3, ROOT[1 - slot], "8304", &labels[1]));
    args.extend(part(4, TREE, "830c", "root-verity"));
    args.push(text(&disk).to_owned());
    run("sgdisk", &args.iter().map(String::as_str).collect::<Vec<_>>());
    for (from, (at, len)) in [(esp.as_path(), ESP), (root, ROOT[slot]), (&tree, TREE)] {
        let bytes = fs::read(from).expect("read a file");
        assert!(bytes.len() as u64 <= len * MIB, "{}: {} bytes", from.display(), bytes.len());
        file.write_all_at(&bytes, at * MIB).expect("write a disk");
    }
    disk
}

/// Bytes on the wire of an update from one artifact to another, which is exact.
fn update(lab: &Lab, product: &str, v1: &Path, v2: &Path) -> u64 {
    lab.push(v1, product, "1").ok();
    let device = format!("device-{product}");
    lab.enroll(&device, lab.quic());
    let (slot, out) = (lab.path(&format!("{product}-slot")), lab.path(&format!("{product}-out")));
    lab.pull(&device, &format!("{product}@1"), &slot, &[]).ok();
    lab.push(v2, product, "2").ok();
    lab.patches(product, 1);
    let wanted = format!("{product}@2");
    let args = ["pull", &wanted, "--optimize", "bytes", "--out", text(&out), "--seed", text(&slot)];
    let update = lab.device(&device, &args).ok();
    assert!(same(&out, v2));
    assert_eq!(update.number("patches_failed"), 0, "{}", update.json);
    assert!(update.number("patches_applied") > 0, "{}", update.json);
    update.number("wire_bytes")
}

#[test]
fn a_disk_costs_what_its_file_systems_cost_and_its_hash_tree_is_not_sent() {
    let lab = Lab::start_with(&["--patches", "true", "--solid-sets", "false"]);
    let dir = lab.path("");
    let mut disks = Vec::new();
    let roots = artifacts::releases_with(&dir, 31, |tree, root| {
        let version = disks.len() + 1;
        disks.push(disk(&dir, tree, &format!("disk-{version}.img"), root, 0));
        if version == 2 {
            disks.push(disk(&dir, tree, "swapped-2.img", root, 1));
        }
    });
    let tree_bytes = fs::metadata(dir.join("hash-tree")).expect("a tree").len();
    let bare = update(&lab, "bare", &roots[0], &roots[1]);
    let in_disk = update(&lab, "disk", &disks[0], &disks[1]);
    let swapped = update(&lab, "swapped", &disks[0], &disks[2]);
    eprintln!("bare {bare}, disk {in_disk}, swapped {swapped}, hash tree {tree_bytes}");
    // The ESP has the kernel and the initrd once more; the hash tree cannot be packed.
    assert!(tree_bytes > 2 * bare, "{tree_bytes} {bare}");
    assert!(in_disk < 2 * bare, "{in_disk} {bare}");
    assert!(swapped < in_disk + bare / 2, "{swapped} {in_disk}");
}

#[test]
fn a_squashfs_costs_little_more_than_the_same_files_in_erofs() {
    let lab = Lab::start_with(&["--patches", "true", "--solid-sets", "false"]);
    let dir = lab.path("");
    let packers: [(&str, &[&str]); 3] =
        [("gzip", &["-comp", "gzip"]), ("xz", &["-comp", "xz"]), ("lz4", &["-comp", "lz4", "-Xhc"])];
    let mut images: Vec<Vec<PathBuf>> = vec![Vec::new(); packers.len()];
    let roots = artifacts::releases_with(&dir, 41, |tree, _| {
        for ((name, options), images) in packers.iter().zip(&mut images) {
            let image = dir.join(format!("{name}-{}.squashfs", images.len()));
            let always = ["-noappend", "-quiet", "-no-progress", "-all-root", "-all-time", "0"];
            let args = [&[text(tree), text(&image)], *options, &always, &["-mkfs-time", "0"]].concat();
            run("mksquashfs", &args);
            images.push(image);
        }
    });
    let bare = update(&lab, "bare", &roots[0], &roots[1]);
    for ((name, _), images) in packers.iter().zip(&images) {
        let bytes = update(&lab, name, &images[0], &images[1]);
        let alone = fs::metadata(&images[1]).expect("an image").len();
        eprintln!("EROFS {bare}, squashfs {name} {bytes} of {alone}");
        // All inodes have new places of their data.
        assert!(bytes * 100 < bare * 130, "{name}: {bytes}, {bare}");
    }
}
