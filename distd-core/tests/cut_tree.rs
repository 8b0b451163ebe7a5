//! Tests of tree listings and the path validator.

use proptest::prelude::*;

use distd_core::tree::*;

fn entry(path: &[u8], kind: EntryKind) -> Entry {
    let path = TreePath::new(path).expect("a good path");
    let modified = Some(Time { seconds: 1, nanos: 2 });
    Entry { path, kind, mode: 0o755, uid: 0, gid: 0, xattrs: Vec::new(), modified }
}

fn root() -> RootDir {
    RootDir { mode: 0o750, uid: 33, gid: 0, xattrs: Vec::new(), modified: Time { seconds: -1, nanos: 5 } }
}

fn hard_link(path: &str, target: &str) -> Entry {
    let target = TreePath::new(target.as_bytes()).expect("a good path");
    let mut link = entry(path.as_bytes(), EntryKind::HardLink { target });
    (link.mode, link.modified) = (0, None);
    link
}

fn file(path: &str, size: u64) -> Entry {
    entry(path.as_bytes(), EntryKind::File { size })
}

#[test]
fn hostile_paths_are_refused_with_the_rule_they_break() {
    use TreePathError::*;
    let long = [&[b'x'; 256][..], b"/y"].concat();
    let deep = b"abc/".repeat(1024);
    for (path, error) in [
        (&b""[..], Empty),
        (b"/", EmptyComponent),
        (b"/etc/passwd", EmptyComponent),
        (b"//a", EmptyComponent),
        (b"a//b", EmptyComponent),
        (b"a/", EmptyComponent),
        (b".", Dots),
        (b"..", Dots),
        (b"./a", Dots),
        (b"../a", Dots),
        (b"a/..", Dots),
        (b"a/../b", Dots),
        (b"a/./b", Dots),
        (b"a/b/../../../etc", Dots),
        (b"a\0", Nul),
        (b"a\0/../b", Nul),
        (&long, TooLong),
        (&[deep.as_slice(), b"a"].concat(), TooLong),
    ] {
        assert_eq!(TreePath::new(path), Err(error), "{}", path.escape_ascii());
    }
    for path in [
        &b"a"[..],
        b"...",
        b"..a",
        b"a..",
        b"a/.b/..c",
        b"\xff\xfe/\x01\n",
        b"a\\b",
        b"C:",
        b"~",
        b"-rf",
        b" ",
        &deep[..deep.len() - 1],
        &[b'x'; 255],
    ] {
        assert_eq!(TreePath::new(path).expect("good").as_bytes(), path);
    }
}

#[test]
fn a_path_knows_its_parent_and_prints_without_control_characters() {
    let path = TreePath::new(b"a/b\x1b[2J/c").expect("good");
    assert_eq!(path.parent(), Some(&b"a/b\x1b[2J"[..]));
    assert_eq!(path.components().count(), 3);
    assert_eq!(path.to_string(), "a/b\\x1b[2J/c");
    assert_eq!(TreePath::new(b"a").expect("good").parent(), None);
}

#[test]
fn golden_bytes_of_a_listing_of_version_1() {
    let expected = [
        &b"\x92\x01\x94"[..],
        b"\x97\xc4\x01d\x01\x00\xcd\x01\xed\x00\x00\x90",
        b"\x97\xc4\x03d/f\x00\xcd\x01\x2c\xcd\x01\xed\x00\x00\x91\x92\xc4\x06user.a\xc4\x01v",
        b"\x97\xc4\x03d/l\x02\xc4\x04../x\xcd\x01\xed\xcd\x03\xe8\x00\x90",
        b"\x97\xc4\x01n\x04\xcd\x01\x03\xcd\x01\xed\x00\x00\x90",
    ]
    .concat();
    let listing = Listing::decode(&expected).expect("decodes");
    assert_eq!(listing.encode(), expected);
    assert_eq!(listing.root(), None);
    let mut wanted = vec![
        entry(b"d", EntryKind::Dir),
        file("d/f", 300),
        entry(b"d/l", EntryKind::Symlink { target: (*b"../x").into() }),
        entry(b"n", EntryKind::CharDev { rdev: 0x103 }),
    ];
    wanted[1].xattrs.push(Xattr { name: (*b"user.a").into(), value: (*b"v").into() });
    wanted[2].uid = 1000;
    wanted.iter_mut().for_each(|entry| entry.modified = None);
    assert_eq!(listing.entries(), wanted);
    assert_eq!(Listing::default().encode(), b"\x92\x01\x90");
}

