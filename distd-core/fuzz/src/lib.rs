//! Bodies of the fuzz targets, shared with `distd-core/tests/fuzz_seeds.rs`.

#[path = "../../tests/fuzz_bodies/mod.rs"]
pub mod bodies;
