//! Replacement strings: `{}`, `{2/.}`, `{name}` and the like, and what they make of an argument.

/// What a replacement string stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stands {
    /// For arguments of the job.
    Argument(Which, Cut),
    /// For the number of the job, from 1.
    Number,
    /// For the slot that runs the job, from 1.
    Slot,
}

/// The arguments that are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// All of the job.
    All,
    /// That at this position, from 1.
    Position(u32),
}

/// The part of an argument, as a path, that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// All of it.
    Whole,
    /// `.`: without the extension.
    Stem,
    /// `..`: without two extensions.
    ShortStem,
    /// `/`: the last component.
    Base,
    /// `//`: the directory.
    Directory,
    /// `/.`: the last component without the extension.
    BaseStem,
}

/// The texts of the parts, none of which is the end of one before it.
const CUTS: [(&str, Cut); 6] = [
    ("", Cut::Whole),
    ("/.", Cut::BaseStem),
    ("//", Cut::Directory),
    ("/", Cut::Base),
    ("..", Cut::ShortStem),
    (".", Cut::Stem),
];

/// A position has at most so many digits.
const DIGITS: usize = 6;

/// What `{content}` stands for, where the columns of arguments have these names. `None`: it is no
/// replacement string.
///
/// # Errors
/// Two columns have this name.
pub(super) fn read(content: &str, names: &[String]) -> Result<Option<Stands>, String> {
    match content {
        "#" => return Ok(Some(Stands::Number)),
        "%" => return Ok(Some(Stands::Slot)),
        _ => {}
    }
    for (end, cut) in CUTS {
        let Some(start) = content.strip_suffix(end) else {
            continue;
        };
        if let Some(which) = which(start, names)? {
            return Ok(Some(Stands::Argument(which, cut)));
        }
    }
    Ok(None)
}

fn which(start: &str, names: &[String]) -> Result<Option<Which>, String> {
    if start.is_empty() {
        return Ok(Some(Which::All));
    }
    let digits = start.bytes().all(|b| b.is_ascii_digit());
    if digits && !start.starts_with('0') && start.len() <= DIGITS {
        return Ok(start.parse().ok().map(Which::Position));
    }
    let mut named = (1..)
        .zip(names)
        .filter(|(_, name)| *name == start)
        .map(|(n, _)| n);
    match (named.next(), named.next()) {
        (Some(_), Some(_)) => Err(format!("two columns are called {start:?}")),
        (position, _) => Ok(position.map(Which::Position)),
    }
}

/// Whether `${content}` means nothing to a shell, so that `{content}` can be ours even there.
pub(super) fn is_no_parameter(content: &str) -> bool {
    CUTS.iter().any(|(text, _)| *text == content)
}

/// The name of a column from which `{content}` differs by a slip.
pub(super) fn near<'n>(content: &str, names: &'n [String]) -> Option<&'n str> {
    let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
    let mut starts = CUTS
        .iter()
        .filter_map(|(end, _)| content.strip_suffix(*end));
    starts.find_map(|start| {
        let named = !start.is_empty() && start.chars().all(word);
        // Any other letter is one edit away from a letter.
        let long = start.chars().nth(1).is_some();
        let slip = |name: &&String| {
            long && strsim::osa_distance(start, name) == 1
                || start.to_lowercase() == name.to_lowercase() && start != **name
        };
        names
            .iter()
            .filter(|_| named)
            .find(slip)
            .map(String::as_str)
    })
}

impl Cut {
    /// The part of `path`.
    pub(super) fn of(self, path: &str) -> &str {
        let base = path.rfind('/').map_or(path, |at| &path[at + 1..]);
        match self {
            Cut::Whole => path,
            Cut::Stem => stem(path, base, 1),
            Cut::ShortStem => stem(path, base, 2),
            Cut::Base => base,
            Cut::Directory => directory(path),
            Cut::BaseStem => stem(base, base, 1),
        }
    }
}