#[test]
fn golden_bytes_of_a_listing_of_version_2() {
    let mut link = entry(b"d/l", EntryKind::Symlink { target: (*b"../x").into() });
    link.uid = 1000;
    let mut f = file("d/f", 300);
    f.xattrs.push(Xattr { name: (*b"user.a").into(), value: (*b"v").into() });
    f.modified = Some(Time { seconds: 1_700_000_000, nanos: 999_999_999 });
    let entries = vec![link, hard_link("d/g", "d/f"), f, entry(b"d", EntryKind::Dir)];
    let listing = Listing::new(root(), entries).expect("a tree");
    let expected = [
        &b"\x93\x02\x95\xcd\x01\xe8\x21\x00\x90\x92\xff\x05\x94"[..],
        b"\x98\xc4\x01d\x01\x00\xcd\x01\xed\x00\x00\x90\x92\x01\x02",
        b"\x98\xc4\x03d/f\x00\xcd\x01\x2c\xcd\x01\xed\x00\x00\x91\x92\xc4\x06user.a\xc4\x01v",
        b"\x92\xce\x65\x53\xf1\x00\xce\x3b\x9a\xc9\xff",
        b"\x93\xc4\x03d/g\x06\xc4\x03d/f",
        b"\x98\xc4\x03d/l\x02\xc4\x04../x\xcd\x01\xed\xcd\x03\xe8\x00\x90\x92\x01\x02",
    ]
    .concat();
    assert_eq!(listing.encode(), expected);
    let decoded = Listing::decode(&expected).expect("decodes");
    assert_eq!(decoded, listing);
    assert_eq!(decoded.root(), Some(&root()));
    assert_eq!(decoded.file_bytes(), 300, "a hard link has no bytes of its own");
}

#[test]
fn entries_that_make_no_tree_are_refused() {
    let bad = |entries: Vec<Entry>| Listing::new(root(), entries).expect_err("no tree");
    let path = |path: &[u8]| TreePath::new(path).expect("good");
    assert_eq!(bad(vec![file("a", 1), file("a", 2)]), ListingError::Order(path(b"a")));
    assert_eq!(bad(vec![file("a/b", 1)]), ListingError::Parent(path(b"a/b")));
    assert_eq!(bad(vec![file("a", 1), file("a/b", 1)]), ListingError::Parent(path(b"a/b")));
    let link = entry(b"a", EntryKind::Symlink { target: (*b"/etc").into() });
    assert_eq!(bad(vec![link, file("a/b", 1)]), ListingError::Parent(path(b"a/b")));
    assert_eq!(bad(vec![file("a", u64::MAX), file("b", 1)]), ListingError::TooBig);
    for target in [vec![], b"a\0b".to_vec(), vec![b'x'; TARGET_BYTES_MAX + 1]] {
        let error = bad(vec![entry(b"l", EntryKind::Symlink { target: target.into() })]);
        assert!(matches!(error, ListingError::Field { .. }));
    }
    let mut loose = file("a", 1);
    loose.mode = 0o10000;
    assert!(matches!(bad(vec![loose]), ListingError::Field { .. }));
    let mut twice = file("a", 1);
    twice.xattrs = vec![Xattr { name: (*b"user.a").into(), value: Box::default() }; 2];
    assert!(matches!(bad(vec![twice]), ListingError::Field { .. }));
    let mut timeless = file("a", 1);
    timeless.modified = None;
    assert!(matches!(bad(vec![timeless]), ListingError::Field { .. }));
    let mut late = file("a", 1);
    late.modified = Some(Time { seconds: 0, nanos: 1_000_000_000 });
    assert!(matches!(bad(vec![late]), ListingError::Field { .. }));
    for (path, target) in [("b", "none"), ("b", "c"), ("b", "b"), ("b", "d"), ("b", "e")] {
        let others =
            [entry(b"c", EntryKind::Fifo), entry(b"d", EntryKind::Dir), hard_link("e", "a"), file("a", 1)];
        let error = bad(others.into_iter().chain([hard_link(path, target)]).collect());
        assert_eq!(error, ListingError::Link(TreePath::new(b"b").expect("good")), "{target}");
    }
    let mut owned = hard_link("b", "a");
    owned.uid = 1;
    assert!(matches!(bad(vec![file("a", 1), owned]), ListingError::Field { .. }));
    let wrong: [fn(&mut RootDir); 3] = [
        |root| root.mode = 0o10000,
        |root| root.modified.nanos = 1_000_000_000,
        |root| root.xattrs = vec![Xattr { name: Box::default(), value: Box::default() }],
    ];
    for wrong in wrong {
        let mut root = root();
        wrong(&mut root);
        assert!(matches!(Listing::new(root, Vec::new()), Err(ListingError::Root(_))));
    }
}

