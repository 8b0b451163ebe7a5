//! LZMA2 streams: their filters, and liblzma called as `xz` calls it.

use std::io::{self, Write};

use liblzma::stream::{Action, Filters, LzmaOptions, Status, Stream};

use super::coder::{Decoded, Packer, damaged};
use crate::cut::ReadAt;
use crate::patch::view::error::RecipeError;
use crate::patch::view::reader::Reader;

/// Longest dictionary, bytes; Linux packs itself with 128 MiB. With it a packer takes 1.7 GiB.
const DICTIONARY_MAX: u64 = 128 << 20;

/// Number of the filter LZMA2 in an xz file (The .xz File Format, version 1.2.1, section 5.3.1).
const LZMA2: u8 = 0x21;

/// Flag of the slower variant of a preset.
pub(super) const EXTREME: u8 = 0x10;

/// Presets of `xz`, the likeliest first. Presets 6 to 9 differ in their dictionary alone, and so do
/// the slower variants but those of 3 and 5.
pub(in crate::patch::view) const PRESETS: [u8; 9] = [6, 9 | EXTREME, 5, 4, 3, 2, 1, 0, 3 | EXTREME];

/// Properties of a stream without a single packed chunk: the defaults of `xz`.
pub(super) const PROPERTIES: u8 = 93;

/// Bytes read and written at once.
const PIECE: usize = 64 << 10;

/// Filters of a stream, as the header of an xz block has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::patch::view) struct Chain {
    /// Filters before LZMA2: number and properties.
    before: Vec<(u8, Vec<u8>)>,
    /// Dictionary, as xz encodes its length.
    dictionary: u8,
}

impl Chain {
    /// Reads the count of the filters and the filters. An xz block has the count in its flags.
    pub(in crate::patch::view) fn take(reader: &mut Reader<'_>) -> Result<Self, RecipeError> {
        let count = reader.expect_byte()?;
        Self::of_header(usize::from(count), reader)
    }

    /// Reads `count` filters, at most four.
    pub(in crate::patch::view) fn of_header(
        count: usize,
        reader: &mut Reader<'_>,
    ) -> Result<Self, RecipeError> {
        if !(1..=4).contains(&count) {
            return Err(RecipeError::Damaged("it has too many filters"));
        }
        let mut before = Vec::new();
        for _ in 1..count {
            let (number, len) = (reader.expect_byte()?, usize::from(reader.expect_byte()?));
            let known = match number {
                3 => len == 1,
                4..=0x0B => len == 0 || len == 4,
                _ => false,
            };
            if !known {
                return Err(RecipeError::Damaged("unknown filter"));
            }
            before.push((number, reader.bytes(len)?.to_vec()));
        }
        let [LZMA2, 1, dictionary] = *reader.bytes(3)? else {
            return Err(RecipeError::Damaged("unknown filter"));
        };
        let chain = Self { before, dictionary };
        if dictionary >= 40 || chain.dictionary_bytes() > DICTIONARY_MAX {
            return Err(RecipeError::Damaged("its dictionary is too long"));
        }
        Ok(chain)
    }

    pub(in crate::patch::view) fn put(&self, out: &mut Vec<u8>) {
        out.push(self.before.len() as u8 + 1);
        for (number, properties) in &self.before {
            out.extend_from_slice(&[*number, properties.len() as u8]);
            out.extend_from_slice(properties);
        }
        out.extend_from_slice(&[LZMA2, 1, self.dictionary]);
    }

    pub(in crate::patch::view) fn dictionary_bytes(&self) -> u64 {
        u64::from(2 | self.dictionary & 1) << (self.dictionary / 2 + 11)
    }

    /// Returns the filters up to LZMA2; `None` if liblzma does not take their properties.
    fn filters(&self) -> Option<Filters> {
        let mut filters = Filters::new();
        for (number, properties) in &self.before {
            match number {
                3 => filters.delta_properties(properties),
                4 => filters.x86_properties(properties),
                5 => filters.powerpc_properties(properties),
                6 => filters.ia64_properties(properties),
                7 => filters.arm_properties(properties),
                8 => filters.arm_thumb_properties(properties),
                9 => filters.sparc_properties(properties),
                0x0A => filters.arm64_properties(properties),
                _ => filters.riscv_properties(properties),
            }
            .ok()?;
        }
        Some(filters)
    }

    /// Memory to unpack, bytes: the dictionary and the state of the decoder.
    pub(super) fn unpack_memory(&self) -> u64 {
        self.dictionary_bytes() + (1 << 20)
    }
}

/// Settings of the packer of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::patch::view) struct Setting {
    /// Preset of `xz`, perhaps with [`EXTREME`].
    pub(in crate::patch::view) preset: u8,
    /// Literal context, literal position and position bits, as LZMA encodes them.
    pub(in crate::patch::view) properties: u8,
    pub(in crate::patch::view) chain: Chain,
}

impl Setting {
    pub(in crate::patch::view) fn take(reader: &mut Reader<'_>) -> Result<Self, RecipeError> {
        let (preset, properties) = (reader.expect_byte()?, reader.expect_byte()?);
        if preset & !EXTREME > 9 {
            return Err(RecipeError::Damaged("unknown preset"));
        }
        Ok(Self { preset, properties, chain: Chain::take(reader)? })
    }

