//! Random values from the system's source, good enough for keys and tokens.

use aws_lc_rs::rand;

/// Returns `N` random bytes.
///
/// # Panics
/// When the system has no random source: nothing that needs randomness would be safe then.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system has a random source");
    bytes
}

/// Returns a random number.
///
/// # Panics
/// As [`bytes()`].
pub fn number() -> u64 {
    u64::from_be_bytes(bytes())
}

/// Returns a random number from 0 to 1.
///
/// # Panics
/// As [`bytes()`].
pub fn fraction() -> f64 {
    f64::from(u32::from_be_bytes(bytes())) / f64::from(u32::MAX)
}
