//! Tickets as text: base32 with a prefix and a checksum, so that a typo is told from a forgery.

use super::{TICKET_BYTES_MAX, TicketError};

/// Start of every ticket.
pub const PREFIX: &str = "distd-ticket-v1.";

/// Alphabet of RFC 4648 §6 in lower case. The letters read alike in both cases, and a QR code holds
/// the upper case in its compact mode.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Length of the checksum, bytes. One of 2^32 texts with errors passes; its signature is then
/// wrong.
const CHECKSUM_BYTES: usize = 4;

/// Longest text that is looked at, bytes: the longest ticket with a line break after each letter.
const TEXT_BYTES_MAX: usize = 2 * (PREFIX.len() + (TICKET_BYTES_MAX + CHECKSUM_BYTES) * 8 / 5 + 1);

/// Reason why a text is no ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketTextError {
    /// The text does not begin like a ticket.
    #[error("this is no ticket: a ticket starts with \"{PREFIX}\"")]
    Prefix,
    /// The text is longer than any ticket.
    #[error("this text is longer than any ticket")]
    TooLong,
    /// The checksum does not fit: a letter is wrong, missing or added.
    #[error("the ticket has a typo or is cut off: its checksum does not fit")]
    Typo,
    /// The text is as somebody wrote it, and its bytes are no ticket.
    #[error(transparent)]
    Ticket(#[from] TicketError),
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = blake3::derive_key("distd 2026-11-30 ticket checksum v1", bytes);
    hash[..CHECKSUM_BYTES].try_into().expect("four of 32 bytes")
}

pub(super) fn encode(bytes: &[u8]) -> String {
    let mut out = PREFIX.to_owned();
    let (mut held, mut bits) = (0u32, 0);
    for byte in bytes.iter().chain(&checksum(bytes)) {
        held = held << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(ALPHABET[(held >> bits & 31) as usize] as char);
        }
        held &= (1 << bits) - 1;
    }
    if bits > 0 {
        out.push(ALPHABET[(held << (5 - bits) & 31) as usize] as char);
    }
    out
}

pub(super) fn decode(text: &str) -> Result<Vec<u8>, TicketTextError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(TicketTextError::TooLong);
    }
    let mut letters = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).map(|b| b.to_ascii_lowercase());
    if !PREFIX.bytes().all(|expected| letters.next() == Some(expected)) {
        return Err(TicketTextError::Prefix);
    }
    let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
    let (mut held, mut bits) = (0u32, 0);
    for letter in letters {
        let value = match letter {
            b'a'..=b'z' => letter - b'a',
            b'2'..=b'7' => letter - b'2' + 26,
            _ => return Err(TicketTextError::Typo),
        };
        held = held << 5 | u32::from(value);
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
            held &= (1 << bits) - 1;
        }
    }
    // Five bits or more are a letter too many, and a set bit is in no text that `encode` makes.
    if bits >= 5 || held != 0 || bytes.len() < CHECKSUM_BYTES {
        return Err(TicketTextError::Typo);
    }
    let sum = bytes.split_off(bytes.len() - CHECKSUM_BYTES);
    if sum != checksum(&bytes) {
        return Err(TicketTextError::Typo);
    }
    Ok(bytes)
}
