//! Arguments in the text of a shell command: whatever they are, the shell sees them unchanged.

use mezcal_common::model::escape::{push_single_quoted, shell_word};

/// What surrounds a place in a shell command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quotes {
    /// Nothing. `always`: an argument is quoted even if it is a plain word, because what stands
    /// beside it would make another word of it.
    None {
        /// See there.
        always: bool,
    },
    /// `'…'`
    Single,
    /// `"…"`. `after_name`: a `$name` ends directly before, and would go on with the argument.
    Double {
        /// See there.
        after_name: bool,
    },
    /// `$'…'`
    Dollar,
    /// `$((…))`
    Arithmetic,
}

/// Words that mean something to bash where a command begins.
const RESERVED: [&str; 20] = [
    "if", "then", "else", "elif", "fi", "case", "esac", "for", "select", "while", "until", "do",
    "done", "in", "function", "time", "coproc", "{", "}", "!",
];

/// Appends an argument, in the form of octets.
pub(super) fn push(out: &mut String, argument: &str, quotes: Quotes) {
    match quotes {
        Quotes::None { always } if !always && is_plain(argument) => out.push_str(argument),
        Quotes::None { .. } => out.push_str(&shell_word(argument)),
        Quotes::Single => push_single_quoted(out, argument),
        Quotes::Double { after_name } => {
            if after_name {
                out.push_str("\"\"");
            }
            push_escaped(out, argument, &['\\', '"', '$', '`']);
        }
        Quotes::Dollar => push_escaped(out, argument, &['\\', '\'']),
        Quotes::Arithmetic => out.push_str(argument),
    }
}

/// The arguments that a place can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// All.
    Anything,
    /// Whole numbers, because a shell evaluates them. `zeros`: with leading zeros, too, which
    /// otherwise make it read octal digits.
    Whole {
        /// See there.
        zeros: bool,
    },
}

/// Why an argument cannot stand at a place.
///
/// # Errors
/// The end of a sentence about the place.
pub(super) fn check(holds: Holds, argument: &str) -> Result<(), &'static str> {
    let digits = argument.strip_prefix(['-', '+']).unwrap_or(argument);
    let whole = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    match holds {
        Holds::Whole { .. } if !whole => Err(
            "stands in arithmetic or in the name of a variable, where only whole numbers are safe",
        ),
        Holds::Whole { zeros: false } if digits.len() > 1 && digits.starts_with('0') => Err(
            "stands in arithmetic, where a number with leading zeros is octal (10#{} makes it decimal)",
        ),
        Holds::Whole { .. } | Holds::Anything => Ok(()),
    }
}

fn push_escaped(out: &mut String, argument: &str, special: &[char]) {
    for part in argument.split_inclusive(special) {
        let plain = part.trim_end_matches(special);
        out.push_str(plain);
        if plain.len() < part.len() {
            out.extend(["\\", &part[plain.len()..]]);
        }
    }
}

fn is_plain(argument: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_./:@%+-".contains(&b);
    // Bash reads `-n` in `[[ … ]]` as an operator.
    !argument.is_empty()
        && !argument.starts_with('-')
        && argument.bytes().all(plain)
        && !RESERVED.contains(&argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_quoted_for_their_place() {
        let plain = Quotes::None { always: false };
        let always = Quotes::None { always: true };
        let double = Quotes::Double { after_name: false };
        let after_name = Quotes::Double { after_name: true };
        let rows = [
            ("a.log", plain, "a.log"),
            ("a.log", always, "'a.log'"),
            ("", plain, "''"),
            ("a b", plain, "'a b'"),
            ("time", plain, "'time'"),
            ("-n", plain, "'-n'"),
            ("a-n", plain, "a-n"),
            ("a=b", plain, "'a=b'"),
            ("~", plain, "'~'"),
            ("a,b", plain, "'a,b'"),
            ("it's", plain, "'it'\\''s'"),
            ("'", plain, "''\\'''"),
            ("line\nbreak\t", plain, "'line\nbreak\t'"),
            ("it's", Quotes::Single, "it'\\''s"),
            ("\"$x\"", Quotes::Single, "\"$x\""),
            ("", Quotes::Single, ""),
            ("$(x) `y` \"z\" \\", double, "\\$(x) \\`y\\` \\\"z\\\" \\\\"),
            ("$$", double, "\\$\\$"),
            ("it's", double, "it's"),
            ("a", after_name, "\"\"a"),
            ("it's \\n", Quotes::Dollar, "it\\'s \\\\n"),
            ("-17", Quotes::Arithmetic, "-17"),
        ];
        for (argument, quotes, expected) in rows {
            let mut out = String::new();
            push(&mut out, argument, quotes);
            assert_eq!(out, expected, "{argument:?} {quotes:?}");
        }
        let whole = Holds::Whole { zeros: false };
        for (argument, fits) in [
            ("17", true),
            ("-1", true),
            ("0", true),
            ("-0", true),
            ("10", true),
            ("007", false),
            ("-08", false),
            ("00", false),
            ("a[$(id)]", false),
            ("", false),
        ] {
            assert_eq!(check(whole, argument).is_ok(), fits, "{argument}");
            assert_eq!(check(Holds::Anything, argument), Ok(()));
        }
        let zeros = Holds::Whole { zeros: true };
        assert_eq!(check(zeros, "007"), Ok(()));
        assert!(check(zeros, "x").is_err());
    }
}
