//! Cut parameters and the search for one cut point.

use std::fmt;

use fastcdc::v2020::{self, Normalization};
use serde::{Deserialize, Serialize};

use crate::bounds::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};

/// Smallest average that FastCDC has a mask for, bytes.
const AVG_MIN: u32 = v2020::AVERAGE_MIN as u32;
/// Smallest maximum that FastCDC accepts, bytes.
const MAX_MIN: u32 = v2020::MAXIMUM_MIN as u32;

/// Chunk sizes that FastCDC aims for, in bytes. Always valid. Part of the manifest, because they
/// decide every cut.
///
/// Encoded in msgpack as an array `[min, avg, max]`, as text as a map with those names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawParams", into = "RawParams")]
pub struct CutParams {
    min: u32,
    avg: u32,
    max: u32,
}

/// Error for three sizes that are not valid cut parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cut sizes {min}/{avg}/{max} do not work: they must be even, min <= avg <= max, \
     min at least {CHUNK_BYTES_MIN}, avg at least {AVG_MIN}, max between {MAX_MIN} and {CHUNK_BYTES_MAX} bytes"
)]
pub struct CutParamsError {
    /// Requested smallest chunk, bytes.
    pub min: u32,
    /// Requested average, bytes.
    pub avg: u32,
    /// Requested largest chunk, bytes.
    pub max: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawParams {
    min: u32,
    avg: u32,
    max: u32,
}

impl TryFrom<RawParams> for CutParams {
    type Error = CutParamsError;

    fn try_from(raw: RawParams) -> Result<Self, CutParamsError> {
        Self::new(raw.min, raw.avg, raw.max)
    }
}

impl From<CutParams> for RawParams {
    fn from(CutParams { min, avg, max }: CutParams) -> Self {
        Self { min, avg, max }
    }
}

impl CutParams {
    /// Creates parameters from sizes in bytes.
    ///
    /// # Errors
    /// [`CutParamsError`] unless `CHUNK_BYTES_MIN <= min <= avg <= max <= CHUNK_BYTES_MAX`, all
    /// three are even (FastCDC reads two bytes at a time), `avg >= 256` and `max >= 1024`
    /// (FastCDC's own lower bounds).
    pub fn new(min: u32, avg: u32, max: u32) -> Result<Self, CutParamsError> {
        let valid = min as usize >= CHUNK_BYTES_MIN
            && avg >= AVG_MIN
            && max >= MAX_MIN
            && min <= avg
            && avg <= max
            && max as usize <= CHUNK_BYTES_MAX
            && [min, avg, max].iter().all(|size| size.is_multiple_of(2));
        if valid { Ok(Self { min, avg, max }) } else { Err(CutParamsError { min, avg, max }) }
    }

    /// Smallest chunk in bytes; only the last chunk of a region may be shorter.
    pub fn min(&self) -> u32 {
        self.min
    }

    /// Size in bytes at which the cut condition relaxes; chunks average a little more.
    pub fn avg(&self) -> u32 {
        self.avg
    }

    /// Largest chunk, bytes.
    pub fn max(&self) -> u32 {
        self.max
    }
}

impl Default for CutParams {
    /// 4/16/64 KiB.
    fn default() -> Self {
        Self { min: 4 << 10, avg: 16 << 10, max: 64 << 10 }
    }
}

impl fmt::Display for CutParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.min, self.avg, self.max)
    }
}

/// Finds cut points: FastCDC of 2020, normalization level 1, gear seed 0.
#[derive(Clone, Copy, Debug)]
pub struct Cutter {
    min: usize,
    avg: usize,
    max: usize,
    mask_s: u64,
    mask_l: u64,
    /// Length of the chunk that FastCDC cuts off `max` zero bytes.
    zero: usize,
}

