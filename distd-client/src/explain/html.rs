//! A report as one HTML file: a treemap as inline SVG and the tables, without scripts or external
//! resources.
//!
//! Paths come from an image that may be hostile. All text goes through [`escape`]; a content
//! security policy is the second line of defence.

use std::fmt::Write;

use distd_core::explain::treemap::Rect;
use distd_core::explain::{Kind, Report};

use super::picture::{Picture, Tile};
use super::text::{percent, place, shown};
use distd_client::text::human_bytes;

/// Size of the picture in pixels.
const AREA: Rect = Rect { x: 0.0, y: 0.0, w: 1600.0, h: 900.0 };

/// Number of rows in the table of paths.
const ROWS_MAX: usize = 200;

/// Height of a label and width of one letter in pixels, approximately those of 11 px sans-serif.
const LABEL_HEIGHT: f64 = 15.0;
const LETTER_WIDTH: f64 = 6.2;

const STYLE: &str = "body{font:14px/1.4 sans-serif;margin:1.5em;color:#222;background:#fff}\
    svg{width:100%;height:auto;display:block;border:1px solid #444}\
    svg rect{stroke:#fff;stroke-width:.4}svg .dir{fill:none;stroke:#222}svg text{font:11px sans-serif;fill:#111;pointer-events:none}\
    table{border-collapse:collapse;margin:1em 0}td,th{padding:.15em .8em .15em 0;text-align:left;vertical-align:top}\
    .n{text-align:right;white-space:nowrap}.key span{display:inline-block;margin-right:1.2em}\
    .key i{display:inline-block;width:1em;height:1em;margin-right:.3em;vertical-align:-.15em}\
    code{overflow-wrap:anywhere}";

/// Returns the page for a report.
pub(crate) fn page(report: &Report, title: &str) -> String {
    let mut out = String::new();
    let title = escape(&shown(title.as_bytes()));
    out.push_str("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n");
    out.push_str(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n",
    );
    // Writing to a string cannot fail.
    let _ = writeln!(out, "<title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>");
    let _ = writeln!(
        out,
        "<p>{} of {} are new, in {} chunks: <b>{}</b> on the wire, without patches. Each area is bytes on the wire.</p>",
        human_bytes(report.raw_bytes),
        human_bytes(report.new_bytes),
        report.chunks,
        human_bytes(report.wire_bytes)
    );
    key(&mut out, report);
    drawing(&mut out, report);
    hints(&mut out, report);
    paths(&mut out, report);
    out.push_str("</body></html>\n");
    out
}

/// Escapes text for use in an element or in a quoted attribute.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            letter => out.push(letter),
        }
    }
    out
}

/// Returns the fill colour of a kind. The colours also differ in lightness.
fn colour(kind: Option<Kind>) -> &'static str {
    match kind {
        Some(Kind::New) => "#8dd3a0",
        Some(Kind::Changed) => "#f2b366",
        Some(Kind::Renamed) => "#f7dc8a",
        Some(Kind::Metadata) => "#8fb8de",
        Some(Kind::Times) => "#c59bd8",
        Some(Kind::Compression) => "#e58a8a",
        Some(Kind::Fragments) => "#b39b84",
        Some(Kind::HashTree) => "#7fc4c4",
        Some(Kind::Unknown) => "#b8b8b8",
        None => "#dedede",
    }
}

fn key(out: &mut String, report: &Report) {
    out.push_str("<p class=\"key\">");
    for cost in &report.kinds {
        let _ = write!(
            out,
            "<span><i style=\"background:{}\"></i>{} {} ({})</span>",
            colour(Some(cost.kind)),
            cost.kind.name(),
            human_bytes(cost.wire_bytes),
            percent(cost.wire_bytes, report.wire_bytes)
        );
    }
    let _ = writeln!(out, "<span><i style=\"background:{}\"></i>several</span></p>", colour(None));
}

fn drawing(out: &mut String, report: &Report) {
    let picture = Picture::of(report, AREA);
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" role=\"img\">",
        AREA.w, AREA.h
    );
    for tile in &picture.tiles {
        draw(out, tile, report);
    }
    for frame in &picture.frames {
        let Rect { x, y, w, h } = frame.area;
        let stroke = 2.0 / (frame.depth as f64 + 1.0);
        let _ = writeln!(
            out,
            "<rect class=\"dir\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" stroke-width=\"{stroke:.1}\" pointer-events=\"none\"/>"
        );
    }
    out.push_str("</svg>\n");
}

