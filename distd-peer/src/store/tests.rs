use std::os::unix::fs::FileExt;

use distd_core::packing::{LEVEL_DEFAULT, Packer};

use super::record::RotCheck;
use super::*;

fn chunk(n: u64) -> HashedChunk {
    let raw: Vec<u8> = (0..4096u64).flat_map(|i| (i.wrapping_mul(n + 1) ^ n).to_le_bytes()).collect();
    HashedChunk { hash: ChunkHash::of(&raw), packed: Packer::new(LEVEL_DEFAULT).pack(&raw) }
}

fn open(dir: &Path) -> (EdgeStore, Recovered) {
    let config = StoreConfig { min_free_bytes: 0, ..StoreConfig::default() };
    EdgeStore::open(dir, config).expect("the store opens")
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(dir.join("segments")).expect("directory").map(|e| e.expect("entry").path()).collect();
    paths.sort();
    paths
}

#[test]
fn a_stored_chunk_is_read_back_before_and_after_commit_and_reopening() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _) = open(dir.path());
    for n in 0..50 {
        let HashedChunk { hash, packed } = chunk(n);
        assert!(store.put(&hash, &packed).expect("put"));
        assert_eq!(store.get(&hash).expect("get"), Some(packed));
    }
    store.commit().expect("commit");
    drop(store);
    let (store, recovered) = open(dir.path());
    assert_eq!(recovered, Recovered::default(), "a committed store is not scanned");
    for n in 0..50 {
        let HashedChunk { hash, packed } = chunk(n);
        assert_eq!(store.get(&hash).expect("get"), Some(packed));
    }
}

#[test]
fn storing_a_held_chunk_writes_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _) = open(dir.path());
    let HashedChunk { hash, packed } = chunk(1);
    store.put(&hash, &packed).expect("put");
    let before = store.bytes();
    store.put(&hash, &packed).expect("put");
    store.commit().expect("commit");
    store.put(&hash, &packed).expect("put");
    assert_eq!(store.bytes(), before);
}

#[test]
fn chunks_appended_but_not_committed_survive_a_crash_and_a_torn_record_is_cut_off() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _) = open(dir.path());
    for n in 0..10 {
        let HashedChunk { hash, packed } = chunk(n);
        store.put(&hash, &packed).expect("put");
        if n == 4 {
            store.commit().expect("commit");
        }
    }
    drop(store);
    let path = &segments(dir.path())[0];
    let file = fs::OpenOptions::new().write(true).open(path).expect("segment");
    let len = file.metadata().expect("stat").len();
    file.set_len(len - 7).expect("truncate");
    let (store, recovered) = open(dir.path());
    assert_eq!((recovered.tail_chunks, recovered.rebuilt), (4, false));
    assert!(recovered.torn_bytes > 0);
    for n in 0..10 {
        let HashedChunk { hash, packed } = chunk(n);
        assert_eq!(store.get(&hash).expect("get"), (n < 9).then_some(packed), "chunk {n}");
    }
}

#[test]
fn a_lost_or_damaged_index_is_rebuilt_from_the_segments() {
    for damage in [false, true] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (store, _) = open(dir.path());
        let HashedChunk { hash, packed } = chunk(3);
        store.put(&hash, &packed).expect("put");
        store.commit().expect("commit");
        drop(store);
        let index = dir.path().join("index.redb");
        if damage {
            let len = fs::metadata(&index).expect("stat").len() as usize;
            fs::write(&index, vec![0x5a; len]).expect("overwrite");
            // redb does not report a file as corrupted that it does not recognise as its own.
            if EdgeStore::open(dir.path(), StoreConfig::default()).is_err() {
                fs::remove_file(&index).expect("remove, as the error says");
            }
        } else {
            fs::remove_file(&index).expect("remove");
        }
        let (store, recovered) = open(dir.path());
        assert!(recovered.rebuilt);
        assert_eq!(store.get(&hash).expect("get"), Some(packed));
    }
}

#[test]
fn a_damaged_record_is_a_miss_and_can_be_stored_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _) = open(dir.path());
    let HashedChunk { hash, packed } = chunk(1);
    store.put(&hash, &packed).expect("put");
    store.commit().expect("commit");
    let file = fs::OpenOptions::new().write(true).open(&segments(dir.path())[0]).expect("segment");
    file.write_all_at(&[0xff; 8], HEADER_BYTES as u64 + 3).expect("damage");
    assert_eq!(store.get(&hash).expect("get"), None);
    assert_eq!(store.counters.rotten.load(Ordering::Relaxed), 1);
    store.put(&hash, &packed).expect("put again");
    assert_eq!(store.get(&hash).expect("get"), Some(packed));
}

