//! One source of arguments: its arguments, where each was written, and its columns.

use super::array::Array;
use mezcal_common::model::octets;
use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// The arguments of one source. A million of them cost their text and eight bytes each.
#[derive(Debug)]
pub struct Source {
    /// What it is called in messages.
    name: String,
    arguments: Arguments,
    /// The source goes in step with the one before it.
    pub linked: bool,
}

#[derive(Debug)]
enum Arguments {
    /// In one text, in the form of octets. Each begins at its place in `starts`, which ends with
    /// one place more, and ends so many bytes before the next.
    Listed {
        text: String,
        starts: Vec<usize>,
        gap: usize,
        /// Each is a line.
        lines: bool,
    },
    Numbers(Array),
}

impl Source {
    /// Arguments of the command line.
    pub fn words(name: String, words: Vec<OsString>) -> Self {
        let (mut text, mut starts) = (String::new(), vec![0]);
        for word in words {
            text.push_str(&octets::text(word.into_vec()));
            starts.push(text.len());
        }
        Self::listed(name, text, starts, 0, false)
    }

    /// Arguments that each are a line.
    pub fn lines(name: String, bytes: Vec<u8>) -> Self {
        let text = octets::text(bytes);
        let starts = starts(&text, "\n");
        Self::listed(name, text, starts, 1, true)
    }

    /// Arguments that each are a line with columns. As other programs write such files, a line may
    /// end with a carriage return, the first begin with a byte order mark, and the last be empty.
    pub fn table(name: String, bytes: Vec<u8>) -> Self {
        let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
        let lines = text
            .split(|b| *b == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let mut lines: Vec<&[u8]> = lines.collect();
        while lines.pop_if(|line| line.is_empty()).is_some() {}
        let mut text = lines.join(&b'\n');
        text.extend(lines.last().map(|_| b'\n'));
        Self::lines(name, text)
    }

    /// Arguments that each end with a NUL byte.
    pub fn pieces(name: String, bytes: Vec<u8>) -> Self {
        // `octets` writes a NUL as two.
        let text = octets::text(bytes);
        let starts = starts(&text, "\0\0");
        Self::listed(name, text, starts, 2, false)
    }

    /// Numbers.
    pub fn numbers(name: String, array: Array) -> Self {
        Self {
            name,
            arguments: Arguments::Numbers(array),
            linked: false,
        }
    }

    fn listed(name: String, text: String, starts: Vec<usize>, gap: usize, lines: bool) -> Self {
        let arguments = Arguments::Listed {
            text,
            starts,
            gap,
            lines,
        };
        Self {
            name,
            arguments,
            linked: false,
        }
    }

    /// The same, in step with the source before it.
    pub fn linked(self, linked: bool) -> Self {
        Self { linked, ..self }
    }

    /// How many arguments there are, a header included.
    pub(super) fn len(&self) -> usize {
        match &self.arguments {
            Arguments::Listed { starts, .. } => starts.len() - 1,
            Arguments::Numbers(array) => array.len(),
        }
    }

    /// Whether the first argument can be a header.
    pub(super) fn can_have_header(&self) -> bool {
        match &self.arguments {
            Arguments::Listed { .. } => self.len() > 0,
            Arguments::Numbers(_) => false,
        }
    }

    /// The argument at this place, from 0.
    pub(super) fn get(&self, index: usize) -> Cow<'_, str> {
        match &self.arguments {
            Arguments::Listed {
                text, starts, gap, ..
            } => Cow::Borrowed(&text[starts[index]..starts[index + 1] - gap]),
            Arguments::Numbers(array) => {
                Cow::Owned(array.get(index).map(|n| n.to_string()).unwrap_or_default())
            }
        }
    }

    /// The length of the longest argument.
    pub(super) fn longest(&self) -> usize {
        match &self.arguments {
            Arguments::Listed { starts, .. } => {
                let lengths = starts.windows(2).map(|pair| pair[1] - pair[0]);
                lengths.max().unwrap_or(0)
            }
            Arguments::Numbers(array) => array.longest(),
        }
    }

    /// Where the argument at this place, from 0, was written.
    pub(super) fn place(&self, index: usize) -> String {
        let number = index + 1;
        match &self.arguments {
            Arguments::Listed { lines: true, .. } => format!("{}:{number}", self.name),
            Arguments::Listed { lines: false, .. } | Arguments::Numbers(_) => {
                format!("argument {number} of {}", self.name)
            }
        }
    }

    /// What it is called in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The place of the first argument with a NUL byte.
    pub(super) fn first_nul(&self) -> Option<usize> {
        match &self.arguments {
            Arguments::Listed { text, .. } if text.contains("\0\0") => {
                let has_nul = |at: &usize| octets::of(&self.get(*at)).contains(&0);
                (0..self.len()).find(has_nul)
            }
            Arguments::Listed { .. } | Arguments::Numbers(_) => None,
        }
    }
}

/// Where the pieces of `text` that end with `end` begin, and one place more. The last piece may
/// lack its end.
fn starts(text: &str, end: &str) -> Vec<usize> {
    let mut starts = vec![0];
    starts.extend(text.match_indices(end).map(|(at, _)| at + end.len()));
    if !text.ends_with(end) && !text.is_empty() {
        starts.push(text.len() + end.len());
    }
    starts
}

/// The text between columns of an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnSeparator {
    /// This text.
    Text(String),
    /// Any white space.
    Blanks,
}

