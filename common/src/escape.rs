//! Text on its way to people: a user's on a terminal or in a log line, and errors with their sources.

use std::borrow::Cow;

/// Replaces control characters (C0, DEL, C1) and invisible direction changes by `\u{..}`-style escapes, so that a job's
/// text can neither move the cursor nor forge a line. Printable text of any script passes unchanged.
pub fn for_terminal(text: &str) -> Cow<'_, str> {
    fn harmful(c: char) -> bool {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    }
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if harmful(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// An error and its sources on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        let next = e.to_string();
        // TOML errors span lines; the first says where, the last what.
        text.push_str(": ");
        text.push_str(next.trim_end());
        source = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::for_terminal;

    #[test]
    fn escape_sequences_are_shown_not_obeyed() {
        assert_eq!(for_terminal("wc -l 東京"), "wc -l 東京");
        assert_eq!(for_terminal("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(for_terminal("x\u{202e}y\u{9b}"), "x\\u{202e}y\\u{9b}");
    }
}
