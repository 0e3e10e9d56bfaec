//! Text that is shown to people: a user's text on a terminal or in a log line, and errors with
//! their sources.
//!
//! Characters that a terminal might obey, and those that make a text look like another one, are
//! escaped: control characters, and the invisible characters of Unicode's bidirectional algorithm
//! (UAX #9), which reorder the text after them.

use crate::model::limits;
use rustix::io::Errno;
use std::borrow::Cow;

/// C0, DEL and C1; marks, separators, embeddings, overrides and isolates of directions.
fn harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Replaces control characters and invisible direction changes by `\u{..}`-style escapes, so that a
/// job's text can neither move the cursor nor forge a line. Printable text of any script passes
/// unchanged.
pub fn for_terminal(text: &str) -> Cow<'_, str> {
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if harmful(c) {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
    Cow::Owned(out)
}

/// The same for JSON, whose meaning stays the same: such characters can occur only in its strings,
/// as `\u009b`, or as white space between its values. Line ends stay.
pub fn json_for_terminal(json: &str) -> Cow<'_, str> {
    let kept = |c: char| c == '\n' || !harmful(c);
    if json.chars().all(kept) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len() + 8);
    for c in json.chars() {
        match c {
            '\t' | '\r' => out.push(' '),
            c if kept(c) => out.push(c),
            // All of them are in the basic plane.
            c => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    Cow::Owned(out)
}

/// Text that a POSIX shell reads as this one word, in single quotes.
pub fn shell_word(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    push_single_quoted(&mut out, text);
    out.push('\'');
    out
}

/// Appends text that stands within single quotes of a shell; a quote in it ends them, stands for
/// itself, and begins them again.
pub fn push_single_quoted(out: &mut String, text: &str) {
    let mut parts = text.split('\'');
    out.push_str(parts.next().unwrap_or_default());
    parts.for_each(|part| out.extend(["'\\''", part]));
}

/// Text of several lines that is sent to a terminal in pieces: lines and tabs stay, and the rest is
/// escaped as by [`for_terminal`].
#[derive(Debug, Default)]
pub struct TerminalText {
    /// The beginning of a character whose other bytes have not come yet.
    rest: Vec<u8>,
}

impl TerminalText {
    /// Takes further bytes; returns the text of the complete characters.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let whole = self.rest.len() - cut_character(&self.rest);
        // Invalid bytes before the cut are not text, and are shown as such.
        let text: Vec<u8> = self.rest.drain(..whole).collect();
        lines(&String::from_utf8_lossy(&text))
    }

    /// The incomplete character at the end, if there is one.
    pub fn finish(self) -> String {
        lines(&String::from_utf8_lossy(&self.rest))
    }
}

fn lines(text: &str) -> String {
    text.split_inclusive(['\n', '\t'])
        .map(|part| match part.strip_suffix(['\n', '\t']) {
            Some(line) => for_terminal(line).into_owned() + &part[line.len()..],
            None => for_terminal(part).into_owned(),
        })
        .collect()
}

/// Number of bytes at the end that begin an incomplete UTF-8 character.
fn cut_character(bytes: &[u8]) -> usize {
    (1..=3.min(bytes.len()))
        .find(|back| {
            let tail = &bytes[bytes.len() - back..];
            std::str::from_utf8(tail)
                .is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
        })
        .unwrap_or(0)
}

/// An error and its sources on one line, with the limit of the host that is the cause, if there is
/// one.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    for e in std::iter::successors(Some(error), |e| e.source()) {
        if !text.is_empty() {
            text.push_str(": ");
        }
        // TOML errors span several lines; the first gives the place, the last the reason.
        text.push_str(e.to_string().trim_end());
        let number = e.downcast_ref().and_then(std::io::Error::raw_os_error);
        if let Some(limit) = number
            .map(Errno::from_raw_os_error)
            .and_then(limits::behind)
        {
            text.push_str(&format!(" ({limit})"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{TerminalText, for_terminal, json_for_terminal, shell_word};

    #[test]
    fn escape_sequences_are_shown_not_obeyed() {
        assert_eq!(for_terminal("wc -l 東京"), "wc -l 東京");
        assert_eq!(for_terminal("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(for_terminal("x\u{202e}y\u{9b}"), "x\\u{202e}y\\u{9b}");
        assert_eq!(
            for_terminal("\u{61c}\u{200e}\u{2067}"),
            "\\u{61c}\\u{200e}\\u{2067}"
        );
    }

    #[test]
    fn json_with_such_characters_means_the_same_and_shows_none() {
        assert_eq!(
            json_for_terminal("{\"cmd\": \"wc 東京\"}\n"),
            "{\"cmd\": \"wc 東京\"}\n"
        );
        assert_eq!(
            json_for_terminal("{\"a\u{9b}b\":\t\"\u{202e}\u{7f}\"}\n"),
            "{\"a\\u009bb\": \"\\u202e\\u007f\"}\n"
        );
    }

    #[test]
    fn a_shell_reads_a_text_as_one_word() {
        for (text, word) in [
            ("", "''"),
            ("$x \"y\"", "'$x \"y\"'"),
            ("it's", "'it'\\''s'"),
            ("'", "''\\'''"),
        ] {
            assert_eq!(shell_word(text), word);
        }
    }

    #[test]
    fn text_that_comes_in_pieces_is_shown_whole() {
        let mut text = TerminalText::default();
        let pieces = [
            "a\tb\n\u{1b}[2J".as_bytes(),
            &"京".as_bytes()[..1],
            &"京".as_bytes()[1..],
            b"\xff",
            &[0xc2],
            &[0x9b],
            &[0xff, 0xe4],
            b"x",
        ];
        let shown: String = pieces.iter().map(|piece| text.push(piece)).collect();
        assert_eq!(
            shown + &text.finish(),
            "a\tb\n\\u{1b}[2J京\u{fffd}\\u{9b}\u{fffd}\u{fffd}x"
        );
        let mut cut = TerminalText::default();
        assert_eq!(cut.push(&[b'a', 0xe4]) + &cut.finish(), "a\u{fffd}");
    }
}
