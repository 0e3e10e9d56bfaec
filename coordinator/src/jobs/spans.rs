//! Where the jobs of a text are, and the places of mistakes.

use serde_json::value::RawValue;

/// Line and column, both from 1, of the end of `before`; columns count characters.
pub(super) fn position(before: &[u8]) -> (usize, usize) {
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let start = before
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |i| i + 1);
    (
        line,
        String::from_utf8_lossy(&before[start..]).chars().count() + 1,
    )
}

/// Spans of lines that are not blank, without surrounding white space.
pub(super) fn lines(text: &str) -> Vec<(usize, u32)> {
    pieces(text, "\n")
}

/// Spans of pieces that end with `end`, without surrounding white space; blank pieces are left out.
pub(super) fn pieces(text: &str, end: &str) -> Vec<(usize, u32)> {
    let mut spans = Vec::new();
    for line in text.split(end) {
        let body = line.trim_start_matches('\u{feff}').trim_ascii();
        if !body.is_empty() {
            let at = offset_in(text, body);
            spans.push((at, body.len() as u32));
        }
    }
    spans
}

/// Spans of the elements of one array.
pub(super) fn elements(name: &str, text: &str) -> Result<Vec<(usize, u32)>, String> {
    let body = text.trim_start_matches('\u{feff}');
    let all: Vec<&RawValue> = serde_json::from_str(body).map_err(|e| {
        let reason = without_place(&e);
        format!(
            "{name}:{}:{}: {reason}, in a JSON array of jobs",
            e.line(),
            e.column()
        )
    })?;
    Ok(all
        .iter()
        .map(|raw| (offset_in(text, raw.get()), raw.get().len() as u32))
        .collect())
}

/// Place of `part` in `text`, in bytes.
pub(super) fn offset_in(text: &str, part: &str) -> usize {
    part.as_ptr() as usize - text.as_ptr() as usize
}

/// The parser's message without its place, which counts within a part of the text only.
pub(super) fn without_place(e: &serde_json::Error) -> String {
    let text = e.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}
