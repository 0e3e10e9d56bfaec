//! Texts that stand for bytes ([`octets`](mezcal_common::model::octets)) in JSON: with lone
//! surrogates, as Python has them (PEP 383).

use std::borrow::Cow;

/// A JSON value whose strings are texts that stand for bytes, from one with lone surrogates in
/// their place.
///
/// # Errors
/// The lone surrogate that does not stand for a byte.
pub(crate) fn from_json(json: &str) -> Result<Cow<'_, str>, u16> {
    let unit = |at: usize| {
        json.get(at..at + 6)?
            .strip_prefix("\\u")
            .and_then(|digits| u16::from_str_radix(digits, 16).ok())
    };
    let (mut out, mut copied, mut at) = (String::new(), 0, 0);
    while let Some(next) = json[at..].find('\\') {
        at += next;
        let (length, instead) = match unit(at) {
            Some(0) => (6, Some("\\u0000\\u0000".to_owned())),
            Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => (12, None),
            Some(byte @ 0xdc80..=0xdcff) => (6, Some(format!("\\u0000\\u{:04x}", byte & 0xff))),
            Some(other @ 0xd800..=0xdfff) => return Err(other),
            Some(_) => (6, None),
            // A backslash and the character that it escapes; at the end of an invalid text there is
            // none.
            None => (
                1 + json[at + 1..].chars().next().map_or(0, char::len_utf8),
                None,
            ),
        };
        if let Some(instead) = instead {
            out.push_str(&json[copied..at]);
            out.push_str(&instead);
            copied = at + length;
        }
        at += length;
    }
    if copied == 0 {
        return Ok(Cow::Borrowed(json));
    }
    out.push_str(&json[copied..]);
    Ok(Cow::Owned(out))
}

/// A JSON value with lone surrogates, from what serde_json writes of texts that stand for bytes.
pub(crate) fn to_json(json: String) -> String {
    const NUL: &str = "\\u0000";
    if !json.contains(NUL) {
        return json;
    }
    let (mut out, mut rest) = (String::with_capacity(json.len()), json.as_str());
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        rest = match after
            .strip_prefix(&NUL[1..])
            .map(|after| (after, after.chars().next()))
        {
            Some((after, Some(c @ '\u{80}'..='\u{ff}'))) => {
                out.push_str(&format!("\\udc{:02x}", c as u8));
                &after[c.len_utf8()..]
            }
            Some((after, _)) => {
                out.push_str(NUL);
                after.strip_prefix(NUL).unwrap_or(after)
            }
            None => {
                let (escaped, after) =
                    after.split_at(after.chars().next().map_or(0, char::len_utf8));
                out.extend(["\\", escaped]);
                after
            }
        };
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use mezcal_common::model::octets;

    fn read(json: &str) -> String {
        serde_json::from_str(&from_json(json).expect("no other surrogates")).expect("JSON")
    }

    #[test]
    fn surrogates_of_python_are_bytes_and_no_others() {
        // The output of `json.dumps(os.fsdecode(…))`.
        for (json, bytes) in [
            (r#""caf\udce9.txt""#, &b"caf\xe9.txt"[..]),
            (r#""\udcc3\udca9""#, "é".as_bytes()),
            (r#""\udc80\\udce9\"\udcff\u0000""#, b"\x80\\udce9\"\xff\0"),
        ] {
            let text = read(json);
            assert_eq!(octets::of(&text), bytes, "{json}");
            assert_eq!(to_json(serde_json::to_string(&text).expect("JSON")), json);
        }
        assert_eq!(
            octets::of(&read(r#""\ud83d\ude00\uDCFF\u00e9""#)),
            ["😀".as_bytes(), b"\xff", "é".as_bytes()].concat()
        );
        for (json, odd) in [
            (r#""\ud800""#, 0xd800),
            (r#""\udc7f""#, 0xdc7f),
            (r#""\udd00""#, 0xdd00),
            (r#""\ud83d\u0041""#, 0xd83d),
        ] {
            assert_eq!(from_json(json), Err(odd));
        }
    }

    #[test]
    fn a_nul_before_a_letter_is_no_byte() {
        let text = read(r#""\u0000\u00e9 \u0000é""#);
        assert_eq!(octets::of(&text), "\0é \0é".as_bytes());
        assert_eq!(
            to_json(serde_json::to_string(&text).expect("JSON")),
            r#""\u0000é \u0000é""#
        );
    }

    #[test]
    fn all_other_json_is_as_it_was() {
        for same in [
            r#"{"a": "\\u0000é", "b": ["\n\"", "\u0041"]}"#,
            "\"東\\/\"",
            "\"cut\\",
            "\"cut\\u00",
            "\\",
        ] {
            assert!(matches!(from_json(same), Ok(Cow::Borrowed(_))), "{same}");
            assert_eq!(to_json(same.to_owned()), same);
        }
    }
}
