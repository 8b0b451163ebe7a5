//! Conversion of old clusters to view and unpack recipe, at the origin.

use std::io::{self, SeekFrom, Write};

use super::make::content;
use super::{Form, NoView, map_of, number_of};
use crate::cut::ReadAt;
use crate::cut::erofs::{Coding, Decoder};
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
        let mut recipe = Recipe { form, bytes: Vec::new(), open: None };
        let listed = map.as_ref().map_or(0, |map| map.listed_bytes());
        let result = match map {
            Ok(_) if listed > max - made.view_bytes => Err(NoView::TooLong),
            Ok(map) => tell(packed.artifact, map, longest as usize, &mut decoder, &mut recipe, &mut sink)?,
            Err(why) => Err(why),
        };
        recipe.close();
        made.files.push(result.and_then(|()| {
            if made.recipe.len() + recipe.bytes.len() > RECIPE_MAX {
                return Err(NoView::TooLong);
            }
            let from = made.view_bytes;
            made.recipe.append(&mut recipe.bytes);
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
    map: &ClusterMap,
    longest: usize,
    decoder: &mut Decoder,
    recipe: &mut Recipe,
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
            Some(0) => recipe.add(Step::Plain { plain: u64::from(len), padding: u64::from(packed - len) }),
            Some(turn) => recipe.add(Step::Turned { packed, plain: len, turn }),
            None => {
                // If the cluster holds no more than this extent, the recipe need not state the
                // length.
                cluster.resize(packed as usize, 0);
                artifact.read_exact_at(&mut cluster, piece.start)?;
                plain.resize(longest, 0);
                let all = decoder.unpack(coding, &cluster, &mut plain) == Some(len as usize);
                recipe.add(Step::Clusters { coding, count: 1, packed, plain: (!all).then_some(len) });
            }
        }
    }
    Ok(Ok(()))
}

#[derive(Clone, Copy)]
enum Step {
    Clusters { coding: Coding, count: u64, packed: u32, plain: Option<u32> },
    Plain { plain: u64, padding: u64 },
    Turned { packed: u32, plain: u32, turn: u16 },
}

/// Steps of one file. Equal consecutive steps are joined.
struct Recipe {
    form: Form,
    bytes: Vec<u8>,
    open: Option<Step>,
}

impl Recipe {
    fn add(&mut self, step: Step) {
        self.open = match (self.open, step) {
            (
                Some(Step::Clusters { coding, count, packed, plain }),
                Step::Clusters { coding: algorithm, packed: more, plain: length, .. },
            ) if coding == algorithm && packed == more && plain == length => {
                Some(Step::Clusters { coding, count: count + 1, packed, plain })
            }
            (Some(Step::Plain { plain, padding: 0 }), Step::Plain { plain: more, padding }) => {
                Some(Step::Plain { plain: plain + more, padding })
            }
            _ => {
                self.close();
                Some(step)
            }
        };
    }

    fn close(&mut self) {
        let Some(step) = self.open.take() else { return };
        let (kind, coding, numbers) = match step {
            Step::Clusters { coding, count, packed, plain: None } => {
                (1, Some(coding), [Some(count), Some(packed.into()), None])
            }
            Step::Clusters { coding, count, packed, plain } => {
                (2, Some(coding), [Some(count), Some(packed.into()), plain.map(u64::from)])
            }
            Step::Plain { plain, padding } => (3, None, [Some(plain), Some(padding), None]),
            Step::Turned { packed, plain, turn } => {
                (4, None, [Some(packed.into()), Some(plain.into()), Some(turn.into())])
            }
        };
        self.bytes.push(kind);
        if self.form == Form::Any {
            self.bytes.extend(coding.map(number_of));
        }
        numbers.into_iter().flatten().for_each(|number| put_varint(&mut self.bytes, number));
    }
}
