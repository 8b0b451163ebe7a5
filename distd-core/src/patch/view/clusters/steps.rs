//! Steps of recipes and of unpack recipes, as the origin writes them; see the tables in the parent
//! module.

use super::coder::Setting;
use super::{Form, number_of};
use crate::cut::erofs::Coding;
use crate::proto::put_varint;

/// Step of a recipe or an unpack recipe: a kind, a byte that names a setting or an algorithm, and
/// numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    kind: u8,
    coder: Option<u8>,
    numbers: [Option<u64>; 3],
    joins: Joins,
}

/// Rule by which a step takes up the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joins {
    /// The step stands alone.
    Never,
    /// The number at this index counts equal steps.
    Count(usize),
    /// The bytes of the next step of the same kind follow without padding: the first number grows.
    Bytes,
}

/// Steps of recipes.
impl Step {
    /// Cluster that is filled from the window.
    pub(super) fn clusters(setting: Setting, capacity: usize) -> Self {
        Self::packed(1, setting, capacity, Some(1), None, Joins::Count(1))
    }

    /// Cluster of `len` bytes of content.
    pub(super) fn known(setting: Setting, capacity: usize, len: usize) -> Self {
        Self::packed(2, setting, capacity, Some(1), Some(len), Joins::Count(1))
    }

    /// Cluster that the next one overlaps behind `len` bytes.
    pub(super) fn overlapping(setting: Setting, capacity: usize, len: usize) -> Self {
        Self::packed(3, setting, capacity, Some(len), None, Joins::Never)
    }

    /// Plain bytes, with zeros up to whole blocks.
    pub(super) fn plain(len: usize, block: usize) -> Self {
        let joins = if len.is_multiple_of(block) { Joins::Bytes } else { Joins::Never };
        Self { kind: 4, coder: None, numbers: [Some(len as u64), None, None], joins }
    }

    /// Plain bytes that begin `turn` bytes into their block.
    pub(super) fn turned(len: usize, turn: usize) -> Self {
        Self::alone(5, [Some(len as u64), Some(turn as u64), None])
    }

    /// Bytes of the view that are not packed.
    pub(super) fn left_out(len: usize) -> Self {
        Self::alone(7, [Some(len as u64), None, None])
    }

    /// Inline cluster at the end of the file.
    pub(super) fn end(setting: Setting, capacity: usize) -> Self {
        Self::packed(8, setting, capacity, None, None, Joins::Never)
    }

    /// Plain inline cluster at the end of the file.
    pub(super) fn plain_end(len: usize) -> Self {
        Self::alone(9, [Some(len as u64), None, None])
    }

    fn packed(
        kind: u8,
        setting: Setting,
        capacity: usize,
        second: Option<usize>,
        third: Option<usize>,
        joins: Joins,
    ) -> Self {
        let numbers = [Some(capacity), second, third].map(|number| number.map(|number| number as u64));
        Self { kind, coder: Some(setting.number()), numbers, joins }
    }

    fn alone(kind: u8, numbers: [Option<u64>; 3]) -> Self {
        Self { kind, coder: None, numbers, joins: Joins::Never }
    }
}

/// Steps of unpack recipes.
impl Step {
    /// Cluster of `packed` bytes, with all its content or the first `plain` bytes of it.
    pub(super) fn old_clusters(form: Form, coding: Coding, packed: u32, plain: Option<u32>) -> Self {
        let coder = (form == Form::Any).then(|| number_of(coding));
        let kind = if plain.is_none() { 1 } else { 2 };
        let numbers = [Some(1), Some(packed.into()), plain.map(u64::from)];
        Self { kind, coder, numbers, joins: Joins::Count(0) }
    }

    /// Plain bytes with padding behind them.
    pub(super) fn old_plain(plain: u32, padding: u32) -> Self {
        let joins = if padding == 0 { Joins::Bytes } else { Joins::Never };
        Self { kind: 3, coder: None, numbers: [Some(plain.into()), Some(padding.into()), None], joins }
    }

    /// Plain bytes that begin `turn` bytes into their cluster.
    pub(super) fn old_turned(packed: u32, plain: u32, turn: u16) -> Self {
        Self::alone(4, [Some(packed.into()), Some(plain.into()), Some(turn.into())])
    }
}

