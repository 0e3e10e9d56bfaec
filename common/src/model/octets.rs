//! Bytes that are not UTF-8 inside text: names of files may contain them, and so may commands and
//! environments with such names.
//!
//! JSON encodes them as Python does (PEP 383): a byte from 80 to ff that is not part of a character
//! is the lone surrogate `\udc80` to `\udcff`. A `String` cannot hold those. In it such a byte is
//! NUL and the character of the same number, `\0é` for e9, and a true NUL is two of them. No
//! command, path or environment has a NUL, so all other text stands for itself; and a program that
//! does not know this form finds a NUL and starts nothing. Only code that opens files or starts
//! programs decodes it ([`of`]).

use std::borrow::Cow;

/// The bytes that a text stands for.
pub fn of(text: &str) -> Cow<'_, [u8]> {
    let Some((before, mut rest)) = text.split_once('\0') else {
        return Cow::Borrowed(text.as_bytes());
    };
    let mut out = before.as_bytes().to_vec();
    loop {
        let mut following = rest.chars();
        match following.next() {
            Some(c @ '\u{80}'..='\u{ff}') => out.push(c as u8),
            Some('\0') => out.push(0),
            _ => {
                out.push(0);
                following = rest.chars();
            }
        }
        let Some((before, after)) = following.as_str().split_once('\0') else {
            out.extend_from_slice(following.as_str().as_bytes());
            return Cow::Owned(out);
        };
        out.extend_from_slice(before.as_bytes());
        rest = after;
    }
}

/// The text that stands for these bytes.
pub fn text(bytes: Vec<u8>) -> String {
    let bytes = match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => return text,
        Ok(text) => text.into_bytes(),
        Err(e) => e.into_bytes(),
    };
    let mut out = String::with_capacity(bytes.len() + 8);
    for chunk in bytes.utf8_chunks() {
        out.push_str(&chunk.valid().replace('\0', "\0\0"));
        chunk
            .invalid()
            .iter()
            .for_each(|byte| out.extend(['\0', char::from(*byte)]));
    }
    out
}

/// The text for people: each byte that is not part of a character is U+FFFD.
pub fn shown(text: &str) -> Cow<'_, str> {
    match of(text) {
        Cow::Borrowed(_) => Cow::Borrowed(text),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_become_text_and_come_back() {
        let cases: [&[u8]; 9] = [
            b"",
            b"plain",
            "é東\u{80}".as_bytes(),
            b"caf\xe9.txt",
            b"\xff\xfe\x80",
            b"\xed\xb3\xa9 half of a character",
            b"\0\xe9",
            "\0é".as_bytes(),
            b"\0\0\0 a\0",
        ];
        for bytes in cases {
            let text = text(bytes.to_vec());
            assert_eq!(of(&text), bytes, "{text:?}");
            assert_eq!(
                text.contains('\0'),
                bytes.contains(&0) || std::str::from_utf8(bytes).is_err(),
                "{text:?}"
            );
        }
        assert_eq!(shown(&text(b"caf\xe9".to_vec())), "caf\u{fffd}");
        assert_eq!(of("a\0b"), &b"a\0b"[..], "what nobody writes");
    }
}
