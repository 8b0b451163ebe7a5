//! Share of an artifact in which patches see content: bytes that are not packed, and packed bytes
//! with a view.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use serde::{Serialize, Serializer};

use super::error::NoView;
use super::find::{Found, Group, find};
use super::format::{HEAD_BYTES, Layer, PackedFile, ViewLimits, ViewSink};
use crate::cut::{ReadAt, Region, RegionKind, Regions};

/// Most levels of views within views ([`Layer::ROUNDS`]).
const DEPTH: usize = 3;

/// First bytes of packed formats that have no views, and their names.
const OPAQUE: [(&[u8], &str); 9] = [
    (b"BZh", "bzip2"),
    (&[0x04, 0x22, 0x4D, 0x18], "lz4"),
    (&[0x02, 0x21, 0x4C, 0x18], "lz4"),
    (b"\x89LZO\0", "lzop"),
    (b"LZIP", "lzip"),
    (&[0x5D, 0, 0], "lzma"),
    (b"7z\xBC\xAF\x27\x1C", "7z"),
    (&[0xFF, 0xD8, 0xFF], "jpeg"),
    (b"hsqs", "squashfs"),
];

/// Smallest file that counts as packed, bytes.
const FILE_MIN: u64 = 4096;

/// View that can be read again.
pub trait ViewFile: ViewSink + ReadAt {}

impl<F: ViewSink + ReadAt> ViewFile for F {}

/// Result of [`transparency`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Transparency {
    /// Length of the artifact, bytes.
    pub bytes: u64,
    /// Packed bytes with a view.
    pub viewed: u64,
    /// Packed files without a view, most bytes first.
    pub opaque: Vec<Opaque>,
}

/// Packed file without a view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Opaque {
    /// Name of the file's regions. Hostile: escape it before display.
    #[serde(serialize_with = "as_text")]
    pub name: Vec<u8>,
    /// Reason why it has no view.
    pub reason: String,
    /// Bytes of the artifact. A file within a view counts as the part of the packed bytes that
    /// its share of the view is.
    pub bytes: u64,
}

impl Transparency {
    /// Bytes in which patches see content.
    pub fn transparent(&self) -> u64 {
        self.bytes.saturating_sub(self.opaque.iter().map(|file| file.bytes).sum())
    }

    fn add(&mut self, name: &[u8], reason: &impl ToString, bytes: u64) {
        self.opaque.push(Opaque { name: name.to_vec(), reason: reason.to_string(), bytes });
    }
}

/// Makes a view of every packed file of an artifact, and of every packed file in these, and counts
/// the bytes that have none. `file` makes an empty file for a view.
///
/// # Errors
/// Any error from reading the artifact, or of a file for a view.
pub fn transparency(
    artifact: &dyn ReadAt,
    regions: &Regions,
    limits: ViewLimits,
    file: &dyn Fn() -> io::Result<Box<dyn ViewFile>>,
) -> io::Result<Transparency> {
    let mut whole = Transparency { bytes: artifact.len(), ..Transparency::default() };
    let mut hidden = Vec::new();
    for layer in Layer::ALL {
        // Files that the image packs are found in the views of the image.
        let found = find(layer, &artifact, regions, |_, parts| {
            layer == Layer::Image || !parts.iter().any(|part| hidden.binary_search(&part.start).is_ok())
        })?;
        if layer == Layer::Image {
            let files = found.groups.iter().flat_map(|group| &group.files);
            hidden = files.flat_map(|file| &file.parts).map(|part| part.start).collect();
            hidden.sort_unstable();
        }
        // The views of an image are followed by as many rounds of files as an image without them.
        let depth = if layer == Layer::Image { DEPTH } else { DEPTH - 1 };
        of_found(artifact, regions, layer, found, (limits, depth), file, &mut whole)?;
    }
    foreign(artifact, regions, &mut whole)?;
    whole.opaque.sort_by(|one, other| (other.bytes, &one.name).cmp(&(one.bytes, &other.name)));
    Ok(whole)
}

