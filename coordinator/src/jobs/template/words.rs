//! The command line of a template: where options end, the words of the template, and the sources of
//! its arguments.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// A source of arguments, as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Where the arguments are.
    pub origin: Origin,
    /// The source goes in step with the one before it, instead of being combined with it.
    pub linked: bool,
}

/// Where arguments are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On the command line.
    Words(Vec<OsString>),
    /// In a file; `-`: standard input.
    File(PathBuf),
}

/// The words that begin a source, whether they name files, and whether the source is linked.
const SEPARATORS: [(&str, bool, bool); 4] = [
    (":::", false, false),
    ("::::", true, false),
    (":::+", false, true),
    ("::::+", true, true),
];

fn separator(word: &OsStr) -> Option<(&'static str, bool, bool)> {
    SEPARATORS.into_iter().find(|(text, ..)| word == *text)
}

/// Splits the words of a command line before the first that begins a source.
pub fn split(mut words: Vec<OsString>) -> (Vec<OsString>, Vec<OsString>) {
    let first = words.iter().position(|word| separator(word).is_some());
    let sources = words.split_off(first.unwrap_or(words.len()));
    (words, sources)
}

/// The sources that `words` name, the first of which begins one. `earlier`: options have named some
/// before.
///
/// # Errors
/// A line for the user.
pub fn sources(words: &[OsString], earlier: bool) -> Result<Vec<Named>, String> {
    let mut sources: Vec<Named> = Vec::new();
    let mut rest = words;
    while let Some((first, after)) = rest.split_first() {
        let length = after.iter().position(|word| separator(word).is_some());
        let (given, following) = after.split_at(length.unwrap_or(after.len()));
        rest = following;
        // Only the first word can be none, and callers have split there.
        let Some((text, files, linked)) = separator(first) else {
            continue;
        };
        if linked && sources.is_empty() && !earlier {
            return Err(format!(
                "`{text}` links arguments to those before it, and there are none; begin with `:::`"
            ));
        }
        if files && given.is_empty() {
            return Err(format!("`{text}` has no file after it"));
        }
        match files {
            true => sources.extend(given.iter().map(|file| Named {
                origin: Origin::File(file.into()),
                linked,
            })),
            false => sources.push(Named {
                origin: Origin::Words(given.to_vec()),
                linked,
            }),
        }
    }
    Ok(sources)
}

/// Checks the words of a template as a person types them.
///
/// # Errors
/// A line for the user.
pub fn check(template: &[OsString]) -> Result<(), String> {
    let blank = |word: &OsStr| word.as_encoded_bytes().trim_ascii().is_empty();
    match template {
        [] => Err("there is no template: name a command before the arguments, as in `run 'gzip -9 {}' ::: *.log`".into()),
        [word, ..] if blank(word) => Err("word 1 of the template is empty: it has to name a command".into()),
        [word, more, ..] if word.as_encoded_bytes().iter().any(u8::is_ascii_whitespace) => {
            let more = more.to_string_lossy();
            let hint = if more.starts_with('-') { " (options go before the template)" } else { "" };
            Err(format!(
                "{more:?} comes after {:?}, which is a whole command: quote all of the command as one word, or none of it{hint}",
                word.to_string_lossy()
            ))
        }
        [..] => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ')
            .filter(|word| !word.is_empty())
            .map(OsString::from)
            .collect()
    }

    #[test]
    fn options_and_template_end_at_the_first_source() {
        let rows = [
            ("-j4 gzip {} ::: a b", "-j4 gzip {}", "::: a b"),
            ("::: a", "", "::: a"),
            ("x :::: f ::: -j4", "x", ":::: f ::: -j4"),
            ("x :::+ a", "x", ":::+ a"),
            ("x ::::: a :: b", "x ::::: a :: b", ""),
        ];
        for (line, head, tail) in rows {
            assert_eq!(split(words(line)), (words(head), words(tail)), "{line}");
        }
    }

    #[test]
    fn sources_are_read_in_order() {
        let given = |text, linked| Named {
            origin: Origin::Words(words(text)),
            linked,
        };
        let file = |name: &str, linked| Named {
            origin: Origin::File(name.into()),
            linked,
        };
        let rows = [
            ("::: a b", vec![given("a b", false)]),
            (":::", vec![given("", false)]),
            ("::: -j4 --x", vec![given("-j4 --x", false)]),
            (":::: f g", vec![file("f", false), file("g", false)]),
            (
                ":::: f ::::+ g - ::: a",
                vec![
                    file("f", false),
                    file("g", true),
                    file("-", true),
                    given("a", false),
                ],
            ),
            (
                "::: a :::+ b ::: c",
                vec![given("a", false), given("b", true), given("c", false)],
            ),
        ];
        for (line, expected) in rows {
            assert_eq!(sources(&words(line), false), Ok(expected), "{line}");
        }
        for line in [":::+ a", "::::+ f", "::: a ::::", ":::: ::: a"] {
            assert!(sources(&words(line), false).is_err(), "{line}");
        }
        assert!(sources(&words(":::+ a"), true).is_ok());
    }

    #[test]
    fn templates_that_cannot_be_meant_are_refused() {
        for good in [&["gzip {}"][..], &["gzip", "-9 x"], &["a", ""], &["-x"]] {
            let good: Vec<OsString> = good.iter().map(OsString::from).collect();
            assert_eq!(check(&good), Ok(()), "{good:?}");
        }
        for (bad, said) in [
            (&[][..], "there is no template"),
            (&[""], "word 1"),
            (&[" \t"], "word 1"),
            (&["", "a"], "word 1"),
            (&["gzip {}", "-j4"], "(options go before the template)"),
            (&["gzip {}", "x"], "as one word, or none of it"),
        ] {
            let bad: Vec<OsString> = bad.iter().map(OsString::from).collect();
            let why = check(&bad).expect_err("refused");
            assert!(why.contains(said), "{bad:?}: {why}");
        }
    }
}
