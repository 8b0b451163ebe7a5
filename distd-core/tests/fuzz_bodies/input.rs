//! Splits one input into several parts. There is something to take whatever the bytes are.

/// Remaining bytes of an input.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Returns the next byte; 0 behind the end.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// Returns the next three bytes as a little-endian number.
    pub fn number(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), 0])
    }

    /// Returns a part whose length is in the three bytes before it, or the remaining bytes.
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

/// Encodes a part for [`Input::part`].
pub fn part(bytes: &[u8]) -> Vec<u8> {
    let len = bytes.len() as u32;
    [&len.to_le_bytes()[..3], bytes].concat()
}
