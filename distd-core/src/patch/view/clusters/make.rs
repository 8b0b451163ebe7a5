//! Conversion of clusters to view and recipe, at the origin.

use std::io::{self, SeekFrom, Write};
use std::ops::Range;

use super::coder::{Packer, Setting};
use super::steps::{Step, Steps};
use super::{Form, LOOK_AHEAD, NoView, WINDOW_MAX, map_of};
use crate::cut::ReadAt;
use crate::cut::erofs::{CLUSTER_BYTES_MAX, Coding, Decoder};
use crate::patch::view::corrections;
use crate::patch::view::format::{Packed, RECIPE_MAX, Unpacked, ViewSink};
use crate::patch::view::map::{ClusterMap, Piece};
use crate::proto::put_varint;

/// A view of a file is not worth it if its recipe takes more than one part in this many of the
/// packed bytes.
const RECIPE_PART: usize = 8;

/// Used instead of `RECIPE_PART` where clusters are made by corrections, because the packer is not
/// known. Corrections cost more bytes, but fewer than sending everything that changed.
const CORRECTED_PART: usize = 4;

/// Clusters for which all settings are tried, per file and per group. Each trial costs some ten
/// times the packing.
const TRIED_OF_FILE: u32 = 2;
const TRIED_OF_GROUP: u32 = 64;

/// Least room first given to a packer that takes all, bytes.
const ROOMY_MIN: usize = 8 << 10;

/// Makes view and recipe of a group of files of the new release. The view is written to `sink` from
/// the current position on.
///
/// Each cluster is packed again and compared, so a recipe always fits. A view has at most `max`
/// bytes. Some 30 MB/s of content on one core. Memory: twice the content of the longest cluster, at
/// most 26 MB.
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
    let mut tools = Tools { left: TRIED_OF_GROUP, ..Tools::default() };
    let mut made = Unpacked { recipe: vec![form.version()], view_bytes: 0, files: Vec::new() };
    for file in packed.files {
        let map = match map_of(form, file) {
            Ok(map) => map,
            Err(why) => {
                made.files.push(Err(why));
                continue;
            }
        };
        sink.seek(SeekFrom::Start(start + made.view_bytes))?;
        let mut making = Making::new(packed.artifact, map, form, &mut tools);
        let room = max - made.view_bytes;
        let result = if map.plain_bytes > room { Err(NoView::TooLong) } else { making.run(&mut sink)? };
        let recipe = making.recipe.steps.finish();
        made.files.push(result.and_then(|()| {
            let part = if making.recipe.corrected { CORRECTED_PART } else { RECIPE_PART };
            let packed_bytes: u64 = file.parts.iter().map(|part| part.end - part.start).sum();
            if recipe.len() > packed_bytes as usize / part {
                return Err(NoView::NotReproduced);
            }
            if made.recipe.len() + recipe.len() > RECIPE_MAX {
                return Err(NoView::TooLong);
            }
            let from = made.view_bytes;
            made.recipe.extend_from_slice(&recipe);
            made.view_bytes += map.plain_bytes;
            Ok(from..made.view_bytes)
        }));
    }
    sink.seek(SeekFrom::Start(start + made.view_bytes))?;
    if made.view_bytes == 0 {
        made.recipe.clear();
    }
    Ok(made)
}

/// Packer and decoder shared by all files of a group, and the settings found so far.
#[derive(Default)]
struct Tools {
    packer: Packer,
    decoder: Decoder,
    /// Setting that made the last cluster of each algorithm.
    found: Vec<(Coding, Setting)>,
    /// Number of clusters for which all settings may still be tried.
    left: u32,
}

impl Tools {
    fn likely(&self, coding: Coding) -> Option<Setting> {
        let found = self.found.iter().find(|(of, _)| *of == coding).map(|(_, setting)| *setting);
        found.or_else(|| Setting::of(coding).first().copied())
    }

    fn learn(&mut self, coding: Coding, setting: Setting) {
        self.found.retain(|(of, _)| *of != coding);
        self.found.push((coding, setting));
    }
}

struct Making<'a> {
    artifact: &'a dyn ReadAt,
    file: &'a ClusterMap,
    tools: &'a mut Tools,
    tries_left: u32,
    recipe: Recipe,
    window: usize,
    capacity: usize,
    /// Content from the current cluster on, behind `gone` bytes that are done.
    plain: Vec<u8>,
    gone: usize,
    /// Index of the first piece that is not unpacked yet.
    next: usize,
    out: Vec<u8>,
}

