//! Tests on programs whose code moved.

use proptest::prelude::*;

use super::*;
use crate::patch::{Effort, PatchMethod};
use crate::random::splitmix;

/// Address of the code, which starts at offset 0x1000 of the file.
const CODE: u64 = 0xFFFF_FFFF_8100_0000;
const CODE_AT: usize = 0x1000;

/// Program of functions that call each other, and tables of their addresses. In the new version,
/// functions before some others are longer, and a few are new.
fn program(functions: usize, is_new: bool) -> Vec<u8> {
    let mut state = 5u64;
    // Bytes of each function, and the places and callees of its calls.
    let (mut bodies, mut calls_of) = (Vec::<Vec<u8>>::new(), Vec::<Vec<(usize, usize)>>::new());
    for n in 0..functions {
        let mut body = vec![0x55];
        let mut calls = Vec::new();
        for _ in 0..4 + splitmix(&mut state) % 12 {
            let word = splitmix(&mut state).to_le_bytes();
            body.extend(word.map(|byte| byte & 0x3F));
            body.push(0xE8);
            calls.push((body.len(), (splitmix(&mut state) % functions as u64) as usize));
            body.extend([0; 4]);
        }
        body.push(0xC3);
        if is_new && n % 17 == 3 {
            let more = 1 + (n % 90);
            body.splice(0..0, (0..more).map(|n| 0x40 | n as u8 & 0x0F));
            calls.iter_mut().for_each(|(at, _)| *at += more);
        }
        bodies.push(body);
        calls_of.push(calls);
    }
    let mut starts = Vec::new();
    let mut at = 0;
    for body in &bodies {
        starts.push(at);
        at += body.len();
    }
    let mut code: Vec<u8> = Vec::new();
    for (body, calls) in bodies.into_iter().zip(calls_of) {
        let from = code.len();
        code.extend_from_slice(&body);
        for (place, callee) in calls {
            let distance = starts[callee] as i64 - (from + place + 4) as i64;
            code[from + place..from + place + 4].copy_from_slice(&(distance as i32).to_le_bytes());
        }
    }
    code.resize(code.len().next_multiple_of(64), 0xCC);
    // Tables: addresses of 8 and of 4 bytes, distances, and distances below an origin.
    starts.iter().for_each(|start| code.extend((CODE + *start as u64).to_le_bytes()));
    starts.iter().for_each(|start| code.extend(((CODE + *start as u64) as u32).to_le_bytes()));
    for start in &starts {
        let distance = *start as i64 - code.len() as i64;
        code.extend((distance as i32).to_le_bytes());
    }
    starts.iter().for_each(|start| code.extend((-1 - *start as i32).to_le_bytes()));
    let mut elf = vec![0; CODE_AT];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let mut put = |at: usize, value: u64| elf[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(0x20, 0x40);
    put(0x36, 0x38 | 1 << 16);
    put(0x40, 1);
    put(0x48, CODE_AT as u64);
    put(0x50, CODE);
    put(0x60, code.len() as u64);
    elf.extend(code);
    elf
}

fn decoded_all(base: &[u8], payload: &[u8], len: usize) -> Result<Vec<u8>, PatchError> {
    let mut out = Vec::new();
    let mut sink = |bytes: &[u8]| {
        out.extend_from_slice(bytes);
        Ok(())
    };
    decode(base, payload, len, &mut sink).expect("the sink does not fail")?;
    Ok(out)
}

fn layouts(base: &[u8], target: &[u8]) -> [Layout; 2] {
    [base, target].map(|bytes| Layout::of(extents(bytes, 0), bytes.len()))
}

fn encoded(base: &[u8], target: &[u8]) -> Vec<u8> {
    let [old, new] = layouts(base, target);
    encode(base, target, [&old, &new], usize::MAX).expect("few segments")
}

#[test]
fn moved_code_and_its_tables_cost_a_small_part_of_their_difference() {
    let (base, target) = (program(3000, false), program(3000, true));
    let payload = encoded(&base, &target);
    assert_eq!(decoded_all(&base, &payload, target.len()).as_deref(), Ok(&target[..]));
    let none = Layout::default();
    let without = encode(&base, &target, [&none, &none], usize::MAX).expect("few segments").len();
    let suffix = crate::patch::encode(PatchMethod::Suffix, &base, &target, Effort::default());
    let suffix = suffix.expect("within the limits").len();
    let len = payload.len();
    assert!(len * 4 < without && len * 4 < suffix, "{len}, {without} without addresses, {suffix}");
}

/// The payload of a golden file. `DISTD_WRITE_GOLDEN` writes it anew.
#[test]
fn a_payload_of_the_first_version_is_read_for_ever() {
    let (base, target) = (program(60, false), program(60, true));
    if std::env::var_os("DISTD_WRITE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/patch/testdata/references_v1.bin");
        std::fs::write(path, encoded(&base, &target)).expect("writable");
    }
    const GOLDEN: &[u8] = include_bytes!("../testdata/references_v1.bin");
    assert_eq!(decoded_all(&base, GOLDEN, target.len()).as_deref(), Ok(&target[..]));
}

