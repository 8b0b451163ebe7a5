//! Random numbers from a printed number: the same number gives the same run.

/// A generator of the kind xorshift64*, which is good enough to spread kills and flip bytes.
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    /// Makes a generator and prints its number, so that a failure can be replayed with
    /// `DISTD_TEST_RNG_SEED`.
    pub fn announced(test: &str, default: u64) -> Self {
        let rng_seed =
            std::env::var("DISTD_TEST_RNG_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(default);
        println!("{test}: replay with DISTD_TEST_RNG_SEED={rng_seed}");
        Self::new(rng_seed)
    }

    /// Makes a generator from a number.
    pub fn new(rng_seed: u64) -> Self {
        Self(rng_seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A random number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next_u64() % n.max(1)
    }

    /// Bytes that no compressor shrinks.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.next_u64().to_le_bytes());
        }
        out.truncate(len);
        out
    }

    /// Text-like bytes that shrink to about a third.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&str; 16] = [
            "kernel ",
            "update ",
            "fleet ",
            "chunk ",
            "relay\n",
            "0x7f ",
            "device ",
            "static int ",
            "return ",
            "{\n",
            "}\n",
            "lib",
            "/usr/",
            "systemd ",
            "config=",
            "\t",
        ];
        let mut out = Vec::with_capacity(len + 16);
        while out.len() < len {
            out.extend_from_slice(WORDS[self.below(16) as usize].as_bytes());
            if self.below(4) == 0 {
                out.extend_from_slice(format!("{:x} ", self.next_u64()).as_bytes());
            }
        }
        out.truncate(len);
        out
    }
}
