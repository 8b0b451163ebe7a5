//! Fuzz bodies of views: foreign recipes, and recipes made of hostile files.

use std::io::Cursor;

use distd_core::cut::{ReadAt, regions};
use distd_core::patch::hash_tree::{Recipe, compute};
use distd_core::patch::view::{
    FORMATS, Group, Joined, Layer, RECIPE_MAX, Unpacked, cost, find, repack, unpack, unpack_base,
};

use super::input::Input;
use super::memory::within;

/// Longest view taken, bytes.
const VIEW_MAX: u64 = 1 << 20;

/// Most memory that a recipe may ask for, bytes: packers of a gigabyte make a fuzzer slow.
const MEMORY_MAX: u64 = 64 << 20;

/// Any unpack recipe writes at most the allowed bytes and returns how many it wrote. Memory is
/// bounded as `patch::view` states for each format.
pub fn unpack_recipe(data: &[u8]) {
    let mut input = Input(data);
    let (max, recipe) = (u64::from(input.number()) % VIEW_MAX, input.part());
    let mut sink = Vec::with_capacity(2 << 20);
    let result = within(16 << 20, || unpack_base(recipe, input.0, max, &mut sink));
    assert!(sink.len() as u64 <= max);
    if let Ok(written) = result {
        assert_eq!(written, sink.len() as u64);
    }
}

/// Any repack recipe ends, after as many bytes as it returns.
pub fn repack_recipe(data: &[u8]) {
    let mut input = Input(data);
    let recipe = input.part();
    // A device refuses what needs more memory than it has.
    if cost(recipe).is_ok_and(|cost| cost.memory() > MEMORY_MAX) {
        return;
    }
    let mut sink = Vec::new();
    if let Ok(written) = repack(recipe, &mut input.0, &mut sink) {
        assert_eq!(written, sink.len() as u64);
    }
}

/// Any recipe of a part of a hash tree ends, after as many bytes as it returns. Memory: the levels
/// of a part, 12 MiB, in vectors that grow.
pub fn hash_tree(data: &[u8]) {
    let mut input = Input(data);
    let recipe = input.part();
    let mut sink = Vec::with_capacity(1 << 20);
    let result = within(32 << 20, || compute(recipe, &mut input.0, &mut sink));
    if let Ok(written) = result {
        assert_eq!(written, sink.len() as u64);
    }
    if let Ok(decoded) = Recipe::decode(recipe) {
        assert_eq!(Recipe::decode(&decoded.encode()).ok().as_ref(), Some(&decoded));
    }
}

/// Files with views, in sound and in damaged images, come back bit for bit from their views, and
/// old views as a device makes them are those of the origin.
pub fn make(data: &[u8]) {
    let regions = regions(data);
    for layer in Layer::ALL {
        for group in find(layer, data, &regions, |_, _| true).expect("memory reads").groups {
            of_group(data, &group);
        }
    }
    // As one file, whatever its length and its regions.
    let mut sink = Cursor::new(Vec::new());
    if let Some(made) = unpack(data, VIEW_MAX, &mut sink).expect("memory reads") {
        let view = view_of(sink, &made);
        check_new(data, &view, &made);
        let whole = 0..data.len() as u64;
        let base = [made.recipe[0]];
        let old = Joined { artifact: data, parts: std::slice::from_ref(&whole) };
        let mut inflated = Vec::new();
        let written = unpack_base(&base, &old, VIEW_MAX, &mut inflated).expect("memory reads");
        assert!(written <= VIEW_MAX && written == inflated.len() as u64);
        // Archives may have streams that the origin leaves packed, but all of a gzip file unpacks.
        if base == [1] {
            let common = inflated.len().min(view.len());
            assert_same(&inflated[..common], &view[..common]);
        }
    }
}

/// Takes packed files apart and puts them together again.
fn of_group(data: &[u8], group: &Group) {
    let mut sink = Cursor::new(Vec::new());
    let made = group.unpack(data, VIEW_MAX, &mut sink).expect("memory reads and writes");
    let view = view_of(sink, &made);
    check_new(&bytes_of(data, group, &made), &view, &made);

    let mut sink = Cursor::new(Vec::new());
    let old = group.unpack_old(data, VIEW_MAX, &mut sink).expect("memory reads and writes");
    let old_view = view_of(sink, &old);
    if old.recipe.is_empty() {
        return;
    }
    let parts = old.parts(&group.files);
    let packed = Joined { artifact: data, parts: &parts };
    let mut unpacked = Vec::new();
    let written = unpack_base(&old.recipe, &packed, VIEW_MAX, &mut unpacked).expect("own recipe");
    assert_eq!(written, unpacked.len() as u64);
    assert_same(&unpacked, &old_view);
}

/// The view packs to exactly the packed bytes.
fn check_new(packed: &[u8], view: &[u8], made: &Unpacked) {
    if !made.recipe.is_empty() {
        assert!(FORMATS.iter().any(|format| format.version() == made.recipe[0]));
        assert_same(&packed_again(&made.recipe, view), packed);
    }
}

fn bytes_of(data: &[u8], group: &Group, made: &Unpacked) -> Vec<u8> {
    let parts = made.parts(&group.files);
    let packed = Joined { artifact: data, parts: &parts };
    let mut bytes = vec![0; packed.len() as usize];
    packed.read_exact_at(&mut bytes, 0).expect("memory reads");
    bytes
}

fn view_of(sink: Cursor<Vec<u8>>, made: &Unpacked) -> Vec<u8> {
    assert!(made.recipe.len() <= RECIPE_MAX && made.view_bytes <= VIEW_MAX);
    let mut view = sink.into_inner();
    view.truncate(made.view_bytes as usize);
    view
}

fn packed_again(recipe: &[u8], mut view: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let written = repack(recipe, &mut view, &mut out).expect("own recipe");
    assert_eq!(written, out.len() as u64);
    assert!(view.is_empty(), "all of the view is packed");
    out
}

fn assert_same(got: &[u8], want: &[u8]) {
    assert!(got == want, "{} bytes are not the {} wanted", got.len(), want.len());
}
