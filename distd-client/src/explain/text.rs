//! A report as text for people.

use distd_core::explain::{Hint, Kind, PathCost, Report};
use distd_core::patch::view::Transparency;

use distd_client::text::{human_bytes, table};

/// Longest path that is shown anywhere, in characters.
const PATH_CHARS_MAX: usize = 100;

/// Returns the tables: kinds, the `top` most expensive paths, facts and hints.
pub(crate) fn summary(report: &Report, top: usize) -> String {
    let mut parts = vec![head(report)];
    if report.wire_bytes > 0 {
        parts.push(kinds(report));
        parts.push(paths(report, top));
    }
    parts.extend(facts(report));
    parts.extend(report.transparency.as_ref().map(|found| transparency(found, top)));
    parts.push(hints(report));
    parts.join("\n\n")
}

/// Returns a path that cannot affect a terminal: bytes that are not UTF-8 become `\x..`, control
/// characters are escaped, and a long path loses its middle.
pub(crate) fn shown(path: &[u8]) -> String {
    let mut text = String::new();
    for piece in path.utf8_chunks() {
        for letter in piece.valid().chars() {
            if letter.is_control() || is_hidden_or_directional(letter) {
                text.extend(letter.escape_default());
            } else {
                text.push(letter);
            }
        }
        text.extend(piece.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    let chars = text.chars().count();
    if chars <= PATH_CHARS_MAX {
        return text;
    }
    let half = PATH_CHARS_MAX / 2 - 1;
    let start: String = text.chars().take(half).collect();
    let end: String = text.chars().skip(chars - half).collect();
    format!("{start}…{end}")
}

/// Returns whether a letter is invisible or changes the direction of the text after it.
fn is_hidden_or_directional(letter: char) -> bool {
    matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Returns the path of an item, or a description of items that have no path.
pub(crate) fn place(cost: &PathCost) -> String {
    match (&cost.path, cost.kind) {
        (Some(path), _) => shown(path),
        (None, Kind::Metadata | Kind::Times) => "(inodes and directories)".to_owned(),
        (None, Kind::HashTree) => "(hash tree)".to_owned(),
        (None, Kind::Fragments) => "(packed inode)".to_owned(),
        (None, _) => "(no file)".to_owned(),
    }
}

fn head(report: &Report) -> String {
    format!(
        "{} of {} are new, in {} chunks: {} on the wire (zstd level {}, without patches)",
        human_bytes(report.raw_bytes),
        human_bytes(report.new_bytes),
        report.chunks,
        human_bytes(report.wire_bytes),
        report.level
    )
}

fn kinds(report: &Report) -> String {
    let mut rows = vec![row(["KIND", "ON THE WIRE", "SHARE", "BEFORE PACKING", "PATHS"])];
    for cost in &report.kinds {
        rows.push(row([
            cost.kind.name(),
            &human_bytes(cost.wire_bytes),
            &percent(cost.wire_bytes, report.wire_bytes),
            &human_bytes(cost.raw_bytes),
            &cost.paths.to_string(),
        ]));
    }
    table(&rows)
}

fn paths(report: &Report, top: usize) -> String {
    let mut rows = vec![row(["ON THE WIRE", "SHARE", "KIND", "PATH"])];
    for cost in report.paths.iter().take(top) {
        let from = cost.old_path.as_ref().map_or(String::new(), |old| format!(" (was {})", shown(old)));
        rows.push(row([
            &human_bytes(cost.wire_bytes),
            &percent(cost.wire_bytes, report.wire_bytes),
            cost.kind.name(),
            &format!("{}{from}", place(cost)),
        ]));
    }
    if let Some(rest) = report.paths.get(top..).filter(|rest| !rest.is_empty()) {
        let bytes = rest.iter().map(|cost| cost.wire_bytes).sum();
        let share = percent(bytes, report.wire_bytes);
        rows.push(row([&human_bytes(bytes), &share, "", &format!("{} more", rest.len())]));
    }
    table(&rows)
}

/// Returns the facts that belong to no kind and no path.
fn facts(report: &Report) -> Option<String> {
    let mut lines = Vec::new();
    if report.moved.files > 0 {
        let bytes = human_bytes(report.moved.bytes);
        lines.push(format!(
            "moved: {} files of {bytes} have another path and cost nothing",
            report.moved.files
        ));
    }
    if let Some(times) = report.times.filter(|times| times.differ > 0) {
        lines.push(format!(
            "times: {} of {} inodes have a different time, {} of them differ in nothing else",
            times.differ, times.inodes, times.differ_only_in_time
        ));
    }
    if let Some(plain) = report.uncompressed {
        lines.push(format!(
            "without compression in the image: {} on the wire ({} files unpacked and cut)",
            human_bytes(plain.wire_bytes),
            plain.files
        ));
        if plain.files_not_unpacked > 0 {
            lines.push(format!("not unpacked and counted as they are: {} files", plain.files_not_unpacked));
        }
    }
    if !report.all_names {
        lines.push("too many names: some files listed as new are not new".to_owned());
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Returns the share in which patches see content, and the `top` largest files that have none.
fn transparency(found: &Transparency, top: usize) -> String {
    let mut text = format!(
        "transparent to patches: {} ({} of {}, of these {} packed)",
        percent(found.transparent(), found.bytes),
        human_bytes(found.transparent()),
        human_bytes(found.bytes),
        human_bytes(found.viewed)
    );
    if !found.opaque.is_empty() {
        let mut rows = vec![row(["OPAQUE", "SHARE", "REASON", "PATH"])];
        for file in found.opaque.iter().take(top) {
            let share = percent(file.bytes, found.bytes);
            rows.push(row([&human_bytes(file.bytes), &share, &file.reason, &shown(&file.name)]));
        }
        if let Some(rest) = found.opaque.get(top..).filter(|rest| !rest.is_empty()) {
            let bytes = rest.iter().map(|file| file.bytes).sum();
            let more = format!("{} more", rest.len());
            rows.push(row([&human_bytes(bytes), &percent(bytes, found.bytes), "", &more]));
        }
        text.push('\n');
        text.push_str(&table(&rows));
    }
    text
}

fn hints(report: &Report) -> String {
    if report.hints.is_empty() {
        return "nothing to change".to_owned();
    }
    let hints: Vec<String> = report.hints.iter().map(hint).collect();
    format!("what to change\n{}", hints.join("\n"))
}

fn hint(hint: &Hint) -> String {
    let Hint { advice, saves_bytes, method, paths } = hint;
    let mut text = format!(
        "- {}: {} ({})\n  {}",
        advice.finding(),
        human_bytes(*saves_bytes),
        method.words(),
        advice.action()
    );
    for path in paths {
        text.push_str("\n  · ");
        text.push_str(&shown(path));
    }
    text
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Returns a share in percent with one decimal.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", part as f64 * 100.0 / whole.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_path_is_short_and_has_no_control_characters() {
        assert_eq!(shown(b"usr/bin/\x1b[2Jx\n\xff"), "usr/bin/\\u{1b}[2Jx\\n\\xff");
        assert_eq!(shown("a\u{202e}b é".as_bytes()), "a\\u{202e}b é");
        let long = shown(&[b'x'; 5000]);
        assert!(long.chars().count() <= PATH_CHARS_MAX && long.contains('…'));
    }
}