#[test]
fn a_target_may_be_empty_or_the_head_of_a_program_alone() {
    let whole = program(60, false);
    for (base, target) in [(&whole[..], &[][..]), (&[][..], &whole[..]), (&whole[..5000], &whole[..0x200])] {
        let payload = encoded(base, target);
        assert_eq!(decoded_all(base, &payload, target.len()).as_deref(), Ok(target));
    }
}

#[test]
fn every_mode_of_content_survives() {
    let list = |by: u32| (0..3000u32).flat_map(move |n| (n * 37 % 5003 + by).to_be_bytes()[1..].to_vec());
    let indices = |by: u32| (0..3000u32).flat_map(move |n| (n * 37 % 5003 / 2 + by).to_le_bytes());
    let with = |is_new: bool, by: u32| {
        let mut program = program(300, is_new);
        program.extend(list(by));
        program.resize(program.len().next_multiple_of(4), 0);
        program.extend(indices(by));
        program
    };
    let (base, target) = (with(false, 1), with(true, 6));
    let payload = encoded(&base, &target);
    assert!(payload.len() < 6000, "{}", payload.len());
    assert_eq!(decoded_all(&base, &payload, target.len()).as_deref(), Ok(&target[..]));
}

#[test]
fn every_flip_of_a_payload_ends_within_the_target() {
    let (base, target) = (program(60, false), program(60, true));
    let payload = encoded(&base, &target);
    for at in 0..payload.len() {
        for bit in 0..8 {
            let mut bad = payload.clone();
            bad[at] ^= 1 << bit;
            if let Ok(out) = decoded_all(&base, &bad, target.len()) {
                assert_eq!(out.len(), target.len());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_extents_give_the_target_back(
        base in prop::collection::vec(0u8..6, 0..1500), target in prop::collection::vec(0u8..6, 1..1500),
        places in prop::collection::vec((0usize..1500, 0u16..3, any::<u64>(), any::<bool>()), 0..12),
    ) {
        let mut sides = [Vec::new(), Vec::new()];
        for (at, file, address, of_new) in places {
            let address = if address % 3 == 0 { address % 4096 } else { address };
            let len = if of_new { target.len() } else { base.len() };
            sides[usize::from(of_new)].push(Extent { at: at.min(len), file, address });
        }
        let [old, new] = sides.map(|mut side| {
            side.sort_by_key(|extent| (extent.file, extent.at));
            // Files lie one behind the other.
            let mut last = 0;
            side.retain(|extent| { let kept = extent.at >= last; last = last.max(extent.at); kept });
            Layout::of(side, 1500)
        });
        let payload = encode(&base, &target, [&old, &new], usize::MAX).expect("few segments");
        let out = decoded_all(&base, &payload, target.len());
        prop_assert_eq!(out.as_deref(), Ok(&target[..]));
    }

    #[test]
    fn random_payloads_end_in_the_target_or_an_error(
        payload in prop::collection::vec(any::<u8>(), 0..400), len in 0usize..20_000,
    ) {
        let base = program(40, false);
        if let Ok(out) = decoded_all(&base, &payload, len) {
            prop_assert_eq!(out.len(), len);
        }
    }
}