fn draw(out: &mut String, tile: &Tile, report: &Report) {
    let Rect { x, y, w, h } = tile.area;
    let _ = write!(
        out,
        "<g><title>{}\n{} ({}), {}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"{}\"/>",
        escape(&tile.title),
        human_bytes(tile.bytes),
        percent(tile.bytes, report.wire_bytes),
        tile.kind.map_or("several", Kind::name),
        colour(tile.kind)
    );
    let letters = (w / LETTER_WIDTH) as usize;
    if h >= LABEL_HEIGHT && letters >= 4 {
        let label: String = tile.label.chars().take(letters.saturating_sub(1)).collect();
        let _ = write!(out, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 3.0, y + 12.0, escape(&label));
    }
    out.push_str("</g>\n");
}

fn hints(out: &mut String, report: &Report) {
    if report.hints.is_empty() {
        return;
    }
    out.push_str("<h2>What to change</h2><ul>\n");
    for hint in &report.hints {
        let _ = write!(
            out,
            "<li>{}: <b>{}</b> ({})<br>{}",
            escape(hint.advice.finding()),
            human_bytes(hint.saves_bytes),
            escape(hint.method.words()),
            escape(&hint.advice.action())
        );
        for path in &hint.paths {
            let _ = write!(out, "<br><code>{}</code>", escape(&shown(path)));
        }
        out.push_str("</li>\n");
    }
    out.push_str("</ul>\n");
}

fn paths(out: &mut String, report: &Report) {
    out.push_str(
        "<h2>Paths</h2><table><tr><th class=\"n\">on the wire</th><th>kind</th><th>path</th></tr>\n",
    );
    for cost in report.paths.iter().take(ROWS_MAX) {
        let old =
            cost.old_path.as_ref().map_or(String::new(), |old| format!(" (was {})", escape(&shown(old))));
        let _ = writeln!(
            out,
            "<tr><td class=\"n\">{}</td><td>{}</td><td><code>{}</code>{old}</td></tr>",
            human_bytes(cost.wire_bytes),
            cost.kind.name(),
            escape(&place(cost))
        );
    }
    out.push_str("</table>\n");
    if report.paths.len() > ROWS_MAX {
        let _ = writeln!(out, "<p>{} more</p>", report.paths.len() - ROWS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use distd_core::explain::{Advice, Hint, Method};

    use super::super::tests::report;
    use super::*;

    /// The name holds everything that a browser could take for a tag or for the end of an
    /// attribute, and appears in every place that shows a name.
    #[test]
    fn a_hostile_name_is_text_wherever_it_is_shown() {
        let hostile = "x\"><script>alert('&')</script>\u{1b}[2J\u{202e}";
        let mut report = report(&[(hostile, 5000), ("d/y", 10), ("d/z", 10)]);
        report.paths[0].old_path = Some(hostile.into());
        let paths = vec![hostile.as_bytes().to_vec()];
        report.hints =
            vec![Hint { advice: Advice::NoCompressedFiles, saves_bytes: 1, method: Method::AtMost, paths }];
        let page = page(&report, hostile);
        assert!(!page.contains("<script") && !page.contains("alert('") && !page.contains("x\"&gt;"));
        assert!(!page.contains('\u{1b}') && !page.contains('\u{202e}'));
        assert!(page.matches("&lt;script&gt;").count() >= 7, "{page}");
        // Every tag must be one that the page itself writes.
        for tag in page.split('<').skip(1) {
            let name = tag.trim_start_matches('/').split([' ', '>', '/', '\n']).next().unwrap_or_default();
            let ours = "!doctype html head meta title style body h1 h2 p b span i svg g rect text ul li br code table tr th td";
            assert!(ours.split(' ').any(|own| own == name), "<{name}");
        }
    }

    #[test]
    fn the_page_fetches_nothing() {
        let page = page(&report(&[("a", 1), ("b/c", 2)]), "t");
        for word in ["src=", "href=", "url(", "@import", "http-equiv=\"refresh\"", "<link", "<img", "<script"]
        {
            assert!(!page.contains(word), "{word}");
        }
        assert_eq!(page.matches("://").count(), 1, "the name of SVG's namespace, which nobody fetches");
    }
}
