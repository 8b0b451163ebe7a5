//! Conversion of old clusters to view and unpack recipe, at the origin.

use std::io::{self, SeekFrom, Write};

use super::make::content;
use super::steps::{Step, Steps};
use super::{Form, NoView, map_of};
use crate::cut::ReadAt;
use crate::cut::erofs::Decoder;
use crate::patch::view::format::{Packed, RECIPE_MAX, Unpacked, ViewSink};
use crate::patch::view::map::{ClusterMap, Piece};
use crate::proto::put_varint;

/// Writes the view of a group of files of the old release to `sink`, from the current position on,
/// and makes the recipe that produces the view from their parts ([`unpack`](super::unpack)).
///
/// A view has at most `max` bytes. Memory: twice the content of the longest cluster. Some 500 MB/s
/// of content.
///
/// # Errors
/// Any error from reading the artifact or writing to `sink`.
pub(super) fn unpack(
    form: Form,
    packed: &Packed<'_>,
    max: u64,
    mut sink: &mut dyn ViewSink,
) -> io::Result<Unpacked> {
    let start = sink.stream_position()?;
    let maps = || packed.files.iter().map(|file| map_of(form, file));
    let longest = maps().flatten().flat_map(|map| &map.pieces).map(|piece| piece.plain).max().unwrap_or(1);
    let mut decoder = Decoder::default();
    let mut made = Unpacked { recipe: vec![form.version()], view_bytes: 0, files: Vec::new() };
    put_varint(&mut made.recipe, u64::from(longest));
    for map in maps() {
        sink.seek(SeekFrom::Start(start + made.view_bytes))?;
        let mut steps = Steps::default();
        let listed = map.as_ref().map_or(0, |map| map.listed_bytes());
        let result = match map {
            Ok(_) if listed > max - made.view_bytes => Err(NoView::TooLong),
            Ok(map) => {
                tell(packed.artifact, (form, map), longest as usize, &mut decoder, &mut steps, &mut sink)?
            }
            Err(why) => Err(why),
        };
        let mut recipe = steps.finish();
        made.files.push(result.and_then(|()| {
            if made.recipe.len() + recipe.len() > RECIPE_MAX {
                return Err(NoView::TooLong);
            }
            let from = made.view_bytes;
            made.recipe.append(&mut recipe);
            made.view_bytes += listed;
            Ok(from..made.view_bytes)
        }));
    }
    sink.seek(SeekFrom::Start(start + made.view_bytes))?;
    if made.view_bytes == 0 {
        made.recipe.clear();
    }
    Ok(made)
}

fn tell(
    artifact: &dyn ReadAt,
    (form, map): (Form, &ClusterMap),
    longest: usize,
    decoder: &mut Decoder,
    steps: &mut Steps,
    sink: &mut dyn Write,
) -> io::Result<Result<(), NoView>> {
    let (mut plain, mut cluster) = (Vec::new(), Vec::new());
    for piece in map.pieces.iter().filter(|piece| piece.listed) {
        plain.clear();
        let Piece { packed, plain: len, coding, turn, .. } = *piece;
        if content(artifact, piece, decoder, &mut plain)?.is_none() {
            return Ok(Err(NoView::Damaged));
        }
        sink.write_all(&plain)?;
        match turn {
            Some(0) => steps.add(Step::old_plain(len, packed - len)),
            Some(turn) => steps.add(Step::old_turned(packed, len, turn)),
            None => {
                // If the cluster holds no more than this extent, the recipe need not state the
                // length.
                cluster.resize(packed as usize, 0);
                artifact.read_exact_at(&mut cluster, piece.start)?;
                plain.resize(longest, 0);
                let all = decoder.unpack(coding, &cluster, &mut plain) == Some(len as usize);
                steps.add(Step::old_clusters(form, coding, packed, (!all).then_some(len)));
            }
        }
    }
    Ok(Ok(()))
}
