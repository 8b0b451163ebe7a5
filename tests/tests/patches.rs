//! Patches end to end: made by the origin, relayed, and applied by a device; where that fails, the
//! device fetches chunks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use distd_tests::artifacts;
use distd_tests::lab::{Lab, Outcome, same};

/// An origin that makes patches.
fn lab() -> Lab {
    Lab::start_with(&["--patches", "true", "--solid-sets", "false"])
}

/// Installs release `from` on a device, in a file of its own.
fn installed(lab: &Lab, device: &str, parent: &str, from: &str) -> PathBuf {
    lab.enroll(device, parent);
    let slot = lab.path(&format!("{device}-slot"));
    lab.pull(device, &format!("os@{from}"), &slot, &[]).ok();
    slot
}

/// Updates a device from `v1` to `v2` with the fewest bytes, and asserts that the result is exact
/// and no patch failed.
fn updated(lab: &Lab, v1: &Path, v2: &Path) -> Outcome {
    lab.push(v1, "os", "1").ok();
    let slot = installed(lab, "d1", lab.quic(), "1");
    lab.push(v2, "os", "2").ok();
    lab.patches("os", 1);
    let out = lab.path("out");
    let (out_arg, slot_arg) = (out.display().to_string(), slot.display().to_string());
    let args = ["pull", "os@2", "--optimize", "bytes", "--out", &out_arg, "--seed", &slot_arg];
    let update = lab.device("d1", &args).ok();
    assert!(same(&out, v2));
    assert_eq!(update.number("patches_failed"), 0, "{}", update.json);
    update
}

#[test]
fn an_update_by_patches_is_bit_exact_and_a_fraction_of_the_chunks() {
    let lab = lab();
    let [v1, v2, _] = artifacts::releases(&lab.path(""), 21);
    lab.push(&v1, "os", "1").ok();
    let relay = lab.relay("relay", lab.quic());
    let slots = ["d1", "d2", "d3"].map(|device| installed(&lab, device, &relay.addresses[0], "1"));
    lab.push(&v2, "os", "2").ok();
    let listing = lab.patches("os", 1);
    let set = &listing["patches"][0];
    assert!(set["bytes"].as_u64() < set["chunk_bytes"].as_u64().map(|bytes| bytes / 4), "{listing}");

    let out = lab.path("out");
    let wanted = ["pull", "os@2", "--optimize", "bytes", "--out"];
    let pull = |device: &str, out: &Path, seed: &Path| {
        let mut args: Vec<&str> = wanted.to_vec();
        let (out, seed) = (out.display().to_string(), seed.display().to_string());
        args.extend([out.as_str(), "--seed", seed.as_str()]);
        lab.device(device, &args).ok()
    };
    let plan =
        lab.device("d1", &["plan", "os@2", "--optimize", "bytes", "--seed", &slots[0].display().to_string()]);
    let plan = plan.ok();
    assert!(
        plan.number("patches") > 0 && plan.number("patch_bytes") < plan.number("patched_chunk_bytes") / 4
    );
    let patched = pull("d1", &out, &slots[0]);
    assert!(same(&out, &v2));
    assert!(patched.number("patches_applied") > 0, "{}", patched.json);
    for (planned, got) in
        [("patches", "patches_applied"), ("patch_bytes", "patch_bytes"), ("fetch_bytes", "chunk_bytes")]
    {
        assert_eq!(plan.number(planned), patched.number(got), "{}\n{}", plan.json, patched.json);
    }
    let of_sources = |field: &str| -> u64 {
        plan.json["sources"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|source| source[field].as_u64())
            .sum()
    };
    assert_eq!(of_sources("artifact_bytes"), patched.number("artifact_bytes"));
    assert_eq!(of_sources("wire_bytes"), plan.number("patch_bytes") + plan.number("fetch_bytes"));
    assert_eq!(patched.number("patches_failed"), 0);
    assert_eq!(patched.number("refetched_verified_bytes"), 0);
    // The device behind the relay costs the origin only its questions.
    let before = lab.served_bytes();
    pull("d2", &lab.path("out2"), &slots[1]);
    assert!(lab.served_bytes() - before < 20_000, "{}", lab.served_bytes() - before);
    // Without the manifest beside the seed, the seed's chunks have no ids, and chunks are fetched.
    fs::remove_file(lab.path("d3-slot.distd")).expect("remove the manifest");
    let plain = pull("d3", &lab.path("out3"), &slots[2]);
    assert!(same(&lab.path("out3"), &v2));
    assert_eq!(plain.number("patches_applied"), 0);
    assert!(
        patched.number("wire_bytes") * 3 < plain.number("wire_bytes"),
        "{}\n{}",
        patched.json,
        plain.json
    );
    let left: Vec<_> = fs::read_dir(lab.path(""))
        .expect("list")
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .collect();
    assert!(left.iter().all(|name| !name.contains("distd-part")), "{left:?}");
}

