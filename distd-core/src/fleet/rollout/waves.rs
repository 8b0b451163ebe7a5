//! Waves: which part of the fleet is in which wave, worked out by each device alone.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::NodeId;

/// Most waves of a rollout.
pub const WAVES_MAX: usize = 16;

/// Parts per million in the whole.
const WHOLE: u32 = 1_000_000;

/// Identity of a rollout: 16 random bytes, as text 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RolloutId(pub [u8; 16]);

/// Reason why a text names no rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the id of a rollout has 32 hexadecimal digits")]
pub struct RolloutIdError;

impl FromStr for RolloutId {
    type Err = RolloutIdError;

    fn from_str(s: &str) -> Result<Self, RolloutIdError> {
        let mut id = [0; 16];
        hex::decode_to_slice(s, &mut id).map_err(|_| RolloutIdError)?;
        Ok(Self(id))
    }
}

impl TryFrom<String> for RolloutId {
    type Error = RolloutIdError;

    fn try_from(s: String) -> Result<Self, RolloutIdError> {
        s.parse()
    }
}

impl fmt::Display for RolloutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for RolloutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RolloutId({self})")
    }
}

impl From<RolloutId> for String {
    fn from(id: RolloutId) -> Self {
        id.to_string()
    }
}

/// A share of a whole, in parts per million. As text `10%` or `0.5%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u32);

impl Share {
    /// Everything.
    pub const ALL: Self = Self(WHOLE);

    /// The share of `count`, rounded up: a share above zero of anything is at least one.
    pub fn of(self, count: u64) -> u64 {
        let parts = u128::from(count) * u128::from(self.0);
        u64::try_from(parts.div_ceil(u128::from(WHOLE))).unwrap_or(u64::MAX)
    }

    /// Whether `part` of `count` is at least this share. Nothing is every share of nothing.
    pub fn is_reached(self, part: u64, count: u64) -> bool {
        u128::from(part) * u128::from(WHOLE) >= u128::from(count) * u128::from(self.0)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / 10_000, self.0 % 10_000);
        match part {
            0 => write!(f, "{whole}%"),
            _ => write!(f, "{whole}.{}%", format!("{part:04}").trim_end_matches('0')),
        }
    }
}

/// Size of a wave together with all waves before it: a share of the fleet, or a number of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A share of the fleet.
    Share(Share),
    /// A number of devices.
    Count(u64),
}

/// Reason why a text is no list of waves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WavesError {
    /// A text that is neither a share nor a number.
    #[error("{0:?} is no size of a wave: write a share as in 10%, or a number of devices as in 50")]
    Size(String),
    /// There is no wave, or there are too many.
    #[error("a rollout has 1 to {WAVES_MAX} waves, not {0}")]
    Number(usize),
    /// The last wave is not the whole fleet.
    #[error("the last wave is 100%: write it as the last size")]
    Last,
    /// A wave is not larger than the wave before it.
    #[error(
        "{0} is not more than the wave before it: write the sizes in order, each including the waves before"
    )]
    Order(String),
}

impl FromStr for Share {
    type Err = WavesError;

    fn from_str(s: &str) -> Result<Self, WavesError> {
        let bad = || WavesError::Size(s.to_owned());
        let number = s.strip_suffix('%').ok_or_else(bad)?;
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str| (1..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) {
            return Err(bad());
        }
        let whole: u32 = whole.parse().map_err(|_| bad())?;
        let part: u32 = format!("{part:0<4}").parse().map_err(|_| bad())?;
        let parts = whole * 10_000 + part;
        if (1..=WHOLE).contains(&parts) { Ok(Self(parts)) } else { Err(bad()) }
    }
}

impl FromStr for Size {
    type Err = WavesError;

    fn from_str(s: &str) -> Result<Self, WavesError> {
        if s.ends_with('%') {
            return s.parse().map(Self::Share);
        }
        let count = s.parse().ok().filter(|count| *count > 0);
        count.map(Self::Count).ok_or_else(|| WavesError::Size(s.to_owned()))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(share) => share.fmt(f),
            Self::Count(count) => count.fmt(f),
        }
    }
}

/// Sizes of all waves of a rollout, in order; the last is the whole fleet. As text
/// `1%,10%,50%,100%`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waves(Vec<Size>);

impl Waves {
    /// The sizes, in order.
    pub fn sizes(&self) -> &[Size] {
        &self.0
    }

    /// Returns the threshold of each wave for a fleet whose devices have these points, in any
    /// order.
    ///
    /// A threshold is the point of a real device, so that 10 % of 1000 devices are 100 and not
    /// about 100. The last threshold is above every point. A wave with a share has at least one
    /// device where there is one.
    pub fn thresholds(&self, mut points: Vec<u64>) -> Vec<u64> {
        points.sort_unstable();
        let fleet = points.len() as u64;
        let mut least = 0;
        let threshold = |size: &Size| {
            let upto = match size {
                Size::Share(Share::ALL) => u64::MAX,
                Size::Count(count) if *count >= fleet => u64::MAX,
                Size::Share(_) if fleet == 0 => 0,
                Size::Share(share) => points[(share.of(fleet) - 1) as usize],
                Size::Count(count) => points[(count - 1) as usize],
            };
            least = upto.max(least);
            least
        };
        self.0.iter().map(threshold).collect()
    }
}

impl FromStr for Waves {
    type Err = WavesError;

