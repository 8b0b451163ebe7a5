//! Hash trees of dm-verity that devices compute instead of fetching them.
//!
//! A hash tree follows from its data, and one changed block changes a path of it up to the root; a
//! new salt changes all of it. A device that has the data of a release computes the tree. The
//! origin finds trees with [`find`], and offers a patch for each [part](TreePart) whose recipe it
//! has tried with [`compute`], the code that devices run.
//!
//! The bytes of a recipe are described in docs/formats.md, "Hash trees".

mod compute;
mod find;
mod hash;

pub use crate::cut::verity::TreePart;
pub use compute::{Recipe, compute};
pub use find::{Tree, find, is_computed};
