//! Bodies of the fuzz targets, shared by `distd-core/fuzz` and the replay of its seeds
//! (`tests/fuzz_seeds.rs`). A body panics when the code under it breaks a promise; an error is a
//! valid answer to hostile bytes.

pub mod codecs;
pub mod frames;
pub mod image;
pub mod input;
pub mod manifests;
pub mod memory;
pub mod sets;
pub mod views;

/// One fuzz target.
#[derive(Debug)]
pub struct Target {
    /// Name of the target, and of its file in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// Directory of its inputs in `fuzz/seeds`.
    pub seeds: &'static str,
    /// Function that checks one input.
    pub body: fn(&[u8]),
}

const fn target(name: &'static str, body: fn(&[u8])) -> Target {
    Target { name, seeds: name, body }
}

/// Makes a target that takes whole files, packed or not.
const fn of_artifacts(name: &'static str, body: fn(&[u8])) -> Target {
    Target { name, seeds: "artifacts", body }
}

/// All fuzz targets.
pub const TARGETS: [Target; 17] = [
    of_artifacts("regions", image::regions),
    of_artifacts("erofs_maps", image::erofs_maps),
    of_artifacts("archive_parts", image::archive_parts),
    of_artifacts("view_make", views::make),
    target("patch_decode", codecs::patch_decode),
    target("patch_encode", codecs::patch_encode),
    target("patch_large", codecs::patch_large),
    target("set_index", sets::set_index),
    target("outline", sets::outline),
    target("choose", sets::choose),
    target("route", sets::route),
    target("view_unpack", views::unpack_recipe),
    target("view_repack", views::repack_recipe),
    target("hash_tree", views::hash_tree),
    target("manifest", manifests::manifest),
    target("tree_listing", manifests::tree_listing),
    target("frames", frames::frames),
];
