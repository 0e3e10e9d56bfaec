//! JSON objects as text: their members in order, and the same text on one line with every number
//! unchanged.

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashMap;

/// From this number of members, a table finds repeated keys: nearly all objects have fewer, and are
/// searched faster without one.
const MANY: usize = 32;

/// The members of a JSON object in their order, values as text. A repeated key has its last value
/// at its first place, as in Python; `twice` is called with the key and that value.
///
/// # Errors
/// Those of serde_json, with line and column within `text`.
pub(crate) fn members_with<'t>(
    text: &'t str,
    twice: &mut dyn FnMut(&str, &'t RawValue),
) -> Result<Vec<(Cow<'t, str>, &'t RawValue)>, serde_json::Error> {
    struct Members<'f, 't>(&'f mut dyn FnMut(&str, &'t RawValue));
    impl<'de> Visitor<'de> for Members<'_, 'de> {
        type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut out: Self::Value = Vec::new();
            let mut places: HashMap<Cow<'de, str>, usize> = HashMap::new();
            while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
                if out.len() == MANY && places.is_empty() {
                    places.extend(
                        out.iter()
                            .enumerate()
                            .map(|(place, (key, _))| (key.clone(), place)),
                    );
                }
                let known = match places.is_empty() {
                    true => out.iter().position(|(known, _)| *known == key),
                    false => places.get(&key).copied(),
                };
                match known {
                    Some(place) => {
                        (self.0)(&key, value);
                        out[place].1 = value;
                    }
                    None => {
                        if !places.is_empty() {
                            places.insert(key.clone(), out.len());
                        }
                        out.push((key, value));
                    }
                }
            }
            Ok(out)
        }
    }

    let mut deserializer = serde_json::Deserializer::from_str(text);
    let members = deserializer.deserialize_map(Members(twice))?;
    deserializer.end()?;
    Ok(members)
}

/// The same where repeated keys do not matter.
///
/// # Errors
/// The text is not an object, or has more than one value.
pub fn members(text: &str) -> Result<Vec<(Cow<'_, str>, &RawValue)>, serde_json::Error> {
    members_with(text, &mut |_, _| {})
}

/// A key, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// Appends valid JSON `text` to `out` on one line, with one space after `,` and `:` as Python's
/// `json.dumps` has it. Numbers and strings keep their text; with `ascii`, strings are written as
/// Python writes them: every other character as `\uXXXX`.
pub fn write_json(out: &mut Vec<u8>, text: &str, ascii: bool) {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b' ' | b'\t' | b'\r' | b'\n' => {}
            b @ (b',' | b':') => out.extend([b, b' ']),
            b'"' => {
                let mut end = i + 1;
                while bytes.get(end).is_some_and(|b| *b != b'"') {
                    end += if bytes[end] == b'\\' { 2 } else { 1 };
                }
                let end = end.min(bytes.len() - 1);
                let token = &text[i..=end];
                match serde_json::from_str::<String>(token) {
                    Ok(value) if ascii => write_ascii_string(out, &value),
                    _ => out.extend_from_slice(token.as_bytes()),
                }
                i = end;
            }
            b => out.push(b),
        }
        i += 1;
    }
}

/// Appends `value` as a JSON string; with `ascii`, as Python writes it.
pub(crate) fn write_string(out: &mut Vec<u8>, value: &str, ascii: bool) {
    if ascii {
        write_ascii_string(out, value);
    } else if serde_json::to_writer(&mut *out, value).is_err() {
        // Writing a string to memory cannot fail.
        out.extend_from_slice(b"\"\"");
    }
}

/// Appends a text that stands for bytes ([`octets`](mezcal_common::model::octets)) as a JSON
/// string; each byte that is not part of a character becomes a lone surrogate.
pub(crate) fn write_octets(out: &mut Vec<u8>, text: &str) {
    let json = serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_owned());
    out.extend_from_slice(super::surrogates::to_json(json).as_bytes());
}

fn write_ascii_string(out: &mut Vec<u8>, value: &str) {
    out.push(b'"');
    for c in value.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            ' '..='~' => out.push(c as u8),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
                }
            }
        }
    }
    out.push(b'"');
}
