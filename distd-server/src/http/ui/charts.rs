//! Charts: the numbers from which templates draw SVG.

use std::collections::BTreeMap;

use distd_core::fleet::report::SourceBytes;

use crate::db::HistoryRow;

/// Part of a bar. A class gives its colour and pattern.
pub(super) struct Part {
    pub(super) class: &'static str,
    pub(super) label: String,
    pub(super) value: u64,
    /// Begin and width, hundredths of the bar.
    pub(super) x: String,
    pub(super) width: String,
    /// Share of the whole, as `12 %`.
    pub(super) share: String,
}

/// Parts of a bar as long as all values together, without those of zero.
pub(super) fn bar<L: Into<String>>(values: impl IntoIterator<Item = (&'static str, L, u64)>) -> Vec<Part> {
    let values: Vec<_> = values.into_iter().filter(|(_, _, value)| *value > 0).collect();
    let whole: u64 = values.iter().fold(0, |sum, (_, _, value)| sum.saturating_add(*value));
    let mut begin = 0;
    let mut part = |(class, label, value): (&'static str, L, u64)| {
        let (x, width) = (percent(begin, whole), percent(value, whole));
        begin = u64::saturating_add(begin, value);
        let share = match width {
            share if share > 0.0 && share < 1.0 => "<1 %".to_owned(),
            share if share > 99.0 && share < 100.0 => ">99 %".to_owned(),
            share => format!("{share:.0} %"),
        };
        Part { class, label: label.into(), value, x: format!("{x:.3}"), width: format!("{width:.3}"), share }
    };
    values.into_iter().map(&mut part).collect()
}

fn percent(value: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { value as f64 * 100.0 / whole as f64 }
}

/// Bar of the devices of a wave, or of all waves.
pub(super) fn progress(devices: u64, succeeded: u64, trying: u64, failed: u64) -> Vec<Part> {
    bar([
        ("up_to_date", "succeeded", succeeded),
        ("updating", "trying", trying),
        ("failed", "failed", failed),
        ("waiting", "not begun", devices.saturating_sub(succeeded + trying + failed)),
    ])
}

/// Bar of the bytes of attempts by their source.
pub(super) fn sources(bytes: SourceBytes) -> Vec<Part> {
    bar([
        (series(2), "already there", bytes.disk),
        (series(1), "from neighbours", bytes.neighbours),
        (series(0), "from relays", bytes.relay),
        (series(3), "from the origin", bytes.origin),
    ])
}

/// Class of the series number `at`.
pub(super) fn series(at: usize) -> &'static str {
    SERIES[at.min(SERIES.len() - 1)]
}

/// Classes of the series of a chart, in the order in which they are used; the last one is that of
/// all further series together.
const SERIES: [&str; 6] = ["series-1", "series-2", "series-3", "series-4", "series-5", "series-rest"];

/// Most times that a chart shows.
const TIMES_MAX: usize = 150;

/// Devices by version over time, stacked.
pub(super) struct History {
    pub(super) areas: Vec<Area>,
    /// Time of the first count and of the last one, unix seconds.
    pub(super) from: i64,
    pub(super) to: i64,
    /// Most devices at one time.
    pub(super) most: u64,
}

/// One version of a [`History`].
pub(super) struct Area {
    pub(super) class: &'static str,
    pub(super) label: String,
    /// Devices at the last time.
    pub(super) last: u64,
    /// Corners for `points` of an SVG polygon, in a box of 1000 by 100.
    pub(super) corners: String,
}

