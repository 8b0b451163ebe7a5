//! Real artifacts for tests: EROFS images of generated trees.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Rng;

/// Writes a system-like tree: `files` files of mixed size and kind, deterministic in `rng`.
///
/// # Panics
/// If the disk refuses; a test cannot do anything about that.
pub fn system_tree(dir: &Path, files: usize, rng: &mut Rng) {
    for n in 0..files {
        let sub = dir.join(format!("usr/lib/part{}", n % 17));
        fs::create_dir_all(&sub).expect("create a directory");
        let len = match n % 10 {
            0 => 0,
            1..=5 => rng.below(3_000) as usize,
            6..=8 => rng.below(60_000) as usize,
            _ => rng.below(600_000) as usize,
        };
        let bytes = if n % 3 == 0 { rng.bytes(len) } else { rng.text(len) };
        fs::write(sub.join(format!("file{n}")), bytes).expect("write a file");
    }
    std::os::unix::fs::symlink("usr/lib", dir.join("lib")).expect("link");
}

/// Changes a tree as an update does: some files rewritten, some edited, one added, one removed.
///
/// # Panics
/// As [`system_tree`].
pub fn update_tree(dir: &Path, rng: &mut Rng) {
    let mut files = walk(dir);
    files.sort();
    for (n, path) in files.iter().enumerate() {
        let Ok(mut bytes) = fs::read(path) else { continue };
        if n % 11 == 0 {
            bytes = rng.text(bytes.len() + 100);
        } else if n % 7 == 0 && !bytes.is_empty() {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes.splice(at..at, rng.bytes(50));
        } else {
            continue;
        }
        fs::write(path, bytes).expect("rewrite a file");
    }
    fs::write(dir.join("usr/lib/added"), rng.text(40_000)).expect("add a file");
    if let Some(last) = files.last() {
        fs::remove_file(last).expect("remove a file");
    }
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("read a directory") {
        let entry = entry.expect("read a directory");
        let kind = entry.file_type().expect("file type");
        if kind.is_dir() {
            found.extend(walk(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}

/// Makes an EROFS image of `tree` with `mkfs.erofs`.
///
/// # Panics
/// When `mkfs.erofs` is missing (install erofs-utils) or fails.
pub fn erofs(tree: &Path, image: &Path, options: &[&str]) {
    try_erofs(tree, image, options).unwrap_or_else(|message| panic!("mkfs.erofs {options:?}: {message}"));
}

/// Makes an EROFS image of `tree` as [`erofs`] does, but returns the message of `mkfs.erofs` if it
/// rejects the options: newer versions know more of them. Uses the `mkfs.erofs` that
/// `DISTD_TEST_NEWER_MKFS` names, where that is set.
///
/// # Errors
/// The message of `mkfs.erofs`.
///
/// # Panics
/// When `mkfs.erofs` is missing.
pub fn try_erofs(tree: &Path, image: &Path, options: &[&str]) -> Result<(), String> {
    let program = std::env::var_os("DISTD_TEST_NEWER_MKFS").unwrap_or_else(|| "mkfs.erofs".into());
    let output = Command::new(program)
        .args(["-T1700000000", "-U", "11111111-2222-3333-4444-555555555555"])
        .args(options)
        .arg(image)
        .arg(tree)
        .output()
        .expect("run mkfs.erofs: install erofs-utils");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Two releases of one system as EROFS images in `dir`: about 15 MB each, with the changes of an
/// update between them.
///
/// # Panics
/// As [`erofs`].
pub fn release_pair(dir: &Path, rng_seed: u64) -> (PathBuf, PathBuf) {
    let mut rng = Rng::new(rng_seed);
    let tree = dir.join("tree");
    system_tree(&tree, 400, &mut rng);
    let (v1, v2) = (dir.join("v1.erofs"), dir.join("v2.erofs"));
    erofs(&tree, &v1, &[]);
    update_tree(&tree, &mut rng);
    erofs(&tree, &v2, &[]);
    (v1, v2)
}

/// Three releases of a system: files edited in the middle, and an initrd (gzip, made by gzip) whose
/// content is edited.
///
/// # Panics
/// As [`erofs`], and when `gzip` is missing.
pub fn releases(dir: &Path, rng_seed: u64) -> [PathBuf; 3] {
    releases_with(dir, rng_seed, |_, _| ())
}

/// Makes the releases as [`releases`] does, and calls `each` with the tree and the image of each
/// release before the tree changes for the next one.
///
/// # Panics
/// As [`releases`].
pub fn releases_with(dir: &Path, rng_seed: u64, mut each: impl FnMut(&Path, &Path)) -> [PathBuf; 3] {
    let mut rng = Rng::new(rng_seed);
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("boot")).expect("create a directory");
    system_tree(&tree, 120, &mut rng);
    let mut programs: Vec<Vec<u8>> = (0..4).map(|_| rng.text(400_000)).collect();
    let mut inside = rng.text(3_000_000);
    ["1", "2", "3"].map(|version| {
        for (n, program) in programs.iter_mut().enumerate() {
            fs::write(tree.join(format!("usr/lib/program{n}")), &program).expect("write a file");
            // For the next release: a small change every few chunks.
            for _ in 0..20 {
                let at = rng.below(program.len() as u64 - 100) as usize;
                program.splice(at..at + 3, rng.bytes(9));
            }
        }
        fs::write(tree.join("boot/initrd"), &inside).expect("write a file");
        let gzip = Command::new("gzip").args(["-n", "-9", "-f"]).arg(tree.join("boot/initrd")).status();
        assert!(gzip.expect("run gzip").success());
        fs::rename(tree.join("boot/initrd.gz"), tree.join("boot/initrd.img")).expect("rename");
        let at = rng.below(1000) as usize;
        inside.splice(at..at, rng.bytes(200));
        let image = dir.join(format!("v{version}.erofs"));
        erofs(&tree, &image, &[]);
        each(&tree, &image);
        image
    })
}
