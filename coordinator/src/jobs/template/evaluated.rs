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
}

impl Evaluated {
    /// Takes note of an unquoted character of a command: that at `at`, within so many things.
    /// `begins`: a word begins there.
    pub(super) fn note(&mut self, template: &str, at: usize, depth: usize, begins: bool) {
        let (before, rest) = template.split_at(at);
        let mut open = |kind| {
            let (start, word) = (at, at);
            self.open.push(Open {
                kind,
                depth,
                start,
                word,
            });
        };
        let redirects = before.ends_with(['<', '>']);
        let builtin = BUILTINS.iter().find(|(name, _)| {
            let after = rest.strip_prefix(name);
            begins && after.is_some_and(|after| after.is_empty() || after.starts_with(is_blank))
        });
        if let Some((_, kind)) = builtin {
            open(*kind);
            self.integers |= *kind == Kind::Names && makes_integers(rest);
            return;
        }
        match rest.chars().next() {
            Some('[') => {
                let named = before.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
                if named || depth > 0 && !rest[1..].starts_with(|c| is_blank(c) || c == '[') {
                    open(Kind::Subscript);
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
                let group = |open: &&Open| open.kind == Kind::Condition && open.depth == depth;
                let group = self.open.iter().find(group).copied();
                self.open.extend(group.map(|open| Open {
                    depth: depth + 1,
                    ..open
                }));
            }
            Some('\n' | ';' | '&' | '|') if !redirects => {
                let stays = |open: &Open| open.depth < depth || open.kind == Kind::Condition;
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
                Kind::Option => word.starts_with("-v") || earlier.trim_end().ends_with(" -v"),
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
    ) && options.any(|word| word.contains(['i', 'n']))
}

fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace()
}
