//! How numbers, times and words stand on a page.

use std::fmt::Display;

use askama::{Result, Values};
use jiff::Timestamp;

/// Bytes with the unit that leaves two or three digits, as `1.2 GB`.
#[askama::filter_fn]
pub(super) fn bytes(value: &u64, _: &dyn Values) -> Result<String> {
    Ok(bytes_text(*value))
}

/// Count with a thin space between groups of three digits.
#[askama::filter_fn]
pub(super) fn count(value: impl Display, _: &dyn Values) -> Result<String> {
    Ok(count_text(&value.to_string()))
}

/// Unix seconds as a date and time in UTC.
#[askama::filter_fn]
pub(super) fn exact(value: &i64, _: &dyn Values) -> Result<String> {
    Ok(exact_text(*value))
}

/// Unix seconds in the form that programs read.
#[askama::filter_fn]
pub(super) fn iso(value: &i64, _: &dyn Values) -> Result<String> {
    Ok(Timestamp::from_second(*value).map(|time| time.to_string()).unwrap_or_default())
}

/// Unix seconds as the time since then, or until then, in words.
#[askama::filter_fn]
pub(super) fn ago(value: &i64, _: &dyn Values, now: &i64) -> Result<String> {
    Ok(ago_text(*value, *now))
}

/// Seconds as the longest unit that fits, as `2 hours`.
#[askama::filter_fn]
pub(super) fn duration(value: &u64, _: &dyn Values) -> Result<String> {
    Ok(duration_text(*value))
}

/// The first characters of an id.
#[askama::filter_fn]
pub(super) fn short(value: impl Display, _: &dyn Values) -> Result<String> {
    Ok(value.to_string().chars().take(12).collect())
}

pub(super) fn bytes_text(value: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut at, mut shown) = (0, value as f64);
    while shown >= 999.5 && at + 1 < UNITS.len() {
        (at, shown) = (at + 1, shown / 1000.0);
    }
    match shown < 9.95 && at > 0 {
        true => format!("{shown:.1} {}", UNITS[at]),
        false => format!("{shown:.0} {}", UNITS[at]),
    }
}

fn count_text(digits: &str) -> String {
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

fn exact_text(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => format!("{seconds} s"),
    }
}

fn duration_text(seconds: u64) -> String {
    let units = [(86_400, "day"), (3600, "hour"), (60, "minute")];
    let unit = units.into_iter().find(|(length, _)| seconds >= 2 * length || seconds == *length);
    let (number, word) = unit.map_or((seconds, "second"), |(length, word)| (seconds / length, word));
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

fn ago_text(at: i64, now: i64) -> String {
    match now.saturating_sub(at) {
        0 => "now".to_owned(),
        past @ 1.. => format!("{} ago", duration_text(past.unsigned_abs())),
        future => format!("in {}", duration_text(future.unsigned_abs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_written_for_people() {
        let bytes = [0, 999, 1000, 9_949, 9_950, 999_499, 999_500, 1_500_000_000, u64::MAX].map(bytes_text);
        assert_eq!(
            bytes,
            ["0 B", "999 B", "1.0 kB", "9.9 kB", "10 kB", "999 kB", "1.0 MB", "1.5 GB", "18447 PB"]
        );
        assert_eq!(count_text("1234567"), "1\u{202f}234\u{202f}567");
        assert_eq!(count_text("123"), "123");
        let durations = [0, 1, 59, 60, 119, 120, 3600, 7199, 7200, 86_400, 200_000].map(duration_text);
        let wanted = [
            "0 seconds",
            "1 second",
            "59 seconds",
            "1 minute",
            "119 seconds",
            "2 minutes",
            "1 hour",
            "119 minutes",
            "2 hours",
            "1 day",
            "2 days",
        ];
        assert_eq!(durations, wanted);
        assert_eq!(
            [ago_text(5, 5), ago_text(0, 60), ago_text(120, 0)],
            ["now", "1 minute ago", "in 2 minutes"]
        );
        assert_eq!(exact_text(1_796_047_200), "2026-11-30 14:00:00 UTC");
        assert_eq!(exact_text(i64::MAX), format!("{} s", i64::MAX));
    }
}