#[test]
fn two_sets_are_a_route_from_the_first_release_to_the_third() {
    let lab = lab();
    let [v1, v2, v3] = artifacts::releases(&lab.path(""), 22);
    lab.push(&v1, "os", "1").ok();
    let slot = installed(&lab, "d1", lab.quic(), "1");
    lab.push(&v2, "os", "2").ok();
    lab.patches("os", 1);
    lab.push(&v3, "os", "3").ok();
    let listing = lab.patches("os", 2);
    let pairs: Vec<_> = listing["patches"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|s| (s["from"].clone(), s["to"].clone()))
        .collect();
    assert!(!pairs.contains(&("1".into(), "3".into())), "{pairs:?}");
    let out = lab.path("out");
    let chained = lab.pull("d1", "os@3", &out, &[&slot]).ok();
    assert!(same(&out, &v3));
    assert!(chained.number("patches_applied") > 0, "{}", chained.json);
    assert_eq!(chained.number("patches_failed"), 0);

    lab.admin(&["patch", "make", "os", "1", "3", "--wait"]).ok();
    let slot = installed(&lab, "d2", lab.quic(), "1");
    let out = lab.path("out2");
    let direct = lab.pull("d2", "os@3", &out, &[&slot]).ok();
    assert!(same(&out, &v3));
    let (chained, direct) = (chained.number("wire_bytes"), direct.number("wire_bytes"));
    assert!(chained < direct * 2, "{chained} through two sets, {direct} direct");
}

#[test]
fn a_device_without_useful_seeds_gets_the_set_from_nothing() {
    let lab = Lab::start_with(&["--patches", "true"]);
    let [v1, v2, _] = artifacts::releases(&lab.path(""), 25);
    lab.push(&v1, "os", "1").ok();
    lab.enroll("early", lab.quic());
    let early = lab.path("early-slot");
    let chunks = lab.pull("early", "os@1", &early, &[]).ok();
    lab.push(&v2, "os", "2").ok();
    // Sets from 1 to 2, and from nothing to each.
    let listing = lab.patches("os", 3);
    let solid = listing["patches"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|set| set["from"].is_null() && set["to"] == "2");
    assert!(solid.is_some_and(|set| set["bytes"].as_u64() < set["chunk_bytes"].as_u64()), "{listing}");

    let relay = lab.relay("relay", lab.quic());
    lab.enroll("fresh", &relay.addresses[0]);
    let out = lab.path("out");
    let plan = lab.device("fresh", &["plan", "os@2", "--optimize", "bytes"]).ok();
    assert!(plan.number("patches") > 0, "{}", plan.json);
    let fresh = ["pull", "os@2", "--optimize", "bytes", "--out"];
    let fresh = lab.device("fresh", &[&fresh[..], &[&out.display().to_string()]].concat()).ok();
    assert!(same(&out, &v2));
    assert_eq!(fresh.number("patches_failed"), 0, "{}", fresh.json);
    assert_eq!(fresh.number("patches_applied"), plan.number("patches"));
    // Most of the content is random letters, which compress alone as well as together.
    assert!(
        fresh.number("wire_bytes") * 100 < chunks.number("wire_bytes") * 97,
        "{}\n{}",
        fresh.json,
        chunks.json
    );
    // A device with the previous release takes the set from there.
    let update = lab.pull("early", "os@2", &lab.path("out2"), &[&early]).ok();
    assert!(update.number("wire_bytes") * 3 < fresh.number("wire_bytes"), "{}\n{}", update.json, fresh.json);
}

#[test]
fn a_rotted_base_fails_its_patch_and_the_chunks_are_fetched() {
    let lab = lab();
    let [v1, v2, _] = artifacts::releases(&lab.path(""), 23);
    lab.push(&v1, "os", "1").ok();
    let slot = installed(&lab, "d1", lab.quic(), "1");
    lab.push(&v2, "os", "2").ok();
    lab.patches("os", 1);
    // One byte of each block in the middle of the image, most of them bases.
    let mut image = fs::read(&slot).expect("read");
    let quarter = image.len() / 4;
    for at in (quarter..3 * quarter).step_by(100_000) {
        image[at] ^= 0x55;
    }
    fs::write(&slot, &image).expect("write");
    let out = lab.path("out");
    let update = lab.pull("d1", "os@2", &out, &[&slot]).ok();
    assert!(same(&out, &v2));
    // Either the set was not used (a sample showed that the seed had changed) or some of its
    // patches failed.
    assert!(update.number("patches_applied") == 0 || update.number("patches_failed") > 0, "{}", update.json);
}