#[test]
fn other_encodings_of_the_same_tree_are_refused() {
    let not_canonical = |bytes: &[u8]| {
        let error = Listing::decode(bytes).expect_err("not canonical");
        assert!(matches!(error, DecodeListingError::NotCanonical { .. }), "{error:?}");
    };
    not_canonical(b"\x92\xcc\x01\x90");
    not_canonical(b"\x92\x01\xdc\x00\x00");
    not_canonical(b"\x92\x01\x91\x97\xc5\x00\x01a\x01\x00\x00\x00\x00\x90");
    not_canonical(b"\x92\x01\x91\x97\xc4\x01a\x01\x00\x00\xcc\x00\x00\x90");
    let malformed = |bytes: &[u8]| {
        let error = Listing::decode(bytes).expect_err("malformed");
        assert!(matches!(error, DecodeListingError::Malformed { .. }), "{error:?}");
    };
    malformed(b"");
    malformed(b"\x93\x01\x90\x00");
    malformed(b"\x92\x01\x90\x00");
    malformed(b"\x92\x01\xdd\xff\xff\xff\xff");
    malformed(b"\x92\x01\x91\x97\xc6\xff\xff\xff\xff");
    malformed(b"\x92\x01\x91\x97\xc4\x01a\x01\x01\x00\x00\x00\x90");
    malformed(b"\x92\x01\x91\x97\xc4\x01a\x09\x00\x00\x00\x00\x90");
    malformed(b"\x92\x01\x91\x97\xc4\x01a\x00\x05\x00\x00\x00\xdd\xff\xff\xff\xff");
    // A time in a listing of version 1, no time in one of version 2, a hard link without its file.
    let inconsistent = |bytes: &[u8]| {
        let error = Listing::decode(bytes).expect_err("inconsistent");
        assert!(matches!(error, DecodeListingError::Listing(_)), "{error:?}");
    };
    inconsistent(b"\x92\x01\x91\x98\xc4\x01a\x01\x00\x00\x00\x00\x90\x92\x01\x02");
    inconsistent(b"\x93\x02\x95\x00\x00\x00\x90\x92\x01\x02\x91\x97\xc4\x01a\x01\x00\x00\x00\x00\x90");
    inconsistent(b"\x93\x02\x95\x00\x00\x00\x90\x92\x01\x02\x91\x93\xc4\x01a\x06\xc4\x01b");
    malformed(b"\x92\x02\x90");
    malformed(b"\x93\x02\x94\x00\x00\x00\x90\x90");
    malformed(b"\x93\x02\x95\x00\x00\x00\x90\x92\x01\x02\x91\x93\xc4\x01a\x01\xc4\x01b");
    not_canonical(b"\x93\x02\x95\x00\x00\x00\x90\x92\xd0\x01\x02\x90");
    assert_eq!(Listing::decode(b"\x93\x03\x90\x90"), Err(DecodeListingError::Version(3)));
    assert!(matches!(
        Listing::decode(b"\x92\x01\x91\x97\xc4\x02..\x01\x00\x00\x00\x00\x90"),
        Err(DecodeListingError::Path { entry: 0, cause: TreePathError::Dots })
    ));
    let unsorted = b"\x92\x01\x92\x97\xc4\x01b\x01\x00\x00\x00\x00\x90\x97\xc4\x01a\x01\x00\x00\x00\x00\x90";
    assert!(matches!(Listing::decode(unsorted), Err(DecodeListingError::Listing(ListingError::Order(_)))));
}