impl ColumnSeparator {
    /// Reads a separator as a person writes it: `\t` is a tab, `\s+` is white space, and another
    /// backslash makes the character after it count as itself.
    ///
    /// # Errors
    /// A line for the user.
    pub fn read(text: &str) -> Result<Self, String> {
        if matches!(text, "\\s+" | "[ \\t]+" | " +") {
            return Ok(Self::Blanks);
        }
        let (mut out, mut chars) = (String::new(), text.chars());
        while let Some(c) = chars.next() {
            out.push(match (c, if c == '\\' { chars.next() } else { Some(c) }) {
                ('\\', Some('t')) => '\t',
                ('\\', Some(c)) if c.is_ascii_punctuation() => c,
                ('\\', _) => {
                    return Err(format!(
                        "{text:?}: it is a text, not a regular expression; \\t stands for a tab, and \\s+ for white space"
                    ));
                }
                (c, _) => c,
            });
        }
        match out.is_empty() {
            true => Err("it cannot be empty".into()),
            false => Ok(Self::Text(out)),
        }
    }

    /// The columns of an argument, which has at least one.
    pub(super) fn split<'t>(&self, argument: &'t str) -> Vec<&'t str> {
        match self {
            Self::Blanks if argument.trim_ascii().is_empty() => vec![argument],
            Self::Blanks => argument.split_ascii_whitespace().collect(),
            Self::Text(separator) => {
                let mut columns: Vec<&str> = Vec::new();
                let mut start = 0;
                for (at, _) in argument.match_indices(separator) {
                    // A byte that is no text has NUL before its character (`octets`).
                    if at >= start && !argument[..at].ends_with('\0') {
                        columns.push(&argument[start..at]);
                        start = at + separator.len();
                    }
                }
                columns.push(&argument[start..]);
                columns
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(source: &Source) -> Vec<String> {
        (0..source.len())
            .map(|at| source.get(at).into_owned())
            .collect()
    }

    #[test]
    fn lines_and_pieces_are_arguments() {
        let name = || "f".to_owned();
        let rows: [(&[u8], &[&str], &[&str]); 7] = [
            (b"", &[], &[]),
            (b"a", &["a"], &["a"]),
            (b"a\nb\n", &["a", "b"], &["a\nb\n"]),
            (b"a\n\n b \n", &["a", "", " b "], &["a\n\n b \n"]),
            (b"\n", &[""], &["\n"]),
            (b"a b\0c\nd\0", &["a b\0\0c", "d\0\0"], &["a b", "c\nd"]),
            (
                b"caf\xe9\0\0x",
                &["caf\0\u{e9}\0\0\0\0x"],
                &["caf\0\u{e9}", "", "x"],
            ),
        ];
        for (bytes, lines, pieces) in rows {
            assert_eq!(
                all(&Source::lines(name(), bytes.to_vec())),
                lines,
                "{bytes:?}"
            );
            assert_eq!(
                all(&Source::pieces(name(), bytes.to_vec())),
                pieces,
                "{bytes:?}"
            );
        }
        let words = ["a", "", "b\nc"].map(OsString::from).to_vec();
        let source = Source::words("`:::`".into(), words);
        assert_eq!(all(&source), ["a", "", "b\nc"]);
        assert_eq!(source.place(2), "argument 3 of `:::`");
        assert_eq!(source.first_nul(), None);
        let source = Source::lines(name(), b"caf\xe9\na\0b\n".to_vec());
        assert_eq!(
            source.first_nul().map(|at| source.place(at)),
            Some("f:2".into())
        );
    }

    #[test]
    fn tables_of_other_programs_are_read() {
        let rows: [(&[u8], &[&str]); 7] = [
            (b"", &[]),
            (b"\r\n\n", &[]),
            (b"a,b\r\n1,2\r\n", &["a,b", "1,2"]),
            (b"\xef\xbb\xbfa\n1\r", &["a", "1"]),
            (b"a\r\n\r\nb\n\n\r\n", &["a", "", "b"]),
            (b"a\r\r\nb\rc", &["a\r", "b\rc"]),
            (b"a\n\xef\xbb\xbfb", &["a", "\u{feff}b"]),
        ];
        for (bytes, lines) in rows {
            let table = Source::table("f".into(), bytes.to_vec());
            assert_eq!(all(&table), lines, "{bytes:?}");
        }
    }

    #[test]
    fn columns_are_between_separators() {
        let rows: [(&str, &str, &[&str]); 11] = [
            (",", "a,b", &["a", "b"]),
            (",", "", &[""]),
            (",", ",a,", &["", "a", ""]),
            ("\\t", "a\tb c", &["a", "b c"]),
            ("\\|", "a|b", &["a", "b"]),
            ("::", "a:::b", &["a", ":b"]),
            ("\\s+", " a \t b ", &["a", "b"]),
            (" +", "a  b", &["a", "b"]),
            ("\\s+", "  ", &["  "]),
            ("\u{e9}", "x\u{e9}y", &["x", "y"]),
            ("\u{e9}", "x\0\u{e9}y", &["x\0\u{e9}y"]),
        ];
        for (separator, argument, columns) in rows {
            let separator = ColumnSeparator::read(separator).expect("a separator");
            assert_eq!(separator.split(argument), columns, "{argument:?}");
        }
        for bad in ["", "\\d", "a\\", "\\s*"] {
            assert!(ColumnSeparator::read(bad).is_err(), "{bad}");
        }
    }
}
