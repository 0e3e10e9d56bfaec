//! A template as a shell reads it: which quotes surround each replacement string. Where an argument
//! cannot be kept from being read as something else, the template is refused.

use super::ends::{backslashes, ends_in_escape, ends_with_name};
use super::evaluated::Evaluated;
use super::pieces::{Braces, Piece, Pieces, Place};
use super::quote::{Holds, Quotes};
use super::strings::{Cut, Stands, Which, is_no_parameter};
use mezcal_common::model::escape::for_terminal;

/// What surrounds a place, from the outside to the inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    /// `(…)`, `$(…)`, `<(…)`: commands.
    Parentheses,
    /// `'…'`
    Single,
    /// `"…"`, `$"…"`
    Double,
    /// `$'…'`
    Dollar,
    /// `${…}`
    Parameter,
    /// `$((…))`, `((…))`, with so many parentheses within that are open; `$[…]`.
    Arithmetic { open: u32, bracket: bool },
    /// `` `…` ``
    Backquotes,
    /// `# …`
    Comment,
}

/// The pieces of a shell command. Without a place for arguments, they come last.
///
/// # Errors
/// A line for the user.
pub(super) fn pieces(template: &str, braces: &Braces<'_>) -> Result<Vec<Piece>, String> {
    let mut reading = read(template, braces)?;
    if !reading.pieces.has_places() {
        // Arguments come before line breaks at the end, which may end a comment.
        reading = read(template.trim_ascii_end(), reading.braces)?;
        reading.append()?;
    }
    Ok(reading.pieces.finish())
}

fn read<'t, 'b, 'n>(
    template: &'t str,
    braces: &'b Braces<'n>,
) -> Result<Reading<'t, 'b, 'n>, String> {
    let mut reading = Reading {
        template,
        at: 0,
        inside: Vec::new(),
        pieces: Pieces::default(),
        here: Here::None,
        unsure: None,
        duplicates: None,
        patterns: false,
        evaluated: Evaluated::default(),
        braces,
    };
    while reading.at < template.len() {
        reading.step()?;
    }
    Ok(reading)
}

/// Why no place can come after something.
const TANGLED: &str = "comes after something that only bash itself can take apart (`case` or quotes in ${…} within \"…\", `((…` that is no arithmetic); use it before, as in `x={}; …`";
const UNSURE_COMMENT: &str = "comes after a # that may begin a comment or not; put a blank before # if it does, and quotes around it if it does not";
const LONG_COMMENT: &str =
    "comes after a comment with a backslash at its end; put something after the backslash";

/// Whether a here-document has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Here {
    None,
    /// Its operator has been there; it begins after the line.
    Announced,
    Begun,
}

struct Reading<'t, 'b, 'n> {
    template: &'t str,
    at: usize,
    inside: Vec<Inside>,
    pieces: Pieces,
    here: Here,
    /// Something has been there after which it is uncertain what is within what: why no place can
    /// come after it.
    unsure: Option<&'static str>,
    /// The word after `>&` is being read: within so many things, and after so much text.
    duplicates: Option<(usize, usize)>,
    /// There has been a pattern as `!(…)`, in which # means itself.
    patterns: bool,
    evaluated: Evaluated,
    braces: &'b Braces<'n>,
}

