//! Linux kernel images of x86 (Documentation/arch/x86/boot.rst): a boot loader's header and code
//! that unpacks the kernel, around one packed payload.

use std::io;
use std::ops::Range;

use super::scan::Peek;

/// First version of the boot protocol whose header says where the payload lies.
const PROTOCOL_MIN: u16 = 0x208;

/// Bytes of the header up to the length of the payload.
pub(super) const HEADER: usize = 0x250;

const SECTOR: u64 = 512;

pub(super) fn is_magic(head: &[u8]) -> bool {
    let signed = head.get(0x1FE..0x200) == Some(b"\x55\xAA") && head.get(0x202..0x206) == Some(b"HdrS");
    signed && head.get(0x206..0x208).is_some_and(|v| u16::from_le_bytes([v[0], v[1]]) >= PROTOCOL_MIN)
}

/// Returns the range of the payload; `None` if the header is damaged.
///
/// # Errors
/// Any error from reading the file.
pub(super) fn payload(file: &mut Peek<'_>) -> io::Result<Option<Range<u64>>> {
    let Some(head) = file.head::<HEADER>(0)? else { return Ok(None) };
    if !is_magic(&head) {
        return Ok(None);
    }
    let number =
        |at: usize| u64::from(u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
    // Old kernels state no sectors where they mean four.
    let sectors = if head[0x1F1] == 0 { 4 } else { u64::from(head[0x1F1]) };
    let start = (sectors + 1) * SECTOR + number(0x248);
    let end = start + number(0x24C);
    Ok((start < end && end <= file.len()).then_some(start..end))
}
