//! Text written by other people, made safe to show to an operator.

/// Characters a label may have besides letters, digits and single blanks.
pub const LABEL_SIGNS: &str = ".,:;@_+-/()#&'!=";

/// Whether a label looks like what it is: letters and digits of any script, single blanks between
/// words, and [`LABEL_SIGNS`].
pub fn is_label(label: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || c == ' ' || LABEL_SIGNS.contains(c);
    label.chars().all(plain) && !label.contains("  ") && label.trim() == label
}

/// Most combining marks shown on one letter.
const MARKS_MAX: usize = 2;

/// Returns `text` in at most `max` characters. Characters that move, hide or forge other text on a
/// terminal become U+FFFD: control characters, direction marks, zero-width and tag characters, line
/// separators. Of a pile of combining marks, two are kept. A cut text ends in `…`.
pub fn shown(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max.saturating_mul(4)));
    let (mut count, mut marks) = (0, 0);
    for c in text.chars() {
        marks = if is_mark(c) { marks + 1 } else { 0 };
        if marks > MARKS_MAX {
            continue;
        }
        if count == max {
            out.pop();
            out.push('\u{2026}');
            break;
        }
        count += 1;
        out.push(if is_unseen(c) { char::REPLACEMENT_CHARACTER } else { c });
    }
    out
}

/// Whether a character has no shape of its own but changes how its neighbours are shown.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{00ad}' | '\u{061c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'
        )
}

/// Whether a character is in one of the common blocks of combining marks.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{0300}'..='\u{036f}' | '\u{1ab0}'..='\u{1aff}' | '\u{1dc0}'..='\u{1dff}'
        | '\u{20d0}'..='\u{20ff}' | '\u{fe20}'..='\u{fe2f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_forge_other_text_are_made_visible() {
        for c in [
            '\n',
            '\u{1b}',
            '\u{7f}',
            '\u{85}',
            '\u{202e}',
            '\u{2066}',
            '\u{200b}',
            '\u{2028}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            let text = format!("a{c}b");
            assert_eq!(shown(&text, 9), "a\u{fffd}b", "{:x}", u32::from(c));
            assert!(!is_label(&text), "{:x}", u32::from(c));
        }
        let pile = format!("e{}x", "\u{301}".repeat(60));
        assert_eq!(shown(&pile, 99), "e\u{301}\u{301}x");
        assert_eq!((shown("abcdef", 6), shown("abcdef", 4)), ("abcdef".to_owned(), "abc\u{2026}".to_owned()));
        assert_eq!(shown("Filiale K\u{f6}ln \u{6771}\u{4eac}", 99), "Filiale K\u{f6}ln \u{6771}\u{4eac}");
        assert!(is_label("Filiale K\u{f6}ln (17), Kasse 3") && is_label(""));
        for bad in ["two  blanks", " before", "after ", "tab\tbed", "e\u{301}"] {
            assert!(!is_label(bad), "{bad:?}");
        }
    }
}