    fn from_str(s: &str) -> Result<Self, WavesError> {
        let sizes = s.split(',').map(|size| size.trim().parse()).collect::<Result<Vec<Size>, _>>()?;
        if sizes.len() > WAVES_MAX {
            return Err(WavesError::Number(sizes.len()));
        }
        if sizes.last() != Some(&Size::Share(Share::ALL)) {
            return Err(WavesError::Last);
        }
        // A number and a share can be compared only when the fleet is known; thresholds never fall.
        let ordered = |pair: &[Size]| match (pair[0], pair[1]) {
            (Size::Share(a), Size::Share(b)) => a < b,
            (Size::Count(a), Size::Count(b)) => a < b,
            _ => true,
        };
        match sizes.windows(2).find(|pair| !ordered(pair)) {
            Some(pair) => Err(WavesError::Order(pair[1].to_string())),
            None => Ok(Self(sizes)),
        }
    }
}

impl fmt::Display for Waves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, size) in self.0.iter().enumerate() {
            write!(f, "{}{size}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Place of a device in a rollout: the first 8 bytes, big-endian, of BLAKE3 of the node id, keyed
/// by the rollout's id. Each rollout begins with other devices.
pub fn point(rollout: &RolloutId, node: &NodeId) -> u64 {
    let mut key = [0; 32];
    key[..16].copy_from_slice(&rollout.0);
    let hash = blake3::keyed_hash(&key, &node.0);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_be_bytes(first)
}

/// [`point`] of a device; 0, which is in the first wave of every rollout, for one that comes first.
pub fn point_of(rollout: &RolloutId, node: &NodeId, is_first: bool) -> u64 {
    if is_first { 0 } else { point(rollout, node) }
}

/// Wave of a device whose point is `point`: the first whose threshold is not below it. `None` when
/// the last threshold is below it, as in no document of a rollout.
pub fn wave_of(thresholds: &[u64], point: u64) -> Option<usize> {
    thresholds.iter().position(|upto| point <= *upto)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_survive_text_and_mistakes_are_named() {
        for text in ["1%,10%,50%,100%", "0.5%,100%", "5,50,100%", "100%", "5,10%,100%"] {
            assert_eq!(text.parse::<Waves>().expect(text).to_string(), text);
        }
        let bad = |text: &str| text.parse::<Waves>().expect_err(text);
        assert_eq!(bad("10%"), WavesError::Last);
        assert_eq!(bad("50%,10%,100%"), WavesError::Order("10%".to_owned()));
        assert_eq!(bad("100%,100%"), WavesError::Order("100%".to_owned()));
        for size in ["", "0%", "101%", "1e1%", "-1%", "0", "x", "1.23456%", "99999%"] {
            assert_eq!(bad(size), WavesError::Size(size.to_owned()));
        }
        assert_eq!(
            bad(&format!(
                "{},100%",
                (1..=16).map(|n| format!("{n},")).collect::<String>().trim_end_matches(',')
            )),
            WavesError::Number(17)
        );
    }

    #[test]
    fn a_devices_point_is_that_of_the_specification() {
        let (rollout, node) = (RolloutId([1; 16]), NodeId([2; 16]));
        assert_eq!(format!("{:016x}", point(&rollout, &node)), "b6ef55c2d426cbbb");
        assert_ne!(point(&rollout, &node), point(&RolloutId([3; 16]), &node));
    }

    fn fleet(rollout: u8, devices: u16) -> Vec<u64> {
        let node = |n: u16| {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&n.to_be_bytes());
            NodeId(id)
        };
        (0..devices).map(|n| point(&RolloutId([rollout; 16]), &node(n))).collect()
    }

    fn waves() -> impl Strategy<Value = Waves> {
        let shares = proptest::collection::btree_set(1_u32..WHOLE, 0..6);
        shares.prop_map(|parts| {
            Waves(parts.into_iter().chain([WHOLE]).map(|parts| Size::Share(Share(parts))).collect())
        })
    }

    proptest! {
        #[test]
        fn each_wave_has_its_share_to_one_device(rollout: u8, devices in 0_u16..700, waves in waves()) {
            let points = fleet(rollout, devices);
            let thresholds = waves.thresholds(points.clone());
            for (size, upto) in waves.sizes().iter().zip(&thresholds) {
                let inside = points.iter().filter(|point| **point <= *upto).count() as u64;
                let Size::Share(share) = size else { unreachable!() };
                prop_assert_eq!(inside, share.of(points.len() as u64));
            }
            // Every device is in exactly one wave, also a device that enrols later.
            for point in points.into_iter().chain([0, u64::MAX]) {
                prop_assert!(wave_of(&thresholds, point).is_some());
            }
            prop_assert!(thresholds.is_sorted());
        }

        #[test]
        fn a_device_stays_in_its_wave_when_others_join_or_leave(
            rollout: u8, devices in 1_u16..300, waves in waves(), point: u64,
        ) {
            // Thresholds are in the document, and a document's successor has the same.
            let thresholds = waves.thresholds(fleet(rollout, devices));
            let wave = wave_of(&thresholds, point);
            prop_assert_eq!(wave, wave_of(&thresholds.clone(), point));
            // A device is in no wave that opens before its own.
            for earlier in &thresholds[..wave.expect("the last wave has every device")] {
                prop_assert!(point > *earlier);
            }
        }

        #[test]
        fn numbers_of_devices_are_exact(rollout: u8, devices in 0_u16..300, count in 1_u64..400) {
            let points = fleet(rollout, devices);
            let waves = Waves(vec![Size::Count(count), Size::Share(Share::ALL)]);
            let thresholds = waves.thresholds(points.clone());
            let inside = points.iter().filter(|point| **point <= thresholds[0]).count() as u64;
            prop_assert_eq!(inside, count.min(u64::from(devices)));
        }
    }
}
