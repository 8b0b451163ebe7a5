//! Parsers for arguments that several commands share.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use distd_core::api::QUOTA_BYTES_MAX;
use distd_core::fleet::{LabelError, LabelKey, LabelValue, assignable_key, assignable_label};
use distd_core::names::{Name, NameError, Wanted, WantedError};
use distd_peer::settings;

/// Reasons why an argument does not parse.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// A part of the argument is not a valid name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The argument is neither `PRODUCT@VERSION` nor `PRODUCT:CHANNEL`.
    #[error(transparent)]
    Wanted(#[from] WantedError),
    /// The argument is a channel where a release is expected.
    #[error("write PRODUCT@VERSION")]
    NoRelease,
    /// The argument is a release where a channel is expected.
    #[error("write PRODUCT:CHANNEL")]
    NoChannel,
    /// The argument is not a number with a unit.
    #[error("write a number and a unit: 90s, 45m, 24h, 7d or 4w")]
    Duration,
    /// The argument is not a number of bytes.
    #[error("write a number of bytes, with a unit or without: 500MB, 20GB, 1TB, 64MiB, 4GiB")]
    Bytes,
    /// The argument is not a node id of 32 hexadecimal digits.
    #[error("a node id has 32 hexadecimal digits; see: distd node ls")]
    NodeId,
    /// The argument is no time.
    #[error("write a time in UTC: 2027-01-31 or 2027-01-31T18:00:00Z")]
    Moment,
    /// The argument neither sets nor removes a label.
    #[error("write KEY=VALUE to set a label, or KEY- to remove one")]
    LabelChange,
    /// The argument is no label.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// The argument has characters that no token id has.
    #[error("a token id has only letters, digits, '-' and '_'; see: distd token ls")]
    TokenId,
}

/// A release, written `PRODUCT@VERSION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseName {
    /// The product.
    pub product: Name,
    /// The version of the release.
    pub version: Name,
}

impl FromStr for ReleaseName {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        match s.parse()? {
            Wanted::Release { product, version } => Ok(Self { product, version }),
            Wanted::Channel { .. } => Err(ParseError::NoRelease),
        }
    }
}

/// A channel, written `PRODUCT:CHANNEL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelName {
    /// The product.
    pub product: Name,
    /// The channel.
    pub channel: Name,
}

impl FromStr for ChannelName {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        match s.parse()? {
            Wanted::Channel { product, channel } => Ok(Self { product, channel }),
            Wanted::Release { .. } => Err(ParseError::NoChannel),
        }
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.product, self.channel)
    }
}

/// Parses a duration: `90s`, `45m`, `24h`, `7d` or `4w`.
pub fn duration(s: &str) -> Result<Duration, ParseError> {
    let has_unit =
        s.ends_with(|c: char| c.is_ascii_alphabetic()) && s.starts_with(|c: char| c.is_ascii_digit());
    // A century: nobody means a longer time, and no sum with it overflows.
    let longest = Duration::from_secs(100 * 366 * 24 * 3600);
    let bounds = Duration::from_secs(1)..=longest;
    settings::duration(s).filter(|time| has_unit && bounds.contains(time)).ok_or(ParseError::Duration)
}

/// Parses a number of bytes, with a unit or without: `500MB`, `20GB`, `4GiB`.
pub fn bytes(s: &str) -> Result<u64, ParseError> {
    let digits = s.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = s.split_at(digits);
    let factor: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(ParseError::Bytes),
    };
    let number: u64 = number.parse().map_err(|_| ParseError::Bytes)?;
    number.checked_mul(factor).filter(|bytes| *bytes <= QUOTA_BYTES_MAX).ok_or(ParseError::Bytes)
}

/// Parses a time: a date, whose day begins then, or date and time with an offset. Returns unix
/// seconds.
pub fn moment(s: &str) -> Result<i64, ParseError> {
    if let Ok(time) = s.parse::<jiff::Timestamp>() {
        return Ok(time.as_second());
    }
    let date: jiff::civil::Date = s.parse().map_err(|_| ParseError::Moment)?;
    let day = date.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| ParseError::Moment)?;
    Ok(day.timestamp().as_second())
}

/// Change of one label of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelChange {
    /// `KEY=VALUE`.
    Set(LabelKey, LabelValue),
    /// `KEY-`.
    Remove(LabelKey),
}

impl FromStr for LabelChange {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        if s.contains('=') {
            let (key, value) = assignable_label(s)?;
            return Ok(Self::Set(key, value));
        }
        let key = s.strip_suffix('-').ok_or(ParseError::LabelChange)?;
        Ok(Self::Remove(assignable_key(key)?))
    }
}

/// Parses a node id; returns it in lower case.
pub fn node_id(s: &str) -> Result<String, ParseError> {
    let good = s.len() == 32 && s.bytes().all(|b| b.is_ascii_hexdigit());
    if good { Ok(s.to_ascii_lowercase()) } else { Err(ParseError::NodeId) }
}

/// Checks a token id.
pub fn token_id(s: &str) -> Result<String, ParseError> {
    let good = !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if good { Ok(s.to_owned()) } else { Err(ParseError::TokenId) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        let cases = [("90s", 90), ("45m", 2700), ("24h", 86_400), ("7d", 604_800), ("2w", 1_209_600)];
        for (text, seconds) in cases {
            assert_eq!(duration(text).expect(text), Duration::from_secs(seconds));
        }
        for bad in
            ["", "24", "h", "0h", "-1h", "1.5h", "24 h", "24H", "99999999999999999999d", "999999999w", "1é"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_time_is_a_date_or_has_an_offset() {
        assert_eq!(moment("2027-01-31").expect("a date"), 1_801_353_600);
        assert_eq!(moment("2027-01-31T18:00:00Z").expect("a time"), 1_801_353_600 + 18 * 3600);
        assert_eq!(moment("2027-01-31T18:00:00+02:00").expect("a time"), 1_801_353_600 + 16 * 3600);
        for bad in ["", "tomorrow", "2027-13-01", "31.1.2027", "24h"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_label_is_set_or_removed() {
        let set = "site=a-b-".parse::<LabelChange>().expect("a label");
        assert!(
            matches!(set, LabelChange::Set(key, value) if key.as_str() == "site" && value.as_str() == "a-b-")
        );
        let remove = "my-site-".parse::<LabelChange>().expect("a key");
        assert!(matches!(remove, LabelChange::Remove(key) if key.as_str() == "my-site"));
        for bad in ["", "site", "-", "Site=1", "role=relay", "role-", "site=a b"] {
            assert!(bad.parse::<LabelChange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn releases_and_channels_are_told_apart() {
        assert!("os@1.2".parse::<ReleaseName>().is_ok());
        assert!(matches!("os:stable".parse::<ReleaseName>(), Err(ParseError::NoRelease)));
        assert_eq!("os:stable".parse::<ChannelName>().expect("a channel").to_string(), "os:stable");
        assert!(matches!("os@1.2".parse::<ChannelName>(), Err(ParseError::NoChannel)));
        for bad in ["", "os", "@", "os@", "@1", "os@../x", "os@1@2"] {
            assert!(bad.parse::<ReleaseName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_with_path_characters_are_refused() {
        assert_eq!(
            node_id("ABCDEF00112233445566778899aabbcc").expect("an id"),
            "abcdef00112233445566778899aabbcc"
        );
        for bad in ["", "..", "a/b", "0"] {
            assert!(node_id(bad).is_err(), "{bad}");
        }
        for bad in ["", "..", "a/b"] {
            assert!(token_id(bad).is_err(), "{bad}");
        }
    }
}