/// `path`, whose last component is `base`, without so many extensions; all of it, if it has fewer.
fn stem<'p>(path: &'p str, base: &str, extensions: usize) -> &'p str {
    let dots = base.rmatch_indices('.').map(|(at, _)| at);
    dots.take(extensions)
        .nth(extensions - 1)
        .map_or(path, |at| &path[..path.len() - base.len() + at])
}

/// As dirname(1).
fn directory(path: &str) -> &str {
    let Some(end) = path.trim_end_matches('/').rfind('/') else {
        let root = path.starts_with('/');
        return if root { "/" } else { "." };
    };
    match path[..end].trim_end_matches('/') {
        "" => "/",
        directory => directory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_of_gnu_parallel() {
        // Whole, then {.} {..} {/} {//} {/.} as GNU Parallel 20221122 --plus has them.
        let rows = [
            ["a.log", "a", "a.log", "a.log", ".", "a"],
            ["d/y.tar.gz", "d/y.tar", "d/y", "y.tar.gz", "d", "y.tar"],
            ["/a/b.c/d", "/a/b.c/d", "/a/b.c/d", "d", "/a/b.c", "d"],
            [".bashrc", "", ".bashrc", ".bashrc", ".", ""],
            ["a/.b.c", "a/.b", "a/", ".b.c", "a", ".b"],
            ["/", "/", "/", "", "/", ""],
            ["a/", "a/", "a/", "", ".", ""],
            ["//a//b", "//a//b", "//a//b", "b", "//a", "b"],
            ["", "", "", "", ".", ""],
            ["a.", "a", "a.", "a.", ".", "a"],
            ["x y/z w.e", "x y/z w", "x y/z w.e", "z w.e", "x y", "z w"],
        ];
        for [path, rest @ ..] in rows {
            let cuts = [
                Cut::Stem,
                Cut::ShortStem,
                Cut::Base,
                Cut::Directory,
                Cut::BaseStem,
            ];
            assert_eq!(cuts.map(|cut| cut.of(path)), rest, "{path:?}");
            assert_eq!(Cut::Whole.of(path), path);
        }
    }

    #[test]
    fn only_replacement_strings_are_read() {
        let names = ["name".to_owned(), "a.b".into(), "two".into(), "two".into()];
        let position = |n, cut| Some(Stands::Argument(Which::Position(n), cut));
        let all = |cut| Some(Stands::Argument(Which::All, cut));
        let rows = [
            ("", all(Cut::Whole)),
            (".", all(Cut::Stem)),
            ("..", all(Cut::ShortStem)),
            ("/", all(Cut::Base)),
            ("//", all(Cut::Directory)),
            ("/.", all(Cut::BaseStem)),
            ("#", Some(Stands::Number)),
            ("%", Some(Stands::Slot)),
            ("1", position(1, Cut::Whole)),
            ("12/.", position(12, Cut::BaseStem)),
            ("2//", position(2, Cut::Directory)),
            ("2..", position(2, Cut::ShortStem)),
            ("name", position(1, Cut::Whole)),
            ("name/", position(1, Cut::Base)),
            ("a.b", position(2, Cut::Whole)),
            ("a.b.", position(2, Cut::Stem)),
            ("nam", None),
            ("0", None),
            ("01", None),
            ("1234567", None),
            ("3,5", None),
            ("1..5", None),
            ("...", None),
            ("a,b", None),
            ("print $1", None),
            (" ", None),
            ("/../", None),
            ("-1", None),
        ];
        for (content, stands) in rows {
            assert_eq!(read(content, &names), Ok(stands), "{content:?}");
        }
        assert!(read("two.", &names).is_err());
        assert_eq!(near("nmae", &names), Some("name"));
        assert_eq!(near("Name/.", &names), Some("name"));
        assert_eq!(near("names", &names), Some("name"));
        assert_eq!(near("print", &names), None);
        let short = ["X".to_owned(), String::new()];
        assert_eq!(near("x", &short), Some("X"));
        assert_eq!(near("y", &short), None);
    }
}
