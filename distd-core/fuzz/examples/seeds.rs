//! Makes the seeds that come from real inputs: `cargo run --example seeds -- DIR`. Needs
//! `mkfs.erofs`, `gzip`, `tar` and what `disks.sh` needs. Seeds of the formats with views come from
//! the golden files.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use distd_core::cut::CutParams;
use distd_core::manifest::{Builder, Entry, Kind, Manifest, compact_leaf};
use distd_core::patch::{
    Effort, LargePayload, Outline, PatchChunkId, PatchMethod, SetIndex, SetPatch, TargetRun, ViewChunkId, encode,
};
use distd_core::proto::Frame;
use distd_core::proto::frame::{
    Choke, Codec as DataCodec, Data, DontHave, DontHaveReason, Handshake, Node, NodeRequest, NodesEnd, Ranges,
};
use distd_core::tree::{Entry as TreeEntry, EntryKind, Listing, RootDir, Time, TreePath, Xattr};
use distd_core::{ArtifactHash, ChunkHash, ChunkId, ManifestId, NodeHash};
use distd_core_fuzz::bodies::input::part;

#[path = "../../tests/view_goldens/mod.rs"]
mod view_goldens;
use view_goldens::goldens;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Seeds(PathBuf);

impl Seeds {
    fn put(&self, target: &str, name: &str, parts: &[&[u8]]) -> Result<()> {
        let dir = self.0.join(target);
        fs::create_dir_all(&dir)?;
        Ok(fs::write(dir.join(name), parts.concat())?)
    }
}

fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1).ok_or("usage: cargo run --example seeds -- DIR")?;
    let seeds = Seeds(dir.into());
    artifacts(&seeds)?;
    views(&seeds)?;
    codecs(&seeds)?;
    hash_trees(&seeds)?;
    sets(&seeds)?;
    manifests(&seeds)?;
    frames(&seeds)
}

/// Returns a text of words and numbers that differs for each `seed`.
fn text(seed: u32, len: usize) -> Vec<u8> {
    let (mut out, mut state) = (Vec::new(), seed);
    while out.len() < len {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        out.extend_from_slice(format!("line {} of {}\n", state >> 24, state >> 29).as_bytes());
    }
    out.truncate(len);
    out
}

