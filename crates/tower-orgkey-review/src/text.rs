//! Texts that tenants chose, as people can read them.

use std::borrow::Cow;

/// Replaces characters that change how others are shown (control characters, directions, invisible ones) by their number.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut visible = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_hidden(character) {
            visible.extend(character.escape_unicode());
        } else {
            visible.push(character);
        }
    }
    Cow::Owned(visible)
}

fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Returns a cell of a spreadsheet that is no formula, whatever program opens it, and whether `,` or `;` separates its cells.
pub(crate) fn cell(text: &str) -> String {
    let parts: Vec<_> = text.split(';').map(part).collect();
    parts.join(";")
}

fn part(text: &str) -> String {
    let visible = visible(text);
    // A quotation mark at the beginning is no part of a cell.
    let start = text.trim_start_matches(|it: char| it.is_whitespace() || it == '"');
    let first = start.chars().next();
    let is_formula = first.is_some_and(|first| "=+-@|%＝＋－＠".contains(first))
        || text.starts_with(['\t', '\r', '\n']);
    if is_formula {
        format!("'{visible}")
    } else {
        visible.into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_shown() {
        assert_eq!(visible("acme-prod"), "acme-prod");
        assert_eq!(visible("日本 é"), "日本 é");
        assert_eq!(visible("a\u{202e}b\u{0}\n"), "a\\u{202e}b\\u{0}\\u{a}");
        assert_eq!(visible("\u{200b}\u{e0041}"), "\\u{200b}\\u{e0041}");
    }

    #[test]
    fn formulas_are_texts() {
        for formula in [
            "=1+1", "+1", "-1", "@SUM(A1)", " =1", "＝1", "\u{a0}=1", "|x",
        ] {
            assert_eq!(cell(formula), format!("'{formula}"));
        }
        assert_eq!(cell("\t=1"), "'\\u{9}=1");
        assert_eq!(cell("\rx"), "'\\u{d}x");
        assert_eq!(cell("x;=1+1; \"=2;y"), "x;'=1+1;' \"=2;y");
        for text in ["", "key", "a=b", "'=1"] {
            assert_eq!(cell(text), text);
        }
    }
}
