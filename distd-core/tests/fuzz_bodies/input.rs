//! Several parts out of one input. Whatever the bytes are, there is something to take.

/// What is left of an input.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte, 0 behind the end.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// The next three bytes, little-endian.
    pub fn number(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), 0])
    }

    /// A part of a length that three bytes before it tell, or what is left.
    pub fn part(&mut self) -> &'a [u8] {
        let len = self.number() as usize;
        self.take(len)
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// What [`Input::part`] takes apart again.
pub fn part(bytes: &[u8]) -> Vec<u8> {
    let len = bytes.len() as u32;
    [&len.to_le_bytes()[..3], bytes].concat()
}