impl<'a> Making<'a> {
    fn new(artifact: &'a dyn ReadAt, file: &'a ClusterMap, form: Form, tools: &'a mut Tools) -> Self {
        let packed = || file.pieces.iter().filter(|piece| piece.turn.is_none());
        let longest = packed().map(|piece| u64::from(piece.plain)).max().unwrap_or(0);
        let window = (longest + LOOK_AHEAD).min(WINDOW_MAX);
        let capacity =
            packed().map(|piece| piece.packed).max().unwrap_or(0).next_multiple_of(file.block_bytes);
        Self {
            artifact,
            file,
            tools,
            tries_left: TRIED_OF_FILE,
            recipe: Recipe::new(file, form, window),
            window: window as usize,
            capacity: capacity as usize,
            plain: Vec::new(),
            gone: 0,
            next: 0,
            out: Vec::new(),
        }
    }

    fn run(&mut self, sink: &mut dyn Write) -> io::Result<Result<(), NoView>> {
        let mut cluster = Vec::new();
        for piece in &self.file.pieces {
            let len = piece.plain as usize;
            if self.gone > self.window {
                self.plain.drain(..self.gone);
                self.gone = 0;
            }
            while self.plain.len() - self.gone < self.window.max(len) && self.next < self.file.pieces.len() {
                let held = self.plain.len();
                let piece = &self.file.pieces[self.next];
                if content(self.artifact, piece, &mut self.tools.decoder, &mut self.plain)?.is_none() {
                    return Ok(Err(NoView::Damaged));
                }
                sink.write_all(&self.plain[held..])?;
                self.next += 1;
            }
            cluster.resize(piece.packed as usize, 0);
            self.artifact.read_exact_at(&mut cluster, piece.start)?;
            self.tell(piece, &cluster);
            self.gone += len;
        }
        Ok(Ok(()))
    }

    /// Adds the cluster to the recipe.
    fn tell(&mut self, piece: &Piece, cluster: &[u8]) {
        let len = piece.plain as usize;
        if !piece.listed {
            self.recipe.steps.add(Step::left_out(len));
            return;
        }
        let step = match piece.turn {
            Some(turn) => self.as_it_is(piece, cluster, usize::from(turn)),
            None => self.packed(piece, cluster),
        };
        match step {
            Some(step) => self.recipe.steps.add(step),
            None => match self.corrected(piece, cluster) {
                Some(corrections) => self.recipe.correct(len, piece.inline, &corrections),
                None => self.recipe.steps.add_bytes(6, len, cluster),
            },
        }
    }

    /// Returns the corrections that make a cluster of deflate, if they are worth it.
    fn corrected(&self, piece: &Piece, cluster: &[u8]) -> Option<Vec<u8>> {
        if piece.turn.is_some() || piece.coding != Coding::Deflate {
            return None;
        }
        let front = cluster.iter().take_while(|byte| **byte == 0).count();
        let plain = &self.plain[self.gone..self.gone + piece.plain as usize];
        let packed = &cluster[front..];
        let corrections = corrections::of(packed, plain)?;
        (self.lies(packed, cluster, piece.inline) && corrections.len() < packed.len() / CORRECTED_PART)
            .then_some(corrections)
    }

    fn as_it_is(&self, piece: &Piece, cluster: &[u8], turn: usize) -> Option<Step> {
        let len = piece.plain as usize;
        let plain = &self.plain[self.gone..self.gone + len];
        let front = len.min(cluster.len() - turn);
        let is = |range: Range<usize>, plain: &[u8]| cluster[range] == *plain;
        let zero = |range: Range<usize>| cluster[range].iter().all(|byte| *byte == 0);
        if !is(turn..turn + front, &plain[..front]) || !is(0..len - front, &plain[front..]) {
            return None;
        }
        let padding = if front < len { len - front..turn } else { turn + len..cluster.len() };
        if !zero(padding) || (front == len && !zero(0..turn)) {
            return None;
        }
        match (turn, piece.inline) {
            (0, true) => (len == cluster.len()).then(|| Step::plain_end(len)),
            (0, false) => {
                let block = self.file.block_bytes as usize;
                (cluster.len() == len.next_multiple_of(block)).then(|| Step::plain(len, block))
            }
            _ => Some(Step::turned(len, turn)),
        }
    }

    fn packed(&mut self, piece: &Piece, cluster: &[u8]) -> Option<Step> {
        let first = self.tools.likely(piece.coding)?;
        if let Some(step) = self.with(first, piece, cluster) {
            return Some(step);
        }
        if self.tries_left == 0 || self.tools.left == 0 {
            return None;
        }
        self.tries_left -= 1;
        self.tools.left -= 1;
        for setting in Setting::of(piece.coding).into_iter().filter(|setting| *setting != first) {
            if let Some(step) = self.with(setting, piece, cluster) {
                self.tools.learn(piece.coding, setting);
                return Some(step);
            }
        }
        None
    }

