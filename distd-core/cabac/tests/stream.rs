//! Tests of the bytes, which are those of the crate `cabac` 0.15, and of what a reader does with
//! bytes that no writer made.
//!
//! The expected bytes, lengths and checksums were observed: that crate wrote them.

use std::io::{Cursor, ErrorKind};

use cabac::vp8::{VP8Context, VP8Reader, VP8Writer};
use cabac::{BITS_MAX, CabacReader, CabacWriter};

/// Random numbers that are the same on every machine.
struct Random(u64);

impl Random {
    /// Returns a number below `end`, which is at most 2^32.
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % end
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

/// A thing that `preflate-rs` codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    /// A bit with one of 16 contexts.
    Bit(bool, usize),
    /// A number of bits, in unary.
    Unary(usize),
    /// The lowest bits of a value, and how many.
    Value(u64, usize),
}

/// Contexts for each kind of item. Values and unary numbers that are longer than a row also test
/// what follows after its last context.
#[derive(Default)]
struct Contexts {
    bits: [VP8Context; 16],
    unary: [VP8Context; 32],
    unary_short: [VP8Context; 3],
    value: [VP8Context; 32],
    value_short: [VP8Context; 3],
}

fn write(items: &[Item]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = VP8Writer::new(&mut bytes).expect("a writer");
    let mut contexts = Contexts::default();
    for item in items {
        match *item {
            Item::Bit(bit, n) => writer.put(bit, &mut contexts.bits[n]),
            Item::Unary(number) if number % 2 == 0 => writer.put_unary_encoded(number, &mut contexts.unary),
            Item::Unary(number) => writer.put_unary_encoded(number, &mut contexts.unary_short),
            Item::Value(value, bits) if bits % 2 == 0 => writer.put_n_bits(value, bits, &mut contexts.value),
            Item::Value(value, bits) => writer.put_n_bits(value, bits, &mut contexts.value_short),
        }
        .expect("a vector takes everything");
    }
    writer.finish().expect("a vector takes everything");
    drop(writer);
    bytes
}

/// Decodes items of the same shapes as `like`.
fn read(bytes: &[u8], like: &[Item]) -> std::io::Result<Vec<Item>> {
    let mut reader = VP8Reader::new(Cursor::new(bytes))?;
    let mut contexts = Contexts::default();
    let mut item = |item: &Item| match *item {
        Item::Bit(_, n) => Ok(Item::Bit(reader.get(&mut contexts.bits[n])?, n)),
        Item::Unary(number) if number % 2 == 0 => {
            Ok(Item::Unary(reader.get_unary_encoded(&mut contexts.unary)?))
        }
        Item::Unary(_) => Ok(Item::Unary(reader.get_unary_encoded(&mut contexts.unary_short)?)),
        Item::Value(_, bits) if bits % 2 == 0 => {
            Ok(Item::Value(reader.get_n_bits(bits, &mut contexts.value)?, bits))
        }
        Item::Value(_, bits) => Ok(Item::Value(reader.get_n_bits(bits, &mut contexts.value_short)?, bits)),
    };
    like.iter().map(&mut item).collect()
}

/// Returns items of every kind. Each context's odds differ, from even to certain.
fn items(seed: u64, len: usize) -> Vec<Item> {
    let mut random = Random(seed);
    let odds: Vec<u64> = (0..16)
        .map(|n| match n % 4 {
            0 => random.below(1 << 16),
            1 => random.below(300),
            2 => (1 << 16) - random.below(300),
            _ => random.below(2) << 16,
        })
        .collect();
    let mut item = || match random.below(12) {
        0 => Item::Unary(random.below(9) as usize),
        1 => Item::Unary(random.below(BITS_MAX as u64 + 1) as usize >> random.below(6)),
        2 => {
            let bits = random.below(BITS_MAX as u64 + 1) as usize >> random.below(5);
            let value = random.below(1 << 32) << 32 | random.below(1 << 32);
            Item::Value(value.checked_shr((BITS_MAX - bits) as u32).unwrap_or(0), bits)
        }
        _ => {
            let context = random.below(16) as usize;
            Item::Bit(random.below(1 << 16) < odds[context], context)
        }
    };
    (0..len).map(|_| item()).collect()
}

/// Returns bits with contexts of their own, so that each has even odds.
fn fresh(bits: &[bool]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = VP8Writer::new(&mut bytes).expect("a writer");
    for bit in bits {
        writer.put(*bit, &mut VP8Context::default()).expect("a vector takes everything");
    }
    writer.finish().expect("a vector takes everything");
    drop(writer);
    bytes
}