fn gzip(plain: &[u8], level: &str) -> Result<Vec<u8>> {
    let mut child =
        Command::new("gzip").args(["-nc", level]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    // The input fits into the buffer of a pipe.
    child.stdin.take().ok_or("no pipe")?.write_all(plain)?;
    Ok(child.wait_with_output()?.stdout)
}

fn cpio(path: &str, data: &[u8]) -> Vec<u8> {
    let mut out = b"070701".to_vec();
    for n in 0..13 {
        let number = match n {
            6 => data.len(),
            11 => path.len() + 1,
            _ => 0,
        };
        out.extend_from_slice(format!("{number:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn mkfs(tree: &Path, options: &[&str]) -> Result<Option<Vec<u8>>> {
    let image = tree.with_extension("erofs");
    let mut command = Command::new("mkfs.erofs");
    command.args(["-T1700000000", "-U11111111-2222-3333-4444-555555555555", "--all-root"]).args(options);
    let made = command.arg(&image).arg(tree).output()?;
    Ok(if made.status.success() { Some(fs::read(image)?) } else { None })
}

/// Makes inputs of the targets of views, for every format.
fn views(seeds: &Seeds) -> Result<()> {
    for golden in goldens(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")) {
        for (target, input) in golden.seeds() {
            seeds.put(target, golden.format.name(), &[&input])?;
        }
    }
    Ok(())
}

/// Makes inputs for `regions` and for the readers of packed files.
fn artifacts(seeds: &Seeds) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("distd-seeds-{}", std::process::id()));
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("usr/lib"))?;
    fs::write(tree.join("usr/lib/library"), text(1, 6000))?;
    fs::write(tree.join("usr/lib/small"), text(2, 700))?;
    fs::write(tree.join("config"), text(3, 2600))?;
    fs::write(tree.join("empty"), "")?;
    fs::write(tree.join("packed.gz"), gzip(&text(4, 16_000), "-9")?)?;
    std::os::unix::fs::symlink("usr/lib", tree.join("lib"))?;
    let kinds: [(&str, &[&str]); 5] = [
        ("erofs-plain", &[]),
        ("erofs-chunks", &["--chunksize=4096"]),
        ("erofs-lz4", &["-zlz4"]),
        ("erofs-lz4hc-tails", &["-zlz4hc", "-C65536", "-Eztailpacking"]),
        ("erofs-fragments", &["-zlz4hc", "-C16384", "-Efragments"]),
    ];
    for (name, options) in kinds {
        let Some(image) = mkfs(&tree, options)? else { continue };
        seeds.put("artifacts", name, &[&image])?;
    }
    let archive = |format: &str| -> Result<Vec<u8>> {
        let mut tar = Command::new("tar");
        tar.args([format, "--sort=name", "--mtime=@1700000000", "--owner=0", "--group=0", "-cf", "-", "-C"]);
        Ok(tar.arg(tree.join("usr")).arg(".").output()?.stdout)
    };
    fs::write(tree.join("usr").join("long".repeat(30)), text(11, 400))?;
    let (gnu, pax) = (archive("--format=gnu")?, archive("--format=pax")?);
    // Cut off most of the padding to a whole record.
    let end = |tar: &[u8]| tar.len() - tar.iter().rev().take_while(|byte| **byte == 0).count();
    seeds.put("artifacts", "tar", &[&gnu[..(end(&gnu)).next_multiple_of(512) + 1024]])?;
    seeds.put("artifacts", "tar-pax", &[&pax[..(end(&pax)).next_multiple_of(512) + 1024]])?;
    fs::remove_dir_all(&dir)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/disks.sh");
    let made = Command::new("sh").arg(script).arg(seeds.0.join("artifacts")).status()?;
    if !made.success() {
        return Err("disks.sh failed".into());
    }

    let members = [gzip(&text(5, 14_000), "-6")?, gzip(&text(6, 7000), "-1")?, vec![0; 100]].concat();
    seeds.put("artifacts", "gzip-members", &[&members])?;

    let early =
        [cpio("kernel/x86/microcode/GenuineIntel.bin", &[7; 600]), cpio("TRAILER!!!", b""), vec![0; 200]];
    let main = [
        cpio(".", b""),
        cpio("./init", &text(7, 900)),
        cpio("usr/lib/x", &text(8, 300)),
        cpio("TRAILER!!!", b""),
    ];
    seeds.put("artifacts", "cpio-initrd", &[&early.concat(), &main.concat(), &[0; 96]])
}

fn codecs(seeds: &Seeds) -> Result<()> {
    let base = text(9, 3000);
    let mut target = text(10, 200);
    target.extend_from_slice(&base[100..2500]);
    for at in (300..2400).step_by(77) {
        target[at] = target[at].wrapping_add(3);
    }
    for codec in PatchMethod::ALL {
        let name = format!("{codec:?}").to_lowercase();
        let payload = encode(codec, &base, &target, Effort::default()).ok_or("small")?;
        let number = [codec.number() - 1];
        let len = &(target.len() as u32).to_le_bytes()[..3];
        seeds.put("patch_decode", &name, &[&number, len, &part(&base), &payload])?;
        seeds.put("patch_encode", &name, &[&number, &[40, 0, 0], &part(&base), &target])?;
        if codec == PatchMethod::References {
            let LargePayload { own, .. } = LargePayload::new(&payload);
            seeds.put("patch_large", "one-piece", &[&[1], len, &part(&base), &own])?;
            let (piece, rest) = payload.split_at(50);
            seeds.put("patch_large", "pieces", &[&[1], len, &part(&[&base[..], piece].concat()), &[50], rest])?;
        }
    }
    let solid = encode(PatchMethod::Zstd, &[], &target, Effort::default()).ok_or("small")?;
    let len = &(target.len() as u32).to_le_bytes()[..3];
    seeds.put("patch_decode", "solid", &[&[0], len, &part(&[]), &solid])
}

fn hash_trees(seeds: &Seeds) -> Result<()> {
    let put = |name: &str, recipe: &[u8], base: &[u8]| seeds.put("hash_tree", name, &[&part(recipe), base]);
    put("levels", &[1, 2, 1, 9, 9, 2, 4, 40, b's', b'a', b'l', b't'], &text(12, 4 + 40 * 512))?;
    put("one-level", &[1, 1, 0, 9, 10, 1, 0, 63], &text(13, 63 * 512))
}

fn unpacked(packed: &[u8]) -> Result<Vec<u8>> {
    Ok(zstd::bulk::decompress(packed, 1 << 20)?)
}

fn sets(seeds: &Seeds) -> Result<()> {
    let view = 1 << 60;
    let id = |number: u64| match number.checked_sub(view) {
        Some(of_view) => PatchChunkId::from(ViewChunkId(of_view)),
        None => ChunkId(number).into(),
    };
    let patch = |codec, packed, bases: &[(u64, u64)], targets: &[(u64, &[u32])]| SetPatch {
        codec,
        packed,
        bases: bases.iter().map(|(first, last)| id(*first)..=id(*last)).collect(),
        targets: targets
            .iter()
            .map(|(first, lens)| TargetRun { first: id(*first), lens: lens.to_vec() })
            .collect(),
    };
    let first = SetIndex {
        from: ManifestId([7; 32]),
        to: ManifestId([7; 32]),
        patches: vec![
            patch(1, 50_000, &[], &[(900, &[4096, 70, 65_536])]),
            patch(2, 9000, &[(3, 40), (900, 901), (1, 1)], &[(904, &[1]), (910, &[1 << 20])]),
            patch(128, 0, &[(11, 13)], &[(view, &[20_000, 30_000])]),
            patch(1, 700, &[(view, view + 1)], &[(view + 2, &[9000])]),
            patch(129, 90_000, &[(view + 2, view + 2)], &[(912, &[3000, 4000])]),
            patch(99, 5, &[], &[(1000, &[5])]),
        ],
    };
    let second = SetIndex {
        from: ManifestId([7; 32]),
        to: ManifestId([8; 32]),
        patches: vec![
            patch(1, 4000, &[(910, 910), (4, 4)], &[(2000, &[4000, 4000])]),
            patch(2, 800, &[(2000, 2001)], &[(2002, &[900])]),
        ],
    };
    let (a, b) = (first.encode(), second.encode());
    seeds.put("set_index", "packed", &[&[0], &a])?;
    seeds.put("set_index", "plain", &[&[1], &unpacked(&a)?[72..]])?;
    seeds.put("set_index", "second", &[&[1], &unpacked(&b)?[72..]])?;
    let with_mode = |packed: &[u8]| -> Result<Vec<u8>> { Ok([&[1], &unpacked(packed)?[72..]].concat()) };
    let (a, b) = (with_mode(&a)?, with_mode(&b)?);
    seeds.put("choose", "bytes", &[&[2, 0, 200, 0, 0], &part(&a), &b])?;
    seeds.put("choose", "time", &[&[5, 20, 9, 0, 0], &part(&a), &b])?;
    seeds.put("choose", "twice", &[&[3, 0, 9, 0, 0], &part(&a), &a])?;

    let entry =
        |n: u64| Entry { id: ChunkId(n), hash: ChunkHash::of(&n.to_be_bytes()), len: 1 + (n % 1000) as u32 };
    let from: Vec<_> = (1..200).map(entry).collect();
    let to: Vec<_> = (1..300u64).map(|n| entry(if n % 5 == 0 { n + 500 } else { n })).collect();
    let outline = Outline::new(&from, &to, |id| id.0 > 500 && id.0 % 10 == 0).encode().ok_or("small")?;
    seeds.put("outline", "packed", &[&[0], &outline])?;
    seeds.put("outline", "plain", &[&[1], &unpacked(&outline)?[8..]])?;

    seeds.put("route", "two-legs", &[&[1, 2, 4], &[10, 1, 3, 10, 3, 4, 25, 1, 4, 255, 4, 4]])?;
    seeds.put("route", "long", &[&[0, 0, 5], &[1, 0, 1, 1, 1, 2, 1, 2, 3, 1, 3, 4, 1, 4, 5, 9, 0, 4]])
}

fn manifest(chunks: u64) -> Manifest {
    let mut builder = Builder::new(CutParams::default(), Kind::File);
    for n in 0..chunks {
        let hash = ChunkHash::of(&n.to_be_bytes());
        builder.push(Entry { id: ChunkId(n + 1), hash, len: 4096 + (n % 60_000) as u32 });
    }
    builder.finish(ArtifactHash([7; 32]))
}

fn manifests(seeds: &Seeds) -> Result<()> {
    let small = manifest(40);
    seeds.put("manifest", "file", &[&[0], &small.to_file_bytes()])?;
    seeds.put("manifest", "empty", &[&[0], &manifest(0).to_file_bytes()])?;
    seeds.put("manifest", "root", &[&[1], small.root_bytes()])?;
    let (_, hash) = small.nodes_missing_from(&[])[0];
    let leaf = small.node(&hash).ok_or("an own node")?;
    seeds.put("manifest", "leaf", &[&[2], leaf])?;
    let compact = compact_leaf(leaf, |id| id.0 % 3 == 0)?.ok_or("near ids")?;
    seeds.put("manifest", "compact", &[&[3], &compact])?;
    // One node many times under another: a tree of few bytes.
    let mut builder = Builder::new(CutParams::default(), Kind::File);
    for _ in 0..10_000 {
        builder.push(Entry { id: ChunkId(1), hash: ChunkHash([0xFF; 32]), len: 4096 });
    }
    seeds.put("manifest", "run", &[&[0], &builder.finish(ArtifactHash([7; 32])).to_file_bytes()])?;

    let entry = |path: &str, kind| -> Result<TreeEntry> {
        let path = TreePath::new(path.as_bytes())?;
        let modified = Some(Time { seconds: 1_700_000_000, nanos: 5 });
        Ok(TreeEntry { path, kind, mode: 0o755, uid: 0, gid: 1000, xattrs: Vec::new(), modified })
    };
    let mut file = entry("etc/file", EntryKind::File { size: 300 })?;
    let xattr = |name: &[u8], value: &[u8]| Xattr { name: name.into(), value: value.into() };
    file.xattrs = vec![xattr(b"security.capability", &[1, 0, 0, 2]), xattr(b"user.x", b"")];
    let root = || RootDir {
        mode: 0o755,
        uid: 0,
        gid: 0,
        xattrs: vec![xattr(b"user.root", b"x")],
        modified: Time { seconds: -1, nanos: 0 },
    };
    let mut link = entry("etc/same", EntryKind::HardLink { target: TreePath::new(b"etc/file")? })?;
    (link.mode, link.gid, link.modified) = (0, 0, None);
    let entries = vec![
        entry("etc", EntryKind::Dir)?,
        file,
        link,
        entry("etc/link", EntryKind::Symlink { target: (*b"../usr").into() })?,
        entry("pipe", EntryKind::Fifo)?,
        entry("null", EntryKind::CharDev { rdev: 259 })?,
        entry("disk", EntryKind::BlockDev { rdev: 1 << 40 })?,
    ];
    seeds.put("tree_listing", "full", &[&Listing::new(root(), entries)?.encode()])?;
    // The seeds of version 1 ("kinds", "empty") stay as they are: that version is no longer
    // written.
    seeds.put("tree_listing", "full_empty", &[&Listing::new(root(), Vec::new())?.encode()])
}

fn frames(seeds: &Seeds) -> Result<()> {
    let id = ManifestId([1; 32]);
    let ranges = |list: &[(u64, u64)]| Ranges(list.iter().map(|(a, b)| ChunkId(*a)..=ChunkId(*b)).collect());
    let mut handshake = Handshake::new(id);
    handshake.capability = Bytes::from_static(b"capability");
    handshake.fetches_upstream = true;
    let choke = Choke { retry_after: std::time::Duration::from_millis(300), alternates: vec!["a:1".into()] };
    let data = |n| Data { id: ChunkId(n), codec: DataCodec::Raw, bytes: Bytes::from_static(b"some bytes") };
    let control = [
        Frame::Handshake(handshake),
        Frame::Have(ranges(&[(1, 9), (300, 912)])),
        Frame::Choke(choke.clone()),
        Frame::Unchoke,
        Frame::Cancel(ranges(&[(5, 5)])),
        Frame::Unknown { frame_type: 77, len: 4 },
    ];
    let batch = [
        Frame::Request(ranges(&[(1, 2), (7, 7)])),
        Frame::Data(data(1)),
        Frame::Data(data(7)),
        Frame::DontHave(DontHave { reason: DontHaveReason::Busy, ranges: ranges(&[(2, 6), (8, 900)]) }),
        Frame::Choke(choke),
    ];
    let nodes = [
        Frame::NodeRequest(NodeRequest {
            held: vec![id],
            hashes: vec![NodeHash([2; 32]), NodeHash([3; 32])],
        }),
        Frame::Integrity(Node { level: 0, bytes: Bytes::from_static(b"node") }),
        Frame::NodesEnd(NodesEnd { missing: 1 }),
    ];
    for (name, frames) in [("control", &control[..]), ("batch", &batch[..]), ("nodes", &nodes[..])] {
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().to_vec()).collect();
        seeds.put("frames", name, &[&[7], &bytes])?;
    }
    Ok(())
}