    pub(in crate::patch::view) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.preset, self.properties]);
        self.chain.put(out);
    }

    /// Presets up to 3 search matches in chains of hashes, the others in binary trees.
    fn has_trees(&self) -> bool {
        self.preset > 3
    }

    /// Memory to pack, bytes. liblzma keeps half a dictionary more than the dictionary, at most
    /// four bytes of hashes for each byte of it, and four bytes of chains or eight bytes of trees.
    pub(in crate::patch::view) fn memory(&self) -> u64 {
        let halves = if self.has_trees() { 27 } else { 19 };
        self.chain.dictionary_bytes() * halves / 2 + (2 << 20)
    }

    /// Bytes of content packed in a second by one core, about.
    pub(in crate::patch::view) fn rate(&self) -> u64 {
        if self.has_trees() { 3_000_000 } else { 10_000_000 }
    }

    pub(in crate::patch::view) fn packer(&self) -> Option<Box<dyn Packer>> {
        let level = u32::from(self.preset & !EXTREME);
        let extreme = if self.preset & EXTREME == 0 { 0 } else { liblzma::stream::PRESET_EXTREME };
        let mut options = LzmaOptions::new_preset(level | extreme).ok()?;
        options.dict_size(u32::try_from(self.chain.dictionary_bytes()).ok()?);
        let (bits, literal) = (u32::from(self.properties) / 9, u32::from(self.properties) % 9);
        options.literal_context_bits(literal).literal_position_bits(bits % 5).position_bits(bits / 5);
        let mut filters = self.chain.filters()?;
        filters.lzma2(&options);
        Some(Box::new(Lzma2(Stream::new_raw_encoder(&filters).ok()?)))
    }
}

struct Lzma2(Stream);

impl Packer for Lzma2 {
    fn pack(&mut self, plain: &[u8], is_last: bool, out: &mut dyn Write) -> io::Result<()> {
        let action = if is_last { Action::Finish } else { Action::Run };
        run(&mut self.0, plain, action, out).map(|_| ())
    }
}

/// Gives `input` to a stream and writes all that comes out. Returns whether the stream ended. All
/// input is taken unless the stream ends within it.
fn run(stream: &mut Stream, input: &[u8], action: Action, out: &mut dyn Write) -> io::Result<bool> {
    let (mut at, mut piece) = (0, vec![0; PIECE]);
    loop {
        let (taken, made) = (stream.total_in(), stream.total_out());
        let status = stream.process(&input[at..], &mut piece, action)?;
        let taken = (stream.total_in() - taken) as usize;
        let made = (stream.total_out() - made) as usize;
        at += taken;
        out.write_all(&piece[..made])?;
        if matches!(status, Status::StreamEnd) {
            return Ok(true);
        }
        if matches!(action, Action::Run) && at == input.len() && made < piece.len() {
            return Ok(false);
        }
        if taken == 0 && made == 0 {
            return Err(damaged());
        }
    }
}

/// Unpacks the stream in `packed` to `sink`, which refuses bytes that are too many.
pub(super) fn unpack(chain: &Chain, packed: &dyn ReadAt, sink: &mut dyn Write) -> io::Result<Decoded> {
    let Some(mut filters) = chain.filters() else { return Ok(Decoded::Damaged) };
    let Ok(_) = filters.lzma2_properties(&[chain.dictionary]) else { return Ok(Decoded::Damaged) };
    let Ok(mut stream) = Stream::new_raw_decoder(&filters) else { return Ok(Decoded::Damaged) };
    let (mut at, mut input) = (0, Vec::new());
    let mut sink = super::coder::Sink::new(sink);
    while at < packed.len() {
        input.resize(PIECE.min(usize::try_from(packed.len() - at).unwrap_or(PIECE)), 0);
        packed.read_exact_at(&mut input, at)?;
        at += input.len() as u64;
        match run(&mut stream, &input, Action::Run, &mut sink) {
            Ok(true) if at == packed.len() && stream.total_in() == at => return Ok(Decoded::Whole),
            Ok(true) => return Ok(Decoded::Damaged),
            Ok(false) => {}
            Err(error) => return sink.failed.map_or(Ok(Decoded::Damaged), |_| Err(error)),
        }
    }
    Ok(Decoded::Damaged)
}

/// Form of a stream: lengths of its packed and its plain bytes, and its properties.
pub(super) struct Form {
    pub(super) packed: u64,
    pub(super) properties: u8,
}

/// Walks the chunks of the LZMA2 stream at the start of `file` (The .xz File Format, section
/// 5.3.1; the layout of chunks is that of liblzma). `None` if the stream has no end.
pub(super) fn walk(file: &mut super::scan::Peek<'_>, start: u64) -> io::Result<Option<Form>> {
    let (mut at, mut properties) = (start, None);
    loop {
        let Some(head) = file.head::<6>(at)? else { return Ok(None) };
        let size = u64::from(u16::from_be_bytes([head[1], head[2]])) + 1;
        match head[0] {
            0 => break,
            1 | 2 => at += 3 + size,
            0x80.. => {
                if head[0] >= 0xC0 {
                    properties.get_or_insert(head[5]);
                }
                let packed = u64::from(u16::from_be_bytes([head[3], head[4]])) + 1;
                at += 5 + u64::from(head[0] >= 0xC0) + packed;
            }
            _ => return Ok(None),
        }
    }
    Ok(Some(Form { packed: at + 1 - start, properties: properties.unwrap_or(PROPERTIES) }))
}