#[test]
fn an_origin_killed_while_it_makes_patches_makes_them_after_its_restart() {
    let mut lab = lab();
    let [v1, v2, _] = artifacts::releases(&lab.path(""), 24);
    lab.push(&v1, "os", "1").ok();
    let slot = installed(&lab, "d1", lab.quic(), "1");
    lab.push(&v2, "os", "2").ok();
    lab.restart_origin();
    lab.patches("os", 1);
    let out = lab.path("out");
    let update = lab.pull("d1", "os@2", &out, &[&slot]).ok();
    assert!(same(&out, &v2));
    assert!(update.number("patches_applied") > 0, "{}", update.json);
}

#[test]
fn a_packed_archive_is_updated_by_what_changed_in_its_files() {
    let lab = lab();
    let mut rng = distd_tests::Rng::new(25);
    let tree = lab.path("tree");
    artifacts::system_tree(&tree, 100, &mut rng);
    let archive = |version: &str| {
        let path = lab.path(&format!("v{version}.tar.gz"));
        let mut tar = Command::new("tar");
        tar.args(["--sort=name", "-czf"]).arg(&path).arg("-C").arg(&tree).arg(".");
        assert!(tar.status().expect("run tar").success());
        path
    };
    let v1 = archive("1");
    artifacts::update_tree(&tree, &mut rng);
    let v2 = archive("2");
    let update = updated(&lab, &v1, &v2);
    // Nearly all chunks changed, because deflate carries a change to the end of the stream.
    assert!(update.number("wire_bytes") * 2 < fs::metadata(&v2).expect("a file").len(), "{}", update.json);
}

/// Makes a zip archive of two files, and a picture with many IDAT chunks, from the files of a
/// directory.
const PACK: &str = r"
import pathlib, struct, sys, zipfile, zlib
plain, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
with zipfile.ZipFile(out / 'app.jar', 'w') as z:
    for name in ['one', 'two']:
        z.writestr(zipfile.ZipInfo(name), (plain / name).read_bytes(), 8, 6)
def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
z = zlib.compress((plain / 'two').read_bytes(), 6)
png = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 999, 700, 8, 0, 0, 0, 0))
png += b''.join(chunk(b'IDAT', z[at:at + 8192]) for at in range(0, len(z), 8192))
(out / 'picture.png').write_bytes(png + chunk(b'IEND', b''))
";

#[test]
fn a_zip_and_a_picture_in_an_image_are_updated_by_what_changed_inside() {
    let lab = lab();
    let mut rng = distd_tests::Rng::new(26);
    let (plain, tree) = (lab.path("plain"), lab.path("tree"));
    fs::create_dir_all(&plain).expect("create a directory");
    artifacts::system_tree(&tree, 20, &mut rng);
    let mut files = [("one", rng.text(900_000)), ("two", rng.text(700_000))];
    let [v1, v2] = ["1", "2"].map(|version| {
        for (name, bytes) in &mut files {
            fs::write(plain.join(name), &bytes).expect("write a file");
            bytes.splice(1000..1000, *b"something new");
        }
        let mut python = Command::new("python3");
        assert!(python.args(["-c", PACK]).args([&plain, &tree]).status().expect("run python3").success());
        let image = lab.path(&format!("v{version}.erofs"));
        artifacts::erofs(&tree, &image, &[]);
        image
    });
    let packed: u64 = ["app.jar", "picture.png"]
        .iter()
        .map(|name| fs::metadata(tree.join(name)).expect("a file").len())
        .sum();
    let update = updated(&lab, &v1, &v2);
    // Deflate carries a change to the end of the stream: without views both files would be fetched
    // whole.
    assert!(
        update.number("wire_bytes") * 4 < packed,
        "{} of {packed}: {}",
        update.number("wire_bytes"),
        update.json
    );
}

/// Makes an initrd of two files in a directory: an archive with a module that is packed with xz,
/// and behind it a packed archive with another one. Beside it a third file, packed with a
/// dictionary of 8 MiB.
const INITRD: &str = r"
import gzip, lzma, pathlib, sys
plain, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
def xz(name, dictionary):
    filters = [{'id': lzma.FILTER_LZMA2, 'preset': 6, 'dict_size': dictionary}]
    return lzma.compress((plain / name).read_bytes(), lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)
def padded(data, to):
    return data + bytes(-len(data) % to)
def member(path, data):
    numbers = {6: len(data), 11: len(path) + 1}
    header = b'070701' + b''.join(b'%08X' % numbers.get(n, 0) for n in range(13))
    return padded(header + path + bytes(1), 4) + padded(data, 4)
