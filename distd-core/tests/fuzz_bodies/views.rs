//! Fuzz bodies of views: foreign recipes, and recipes made of hostile files.

use std::io::Cursor;
use std::ops::Range;

use distd_core::cut::regions;
use distd_core::patch::view::{
    ClusterFile, ClusterViews, Joined, RECIPE_MAX, cluster_files, groups, packed_files, repack, unpack,
    unpack_clusters, unpack_old_clusters, unpack_with,
};

use super::input::Input;
use super::memory::within;

/// Longest view taken, bytes.
const VIEW_MAX: u64 = 1 << 20;

/// Any unpack recipe writes at most the allowed bytes and returns how many it wrote. Memory is
/// bounded as `patch::view` states for each kind.
pub fn unpack_recipe(data: &[u8]) {
    let mut input = Input(data);
    let (max, recipe) = (u64::from(input.number()) % VIEW_MAX, input.part());
    let mut sink = Vec::with_capacity(2 << 20);
    let result = within(16 << 20, || unpack_with(recipe, input.0, max, &mut sink));
    assert!(sink.len() as u64 <= max);
    if let Ok(written) = result {
        assert_eq!(written, sink.len() as u64);
    }
}

/// Any repack recipe ends, after as many bytes as it returns.
pub fn repack_recipe(data: &[u8]) {
    let mut input = Input(data);
    let recipe = input.part();
    let mut sink = Vec::new();
    if let Ok(written) = repack(recipe, &mut input.0, &mut sink) {
        assert_eq!(written, sink.len() as u64);
    }
}

/// Files with views, in sound and in damaged images, come back bit for bit from their views, and
/// from a device's own views too.
pub fn make(data: &[u8]) {
    let regions = regions(data);
    for file in packed_files(data, &regions).expect("memory reads") {
        streams(&Joined { artifact: data, parts: &file.parts });
    }
    let whole = 0..data.len() as u64;
    streams(&Joined { artifact: data, parts: std::slice::from_ref(&whole) });

    let found = cluster_files(data, &regions, |_, _| true);
    for group in groups(&found.files) {
        let files = &found.files[group];
        let (view, made) = viewed(|sink| unpack_clusters(data, files, VIEW_MAX, sink));
        assert_same(&packed_again(&made.recipe, &view), &parts_of(data, files, &made));
        let (view, made) = viewed(|sink| unpack_old_clusters(data, files, VIEW_MAX, sink));
        if made.view_bytes > 0 {
            let parts = ranges(files, &made);
            let mut unpacked = Vec::new();
            let old = Joined { artifact: data, parts: &parts };
            let written = unpack_with(&made.recipe, &old, VIEW_MAX, &mut unpacked).expect("own recipe");
            assert_eq!(written, unpacked.len() as u64);
            assert_same(&unpacked, &view);
        }
    }
}

/// Takes a file apart and puts it together again.
fn streams(file: &Joined<'_, [u8]>) {
    let mut sink = Cursor::new(Vec::new());
    let Some(made) = unpack(file, VIEW_MAX, &mut sink).expect("memory reads") else { return };
    assert!(made.recipe.len() <= RECIPE_MAX && made.view_bytes <= VIEW_MAX);
    let mut view = sink.into_inner();
    view.truncate(made.view_bytes as usize);
    let bytes: Vec<u8> = file
        .parts
        .iter()
        .flat_map(|part| &file.artifact[part.start as usize..part.end as usize])
        .copied()
        .collect();
    assert_same(&packed_again(&made.recipe, &view), &bytes);
    let mut inflated = Vec::new();
    unpack_with(&made.recipe[..1], file, VIEW_MAX, &mut inflated).expect("memory reads and writes");
    assert!(inflated.len() as u64 <= VIEW_MAX);
    // Archives may have streams that the origin leaves packed.
    if made.recipe[0] == 1 {
        let common = inflated.len().min(view.len());
        assert_same(&inflated[..common], &view[..common]);
    }
}

fn packed_again(recipe: &[u8], mut view: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if !recipe.is_empty() {
        let written = repack(recipe, &mut view, &mut out).expect("own recipe");
        assert_eq!(written, out.len() as u64);
        assert!(view.is_empty(), "all of the view is packed");
    }
    out
}

fn viewed(
    make: impl FnOnce(&mut Cursor<Vec<u8>>) -> std::io::Result<ClusterViews>,
) -> (Vec<u8>, ClusterViews) {
    let mut sink = Cursor::new(Vec::new());
    let made = make(&mut sink).expect("memory reads and writes");
    assert!(made.recipe.len() <= RECIPE_MAX && made.view_bytes <= VIEW_MAX);
    let mut view = sink.into_inner();
    view.truncate(made.view_bytes as usize);
    (view, made)
}

fn ranges(files: &[ClusterFile], made: &ClusterViews) -> Vec<Range<u64>> {
    let with_view = files.iter().zip(&made.files).filter(|(_, result)| result.is_ok());
    with_view.flat_map(|(file, _)| file.parts.clone()).collect()
}

fn parts_of(data: &[u8], files: &[ClusterFile], made: &ClusterViews) -> Vec<u8> {
    let ranges = ranges(files, made).into_iter();
    ranges.flat_map(|part| &data[part.start as usize..part.end as usize]).copied().collect()
}

fn assert_same(got: &[u8], want: &[u8]) {
    assert!(got == want, "{} bytes are not the {} wanted", got.len(), want.len());
}
