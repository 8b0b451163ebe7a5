//! Golden files of the formats with views, in `src/patch/view/testdata`: `NAME.packed` is a file of
//! the format (for a format of images, an image with such files), `NAME.recipe` its recipe. They
//! are never edited: devices have to read recipes of earlier versions of distd.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::io::Cursor;
use std::path::Path;

use distd_core::cut::{ReadAt, regions};
use distd_core::patch::view::{FORMATS, Group, Joined, Layer, PackedFile, Unpacked, ViewFormat, find};

/// Longest view made, bytes.
pub(crate) const VIEW_MAX: u64 = 4 << 20;

/// Golden files of one format.
pub(crate) struct Golden {
    pub(crate) format: &'static dyn ViewFormat,
    /// Whole file or image.
    pub(crate) artifact: Vec<u8>,
    pub(crate) recipe: Vec<u8>,
}

/// Reads the golden files of every format in [`FORMATS`]. `core` is the directory of `distd-core`.
pub(crate) fn goldens(core: &Path) -> Vec<Golden> {
    let dir = core.join("src/patch/view/testdata");
    let read = |format: &dyn ViewFormat, kind: &str| {
        let path = dir.join(format!("{}.{kind}", format.name()));
        fs::read(&path).unwrap_or_else(|error| panic!("{} is missing: {error}", path.display()))
    };
    let golden = |format: &&'static dyn ViewFormat| Golden {
        format: *format,
        artifact: read(*format, "packed"),
        recipe: read(*format, "recipe"),
    };
    FORMATS.iter().map(golden).collect()
}

impl Golden {
    /// Returns the packed files of the golden artifact.
    pub(crate) fn group(&self) -> Group {
        group(self.format, &self.artifact).expect("the golden artifact has files of its format")
    }

    /// Makes the view of the golden artifact.
    pub(crate) fn view(&self) -> Vec<u8> {
        unpacked(&self.group(), &self.artifact, false).0
    }

    /// Returns the packed bytes that the recipe makes.
    pub(crate) fn packed(&self) -> Vec<u8> {
        let group = self.group();
        let (_, made) = unpacked(&group, &self.artifact, false);
        packed(&group, &self.artifact, &made)
    }

    /// Returns inputs of the fuzz targets, each with the directory of its seeds in `fuzz/seeds`.
    pub(crate) fn seeds(&self) -> [(&'static str, Vec<u8>); 3] {
        let (old, packed) = self.old();
        // The body of `view_unpack` begins with the length allowed.
        let unpack = [&[0, 0, 8][..], &part(&old), &packed].concat();
        let repack = [&part(&self.recipe)[..], &self.view()].concat();
        [("artifacts", self.artifact.clone()), ("view_repack", repack), ("view_unpack", unpack)]
    }

    /// Makes the unpack recipe and the packed bytes that it is for.
    pub(crate) fn old(&self) -> (Vec<u8>, Vec<u8>) {
        let group = self.group();
        let (_, old) = unpacked(&group, &self.artifact, true);
        let packed = packed(&group, &self.artifact, &old);
        (old.recipe, packed)
    }
}

/// Returns the packed files of a format in an artifact, as one view has them: the artifact itself,
/// or a group of an image's files.
pub(crate) fn group(format: &'static dyn ViewFormat, artifact: &[u8]) -> Option<Group> {
    match format.layer() {
        Layer::File => {
            let parts = std::iter::once(0..artifact.len() as u64).collect();
            Some(Group { format, files: vec![PackedFile::new(b"file".to_vec(), parts)] })
        }
        Layer::Image => {
            let found = find(Layer::Image, artifact, &regions(artifact), |_, _| true).expect("memory reads");
            found.groups.into_iter().find(|group| group.format.name() == format.name())
        }
    }
}

/// Makes view and recipe of a group, or view and unpack recipe if `old` is set.
pub(crate) fn unpacked(group: &Group, artifact: &[u8], old: bool) -> (Vec<u8>, Unpacked) {
    let mut sink = Cursor::new(Vec::new());
    let made = match old {
        false => group.unpack(artifact, VIEW_MAX, &mut sink),
        true => group.unpack_old(artifact, VIEW_MAX, &mut sink),
    };
    let made = made.expect("memory reads and writes");
    let mut view = sink.into_inner();
    view.truncate(made.view_bytes as usize);
    (view, made)
}

/// Returns the packed bytes that a recipe is for.
pub(crate) fn packed(group: &Group, artifact: &[u8], made: &Unpacked) -> Vec<u8> {
    let parts = made.parts(&group.files);
    let joined = Joined { artifact, parts: &parts };
    let mut bytes = vec![0; joined.len() as usize];
    joined.read_exact_at(&mut bytes, 0).expect("memory reads");
    bytes
}

/// Encodes a part of a fuzz target's input: its length in three bytes, then the part.
fn part(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes()[..3], bytes].concat()
}
