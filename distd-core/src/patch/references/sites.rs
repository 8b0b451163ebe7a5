//! Places of a base where references may lie, and the values that the map of addresses predicts.

use super::guide::{Guide, Undo};
use super::layout::{Key, LOW, Layout, address, beside, moved};

/// Kind of content, which says where references are looked for. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Mode {
    /// No references.
    Plain = 0,
    /// Code for x86-64.
    X86 = 1,
    /// Aligned numbers of 4 bytes: distances of addresses from the number's own place.
    Distance = 2,
    /// Aligned numbers of 4 bytes: addresses, sign-extended.
    Address32 = 3,
    /// Aligned numbers of 8 bytes: addresses.
    Address64 = 4,
    /// Aligned numbers of 4 bytes: indices in a list, such as the types of BTF.
    Index32 = 5,
    /// Numbers of 3 bytes, the highest first: indices in a list, such as the symbols of a kernel.
    Index24 = 6,
    /// Aligned numbers of 4 bytes: how far the byte before an origin is above an address. So a
    /// kernel stores its symbols.
    Below = 7,
    /// Relocations of ELF files with 64 bits: an offset, a type, a symbol's index and an addend.
    Rela = 8,
}

impl Mode {
    pub(super) const ALL: [Self; 9] = [
        Self::Plain,
        Self::X86,
        Self::Distance,
        Self::Address32,
        Self::Address64,
        Self::Index32,
        Self::Index24,
        Self::Below,
        Self::Rela,
    ];
}

/// How a field holds the address that it leads to. The fields of code are told apart because some
/// are found with more certainty than others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Call,
    Jump,
    Branch,
    Relative,
    Absolute,
    Distance,
    Address32,
    Address64,
    Index32,
    Index24,
    Below,
    RelaOffset,
    RelaSymbol,
    RelaAddend,
}

/// Number of kinds.
pub(super) const KINDS: usize = Kind::RelaAddend as usize + 1;

/// Reference in a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Site {
    /// Bytes of the field, at most 8.
    pub(super) len: usize,
    pub(super) kind: Kind,
    /// Address that the field leads to in the base.
    pub(super) old: Key,
    /// Field that the map predicts, as in memory.
    pub(super) predicted: [u8; 8],
}

impl Site {
    /// Bytes of the predicted field.
    pub(super) fn wanted(&self) -> &[u8] {
        &self.predicted[..self.len]
    }
}

/// Addresses behind the end of a part of a file that still count as its own: data that has no bytes
/// in the file.
const SLACK: u64 = 16 << 20;

/// Addresses that a base has.
#[derive(Debug)]
pub(super) struct Known(Vec<(Key, Key)>);