impl History {
    /// Chart of these counts, which are in the order of time; `None` with fewer than two times. The
    /// versions in `first` come first and have the first colours.
    pub(super) fn of(rows: &[HistoryRow], first: &[&str]) -> Option<Self> {
        let mut times: BTreeMap<i64, BTreeMap<&str, u64>> = BTreeMap::new();
        for row in rows {
            times.entry(row.at).or_default().insert(&row.version, row.devices);
        }
        if times.len() < 2 {
            return None;
        }
        let to = *times.keys().next_back()?;
        // A chart has no room for more, and a page none for their corners.
        let distance = times.len().div_ceil(TIMES_MAX);
        let mut at = times.len();
        times.retain(|_, _| {
            at -= 1;
            at.is_multiple_of(distance)
        });
        let from = *times.keys().next()?;
        // The versions with the most devices, now or at any time, have colours of their own.
        let mut most: BTreeMap<&str, u64> = BTreeMap::new();
        for (version, devices) in times.values().flatten() {
            let most = most.entry(version).or_default();
            *most = (*most).max(*devices);
        }
        let mut versions: Vec<&str> = most.keys().copied().collect();
        let place = |version: &&str| first.iter().position(|other| other == version).unwrap_or(first.len());
        versions.sort_by_key(|version| (place(version), std::cmp::Reverse(most[version]), *version));
        let own = versions.len().min(SERIES.len() - 1);
        let (named, rest) = versions.split_at(own);
        let mut series: Vec<(&'static str, String, Vec<u64>)> = Vec::new();
        let values = |versions: &[&str]| -> Vec<u64> {
            let at = |counts: &BTreeMap<&str, u64>| versions.iter().filter_map(|v| counts.get(v)).sum();
            times.values().map(at).collect()
        };
        for (class, version) in SERIES.into_iter().zip(named) {
            let label = if version.is_empty() { "none" } else { version };
            series.push((class, label.to_owned(), values(&[version])));
        }
        if !rest.is_empty() {
            series.push((SERIES[own], format!("{} others", rest.len()), values(rest)));
        }
        let sums: Vec<u64> = (0..times.len()).map(|at| series.iter().map(|(_, _, v)| v[at]).sum()).collect();
        let top = sums.iter().copied().max().unwrap_or(0).max(1);
        let xs: Vec<f64> = times.keys().map(|at| (at - from) as f64 * 1000.0 / (to - from) as f64).collect();
        let y = |devices: u64| 100.0 - devices as f64 * 100.0 / top as f64;
        let mut below = vec![0; times.len()];
        let mut areas = Vec::new();
        for (class, label, values) in series {
            let above: Vec<u64> = below.iter().zip(&values).map(|(below, value)| below + value).collect();
            let corner = |(x, devices): (&f64, &u64)| format!("{x:.1},{:.2}", y(*devices));
            let forth = xs.iter().zip(&above).map(corner);
            let back = xs.iter().zip(&below).rev().map(corner);
            let corners = forth.chain(back).collect::<Vec<_>>().join(" ");
            areas.push(Area { class, label, last: values.last().copied().unwrap_or(0), corners });
            below = above;
        }
        Some(Self { areas, from, to, most: top })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_the_bar() {
        let parts = bar([("a", "x", 1), ("b", "none", 0), ("c", "z", 299)]);
        let shown: Vec<_> =
            parts.iter().map(|p| (p.class, p.x.as_str(), p.width.as_str(), p.share.as_str())).collect();
        assert_eq!(shown, [("a", "0.000", "0.333", "<1 %"), ("c", "0.333", "99.667", ">99 %")]);
        assert!(bar([("a", "x", 0)]).is_empty());
        assert_eq!(bar([("a", "x", u64::MAX)])[0].share, "100 %");
    }

    #[test]
    fn areas_are_stacked_and_the_rarest_versions_share_one() {
        let row = |at, version: &str, devices| HistoryRow { at, version: version.into(), devices };
        assert!(History::of(&[row(0, "1", 5)], &[]).is_none());
        let chart = History::of(&[row(0, "1", 4), row(600, "1", 1), row(600, "2", 3)], &[]).expect("a chart");
        assert_eq!((chart.from, chart.to, chart.most, chart.areas.len()), (0, 600, 4, 2));
        assert_eq!(chart.areas[0].corners, "0.0,0.00 1000.0,75.00 1000.0,100.00 0.0,100.00");
        assert_eq!(chart.areas[1].corners, "0.0,0.00 1000.0,0.00 1000.0,75.00 0.0,0.00");
        let many: Vec<_> =
            (0..9).flat_map(|v| [row(0, &v.to_string(), 9 - v), row(600, &v.to_string(), 9 - v)]).collect();
        let mut many = many;
        many.sort_by_key(|row| row.at);
        let chart = History::of(&many, &[]).expect("a chart");
        let labels: Vec<_> = chart.areas.iter().map(|area| (area.label.as_str(), area.last)).collect();
        assert_eq!(labels, [("0", 9), ("1", 8), ("2", 7), ("3", 6), ("4", 5), ("4 others", 10)]);
    }

    #[test]
    fn a_long_history_is_thinned_out_and_keeps_its_end_and_the_colours_of_the_bar() {
        let row = |at, version: &str, devices| HistoryRow { at, version: version.into(), devices };
        let rows: Vec<_> = (0..1000).flat_map(|at| [row(at, "1", 9), row(at, "2", 1)]).collect();
        let chart = History::of(&rows, &["2", "1"]).expect("a chart");
        assert_eq!((chart.to, chart.areas[0].label.as_str()), (999, "2"));
        assert!(chart.areas[0].corners.split(' ').count() <= 2 * TIMES_MAX, "{}", chart.areas[0].corners);
        assert!(chart.from < 7);
    }
}
