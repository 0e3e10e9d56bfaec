//! How the text of a template before a place ends: whether it would go on with an argument.

/// Whether a shell would read on, in a `$name` at the end of `text`.
pub(super) fn ends_with_name(text: &str) -> bool {
    let start = text.trim_end_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let name = &text[start.len()..];
    let dollars = start.bytes().rev().take_while(|b| *b == b'$').count();
    let escaped = backslashes(&start[..start.len() - dollars]) % 2;
    // Of `$$name` the first two belong together.
    let dollars = dollars.saturating_sub(escaped);
    dollars % 2 == 1 && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// Whether `text`, in `$'…'`, ends in an escape that further characters may belong to.
pub(super) fn ends_in_escape(text: &str) -> bool {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_hexdigit());
    let octal = text.trim_end_matches(|c| matches!(c, '0'..='7'));
    let named = digits.strip_suffix(['x', 'u', 'U']);
    // What follows `\c` is one character.
    let named = named
        .into_iter()
        .chain(text.strip_suffix('c'))
        .chain([octal]);
    let mut escapes = named.filter(|before| before.len() < text.len());
    escapes.any(|before| backslashes(before) % 2 == 1)
}

/// The number of backslashes at the end of `text`.
pub(super) fn backslashes(text: &str) -> usize {
    text.bytes().rev().take_while(|b| *b == b'\\').count()
}