#[test]
fn the_cap_evicts_the_oldest_segments_and_is_never_crossed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let config = StoreConfig { max_bytes: 2_000_000, min_free_bytes: 0, segment_bytes: 300_000 };
    let (store, _) = EdgeStore::open(dir.path(), config).expect("open");
    for n in 0..400 {
        let HashedChunk { hash, packed } = chunk(n);
        store.put(&hash, &packed).expect("put");
        assert!(store.bytes() <= 2_000_000);
    }
    assert!(store.counters.evicted_segments.load(Ordering::Relaxed) > 0);
    assert_eq!(store.get(&chunk(0).hash).expect("get"), None, "the oldest went");
    assert!(store.get(&chunk(399).hash).expect("get").is_some(), "the newest stayed");
    let on_disk: u64 = segments(dir.path()).iter().map(|p| fs::metadata(p).expect("stat").len()).sum();
    assert_eq!(on_disk, store.bytes());
}

#[test]
fn a_chunk_that_the_disk_refuses_is_served_from_memory() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let config = StoreConfig { min_free_bytes: u64::MAX / 2, ..StoreConfig::default() };
    let (store, _) = EdgeStore::open(dir.path(), config).expect("open");
    let HashedChunk { hash, packed } = chunk(1);
    assert!(!store.put(&hash, &packed).expect("not an error"));
    assert_eq!(store.get(&hash).expect("get"), Some(packed));
    assert_eq!(store.counters.unstored.load(Ordering::Relaxed), 1);
}

#[test]
fn a_second_process_and_a_newer_layout_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _) = open(dir.path());
    assert!(matches!(EdgeStore::open(dir.path(), StoreConfig::default()), Err(StoreError::InUse(_))));
    drop(store);
    fs::write(dir.path().join("VERSION"), "3\n").expect("write");
    assert!(matches!(EdgeStore::open(dir.path(), StoreConfig::default()), Err(StoreError::Newer(..))));
}

#[test]
fn a_store_of_layout_1_is_read_unchanged() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let HashedChunk { hash, packed } = chunk(1);
    let header = Header { rot_check: RotCheck::of_layout_1(&packed.bytes), ..Header::of(hash, &packed) };
    fs::create_dir_all(dir.path().join("segments")).expect("create");
    fs::write(dir.path().join("VERSION"), "1\n").expect("write");
    let record = [&header.encode()[..], &packed.bytes].concat();
    fs::write(dir.path().join("segments/00000001.seg"), record).expect("write");
    let (store, recovered) = open(dir.path());
    assert!(recovered.rebuilt);
    assert_eq!(store.get(&hash).expect("get"), Some(packed.clone()));
    drop(store);
    // This time the location comes from the index.
    let (store, recovered) = open(dir.path());
    assert_eq!(recovered, Recovered::default());
    assert_eq!(store.get(&hash).expect("get"), Some(packed));
    assert_eq!(fs::read_to_string(dir.path().join("VERSION")).expect("read"), "2\n");
}

#[test]
fn chunks_read_in_runs_equal_those_read_one_by_one() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _) = open(dir.path());
    let mut rotten = Vec::new();
    for n in 0..120 {
        let HashedChunk { hash, packed } = chunk(n);
        store.put(&hash, &packed).expect("put");
        if n == 60 {
            store.commit().expect("commit");
        }
        if n == 30 || n == 90 {
            rotten.push(store.bytes() - 100);
        }
    }
    let file = fs::OpenOptions::new().write(true).open(&segments(dir.path())[0]).expect("open");
    for at in rotten {
        file.write_all_at(b"rot", at).expect("write");
    }
    // The order is not that of the file, some chunks are left out, and some are not held.
    let order: Vec<u64> = (0..130).map(|n| n * 37 % 130).filter(|n| n % 5 != 3).collect();
    let hashes: Vec<ChunkHash> = order.iter().map(|n| chunk(*n).hash).collect();
    let places = store.locate_each(hashes.iter()).expect("look up");
    assert_eq!(store.get_each(&hashes[..7], &[None; 7]).expect("get")[0], Some(chunk(order[0]).packed));
    let found = store.get_each(&hashes, &places).expect("get");
    assert_eq!(found.len(), order.len());
    for (n, found) in order.into_iter().zip(found) {
        let held = n < 120 && n != 30 && n != 90;
        assert_eq!(found, held.then(|| chunk(n).packed), "chunk {n}");
    }
    assert_eq!(store.counters.rotten.load(Ordering::Relaxed), 2);
}
