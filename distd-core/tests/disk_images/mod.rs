//! Shared parts of the tests of disk images: file systems, unified kernel images and partition
//! tables, made by the real tools (Debian: gdisk, fdisk, dosfstools, mtools, binutils, e2fsprogs).

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use distd_core::cut::{RegionKind, Regions, regions};

/// Runs a tool; `false` if it is not installed.
pub(crate) fn has(tool: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("NOT RUN: {tool} is missing; tests/run.sh installs it");
    }
    found
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    // Debian's users have no sbin in their path.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; tests/run.sh installs it"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {errors}{}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}

/// Makes a FAT file system with these files, in this order.
pub(crate) fn fat(image: &Path, bits: u32, bytes: u64, files: &[(&str, &[u8])]) -> Vec<u8> {
    File::create(image).and_then(|file| file.set_len(bytes)).expect("writable");
    run("mkfs.vfat", &["-F", &bits.to_string(), "-s", "1", "-i", "12345678", "-n", "ESP", text(image)]);
    for (path, bytes) in files {
        put(image, path, bytes);
    }
    fs::read(image).expect("mkfs.vfat left an image")
}

/// Writes a file into a FAT file system.
pub(crate) fn put(image: &Path, path: &str, bytes: &[u8]) {
    let from = image.with_extension("file");
    fs::write(&from, bytes).expect("writable");
    for (at, _) in path.match_indices('/') {
        let directory = format!("::{}", &path[..at]);
        let made = Command::new("mmd").args(["-D", "s", "-i", text(image), &directory]).output();
        made.expect("these tests run mtools: install mtools");
    }
    run("mcopy", &["-o", "-i", text(image), text(&from), &format!("::{path}")]);
}

/// Makes an EFI program without further sections.
pub(crate) fn stub(dir: &Path) -> PathBuf {
    let at = |name: &str| dir.join(name);
    fs::write(at("s.s"), ".globl _start\n_start: ret\n").expect("writable");
    run("as", &["-o", text(&at("s.o")), text(&at("s.s"))]);
    run("objcopy", &["-O", "pe-x86-64", text(&at("s.o")), text(&at("p.o"))]);
    run(
        "ld",
        &[
            "-m",
            "i386pep",
            "--subsystem",
            "10",
            "-e",
            "_start",
            "-o",
            text(&at("stub.efi")),
            text(&at("p.o")),
        ],
    );
    at("stub.efi")
}

/// Makes a unified kernel image with these sections.
pub(crate) fn uki(dir: &Path, sections: &[(&str, &[u8])]) -> Vec<u8> {
    let (stub, out) = (stub(dir), dir.join("uki.efi"));
    let mut args = Vec::new();
    for (index, (name, bytes)) in sections.iter().enumerate() {
        let file = dir.join(format!("section-{index}"));
        fs::write(&file, bytes).expect("writable");
        args.push(format!("--add-section={name}={}", text(&file)));
        args.push(format!("--change-section-vma={name}=0x{:x}", 0x1_5000_0000 + index * 0x1000_0000));
        args.push(format!("--set-section-flags={name}=contents,alloc,load,readonly,data"));
    }
    args.extend([text(&stub).to_owned(), text(&out).to_owned()]);
    run("objcopy", &args.iter().map(String::as_str).collect::<Vec<_>>());
    fs::read(out).expect("objcopy left a file")
}

/// Partition of a disk to make.
pub(crate) struct Part<'a> {
    /// Type, as sgdisk knows it.
    pub(crate) kind: &'a str,
    pub(crate) label: &'a str,
    /// First mebibyte.
    pub(crate) at: u64,
    /// Mebibytes.
    pub(crate) len: u64,
    pub(crate) bytes: &'a [u8],
}

pub(crate) const MIB: u64 = 1 << 20;

/// Makes a disk with a GPT.
pub(crate) fn gpt(disk: &Path, mebibytes: u64, parts: &[Part<'_>]) -> Vec<u8> {
    let file = File::create(disk).expect("writable");
    file.set_len(mebibytes * MIB).expect("writable");
    let mut args = vec!["-o".to_owned(), "-U".to_owned(), "11111111-2222-3333-4444-555555555555".to_owned()];
    for (number, part) in (1..).zip(parts) {
        let (first, last) = (part.at * MIB / 512, (part.at + part.len) * MIB / 512 - 1);
        args.push(format!("--new={number}:{first}:{last}"));
        args.push(format!("--typecode={number}:{}", part.kind));
        args.push(format!("--change-name={number}:{}", part.label));
        args.push(format!("--partition-guid={number}:11111111-2222-3333-4444-00000000000{number}"));
        assert!(part.bytes.len() as u64 <= part.len * MIB);
        file.write_all_at(part.bytes, part.at * MIB).expect("writable");
    }
    args.push(text(disk).to_owned());
    run("sgdisk", &args.iter().map(String::as_str).collect::<Vec<_>>());
    fs::read(disk).expect("a disk")
}

/// Bytes of each named file, its regions one behind the other.
pub(crate) fn named(artifact: &[u8], found: &Regions) -> BTreeMap<String, Vec<u8>> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for region in found.all().iter().filter(|region| region.kind != RegionKind::Metadata) {
        if let Some(name) = found.name(region) {
            let bytes = &artifact[region.start as usize..region.end() as usize];
            files.entry(String::from_utf8_lossy(name).into_owned()).or_default().extend_from_slice(bytes);
        }
    }
    files
}

/// [`named`] with the artifact's own regions.
pub(crate) fn files_of(artifact: &[u8]) -> BTreeMap<String, Vec<u8>> {
    named(artifact, &regions(artifact))
}
