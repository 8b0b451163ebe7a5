//! Choice of the mode of each block, by the encoder.

use super::align::Side;
use super::guide::{Guide, Undo};
use super::layout::{Cursor, Key, Layout};
use super::limits::Learned;
use super::model::{BLOCK, cursors};
use super::sites::{Guides, Kind, Known, Mode, Site};
use crate::patch::matches::Segment;

/// Cost of a wrong byte, a field that is as in the base, and one that is neither; about the bytes
/// that each takes.
const BYTE: usize = 2;
const COPY: usize = 2;
const FIELD: usize = 4;

/// Block in a copied part.
#[derive(Clone, Copy)]
struct Block {
    /// Places in the target.
    from: usize,
    to: usize,
    /// End of the part in the target, and start of the part in base and target.
    end: usize,
    base: usize,
    at: usize,
}

struct Chooser<'a> {
    base: Side<'a>,
    target: Side<'a>,
    guides: Guides,
    cursors: [Cursor; 2],
    /// Whether the base has addresses.
    has_addresses: bool,
}

/// Returns the mode of each block, in the order in which the stream codes them.
pub(super) fn choose(base: Side<'_>, target: Side<'_>, segments: &[Segment], guides: Guides) -> Vec<Mode> {
    let cursors = cursors((base.layout, base.bytes.len()), (target.layout, target.bytes.len()));
    let has_addresses = !base.layout.extents.is_empty();
    let mut chooser = Chooser { base, target, guides, cursors, has_addresses };
    let (mut out, mut at, mut last) = (Vec::new(), 0, Mode::Plain);
    for segment in segments {
        let end = at + segment.add;
        let mut from = at;
        while from < end {
            let to = ((from / BLOCK + 1) * BLOCK).min(end);
            last = chooser.best(last, Block { from, to, end, base: segment.base, at });
            out.push(last);
            from = to;
        }
        at = end + segment.extra;
    }
    out
}

/// Whether the map of a kind knows nothing but what it learns.
fn learns(kind: Kind) -> bool {
    matches!(kind, Kind::Index32 | Kind::Index24 | Kind::RelaOffset | Kind::RelaSymbol | Kind::RelaAddend)
}

impl Chooser<'_> {
    /// Returns the mode with the lowest cost; `last` if others are no better.
    fn best(&mut self, last: Mode, block: Block) -> Mode {
        let old = block.base + (block.from - block.at);
        let bytes = block.to - block.from;
        // The decoder is quickest without references. A change of modes costs more than it saves
        // where some blocks are equal by chance.
        let ahead = if last == Mode::Plain { bytes } else { (8 * BLOCK).min(block.end - block.from) };
        if self.base.bytes[old..old + ahead] == self.target.bytes[block.from..block.from + ahead] {
            return Mode::Plain;
        }
        let mut best = (usize::MAX, Mode::Plain);
        for mode in [last].into_iter().chain(Mode::ALL.into_iter().filter(|mode| *mode != last)) {
            let lists = matches!(mode, Mode::Plain | Mode::Index32 | Mode::Index24 | Mode::Rela);
            if !lists && !self.has_addresses {
                continue;
            }
            let (mut undo, offset_shift) = (Vec::new(), self.guides.offset_shift);
            let cost = self.cost(mode, block, &mut undo);
            self.guides.offset_shift = offset_shift;
            while let Some((kind, undo)) = undo.pop() {
                self.guides.guide(kind).undo(undo);
            }
            if cost < best.0 {
                best = (cost, mode);
            }
            if cost == 0 {
                break;
            }
        }
        if matches!(best.1, Mode::Index32 | Mode::Index24 | Mode::Rela) {
            self.cost(best.1, block, &mut Vec::new());
        }
        best.1
    }

    /// Returns the cost of a block in a mode. The maps of indices learn from it.
    fn cost(&mut self, mode: Mode, block: Block, undo: &mut Vec<(Kind, Undo)>) -> usize {
        let (base, target) = (self.base.bytes, self.target.bytes);
        let (mut cost, mut place) = (0, block.from);
        while place < block.to {
            let at = block.base + (place - block.at);
            match self.site(mode, at, place) {
                Some((site, new)) if place + site.len <= block.end => {
                    let actual = &target[place..place + site.len];
                    if actual != site.wanted() {
                        cost += if *actual == base[at..at + site.len] { COPY } else { FIELD };
                        if learns(site.kind) {
                            undo.extend(self.guides.learn(&site, actual, new).map(|undo| (site.kind, undo)));
                        }
                    }
                    place += site.len;
                }
                _ => {
                    cost += usize::from(base[at] != target[place]) * BYTE;
                    place += 1;
                }
            }
        }
        cost
    }

    fn site(&mut self, mode: Mode, at: usize, place: usize) -> Option<(Site, Key)> {
        if mode == Mode::Plain {
            return None;
        }
        let [olds, news] = &mut self.cursors;
        let (old, new) = (olds.key(at).0, news.key(place).0);
        Some((self.guides.site(mode, self.base.bytes, at, old, new)?, new))
    }
}

/// Returns the maps at the start of a stream; `None` if segments and layouts make too many parts.
pub(super) fn guides(
    segments: &[Segment],
    base: (&Layout, usize),
    target: (&Layout, usize),
    origin: u64,
) -> Option<Guides> {
    let learned = Learned::of(target.1);
    let list = || Guide::default().learning(learned.indices);
    Some(Guides {
        known: Known::new(base.0, base.1),
        addresses: Guide::new(segments, base, target)?.learning(learned.addresses),
        indices: [list(), list()],
        addends: list(),
        offset_shift: 0,
        origin,
    })
}
