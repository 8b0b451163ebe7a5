//! The `Range` header of a request (RFC 9110, section 14).

use std::ops::Range;

/// Most ranges in one request. An updater with more parts to fetch asks in several requests
/// (SWUpdate: 150).
pub const RANGES_MAX: usize = 1024;

/// Part of a file that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// All of it: there is no `Range`, or none that has to be obeyed.
    Whole,
    /// One part.
    One(Range<u64>),
    /// Several parts, in the order in which they were asked for.
    Many(Vec<Range<u64>>),
    /// Only parts behind the end of the file.
    Outside,
}

/// Parses the value of `Range` for a file of `len` bytes.
///
/// A header that is malformed, of another unit, of more than [`RANGES_MAX`] ranges, or whose ranges
/// together are longer than the file is ignored, as RFC 9110 allows: the whole file is less work.
/// Ranges behind the end are left out.
pub fn parse_ranges(text: &str, len: u64) -> Asked {
    let Some(list) = text.strip_prefix("bytes=") else { return Asked::Whole };
    let (mut ranges, mut any) = (Vec::new(), false);
    for spec in list.split(',').map(str::trim) {
        // Empty elements of a list are allowed.
        if spec.is_empty() {
            continue;
        }
        any = true;
        match parse_one(spec, len) {
            None => return Asked::Whole,
            Some(range) if range.is_empty() => {}
            Some(range) => ranges.push(range),
        }
        if ranges.len() > RANGES_MAX {
            return Asked::Whole;
        }
    }
    let sum = ranges.iter().fold(0u64, |sum, range| sum.saturating_add(range.end - range.start));
    match ranges.len() {
        0 if any => Asked::Outside,
        0 => Asked::Whole,
        1 => Asked::One(ranges.remove(0)),
        _ if sum > len => Asked::Whole,
        _ => Asked::Many(ranges),
    }
}

/// Parses one range; an empty one lies behind the end, `None` is malformed.
fn parse_one(spec: &str, len: u64) -> Option<Range<u64>> {
    let (first, last) = spec.split_once('-')?;
    // `parse` would accept a sign. A number that does not fit in 64 bits counts as the largest one.
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    if first.is_empty() {
        let suffix: u64 = number(last)?;
        return Some(len.saturating_sub(suffix)..len);
    }
    let first: u64 = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if last < first {
        return None;
    }
    let end = last.saturating_add(1);
    Some(first.min(len)..end.min(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parsed_as_in_rfc_9110() {
        for (text, expected) in [
            ("bytes=0-0", Asked::One(0..1)),
            ("bytes=2-5", Asked::One(2..6)),
            ("bytes=2-", Asked::One(2..10)),
            ("bytes=-3", Asked::One(7..10)),
            ("bytes=-30", Asked::One(0..10)),
            ("bytes=5-99999999999999999999999", Asked::One(5..10)),
            ("bytes=10-", Asked::Outside),
            ("bytes=10-12", Asked::Outside),
            ("bytes=99999999999999999999-99999999999999999999", Asked::Outside),
            ("bytes=-0", Asked::Outside),
            ("bytes=5-2", Asked::Whole),
            ("bytes=", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("bytes=1-2-3", Asked::Whole),
            ("chunks=0-1", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Many(vec![0..2, 3..5])),
            ("bytes=3-4, 0-1,", Asked::Many(vec![3..5, 0..2])),
            ("bytes=0-1,50-60", Asked::One(0..2)),
            ("bytes=40-45,50-60", Asked::Outside),
            ("bytes=0-1,x", Asked::Whole),
            // Together longer than the file.
            ("bytes=0-,0-", Asked::Whole),
            ("bytes=0-5,5-9", Asked::Whole),
        ] {
            assert_eq!(parse_ranges(text, 10), expected, "{text}");
        }
        assert_eq!(parse_ranges("bytes=0-", 0), Asked::Outside);
        assert_eq!(parse_ranges("bytes=-1", 0), Asked::Outside);
    }

    #[test]
    fn a_list_of_too_many_ranges_is_ignored() {
        let list = |n: u64| (0..n).map(|i| format!("{0}-{0}", 2 * i)).collect::<Vec<_>>().join(",");
        let many = format!("bytes={}", list(RANGES_MAX as u64));
        assert!(matches!(parse_ranges(&many, 1 << 20), Asked::Many(ranges) if ranges.len() == RANGES_MAX));
        assert_eq!(parse_ranges(&format!("bytes={}", list(RANGES_MAX as u64 + 1)), 1 << 20), Asked::Whole);
    }
}
