use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use distd_core::proto::frame::{Codec, Data, Node, NodeRequest, ROOT_LEVEL};
use distd_core::{ChunkId, ManifestId, NodeHash};
use proptest::prelude::*;

use super::*;

fn head(since: bool) -> Head {
    let release = |version: &str, byte| Release {
        version: version.parse().expect("a name"),
        manifest: ManifestId([byte; 32]),
    };
    Head {
        product: "os".parse().expect("a name"),
        channel: Some("stable".parse().expect("a name")),
        release: release("2", 2),
        bytes: 10,
        since: since.then(|| release("1", 1)),
        view_memory: 64 << 20,
        made: 1_800_000_000,
    }
}

fn chunk(id: u64, bytes: &'static [u8]) -> Data {
    Data { id: ChunkId(id), codec: Codec::Raw, bytes: Bytes::from_static(bytes) }
}

fn node(level: u8, bytes: &'static [u8]) -> Node {
    Node { level, bytes: Bytes::from_static(bytes) }
}

fn sample() -> Vec<u8> {
    let metadata = [("timestamp.json", r#"{"signed":{"version":7}}"#)];
    let files = metadata.map(|(name, text)| (name.to_owned(), Bytes::from_static(text.as_bytes())));
    let mut writer = BundleWriter::new(Vec::new(), &head(true)).expect("memory");
    writer.metadata(&files).expect("memory");
    writer.capability(b"of any").expect("memory");
    writer.swarm(ManifestId([2; 32])).expect("memory");
    writer.node(&node(ROOT_LEVEL, b"root")).expect("memory");
    writer.node(&node(0, b"leaf")).expect("memory");
    writer.chunk(&chunk(9, b"nine")).expect("memory");
    writer.chunk(&chunk(8, b"eight")).expect("memory");
    writer.swarm(ManifestId([3; 32])).expect("memory");
    writer.chunk(&chunk(70, b"patch")).expect("memory");
    let (bytes, len) = writer.finish().expect("memory");
    assert_eq!(bytes.len() as u64, len);
    bytes
}

struct Written {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn write(bytes: &[u8]) -> Written {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("bundle");
    fs::write(&path, bytes).expect("written");
    Written { _dir: dir, path }
}

#[test]
fn a_bundle_is_read_as_it_was_written() {
    let written = write(&sample());
    let bundle = Bundle::open(&written.path).expect("a bundle");
    assert_eq!(*bundle.head(), head(true));
    assert_eq!(bundle.timestamp(), Some(7));
    assert_eq!(bundle.capabilities(), [Bytes::from_static(b"of any")]);
    let [release, patches] = bundle.swarms() else { panic!("two swarms") };
    assert_eq!((release.held().len(), release.chunk_bytes(), release.node_bytes()), (2, 9, 10));
    assert_eq!(patches.manifest(), ManifestId([3; 32]));
    assert_eq!(bundle.nodes(0).expect("read"), [node(ROOT_LEVEL, b"root"), node(0, b"leaf")]);
    assert_eq!(bundle.chunk(0, ChunkId(8)).expect("read"), Some(chunk(8, b"eight")));
    assert_eq!(bundle.chunk(0, ChunkId(70)).expect("read"), None);
    assert_eq!(bundle.chunk(1, ChunkId(70)).expect("read"), Some(chunk(70, b"patch")));
}

#[test]
fn the_bytes_of_a_bundle_stay() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bundle/testdata/bundle_v1.bin");
    if std::env::var_os("DISTD_WRITE_GOLDEN").is_some() {
        fs::write(path, sample()).expect("written");
    }
    let golden = fs::read(path).expect("the golden file");
    // The metadata is compressed; another version of zstd may make other bytes of it.
    assert_eq!(sample().len(), golden.len());
    let written = write(&golden);
    let bundle = Bundle::open(&written.path).expect("a bundle of the first version");
    assert_eq!(*bundle.head(), head(true));
    assert_eq!(bundle.nodes(0).expect("read"), [node(ROOT_LEVEL, b"root"), node(0, b"leaf")]);
    assert_eq!(bundle.chunk(1, ChunkId(70)).expect("read"), Some(chunk(70, b"patch")));
}

#[test]
fn every_shortened_bundle_is_refused() {
    let whole = sample();
    for len in 0..whole.len() {
        let written = write(&whole[..len]);
        let error = Bundle::open(&written.path).expect_err("not whole");
        let expected = match len < MAGIC.len() {
            true => matches!(error, BundleError::NoBundle),
            false => matches!(error, BundleError::Short),
        };
        assert!(expected, "{len}: {error}");
    }
    let written = write(&[&whole[..], b"more"].concat());
    assert!(matches!(Bundle::open(&written.path), Err(BundleError::Malformed(_))));
}

#[test]
fn much_metadata_is_written_in_pieces_that_are_read() {
    let file = |n: usize| (format!("{n}.role.json"), Bytes::from(vec![b'x'; 1 << 20]));
    let files: Vec<_> = (0..20).map(file).collect();
    let mut writer = BundleWriter::new(Vec::new(), &head(false)).expect("memory");
    writer.metadata(&files).expect("memory");
    writer.swarm(ManifestId([2; 32])).expect("memory");
    let written = write(&writer.finish().expect("memory").0);
    assert_eq!(Bundle::open(&written.path).expect("a bundle").metadata(), files);
}

#[test]
fn a_metadata_file_that_comes_twice_is_refused() {
    let file = |text: &'static str| ("timestamp.json".to_owned(), Bytes::from_static(text.as_bytes()));
    let mut writer = BundleWriter::new(Vec::new(), &head(false)).expect("memory");
    writer.metadata(&[file("{}")]).expect("memory");
    writer.metadata(&[file("[]")]).expect("memory");
    writer.swarm(ManifestId([2; 32])).expect("memory");
    let written = write(&writer.finish().expect("memory").0);
    assert!(matches!(Bundle::open(&written.path), Err(BundleError::Malformed(why)) if why.contains("twice")));
}

#[test]
fn whole_chunks_of_an_unfinished_bundle_are_salvaged() {
    let whole = sample();
    let mut seen = Vec::new();
    for len in 0..=whole.len() {
        let written = write(&whole[..len]);
        let mut found = Vec::new();
        Bundle::salvage(&written.path, |manifest, chunk| {
            found.push((manifest.0[0], chunk));
            Ok(())
        })
        .expect("readable");
        seen.push(found.len());
        let all = [(2, chunk(9, b"nine")), (2, chunk(8, b"eight")), (3, chunk(70, b"patch"))];
        assert_eq!(found[..], all[..found.len()]);
    }
    assert_eq!((seen[0], seen[whole.len()]), (0, 3));
    assert!(seen.is_sorted());
}

#[test]
fn nodes_are_given_to_whoever_has_the_release_before() {
    let nodes = || vec![node(ROOT_LEVEL, b"root"), node(0, b"leaf")];
    let (id, before) = (ManifestId([2; 32]), ManifestId([1; 32]));
    let ask = |held: Vec<ManifestId>, hashes: Vec<NodeHash>, since| {
        let answer = content::select_nodes(nodes(), &NodeRequest { held, hashes }, &head(since), id);
        (answer.nodes.len(), answer.missing)
    };
    assert_eq!(ask(vec![before], vec![NodeHash(id.0)], true), (2, 0));
    assert_eq!(ask(vec![before], Vec::new(), true), (1, 0), "without the root");
    assert_eq!(ask(Vec::new(), vec![NodeHash(id.0)], true).0, 1, "the root alone");
    assert_eq!(ask(Vec::new(), vec![NodeHash(id.0)], false), (2, 0));
    let leaf = distd_core::manifest::leaf_hash(b"leaf");
    assert_eq!(ask(Vec::new(), vec![leaf, NodeHash([9; 32])], true), (1, 1));
}

proptest! {
    #[test]
    fn no_flipped_byte_is_read_as_right(at in 0usize..4096, mask in 1u8..) {
        let mut bytes = sample();
        let at = at % bytes.len();
        bytes[at] ^= mask;
        let written = write(&bytes);
        prop_assert!(Bundle::open(&written.path).is_err());
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let written = write(&[&MAGIC[..], &bytes].concat());
        prop_assert!(Bundle::open(&written.path).is_err());
        prop_assert!(Bundle::salvage(&written.path, |_, _| Ok(())).is_ok());
    }
}
