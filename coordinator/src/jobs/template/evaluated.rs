//! Where bash evaluates an argument in spite of its quotes: as arithmetic, or as the name of a
//! variable, in whose subscript it would run commands. Only whole numbers are safe there.
//!
//! Rather too many places count than too few.

/// Options and operators of `[[ … ]]` beside which bash evaluates.
const OPERATORS: [&str; 8] = ["-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-v", "-R"];

/// Builtins that evaluate words, and which.
const BUILTINS: [(&str, Kind); 14] = [
    ("let", Kind::All),
    ("[[", Kind::Condition),
    ("unset", Kind::Names),
    ("read", Kind::Names),
    ("mapfile", Kind::Names),
    ("readarray", Kind::Names),
    ("declare", Kind::Names),
    ("typeset", Kind::Names),
    ("local", Kind::Names),
    ("readonly", Kind::Names),
    ("export", Kind::Names),
    ("printf", Kind::Option),
    ("test", Kind::Option),
    ("[", Kind::Option),
];

/// Variables that evaluate what is assigned to them.
const INTEGERS: [&str; 6] = [
    "RANDOM", "SRANDOM", "OPTIND", "HISTCMD", "SECONDS", "LINENO",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// All words.
    All,
    /// All words of `[[ … ]]`, if one of them is an operator of arithmetic.
    Condition,
    /// Words without `=` before the place.
    Names,
    /// The word after `-v`.
    Option,
    /// `name[…]`
    Subscript,
}

/// Something that evaluates.
#[derive(Clone, Copy, Debug)]
struct Open {
    kind: Kind,
    /// So many things surround it.
    depth: usize,
    /// Where it begins in the template, and where the last word in it does.
    start: usize,
    word: usize,
}

/// What evaluates at some place of a template.
#[derive(Debug, Default)]
pub(super) struct Evaluated {
    open: Vec<Open>,
    /// A variable has been made that evaluates all that is assigned to it.
    integers: bool,
    /// `x=(` has been there, within which even `[ 1]` is a subscript.
    arrays: bool,
}

impl Evaluated {
    /// Takes note of the word that begins at `at`, if one does, and says whether it evaluates.
    pub(super) fn word(&mut self, template: &str, at: usize, depth: usize, begins: bool) -> bool {
        if !begins {
            return false;
        }
        // Quotes do not make another command of it.
        let ends = |c| is_blank(c) || ";&|()<>".contains(c);
        let word = plain(template[at..].split(ends).next().unwrap_or_default());
        let variable = word.split(['=', '+']).next().unwrap_or_default();
        self.integers |= INTEGERS.contains(&variable);
        let Some((_, kind)) = BUILTINS.iter().find(|(name, _)| *name == word) else {
            return false;
        };
        self.push(*kind, at, depth);
        self.integers |= *kind == Kind::Names && makes_integers(&plain(&template[at..]));
        true
    }

    fn push(&mut self, kind: Kind, at: usize, depth: usize) {
        let (start, word) = (at, at);
        self.open.push(Open {
            kind,
            depth,
            start,
            word,
        });
    }

    /// Whether a subscript is open.
    pub(super) fn in_subscript(&self) -> bool {
        self.open.iter().any(|open| open.kind == Kind::Subscript)
    }

    /// Whether # may mean itself after a blank: within `[[ … ]]` and subscripts.
    pub(super) fn takes_signs(&self) -> bool {
        let takes = |open: &Open| matches!(open.kind, Kind::Condition | Kind::Subscript);
        self.open.iter().any(takes)
    }

    /// Takes note of an unquoted character of a command: that at `at`, within so many things.
    /// `begins`: a word begins there.
    pub(super) fn note(&mut self, template: &str, at: usize, depth: usize, begins: bool) {
        let (before, rest) = template.split_at(at);
        let redirects = before.ends_with(['<', '>']);
        let element = self.arrays && rest.starts_with('[');
        if self.word(template, at, depth, begins) && !element {
            return;
        }
        match rest.chars().next() {
            Some('[') => {
                let named = before.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
                let test = !self.arrays && rest[1..].starts_with(|c| is_blank(c) || c == '[');
                if named || depth > 0 && !test {
                    self.push(Kind::Subscript, at, depth);
                }
            }
            Some(']') if begins && rest.starts_with("]]") => self.end(depth, Kind::Condition),
            Some(']') => {
                let subscript = |open: &Open| open.kind == Kind::Subscript && open.depth == depth;
                if let Some(last) = self.open.iter().rposition(subscript) {
                    self.open.remove(last);
                }
            }
            // In a condition it groups.
            Some('(') if !redirects => {
                self.arrays |= before.ends_with('=');
                let group = |open: &&Open| open.kind == Kind::Condition && open.depth == depth;
                let group = self.open.iter().find(group).copied();
                self.open.extend(group.map(|open| Open {
                    depth: depth + 1,
                    ..open
                }));
            }
            Some('\n' | ';' | '&' | '|') if !redirects => {
                let stays = |open: &Open| {
                    open.depth < depth || matches!(open.kind, Kind::Condition | Kind::Subscript)
                };
                self.open.retain(stays);
            }
            Some(c) if is_blank(c) => {
                let here = self.open.iter_mut().filter(|open| open.depth == depth);
                here.for_each(|open| open.word = at + 1);
            }
            Some(_) | None => {}
        }
    }

    fn end(&mut self, depth: usize, kind: Kind) {
        self.open
            .retain(|open| open.depth < depth || open.kind != kind);
    }

    /// Something ended, and so many things are left.
    pub(super) fn leave(&mut self, depth: usize) {
        self.open.retain(|open| open.depth <= depth);
    }

    /// Whether bash evaluates what stands at `at`. `depth`: so many of the things around it are
    /// outside of the innermost command. `quoted`: it is within quotes.
    pub(super) fn evaluates(&self, template: &str, at: usize, depth: usize, quoted: bool) -> bool {
        let (before, rest) = template.split_at(at);
        let evaluates = |open: &Open| {
            let (earlier, word) = before[open.start..].split_at(open.word - open.start);
            match open.kind {
                Kind::All | Kind::Subscript => true,
                Kind::Condition => {
                    let after = rest.split(" ]]").next().unwrap_or_default();
                    let all = before[open.start..].split_whitespace();
                    // A quoted text may look like the end of the condition.
                    let odd = |quote| !after.matches(quote).count().is_multiple_of(2);
                    all.chain(after.split_whitespace())
                        .any(|word| OPERATORS.contains(&word))
                        || quoted != (odd('"') || odd('\''))
                }
                Kind::Names => !word.contains('=') && !earlier.trim_end().ends_with(['<', '>']),
                Kind::Option => {
                    word.starts_with("-v") || earlier.split_whitespace().next_back() == Some("-v")
                }
            }
        };
        let mut here = self.open.iter().filter(|open| open.depth >= depth);
        self.integers || here.any(evaluates)
    }
}

/// Whether a `declare` with which `rest` begins makes variables that evaluate what they are given.
fn makes_integers(rest: &str) -> bool {
    let options = rest.split_whitespace().skip(1);
    let mut options = options.take_while(|word| word.starts_with('-'));
    let builtin = rest.split_whitespace().next().unwrap_or_default();
    matches!(
        builtin,
        "declare" | "typeset" | "local" | "readonly" | "export"
    ) && options.any(|word| word.contains(['i', 'n', 'a', 'A']))
}

/// Text without quotes.
fn plain(text: &str) -> String {
    let text = text.replace("$'", "").replace("$\"", "");
    text.replace(['\\', '\'', '"'], "")
}

fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace()
}