impl<'t> Reading<'t, '_, '_> {
    fn rest(&self) -> &'t str {
        &self.template[self.at..]
    }

    /// Takes this many bytes as text that stays.
    fn take(&mut self, length: usize) {
        self.pieces.text(&self.rest()[..length]);
        self.at += length;
    }

    fn take_char(&mut self) {
        self.take(self.rest().chars().next().map_or(0, char::len_utf8));
    }

    /// Takes a backslash and the character after it.
    fn take_escaped(&mut self) {
        self.take(1);
        self.take_char();
    }

    /// Takes a backslash. Two lines that it joins are read as one, as the shell does; where they
    /// could be joined in the middle of something, the template is refused.
    fn backslash(&mut self) -> Result<(), String> {
        let single = self.inside.last() == Some(&Inside::Single);
        // Nothing is ours after a here-document has begun.
        if !self.rest().starts_with("\\\n") || self.here == Here::Begun || single {
            self.take_escaped();
            return Ok(());
        }
        let joins = match self.inside.last() {
            None | Some(Inside::Parentheses | Inside::Double | Inside::Arithmetic { .. }) => {
                self.unsure.is_none()
            }
            Some(
                Inside::Single
                | Inside::Dollar
                | Inside::Parameter
                | Inside::Backquotes
                | Inside::Comment,
            ) => false,
        };
        if !joins || !self.pieces.last_text().ends_with([' ', '\t']) {
            let why = "at the end of a line has no blank before it, or stands in ${…}, `…` or $'…'; write it after a blank between two words, or write one line";
            return Err(self.refusal("a backslash", why));
        }
        self.at += 2;
        Ok(())
    }

    fn enter(&mut self, opening: usize, inside: Inside) {
        self.take(opening);
        self.inside.push(inside);
    }

    fn leave(&mut self, closing: usize) {
        self.take(closing);
        self.inside.pop();
        self.evaluated.leave(self.inside.len());
        let depth = self.inside.len();
        self.duplicates = self.duplicates.filter(|(outer, _)| *outer <= depth);
    }

    fn within(&self, inside: Inside) -> bool {
        self.inside.contains(&inside)
    }

    /// Whether a word of a command can begin here.
    fn word_begins(&self) -> bool {
        let text = self.pieces.last_text();
        let Some(before) = text.chars().next_back() else {
            return !self.pieces.ends_with_place();
        };
        let text = &text[..text.len() - before.len_utf8()];
        " \t\n;&|()<>".contains(before) && backslashes(text).is_multiple_of(2)
    }

    /// Reads the next character, or what begins with it.
    fn step(&mut self) -> Result<(), String> {
        let Some(c) = self.rest().chars().next() else {
            return Ok(());
        };
        let inside = self.inside.last().copied();
        if matches!(inside, None | Some(Inside::Parentheses)) && "\\'\"$".contains(c) {
            let begins = self.word_begins();
            self.evaluated
                .word(self.template, self.at, self.inside.len(), begins);
        }
        match inside {
            Some(Inside::Comment) if c == '\n' => self.end_comment(),
            Some(Inside::Single) if c == '\'' => self.leave(1),
            Some(Inside::Single) if self.rest().starts_with("\\'") => self.take(1),
            Some(Inside::Comment) if c == '\\' => self.take(1),
            Some(Inside::Backquotes) if c == '`' => self.leave(1),
            Some(Inside::Dollar) if c == '\'' => self.leave(1),
            Some(Inside::Double) if c == '"' => self.leave(1),
            Some(Inside::Parameter) if c == '}' => self.leave(1),
            Some(Inside::Parentheses) if c == ')' => self.leave(1),
            Some(Inside::Arithmetic { open, bracket })
                if (if bracket { "[]" } else { "()" }).contains(c) =>
            {
                self.arithmetic(c, open, bracket);
            }
            _ if c == '{' => self.brace()?,
            _ if c == '\\' => self.backslash()?,
            Some(Inside::Single | Inside::Dollar | Inside::Comment | Inside::Backquotes) => {
                self.take_char();
            }
            _ if c == '`' => self.enter(1, Inside::Backquotes),
            // Which quotes count there depends on the operator.
            Some(Inside::Parameter) if "'\"".contains(c) && self.within(Inside::Double) => {
                self.unsure = Some(TANGLED);
                self.take(1);
            }
            _ if c == '"' => self.enter(1, Inside::Double),
            _ if c == '$' => self.dollar()?,
            Some(Inside::Double) => self.take_char(),
            _ if c == '\'' => self.enter(1, Inside::Single),
            Some(Inside::Parameter | Inside::Arithmetic { .. }) => self.take_char(),
            Some(Inside::Parentheses) | None => self.command(c),
        }
        Ok(())
    }

    fn end_comment(&mut self) {
        if self.pieces.last_text().ends_with('\\') {
            self.unsure = Some(LONG_COMMENT);
        }
        self.inside.pop();
    }

    /// Reads a parenthesis or bracket in arithmetic.
    fn arithmetic(&mut self, c: char, open: u32, bracket: bool) {
        let changed = |open| Inside::Arithmetic { open, bracket };
        let closing = if bracket { "]" } else { "))" };
        let now = match c {
            '(' | '[' => changed(open + 1),
            _ if open > 0 => changed(open - 1),
            _ if self.rest().starts_with(closing) => return self.leave(closing.len()),
            // It was `$( (…) …)` after all.
            _ => {
                self.unsure = Some(TANGLED);
                Inside::Parentheses
            }
        };
        self.take(1);
        if let Some(top) = self.inside.last_mut() {
            *top = now;
        }
    }

    /// Reads what begins with a dollar sign outside of single quotes.
    fn dollar(&mut self) -> Result<(), String> {
        let rest = self.rest();
        let quoted = self.inside.last() == Some(&Inside::Double);
        let bracket = |bracket| Inside::Arithmetic { open: 0, bracket };
        let length = rest[1..]
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .map_or(rest.len(), |at| at + 1);
        match rest.as_bytes().get(1) {
            Some(b'(') if rest.starts_with("$((") => self.enter(3, bracket(false)),
            Some(b'(') => self.enter(2, Inside::Parentheses),
            Some(b'[') => self.enter(2, bracket(true)),
            Some(b'{') => {
                let content = rest[2..].split('}').next().unwrap_or_default();
                if is_no_parameter(content) && rest[2..].contains('}') {
                    let why = "has a $ before it, which the shell would take together with the argument; write \\$ for the sign itself";
                    return Err(self.refusal(&rest[1..content.len() + 3], why));
                }
                self.enter(2, Inside::Parameter);
            }
            Some(b'\'')
                if self.inside.last() == Some(&Inside::Parameter)
                    && self.within(Inside::Double) =>
            {
                self.unsure = Some(TANGLED);
                self.take(2);
            }
            Some(b'\'') if !quoted => self.enter(2, Inside::Dollar),
            Some(b'0'..=b'9' | b'$' | b'?' | b'#' | b'!' | b'@' | b'*' | b'-') => self.take(2),
            Some(_) | None => self.take(length),
        }
        Ok(())
    }

    /// Reads a character of a command that is in no quotes.
    fn command(&mut self, c: char) {
        let rest = self.rest();
        let begins = self.word_begins();
        self.evaluated
            .note(self.template, self.at, self.inside.len(), begins);
        self.end_duplicate(c);
        let before = self.pieces.last_text();
        self.patterns |= c == '(' && before.ends_with(['?', '*', '+', '@', '!']);
        match c {
            '#' if begins => {
                let glued = !before.is_empty() && !before.ends_with([' ', '\t', '\n']);
                if glued || self.patterns || self.evaluated.takes_signs() {
                    self.unsure = Some(UNSURE_COMMENT);
                }
                self.enter(1, Inside::Comment);
            }
            '<' | '>' if rest[1..].starts_with('&') => {
                self.take(2);
                self.duplicates = Some((self.inside.len(), self.pieces.last_text().len()));
            }
            '(' if rest.starts_with("((") => self.enter(
                2,
                Inside::Arithmetic {
                    open: 0,
                    bracket: false,
                },
            ),
            '(' => self.enter(1, Inside::Parentheses),
            '<' if rest.starts_with("<<<") => self.take(3),
            '<' if rest.starts_with("<<") => {
                self.here = Here::Announced;
                self.take(2);
            }
            '\n' => {
                if self.here == Here::Announced {
                    self.here = Here::Begun;
                }
                self.take(1);
            }
            'c' if begins && self.within(Inside::Double) && rest.starts_with("case") => {
                self.unsure = Some(TANGLED);
                self.take(4);
            }
            _ => self.take_char(),
        }
    }

    /// Takes note of the end of the word after `>&`, if `c` ends it.
    fn end_duplicate(&mut self, c: char) {
        let Some((depth, start)) = self.duplicates else {
            return;
        };
        let word = self.pieces.last_text().get(start..).unwrap_or_default();
        let begun = !word.trim_start().is_empty();
        let ends =
            " \t\n;&|)".contains(c) || "<>".contains(c) && !self.rest()[1..].starts_with('(');
        if depth == self.inside.len() && ends && (begun || c == '\n') {
            self.duplicates = None;
        }
    }

    /// Reads a brace, which may begin a replacement string.
    fn brace(&mut self) -> Result<(), String> {
        let after_dollar = self.pieces.last_text().ends_with('$');
        let rest = self.rest();
        let Some((text, stands)) = self.braces.first(rest, after_dollar)? else {
            self.take(1);
            return Ok(());
        };
        let after = rest[text.len()..].chars().next();
        let quotes = self.quotes(after).map_err(|why| self.refusal(text, why))?;
        self.pieces.place(Place {
            stands,
            quotes,
            holds: self.holds(quotes),
            text: text.to_owned(),
        });
        self.at += text.len();
        Ok(())
    }

    /// The quotes at this place, which `after` comes after.
    ///
    /// # Errors
    /// Why no argument can stand there.
    fn quotes(&self, after: Option<char>) -> Result<Quotes, &'static str> {
        if self.here == Here::Begun {
            return Err(
                "comes after a here-document has begun, where nothing can be quoted; use it before, as in `x={}; …`",
            );
        }
        if self.within(Inside::Backquotes) {
            return Err("stands in `…`, where it cannot be quoted; write $(…)");
        }
        if let Some(why) = self.unsure {
            return Err(why);
        }
        if self.within(Inside::Comment) {
            return Err("stands in a comment");
        }
        if self.within(Inside::Parameter) {
            return Err(
                "stands in ${…}, where it cannot be quoted; use a variable, as in `x={}; …`",
            );
        }
        if self.duplicates.is_some() {
            return Err("comes after >&, where bash reads it twice; write `&>` or `>FILE 2>&1`");
        }
        let arithmetic = |inside: &Inside| matches!(inside, Inside::Arithmetic { .. });
        if self.inside.iter().any(arithmetic) {
            return Ok(Quotes::Arithmetic);
        }
        let before = self.pieces.last_text();
        let after_name = ends_with_name(before);
        if self.inside.last() == Some(&Inside::Dollar) && ends_in_escape(before) {
            return Err("comes after an escape that would go on with it; end the quotes before it");
        }
        Ok(match self.inside.last() {
            Some(Inside::Single) => Quotes::Single,
            Some(Inside::Dollar) => Quotes::Dollar,
            Some(Inside::Double) => Quotes::Double { after_name },
            Some(
                Inside::Parentheses
                | Inside::Parameter
                | Inside::Arithmetic { .. }
                | Inside::Backquotes
                | Inside::Comment,
            )
            | None => {
                let joins = |c: char| c.is_alphanumeric() || "_{<>~".contains(c);
                // In a subscript quotes are no part of numbers.
                let sums = !self.evaluated.in_subscript();
                let joins_before = |c| joins(c) || ".,(".contains(c) || sums && "+-".contains(c);
                let joins_after = |c| joins(c) || "}([=".contains(c) || sums && c == '+';
                let always = self.pieces.ends_with_place()
                    || before.ends_with(joins_before)
                    || after.is_some_and(joins_after);
                Quotes::None { always }
            }
        })
    }

    /// What an argument can be at this place, in these quotes.
    fn holds(&self, quotes: Quotes) -> Holds {
        let command = |inside: &Inside| *inside == Inside::Parentheses;
        // A command of its own within something that evaluates only has its output evaluated.
        let depth = self.inside.iter().rposition(command).map_or(0, |at| at + 1);
        let quoted = matches!(
            quotes,
            Quotes::Single | Quotes::Double { .. } | Quotes::Dollar
        );
        let evaluates = quotes == Quotes::Arithmetic
            || self
                .evaluated
                .evaluates(self.template, self.at, depth, quoted);
        let zeros = self.pieces.last_text().ends_with("10#");
        match evaluates {
            true => Holds::Whole { zeros },
            false => Holds::Anything,
        }
    }

    /// Puts all arguments at the end.
    fn append(&mut self) -> Result<(), String> {
        if let Some(why) = self.unsure {
            return Err(self.refusal("{}, which comes last,", why));
        }
        let why = match self.inside.last() {
            _ if self.duplicates.is_some_and(|(_, start)| {
                let word = self.pieces.last_text().get(start..);
                word.is_none_or(|word| word.trim_start().is_empty())
            }) =>
            {
                Some(">&")
            }
            _ if self.here != Here::None => Some("a here-document"),
            _ if backslashes(self.template) % 2 == 1 => Some("a backslash"),
            Some(Inside::Comment) => Some("a comment"),
            Some(
                Inside::Parentheses
                | Inside::Single
                | Inside::Double
                | Inside::Dollar
                | Inside::Parameter
                | Inside::Arithmetic { .. }
                | Inside::Backquotes,
            ) => Some("something that is not closed"),
            None => None,
        };
        if let Some(what) = why {
            return Err(format!(
                "the template has no {{}}, and the arguments cannot come last, because it ends with {what}"
            ));
        }
        let holds = self.holds(Quotes::None { always: false });
        self.pieces.text(" ");
        self.pieces.place(Place {
            stands: Stands::Argument(Which::All, Cut::Whole),
            quotes: Quotes::None { always: false },
            holds,
            text: "{}".to_owned(),
        });
        Ok(())
    }

    fn refusal(&self, text: &str, why: &str) -> String {
        let column = self.template[..self.at].chars().count() + 1;
        let text = for_terminal(text);
        format!("character {column} of the template: {text} {why}")
    }
}