    /// Returns the step by which this setting makes the cluster, if it does.
    fn with(&mut self, setting: Setting, piece: &Piece, cluster: &[u8]) -> Option<Step> {
        if setting.takes_all() {
            return self.with_all(setting, piece, cluster);
        }
        let len = piece.plain as usize;
        let plain = &self.plain[self.gone..];
        let shown = &plain[..plain.len().min(self.window)];
        // mkfs.erofs shows the packer all content it has, or as much as its options allow in one
        // cluster. Now and then it asks for fewer blocks.
        for capacity in distinct(self.capacity, cluster.len()) {
            for plain in [shown, &plain[..len]] {
                let packer = &mut self.tools.packer;
                let Some((taken, made)) = packer.fill(setting, 0, plain, capacity, &mut self.out) else {
                    continue;
                };
                if taken < len || !self.lies(&self.out[..made], cluster, piece.inline) {
                    continue;
                }
                if piece.inline {
                    return (taken == len).then(|| Step::end(setting, capacity));
                }
                let all = plain.len() == shown.len();
                return Some(match (all, taken == len) {
                    (true, true) => Step::clusters(setting, capacity),
                    (true, false) => Step::overlapping(setting, capacity, len),
                    _ => Step::known(setting, capacity, len),
                });
            }
        }
        None
    }

    /// Like [`with`](Self::with), for a setting that takes all it is given. The result can depend
    /// on how near the packer comes to the end of its room.
    fn with_all(&mut self, setting: Setting, piece: &Piece, cluster: &[u8]) -> Option<Step> {
        let (len, window_bits) = (piece.plain as usize, self.file.window_bits);
        let plain = &self.plain[self.gone..][..len];
        let roomy = (cluster.len() * 2).clamp(ROOMY_MIN, CLUSTER_BYTES_MAX as usize);
        for capacity in distinct(roomy, cluster.len()) {
            let made = self.tools.packer.fill(setting, window_bits, plain, capacity, &mut self.out);
            if let Some((_, made)) = made
                && self.lies(&self.out[..made], cluster, piece.inline)
            {
                return Some(match piece.inline {
                    true => Step::end(setting, capacity),
                    false => Step::known(setting, capacity, len),
                });
            }
        }
        None
    }

    /// Returns whether a packed block equals the content of the cluster, padding included.
    fn lies(&self, made: &[u8], cluster: &[u8], inline: bool) -> bool {
        if inline {
            return made == cluster;
        }
        if made.len().next_multiple_of(self.file.block_bytes as usize) != cluster.len() {
            return false;
        }
        let zeros = cluster.len() - made.len();
        let (padding, data) = if self.file.zeros_in_front {
            cluster.split_at(zeros)
        } else {
            let (data, padding) = cluster.split_at(made.len());
            (padding, data)
        };
        data == made && padding.iter().all(|byte| *byte == 0)
    }
}

/// Yields both numbers, or one if they are equal.
fn distinct(first: usize, second: usize) -> impl Iterator<Item = usize> {
    [first].into_iter().chain((second != first).then_some(second))
}

/// Appends the content of an extent to `out`; `None` if its cluster is damaged.
pub(super) fn content(
    artifact: &dyn ReadAt,
    piece: &Piece,
    decoder: &mut Decoder,
    out: &mut Vec<u8>,
) -> io::Result<Option<()>> {
    let mut cluster = vec![0; piece.packed as usize];
    artifact.read_exact_at(&mut cluster, piece.start)?;
    let (from, len) = (out.len(), piece.plain as usize);
    if let Some(turn) = piece.turn {
        cluster.rotate_left(usize::from(turn));
        out.extend_from_slice(&cluster[..len]);
        return Ok(Some(()));
    }
    out.resize(from + len, 0);
    let made = decoder.unpack(piece.coding, &cluster, &mut out[from..]);
    Ok(made.filter(|made| *made == len).map(|_| ()))
}

/// Recipe of one file.
struct Recipe {
    steps: Steps,
    /// Whether the recipe has corrections.
    corrected: bool,
}

impl Recipe {
    fn new(file: &ClusterMap, form: Form, window: u64) -> Self {
        // Blocks have 512 bytes to 64 KiB.
        let block_bits = (file.block_bytes / 512).trailing_zeros() as u8;
        let mut head = vec![0, u8::from(file.zeros_in_front) | block_bits << 4];
        put_varint(&mut head, file.plain_bytes);
        put_varint(&mut head, window);
        if form == Form::Any {
            head.push(file.window_bits);
        }
        Self { steps: Steps::behind(head), corrected: false }
    }

    fn correct(&mut self, len: usize, inline: bool, corrections: &[u8]) {
        self.corrected = true;
        self.steps.add_bytes(if inline { 11 } else { 10 }, len, corrections);
    }
}
