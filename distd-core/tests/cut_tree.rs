//! Tree listings and the path validator.

use proptest::prelude::*;

use distd_core::tree::*;

fn entry(path: &[u8], kind: EntryKind) -> Entry {
    let path = TreePath::new(path).expect("a good path");
    Entry { path, kind, mode: 0o755, uid: 0, gid: 0, xattrs: Vec::new() }
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
fn golden_bytes_of_a_listing() {
    let mut link = entry(b"d/l", EntryKind::Symlink { target: (*b"../x").into() });
    link.uid = 1000;
    let mut f = file("d/f", 300);
    f.xattrs.push(Xattr { name: (*b"user.a").into(), value: (*b"v").into() });
    let listing = Listing::new(vec![
        link,
        entry(b"n", EntryKind::CharDev { rdev: 0x103 }),
        f,
        entry(b"d", EntryKind::Dir),
    ])
    .expect("a tree");
    let expected = [
        &b"\x92\x01\x94"[..],
        b"\x97\xc4\x01d\x01\x00\xcd\x01\xed\x00\x00\x90",
        b"\x97\xc4\x03d/f\x00\xcd\x01\x2c\xcd\x01\xed\x00\x00\x91\x92\xc4\x06user.a\xc4\x01v",
        b"\x97\xc4\x03d/l\x02\xc4\x04../x\xcd\x01\xed\xcd\x03\xe8\x00\x90",
        b"\x97\xc4\x01n\x04\xcd\x01\x03\xcd\x01\xed\x00\x00\x90",
    ]
    .concat();
    assert_eq!(listing.encode(), expected);
    assert_eq!(Listing::decode(&expected).expect("decodes"), listing);
    assert_eq!(Listing::default().encode(), b"\x92\x01\x90");
}

#[test]
fn entries_that_make_no_tree_are_refused() {
    let bad = |entries: Vec<Entry>| Listing::new(entries).expect_err("no tree");
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
    assert_eq!(Listing::decode(b"\x92\x02\x90"), Err(DecodeListingError::Version(2)));
    assert!(matches!(
        Listing::decode(b"\x92\x01\x91\x97\xc4\x02..\x01\x00\x00\x00\x00\x90"),
        Err(DecodeListingError::Path { entry: 0, cause: TreePathError::Dots })
    ));
    let unsorted = b"\x92\x01\x92\x97\xc4\x01b\x01\x00\x00\x00\x00\x90\x97\xc4\x01a\x01\x00\x00\x00\x00\x90";
    assert!(matches!(Listing::decode(unsorted), Err(DecodeListingError::Listing(ListingError::Order(_)))));
}

#[test]
fn files_follow_the_listing_in_its_order() {
    let listing = Listing::new(vec![file("b", 5), file("a", 7), file("empty", 0)]).expect("a tree");
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

/// Components from an alphabet around `/` in byte order, where sorting goes wrong if it can.
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
        Listing::new(entries.into_values().collect()).expect("every parent is there")
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
    }
}
