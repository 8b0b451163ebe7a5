//! Fuzz bodies of patch sets: their index, their outline of the target manifest, and the choice
//! among patches.

use std::collections::BTreeSet;

use distd_core::bounds::{PATCH_INDEX_BYTES_MAX, PATCH_TARGET_BYTES_MAX, PATCHES_MAX, VIEW_BYTES_MAX};
use distd_core::manifest::Entry;
use distd_core::patch::{
    Choice, Leg, Offer, Optimize, Outline, PatchChunkId, ROUTE_LEGS_MAX, SetIndex, choose as choose_patches,
    route as find_route,
};
use distd_core::{ChunkHash, ChunkId, ManifestId};

use super::input::Input;
use super::memory::within;

/// Returns the input without its first byte if that byte is even, otherwise the rest packed behind
/// `head`.
fn packed(data: &[u8], head: &[u8]) -> Vec<u8> {
    match data {
        [first, rest @ ..] if first % 2 == 1 => {
            zstd::bulk::compress(&[head, rest].concat(), 1).expect("memory to memory")
        }
        [_, rest @ ..] => rest.to_vec(),
        [] => Vec::new(),
    }
}

/// Returns the number of unpacked bytes that the frame claims.
fn claimed(packed: &[u8]) -> usize {
    let claimed = zstd::zstd_safe::get_frame_content_size(packed).ok().flatten().unwrap_or(0);
    claimed.min(PATCH_INDEX_BYTES_MAX) as usize
}

fn index(data: &[u8]) -> Option<SetIndex> {
    let packed = packed(data, &[&b"distdps1"[..], &[7; 64]].concat());
    // In memory, an index of one-byte lengths is 16 times as long, and 7 of its bytes take 100.
    within(40 * claimed(&packed) + (1 << 20), || SetIndex::decode(&packed)).ok()
}

/// A decoded index keeps its bounds and encodes to the same index.
pub fn set_index(data: &[u8]) {
    let Some(mut index) = index(data) else { return };
    assert!(index.patches.len() <= PATCHES_MAX);
    for patch in &index.patches {
        let max = if patch.codec >= 128 { VIEW_BYTES_MAX } else { PATCH_TARGET_BYTES_MAX as u64 };
        assert!(patch.target_bytes() as u64 <= max);
        assert!(patch.target_chunks().next().is_some());
        assert!(
            patch
                .bases
                .iter()
                .all(|range| *range.start() > ChunkId(0).into() && range.start() <= range.end())
        );
    }
    assert_eq!(SetIndex::decode(&index.encode()).as_ref(), Ok(&index));
    index.move_views(3);
    for patch in &index.patches {
        assert!(patch.bases.iter().all(|range| range.start() <= range.end()));
    }
}

fn entry(n: u64) -> Entry {
    Entry { id: ChunkId(n), hash: ChunkHash::of(&n.to_be_bytes()), len: 1 + (n % 1000) as u32 }
}

/// A decoded outline encodes to the same outline, and gives no more entries than asked for.
pub fn outline(data: &[u8]) {
    let packed = packed(data, b"distdol1");
    let Ok(outline) = within(40 * claimed(&packed) + (1 << 20), || Outline::decode(&packed)) else { return };
    let again = outline.encode().expect("it was decoded");
    assert_eq!(Outline::decode(&again).as_ref(), Ok(&outline));
    let from: Vec<_> = (1..200).map(entry).collect();
    let rebuilt = |id: ChunkId| Some((ChunkHash::of(&id.0.to_be_bytes()), 1));
    let Some(entries) = within(1 << 20, || outline.entries(&from, rebuilt, 1000)) else { return };
    assert!(entries.len() <= 1000);
    // Entries that an outline gave can be written as an outline again.
    let told = Outline::new(&from, &entries, |id| id.0 >= 200);
    let lookup = |id: ChunkId| entries.iter().find(|entry| entry.id == id).map(|e| (e.hash, e.len));
    let unique = entries.iter().all(|entry| lookup(entry.id) == Some((entry.hash, entry.len)));
    if unique && entries.iter().all(|entry| entry.id.0 > 0 && entry.id.0 < 1 << 60) {
        let back = Outline::decode(&told.encode().expect("small")).expect("own bytes");
        assert_eq!(back.entries(&from, lookup, 1000), Some(entries.clone()));
    }
}