impl Step {
    /// Joins two steps into one, if possible.
    fn join(self, next: Self) -> Option<Self> {
        let index = match self.joins {
            Joins::Bytes if self.kind == next.kind => 0,
            Joins::Count(index) if self.with_count(index, None) == next.with_count(index, None) => index,
            _ => return None,
        };
        Some(next.with_count(index, Some(self.numbers[index]? + next.numbers[index]?)))
    }

    fn with_count(mut self, index: usize, count: Option<u64>) -> Self {
        self.numbers[index] = count;
        self
    }
}

/// Writer of the steps of one file. Equal consecutive steps are joined.
#[derive(Debug, Default)]
pub(super) struct Steps {
    bytes: Vec<u8>,
    open: Option<Step>,
}

impl Steps {
    /// Begins behind `head`, the step that describes the file.
    pub(super) fn behind(head: Vec<u8>) -> Self {
        Self { bytes: head, open: None }
    }

    pub(super) fn add(&mut self, step: Step) {
        let joined = self.open.and_then(|open| open.join(step));
        if joined.is_none() {
            self.close();
        }
        self.open = Some(joined.unwrap_or(step));
    }

    /// Adds a step that ends with bytes: `len` bytes of view, then the length of `bytes`, then
    /// `bytes`.
    pub(super) fn add_bytes(&mut self, kind: u8, len: usize, bytes: &[u8]) {
        self.close();
        self.bytes.push(kind);
        put_varint(&mut self.bytes, len as u64);
        put_varint(&mut self.bytes, bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the encoded steps.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.close();
        std::mem::take(&mut self.bytes)
    }

    fn close(&mut self) {
        let Some(step) = self.open.take() else { return };
        self.bytes.push(step.kind);
        self.bytes.extend(step.coder);
        step.numbers.into_iter().flatten().for_each(|number| put_varint(&mut self.bytes, number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(steps: &[Step]) -> Vec<u8> {
        let mut out = Steps::default();
        steps.iter().for_each(|step| out.add(*step));
        out.finish()
    }

    #[test]
    fn equal_clusters_are_counted_and_others_are_not() {
        let (lz4, slow) = (Setting::Lz4, Setting::Lz4Hc(9));
        let steps = [Step::clusters(lz4, 60), Step::clusters(lz4, 60), Step::clusters(slow, 60)];
        assert_eq!(encoded(&steps), [1, 0, 60, 2, 1, 9, 60, 1]);
        let steps = [Step::known(lz4, 60, 9), Step::known(lz4, 60, 9), Step::known(lz4, 60, 8)];
        assert_eq!(encoded(&steps), [2, 0, 60, 2, 9, 2, 0, 60, 1, 8]);
        assert_eq!(encoded(&[Step::left_out(5), Step::left_out(5)]), [7, 5, 7, 5]);
        assert_eq!(encoded(&[Step::end(lz4, 60), Step::end(lz4, 60)]), [8, 0, 60, 8, 0, 60]);
        let cluster = |form, plain| Step::old_clusters(form, Coding::Zstd, 60, plain);
        let steps = [cluster(Form::Any, None), cluster(Form::Any, None), cluster(Form::Any, Some(7))];
        assert_eq!(encoded(&steps), [1, 3, 2, 60, 2, 3, 1, 60, 7]);
        assert_eq!(encoded(&[cluster(Form::Lz4, Some(7)), cluster(Form::Lz4, Some(7))]), [2, 2, 60, 7]);
    }

    #[test]
    fn plain_bytes_grow_until_padding_follows() {
        let block = 16;
        let steps = [Step::plain(32, block), Step::plain(16, block), Step::plain(5, block)];
        assert_eq!(encoded(&steps), [4, 53]);
        assert_eq!(encoded(&[Step::plain(5, block), Step::plain(16, block)]), [4, 5, 4, 16]);
        let steps = [Step::old_plain(32, 0), Step::old_plain(16, 3), Step::old_plain(16, 0)];
        assert_eq!(encoded(&steps), [3, 48, 3, 3, 16, 0]);
        assert_eq!(encoded(&[Step::old_plain(5, 0), Step::old_turned(16, 5, 3)]), [3, 5, 0, 4, 16, 5, 3]);
    }
}