#[test]
fn files_follow_the_listing_in_its_order() {
    let listing = Listing::new(root(), vec![file("b", 5), file("a", 7), file("empty", 0)]).expect("a tree");
    let len = listing.encode().len() as u64;
    let files: Vec<_> = listing.files(len).map(|(at, size, e)| (at, size, e.path.to_string())).collect();
    assert_eq!(files, [(len, 7, "a".to_owned()), (len + 7, 5, "b".to_owned())]);
    let regions = listing.regions(len).expect("few");
    assert_eq!(regions.total(), len + listing.file_bytes());
    assert_eq!(regions.name(&regions.all()[1]), Some(&b"a"[..]));
    assert_eq!(regions.all().len(), 3);
}

fn kind() -> impl Strategy<Value = EntryKind> {
    prop_oneof![
        (0u64..1 << 40).prop_map(|size| EntryKind::File { size }),
        prop::collection::vec(1u8.., 1..300).prop_map(|t| EntryKind::Symlink { target: t.into() }),
        Just(EntryKind::Fifo),
        any::<u64>().prop_map(|rdev| EntryKind::CharDev { rdev }),
        any::<u64>().prop_map(|rdev| EntryKind::BlockDev { rdev }),
    ]
}

fn xattrs() -> impl Strategy<Value = Vec<Xattr>> {
    let name = prop::collection::vec(1u8.., 1..20);
    prop::collection::btree_map(name, prop::collection::vec(any::<u8>(), 0..400), 0..4).prop_map(|map| {
        map.into_iter().map(|(name, value)| Xattr { name: name.into(), value: value.into() }).collect()
    })
}

/// Components from characters around `/` in byte order, which is where sorting can go wrong.
fn path() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a.+0/-]{1,3}".prop_map(|name| name.replace(['.', '/'], "-")), 1..4)
}

fn listing() -> impl Strategy<Value = Listing> {
    let fields = (kind(), 0u16..=0o7777, any::<u32>(), any::<u32>(), xattrs());
    prop::collection::btree_map(path(), fields, 0..30).prop_map(|map| {
        let mut entries = std::collections::BTreeMap::new();
        for (path, (kind, mode, uid, gid, xattrs)) in map {
            for depth in 1..path.len() {
                let dir = path[..depth].join("/");
                entries.insert(dir.clone(), entry(dir.as_bytes(), EntryKind::Dir));
            }
            let path = path.join("/");
            let mut new = entry(path.as_bytes(), kind);
            (new.mode, new.uid, new.gid, new.xattrs) = (mode, uid, gid, xattrs);
            entries.entry(path).or_insert(new);
        }
        let files = entries.values().filter(|e| matches!(e.kind, EntryKind::File { .. }) && e.uid % 2 == 0);
        // Hard links come behind their files, in any order among themselves: no other path sorts
        // behind `~`.
        let paths: Vec<String> = files.map(|file| file.path.to_string()).collect();
        for path in paths {
            let link = format!("~{path}").replace('/', "~");
            entries.insert(link.clone(), hard_link(&link, &path));
        }
        Listing::new(root(), entries.into_values().collect()).expect("every parent is there")
    })
}

proptest! {
    #[test]
    fn a_listing_survives_its_encoding_and_no_other_bytes_give_it(
        listing in listing(), at in any::<prop::sample::Index>(), flip in 1u8..,
    ) {
        let mut bytes = listing.encode();
        prop_assert_eq!(Listing::decode(&bytes), Ok(listing.clone()));
        for len in 0..bytes.len().min(200) {
            prop_assert!(Listing::decode(&bytes[..len]).is_err());
        }
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(other) = Listing::decode(&bytes) {
            prop_assert_ne!(&other, &listing);
            prop_assert_eq!(other.encode(), bytes);
        }
    }

    #[test]
    fn any_bytes_decode_or_fail_but_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Listing::decode(&bytes);
        let _ = Listing::decode(&[b"\x92\x01\x91\x97\xc4", &bytes[..]].concat());
        let _ = Listing::decode(&[b"\x93\x02\x95\x00\x00\x00", &bytes[..]].concat());
        let _ = Listing::decode(&[b"\x93\x02\x95\x00\x00\x00\x90\x92\x01\x02\x91\x98\xc4", &bytes[..]].concat());
    }
}