/// For two sets, any wanted chunks and any held ones, the choice can be applied in its order and
/// leaves no chunk open.
pub fn choose(data: &[u8]) {
    let mut input = Input(data);
    let (modulus, optimize) = (u64::from(input.byte()).max(2), input.byte());
    let optimize =
        if optimize == 0 { Optimize::Bytes } else { Optimize::Time { link: 1 << (optimize % 40) } };
    let payload = input.number();
    let Some(first) = index(input.part()) else { return };
    let Some(mut second) = index(input.0) else { return };
    second.move_views(1);
    let held = |id: ChunkId| id.0 % modulus == 1;
    let sets = [&first, &second];
    let payloads = sets.map(|set| vec![payload; set.patches.len()]);
    let targets = sets.iter().flat_map(|set| &set.patches).flat_map(|patch| patch.target_chunks());
    // Every second target, and some chunks that no patch makes.
    let wanted: BTreeSet<ChunkId> = targets
        .filter_map(|(id, _)| id.chunk())
        .filter(|id| id.0 % 2 == 0)
        .chain([3, 4, 500].map(ChunkId))
        .collect();
    let wanted: Vec<_> = wanted.into_iter().collect();
    let offers = [0, 1].map(|n| Offer { patches: &sets[n].patches, payloads: &payloads[n] });
    let choice = choose_patches(&wanted, held, &offers, optimize);
    assert_applicable(&choice, &sets, &wanted, held);
    assert_eq!(choice.payload_bytes, u64::from(payload) * choice.patches.len() as u64);
}

fn assert_applicable(
    choice: &Choice,
    sets: &[&SetIndex; 2],
    wanted: &[ChunkId],
    held: impl Fn(ChunkId) -> bool,
) {
    assert!(choice.patches.is_sorted() && choice.chunks.is_sorted() && choice.transient.is_sorted());
    assert!(choice.chunks.iter().all(|id| wanted.binary_search(id).is_ok()), "what is fetched is wanted");
    let held = |id: PatchChunkId| id.chunk().is_some_and(&held);
    let mut there: BTreeSet<PatchChunkId> = choice.chunks.iter().map(|id| (*id).into()).collect();
    for at in &choice.patches {
        let patch = &sets[at.set].patches[at.patch];
        assert!(patch.base_ids().all(|id| held(id) || there.contains(&id)), "a base is missing");
        there.extend(patch.target_chunks().map(|(id, _)| id));
    }
    assert!(
        wanted.iter().map(|id| (*id).into()).all(|id| held(id) || there.contains(&id)),
        "a wanted chunk is missing"
    );
    let wanted = |id: PatchChunkId| id.chunk().is_some_and(|id| wanted.binary_search(&id).is_ok());
    assert!(choice.transient.iter().all(|id| !wanted(*id) && there.contains(id)));
}

/// The route found is a route, and none of all other routes is shorter.
pub fn route(data: &[u8]) {
    let mut input = Input(data);
    let id = |byte: u8| ManifestId([byte % 8; 32]);
    let (held, to) = ([id(input.byte()), id(input.byte())], id(input.byte()));
    let mut legs = Vec::new();
    while !input.0.is_empty() && legs.len() < 12 {
        let bytes = match input.byte() {
            255 => u64::MAX,
            byte => byte.into(),
        };
        legs.push(Leg { from: id(input.byte()), to: id(input.byte()), bytes });
    }
    let way = find_route(&legs, &held, to);
    let cost = |way: &[usize]| way.iter().fold(0u64, |sum, leg| sum.saturating_add(legs[*leg].bytes));
    if let Some(first) = way.first() {
        assert!(way.len() <= ROUTE_LEGS_MAX && held.contains(&legs[*first].from));
        assert!(way.windows(2).all(|two| legs[two[0]].to == legs[two[1]].from));
        assert_eq!(legs[*way.last().expect("not empty")].to, to);
    }
    // Try every route there is.
    let mut best: Option<u64> = None;
    let mut open: Vec<Vec<usize>> =
        (0..legs.len()).filter(|n| held.contains(&legs[*n].from)).map(|n| vec![n]).collect();
    while let Some(tried) = open.pop() {
        let end = legs[*tried.last().expect("never empty")].to;
        if end == to {
            best = Some(best.map_or(cost(&tried), |best| best.min(cost(&tried))));
        } else if tried.len() < ROUTE_LEGS_MAX {
            let next = (0..legs.len()).filter(|n| legs[*n].from == end && !tried.contains(n));
            open.extend(next.map(|n| [&tried[..], &[n]].concat()));
        }
    }
    match best {
        _ if held.contains(&to) => assert!(way.is_empty()),
        None => assert!(way.is_empty()),
        Some(best) => assert_eq!((way.is_empty(), cost(&way)), (false, best)),
    }
}