impl Cutter {
    /// Creates a cutter for `params`. This scans `max` bytes, so make a cutter once and reuse it.
    pub fn new(params: CutParams) -> Self {
        let (mask_s, mask_l) = v2020::select_masks(params.avg as usize, Normalization::Level1);
        let mut cutter = Self {
            min: params.min as usize,
            avg: params.avg as usize,
            max: params.max as usize,
            mask_s,
            mask_l,
            zero: 0,
        };
        cutter.zero = cutter.scan(&vec![0; cutter.max]);
        cutter
    }

    /// Largest chunk, bytes.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Returns the length of the first chunk of `rest`, and whether that chunk is known to be all
    /// zero.
    ///
    /// `rest` must reach to the end of the region or hold at least [`max`](Self::max) bytes; the
    /// answer then does not depend on how much more it holds. The length is zero only for an empty
    /// `rest`. A chunk of zeros cut from fewer than `max` bytes is not reported as zero.
    pub fn next(&self, rest: &[u8]) -> (usize, bool) {
        // The scan is a pure function of the first `max` bytes, so `new` did it once for zeros.
        // This makes sparse images fast: comparing is ten times quicker than hashing.
        match rest.get(..self.max) {
            Some(window) if is_zero(window) => (self.zero, true),
            Some(window) => (self.scan(window), false),
            None => (self.scan(rest), false),
        }
    }

    fn scan(&self, rest: &[u8]) -> usize {
        v2020::cut(
            rest,
            self.min,
            self.avg,
            self.max,
            self.mask_s,
            self.mask_l,
            self.mask_s << 1,
            self.mask_l << 1,
        )
        .1
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Most windows have a nonzero byte in the first block, which ends the search. Blocks let the
    // compiler use wide registers.
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks.iter().all(|block| block.iter().fold(0, |or, byte| or | byte) == 0) && rest.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sizes_that_fastcdc_accepts_are_valid() {
        assert!(CutParams::new(64, 256, 1024).is_ok());
        assert!(CutParams::new(4096, 4096, 4096).is_ok());
        assert!(CutParams::new(64, 256, CHUNK_BYTES_MAX as u32).is_ok());
        for (min, avg, max) in [
            (0, 0, 0),
            (62, 256, 1024),
            (64, 254, 1024),
            (64, 256, 1022),
            (65, 256, 1024),
            (64, 257, 1024),
            (64, 256, 1025),
            (512, 256, 1024),
            (64, 4096, 1024),
            (64, 256, CHUNK_BYTES_MAX as u32 + 2),
            (u32::MAX, u32::MAX, u32::MAX),
        ] {
            assert_eq!(CutParams::new(min, avg, max), Err(CutParamsError { min, avg, max }));
            let packed = rmp_serde::to_vec(&(min, avg, max)).expect("encodes");
            assert!(rmp_serde::from_slice::<CutParams>(&packed).is_err());
        }
    }

    #[test]
    fn parameters_survive_msgpack_as_an_array() {
        let packed = rmp_serde::to_vec(&CutParams::default()).expect("encodes");
        assert_eq!(packed, rmp_serde::to_vec(&(4096u32, 16384u32, 65536u32)).expect("encodes"));
        assert_eq!(rmp_serde::from_slice::<CutParams>(&packed).expect("decodes"), CutParams::default());
    }

    #[test]
    fn zero_runs_are_cut_where_fastcdc_cuts_them() {
        for (min, avg, max) in [(4096, 16384, 65536), (64, 256, 1024), (100, 300, 5000), (4096, 4096, 4096)] {
            let cutter = Cutter::new(CutParams::new(min, avg, max).expect("valid"));
            for len in [0, 1, min - 1, min, min + 1, avg, max - 1, max, max + 1, 3 * max + 7] {
                let zeros = vec![0; len as usize];
                let naive = v2020::FastCDC::new(&zeros, min as usize, avg as usize, max as usize).next();
                assert_eq!(
                    cutter.next(&zeros).0,
                    naive.map_or(0, |c| c.length),
                    "{min}/{avg}/{max} of {len}"
                );
            }
        }
    }
}