/// Counts the packed files that were found.
fn of_found(
    artifact: &dyn ReadAt,
    regions: &Regions,
    layer: Layer,
    found: Found,
    (limits, depth): (ViewLimits, usize),
    file: &dyn Fn() -> io::Result<Box<dyn ViewFile>>,
    whole: &mut Transparency,
) -> io::Result<()> {
    let mut lens: BTreeMap<&[u8], u64> = BTreeMap::new();
    if !found.without.is_empty() {
        for region in regions.all() {
            if let Some(name) = regions.name(region) {
                *lens.entry(name).or_default() += region.len;
            }
        }
    }
    for (name, reason) in &found.without {
        // Such files are not packed, or found as files that are packed by themselves.
        if !matches!(reason, NoView::Plain | NoView::NoClusters) {
            whole.add(name, reason, lens.get(&name[..]).copied().unwrap_or(0));
        }
    }
    for group in &found.groups {
        of_group(artifact, layer, group, (limits, depth), file, whole)?;
    }
    Ok(())
}

fn of_group(
    artifact: &dyn ReadAt,
    layer: Layer,
    group: &Group,
    (limits, depth): (ViewLimits, usize),
    file: &dyn Fn() -> io::Result<Box<dyn ViewFile>>,
    whole: &mut Transparency,
) -> io::Result<()> {
    let mut view = file()?;
    let made = group.unpack(&artifact, limits, &mut *view)?;
    for (file, result) in group.files.iter().zip(&made.files) {
        match result {
            Ok(_) => whole.viewed += len_of(file),
            Err(reason) => whole.add(&file.name, reason, len_of(file)),
        }
    }
    if depth == 0 || made.view_bytes == 0 {
        return Ok(());
    }
    let parts = layer.parts(&*view, &made.named(&group.files, 0))?;
    let inside = Regions::from_parts(parts.iter().map(|(len, kind, name)| (*len, *kind, Some(&name[..]))));
    let Some(inside) = inside else { return Ok(()) };
    let mut inner = Transparency { bytes: made.view_bytes, ..Transparency::default() };
    let mut found = find(Layer::File, &*view, &inside, |_, _| true)?;
    // The view of a kernel image begins as the image does, and is not packed again.
    let starts: Vec<u64> = made.files.iter().flatten().map(|range| range.start).collect();
    found.groups.retain(|inner| {
        let is_view = |file: &PackedFile| file.parts.iter().any(|part| starts.contains(&part.start));
        inner.format.name() != group.format.name() || !inner.files.iter().any(is_view)
    });
    of_found(&*view, &inside, Layer::File, found, (limits, depth - 1), file, &mut inner)?;
    foreign(&*view, &inside, &mut inner)?;
    let packed: u64 = made.parts(&group.files).iter().map(|part| part.end - part.start).sum();
    let share = packed as f64 / made.view_bytes as f64;
    for opaque in inner.opaque {
        let bytes = (opaque.bytes as f64 * share) as u64;
        whole.opaque.push(Opaque { bytes, ..opaque });
    }
    Ok(())
}

fn len_of(file: &PackedFile) -> u64 {
    file.parts.iter().map(|part: &Range<u64>| part.end - part.start).sum()
}

fn as_text<S: Serializer>(name: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(name))
}

/// Counts files whose format has no views.
fn foreign(artifact: &dyn ReadAt, regions: &Regions, whole: &mut Transparency) -> io::Result<()> {
    let is_file = |region: &&Region| region.len >= FILE_MIN && region.kind != RegionKind::Packed;
    for region in regions.all().iter().filter(is_file) {
        let Some(name) = regions.name(region) else { continue };
        let mut head = [0; HEAD_BYTES];
        artifact.read_exact_at(&mut head, region.start)?;
        if let Some((_, format)) = OPAQUE.iter().find(|(magic, _)| head.starts_with(magic)) {
            whole.add(name, &format!("{format} has no views"), region.len);
        }
    }
    Ok(())
}