/// Returns the FNV-1a checksum.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn known_streams() {
    let bits = |text: &str| text.chars().map(|c| Item::Bit(c == '1', 0)).collect::<Vec<_>>();
    let twice = |item| vec![item, item];
    let same = |bit: &str, n: usize| bits(&bit.repeat(n));
    for (items, bytes) in [
        (vec![], ""),
        (bits("0"), ""),
        (bits("1"), "40"),
        (bits("1101110111011101110111011101110111011101"), "5dbcee13f940"),
        (same("1", 300), "7fae"),
        (same("1", 3000), "7ffffffdf4"),
        (same("0", 3000), "0000"),
        (twice(Item::Unary(0)), ""),
        (twice(Item::Unary(1)), "4ac0"),
        (twice(Item::Unary(2)), "68f0"),
        (twice(Item::Unary(3)), "7430"),
        (twice(Item::Unary(4)), "7b36"),
        (twice(Item::Unary(7)), "7b5d40"),
        (twice(Item::Unary(32)), "7fffffffaafffb"),
        (twice(Item::Unary(63)), "7f89c980"),
        (twice(Item::Unary(64)), "7ffffffff907fffcc0"),
        (twice(Item::Value(1, 1)), "5580"),
        (twice(Item::Value(5, 3)), "57b8"),
        (twice(Item::Value(5, 4)), "2a90"),
        (twice(Item::Value(0xDEAD_BEEF, 32)), "6f56df77e8b58920"),
        (twice(Item::Value(0x1234_5678_9ABC_DEF0, 63)), "23202a5b9672a0a8fe2b893b5605188970"),
        (twice(Item::Value(0x1234_5678_9ABC_DEF0, 64)), "1bcb4da00c2d82d5857a11b989653b80"),
    ] {
        assert_eq!(hex(&write(&items)), bytes, "{items:?}");
    }
}

#[test]
fn zeros_at_the_end_stay_once_they_are_settled() {
    let then_falses = |n| fresh(&[&[true][..], &vec![false; n]].concat());
    for (falses, bytes) in
        [(0, "40"), (30, "40"), (31, "4000"), (38, "4000"), (39, "400000"), (46, "400000"), (47, "40000000")]
    {
        assert_eq!(hex(&then_falses(falses)), bytes, "{falses} falses");
    }
}

#[test]
fn long_streams() {
    for (seed, len, bytes, sum) in [
        (1, 1000, 202, 0x7C4D_40B4_8ED1_37FE),
        (2, 10_000, 2307, 0xE4A9_6003_2CC7_90C9),
        (3, 1_000_000, 224_104, 0x962D_BA1F_4322_61BF),
        (4, 1_000_000, 221_101, 0x176B_A4A9_5F90_674D),
    ] {
        let written = write(&items(seed, len));
        assert_eq!((written.len(), checksum(&written)), (bytes, sum), "seed {seed}");
    }
}

/// The odds after each number of falses, and every fifth number of trues, are in some bytes.
#[test]
fn odds_of_every_context() {
    let mut all = Vec::new();
    for falses in 0..255 {
        for trues in (0..255).step_by(5) {
            let mut items = vec![Item::Bit(false, 0); falses];
            items.extend(vec![Item::Bit(true, 0); trues]);
            items.extend((0..24).map(|n| Item::Bit((falses * 31 + trues * 7) >> (n % 9) & 1 == 1, 0)));
            all.extend(write(&items));
        }
    }
    assert_eq!((all.len(), checksum(&all)), (409_764, 0x9943_7A9D_4394_1E1C));
}

#[test]
fn what_was_written_is_read() {
    for seed in 1..=500 {
        let items = items(seed, Random(seed).below(2000) as usize);
        assert_eq!(read(&write(&items), &items).expect("a whole stream"), items, "seed {seed}");
    }
}

#[test]
fn bytes_after_the_end_are_zeros() {
    for seed in 1..=200 {
        let items = items(seed, 1000);
        let mut bytes = write(&items);
        let mut random = Random(seed);
        bytes.truncate(random.below(bytes.len() as u64) as usize);
        let shortened = read(&bytes, &items).map_err(|e| e.kind());
        let padded = read(&[bytes, vec![0; 1 << 14]].concat(), &items).map_err(|e| e.kind());
        assert_eq!(shortened, padded, "seed {seed}");
    }
}

#[test]
fn random_bytes_decode_to_something() {
    for seed in 1..=2000 {
        let mut random = Random(seed);
        let len = random.below(300) as usize;
        let mut bytes = random.bytes(len);
        if seed % 8 == 0 {
            bytes.fill(0xFF);
        }
        match read(&bytes, &items(seed, 2000)) {
            Ok(items) => assert_eq!(items.len(), 2000, "seed {seed}"),
            Err(e) => assert_eq!(e.kind(), ErrorKind::InvalidData, "seed {seed}"),
        }
    }
}

/// No writer makes a first byte of 255. It is past the interval, so that every bit is true.
#[test]
fn trues_without_end_are_an_error() {
    let mut reader = VP8Reader::new(&[0xFF][..]).expect("a reader");
    let mut contexts = [VP8Context::default(); 32];
    let error = reader.get_unary_encoded(&mut contexts).expect_err("no false follows");
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert_eq!(reader.get_n_bits(BITS_MAX, &mut contexts).expect("64 bits"), u64::MAX);
}

#[test]
fn numbers_of_more_than_64_bits_are_refused() {
    let mut bytes = Vec::new();
    let mut writer = VP8Writer::new(&mut bytes).expect("a writer");
    let mut contexts = [VP8Context::default(); 32];
    let refused = [
        writer.put_unary_encoded(BITS_MAX + 1, &mut contexts),
        writer.put_n_bits(0, BITS_MAX + 1, &mut contexts),
        VP8Reader::new(&b""[..])
            .and_then(|mut reader| reader.get_n_bits(BITS_MAX + 1, &mut contexts))
            .map(drop),
    ];
    for result in refused {
        assert_eq!(result.expect_err("65 bits").kind(), ErrorKind::InvalidInput);
    }
}