impl Known {
    pub(super) fn new(layout: &Layout, len: usize) -> Self {
        let mut all: Vec<(Key, Key)> = Vec::new();
        for stretch in layout.stretches(len) {
            let end = (stretch.key & LOW) + (stretch.end - stretch.at) as u64 + SLACK;
            all.push((stretch.key, beside(stretch.key, end.min(LOW))));
        }
        all.sort_unstable();
        let mut merged: Vec<(Key, Key)> = Vec::new();
        for (from, to) in all {
            match merged.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        Self(merged)
    }

    pub(super) fn has(&self, key: Key) -> bool {
        let behind = self.0.partition_point(|(from, _)| *from <= key);
        self.0[..behind].last().is_some_and(|(_, to)| key < *to)
    }
}

/// Maps by which fields are predicted.
#[derive(Debug)]
pub(super) struct Guides {
    pub(super) known: Known,
    pub(super) addresses: Guide,
    /// Maps of indices of 4 and of 3 bytes.
    pub(super) indices: [Guide; 2],
    /// Map of addends, by their symbols.
    pub(super) addends: Guide,
    /// By how much the last offset of a relocation that was not as predicted moved.
    pub(super) offset_shift: u64,
    /// Origin of [`Mode::Below`].
    pub(super) origin: u64,
}

fn four(bytes: &[u8], at: usize) -> Option<[u8; 4]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Sign-extends a little-endian number.
fn signed(bytes: [u8; 4]) -> u64 {
    i64::from(i32::from_le_bytes(bytes)) as u64
}

fn eight(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Returns the symbol's index, if the eight bytes at `at` may be the type and symbol of a
/// relocation.
fn rela_symbol(bytes: &[u8], at: usize) -> Option<u64> {
    let both = eight(bytes, at)?;
    let (kind, symbol) = (both & 0xFFFF_FFFF, both >> 32);
    ((1..=0x7FF).contains(&kind) && (1..1 << 22).contains(&symbol)).then_some(symbol)
}

/// Kind and value of the field of a relocation at `at`.
fn rela_field(base: &[u8], at: usize, site: Key) -> Option<(Kind, u64)> {
    match site & 7 {
        4 => Some((Kind::RelaSymbol, rela_symbol(base, at.checked_sub(4)?)?)),
        0 if rela_symbol(base, at + 8).is_some() => {
            Some((Kind::RelaOffset, eight(base, at).filter(|offset| *offset < 1 << 31)?))
        }
        0 => {
            let symbol = rela_symbol(base, at.checked_sub(8)?)?;
            // Small addends belong to instructions and stay as they are.
            let addend = eight(base, at).filter(|addend| (16..1 << 31).contains(addend))?;
            Some((Kind::RelaAddend, symbol << 32 | addend))
        }
        _ => None,
    }
}

/// Whether a byte may be the opcode, or the prefix, before the ModRM byte of an instruction.
fn takes_modrm(opcode: u8) -> bool {
    matches!(opcode,
        0x40..=0x4F | 0x51 | 0x54..=0x5F | 0x63 | 0x69 | 0x6B | 0x6E | 0x6F | 0x7E..=0x8D | 0xA3 | 0xAB
        | 0xAF..=0xC1 | 0xC6 | 0xC7 | 0xD0..=0xD3 | 0xD6 | 0xE6 | 0xE7 | 0xF6 | 0xF7 | 0xFE | 0xFF)
        || opcode < 0x40 && opcode & 7 < 4
}

/// Kind and value of the reference in code for x86-64 whose field is at `at`. Without a
/// disassembler some of them are none, which costs little: the model learns how often.
pub(super) fn x86_field(code: &[u8], at: usize) -> Option<(Kind, u64)> {
    let value = signed(four(code, at)?);
    let before = *code.get(at.checked_sub(1)?)?;
    let second = at.checked_sub(2).map_or(0, |at| code[at]);
    let kind = match before {
        0xE8 => Kind::Call,
        0xE9 => Kind::Jump,
        0x80..=0x8F if second == 0x0F => Kind::Branch,
        modrm if modrm & 0xC7 == 0x05 && takes_modrm(second) => Kind::Relative,
        // A kernel's code has its addresses in the upper 2 GiB as 32 bits.
        _ if value >> 31 == 0x1_FFFF_FFFF => Kind::Absolute,
        _ => return None,
    };
    Some((kind, value))
}

impl Guides {
    /// Returns the reference at `at` of the base, and its prediction. `old_site` and `new_site` are
    /// the keys of the field in the base and in the target.
    #[inline]
    pub(super) fn site(
        &self,
        mode: Mode,
        base: &[u8],
        at: usize,
        old_site: Key,
        new_site: Key,
    ) -> Option<Site> {
        let aligned = old_site & 3 == 0;
        let (kind, value) = match mode {
            Mode::Plain => return None,
            Mode::X86 => x86_field(base, at)?,
            Mode::Address64 if old_site & 7 == 0 => {
                (Kind::Address64, u64::from_le_bytes(*base.get(at..)?.first_chunk()?))
            }
            Mode::Distance if aligned => (Kind::Distance, signed(four(base, at)?)),
            Mode::Address32 if aligned => (Kind::Address32, signed(four(base, at)?)),
            Mode::Below if aligned => (Kind::Below, signed(four(base, at)?)),
            Mode::Index32 if aligned => {
                let value = u32::from_le_bytes(four(base, at)?);
                (Kind::Index32, Some(u64::from(value)).filter(|value| (1..1 << 24).contains(value))?)
            }
            Mode::Index24 => {
                let [a, b, c] = *base.get(at..)?.first_chunk()?;
                (Kind::Index24, u64::from(u32::from_be_bytes([0, a, b, c])))
            }
            Mode::Rela => rela_field(base, at, old_site)?,
            _ => return None,
        };
        let old = self.leads_to(kind, value, old_site);
        let new = match kind {
            Kind::Index32 | Kind::RelaSymbol => self.indices[0].find(old),
            Kind::RelaOffset => old.wrapping_add(self.offset_shift),
            // The addends of other symbols move by other distances.
            Kind::RelaAddend => self.addends.find_learned(old, old & !0xFFFF_FFFF),
            Kind::Index24 => self.indices[1].find(old),
            Kind::Address64 if address(old) != value || value == 0 => return None,
            _ if self.known.has(old) => self.addresses.find(old),
            _ => return None,
        };
        let value = match kind {
            Kind::Call | Kind::Jump | Kind::Branch | Kind::Relative => {
                new.wrapping_sub(new_site).wrapping_sub(4)
            }
            Kind::Distance => new.wrapping_sub(new_site),
            Kind::Absolute | Kind::Address32 | Kind::Address64 => address(new),
            Kind::Below => self.origin.wrapping_sub(1).wrapping_sub(address(new)),
            Kind::Index32 | Kind::Index24 | Kind::RelaOffset | Kind::RelaSymbol | Kind::RelaAddend => new,
        };
        let mut predicted = value.to_le_bytes();
        let len = match kind {
            Kind::Address64 => 8,
            Kind::Index24 => {
                predicted[..3].reverse();
                3
            }
            _ => 4,
        };
        Some(Site { len, kind, old, predicted })
    }

    /// Returns the key, or index, that a value of a field leads to.
    pub(super) fn leads_to(&self, kind: Kind, value: u64, site: Key) -> Key {
        match kind {
            Kind::Call | Kind::Jump | Kind::Branch | Kind::Relative => moved(site, value.wrapping_add(4)),
            Kind::Distance => moved(site, value),
            Kind::Absolute | Kind::Address32 | Kind::Address64 => beside(site, value),
            Kind::Below => beside(site, self.origin.wrapping_sub(1).wrapping_sub(value)),
            Kind::Index32 | Kind::Index24 | Kind::RelaOffset | Kind::RelaSymbol | Kind::RelaAddend => value,
        }
    }

    /// Learns where a field of the target, `bytes`, leads. Returns what is needed to undo that.
    pub(super) fn learn(&mut self, site: &Site, bytes: &[u8], new_site: Key) -> Option<Undo> {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let value = match site.kind {
            Kind::Address64 => u64::from_le_bytes(wide),
            Kind::Index24 => u64::from(u32::from_be_bytes([0, wide[0], wide[1], wide[2]])),
            Kind::RelaOffset | Kind::RelaSymbol => u64::from_le_bytes(wide),
            Kind::RelaAddend => site.old & !0xFFFF_FFFF | u64::from_le_bytes(wide),
            _ => signed([wide[0], wide[1], wide[2], wide[3]]),
        };
        if site.kind == Kind::RelaOffset {
            self.offset_shift = value.wrapping_sub(site.old);
            return None;
        }
        let new = self.leads_to(site.kind, value, new_site);
        self.guide(site.kind).learn(site.old, new)
    }

    /// Map by which a kind of field is predicted.
    pub(super) fn guide(&mut self, kind: Kind) -> &mut Guide {
        match kind {
            Kind::Index32 | Kind::RelaSymbol => &mut self.indices[0],
            Kind::RelaAddend => &mut self.addends,
            Kind::Index24 => &mut self.indices[1],
            _ => &mut self.addresses,
        }
    }
}