def archive(path, data):
    return padded(member(path, data) + member(b'TRAILER!!!', b''), 512)
behind = gzip.compress(archive(b'lib/two.ko.xz', xz('two', 1 << 20)), 9, mtime=0)
(out / 'initrd.img').write_bytes(archive(b'lib/one.ko.xz', xz('one', 1 << 20)) + behind)
(out / 'large.xz').write_bytes(xz('three', 8 << 20))
";

#[test]
fn modules_in_an_initrd_are_updated_by_their_content_as_far_as_the_device_has_memory() {
    let lab = lab();
    let mut rng = distd_tests::Rng::new(27);
    let (plain, tree) = (lab.path("plain"), lab.path("tree"));
    fs::create_dir_all(&plain).expect("create a directory");
    artifacts::system_tree(&tree, 20, &mut rng);
    let lengths = [("one", 900_000), ("two", 700_000), ("three", 600_000)];
    let mut files = lengths.map(|(name, len)| (name, rng.text(len)));
    let [v1, v2] = ["1", "2"].map(|version| {
        for (name, bytes) in &mut files {
            fs::write(plain.join(name), &bytes).expect("write a file");
            bytes.splice(1000..1000, *b"something new");
        }
        let mut python = Command::new("python3");
        assert!(python.args(["-c", INITRD]).args([&plain, &tree]).status().expect("run python3").success());
        let image = lab.path(&format!("v{version}.erofs"));
        artifacts::erofs(&tree, &image, &[]);
        image
    });
    let packed = |name: &str| fs::metadata(tree.join(name)).expect("a file").len();
    let (initrd, large) = (packed("initrd.img"), packed("large.xz"));
    let update = updated(&lab, &v1, &v2);
    let wire = update.number("wire_bytes");
    assert!(wire * 4 < initrd + large, "{wire} of {initrd} and {large}: {}", update.json);

    // Packing with a dictionary of 8 MiB takes more than 64 MiB of memory, with 1 MiB it takes 16.
    let (out, slot) = (lab.path("small").display().to_string(), lab.path("d1-slot").display().to_string());
    let args =
        ["pull", "os@2", "--optimize", "bytes", "--view-memory-mib", "64", "--out", &out, "--seed", &slot];
    fs::remove_file(lab.path("out")).expect("remove the release");
    fs::remove_file(lab.path("out.distd")).expect("remove its manifest");
    let small = lab.device("d1", &args).ok();
    assert!(same(Path::new(&out), &v2));
    assert_eq!(small.number("patches_failed"), 0, "{}", small.json);
    let more = small.number("wire_bytes") - wire;
    assert!(more > large / 2 && more < large + initrd / 4, "{more} of {large}: {}", small.json);
}

#[test]
fn a_large_program_is_one_patch_with_its_payload_in_pieces_if_the_device_has_memory() {
    let lab = lab();
    let mut rng = distd_tests::Rng::new(28);
    let tree = lab.path("tree");
    artifacts::system_tree(&tree, 20, &mut rng);
    let mut program = rng.bytes(4 << 20);
    let fresh = rng.bytes(1_300_000);
    let [v1, v2] = ["1", "2"].map(|version| {
        fs::write(tree.join("program"), &program).expect("write a file");
        let image = lab.path(&format!("v{version}.erofs"));
        artifacts::erofs(&tree, &image, &[]);
        // Every chunk changes, and more is new than fits into one chunk.
        program.iter_mut().step_by(2000).for_each(|byte| *byte = byte.wrapping_add(1));
        program.splice(2 << 20..2 << 20, fresh.iter().copied());
        image
    });
    let update = updated(&lab, &v1, &v2);
    let (wire, new) = (update.number("wire_bytes"), fresh.len() as u64);
    assert!(wire > new && wire < new + 200_000, "{wire}: {}", update.json);

    // The patch states 32 MiB.
    let (out, slot) = (lab.path("small").display().to_string(), lab.path("d1-slot").display().to_string());
    let args =
        ["pull", "os@2", "--optimize", "bytes", "--view-memory-mib", "16", "--out", &out, "--seed", &slot];
    fs::remove_file(lab.path("out")).expect("remove the release");
    fs::remove_file(lab.path("out.distd")).expect("remove its manifest");
    let small = lab.device("d1", &args).ok();
    assert!(same(Path::new(&out), &v2));
    assert_eq!(small.number("patches_failed"), 0, "{}", small.json);
    let wire = small.number("wire_bytes");
    assert!(wire > new + (4 << 20) - 100_000, "{wire}: {}", small.json);
}
