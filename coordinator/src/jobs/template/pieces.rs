//! The pieces of a template: text that stays, and places that arguments take.

use super::quote::{Holds, Quotes};
use super::strings::{self, Stands};
use mezcal_common::model::escape::for_terminal;

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Text that stays as it is.
    Text(String),
    /// A replacement string.
    Place(Place),
}

/// A replacement string in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) stands: Stands,
    /// What surrounds it in a shell command.
    pub(super) quotes: Quotes,
    /// What it can stand for.
    pub(super) holds: Holds,
    /// The replacement string itself, for messages.
    pub(super) text: String,
}

/// Pieces under way.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    done: Vec<Piece>,
    text: String,
}

impl Pieces {
    pub(super) fn text(&mut self, text: &str) {
        self.text.push_str(text);
    }

    pub(super) fn place(&mut self, place: Place) {
        self.end_text();
        self.done.push(Piece::Place(place));
    }

    /// Whether a place comes directly before.
    pub(super) fn ends_with_place(&self) -> bool {
        self.text.is_empty() && !self.done.is_empty()
    }

    /// The text since the last place.
    pub(super) fn last_text(&self) -> &str {
        &self.text
    }

    pub(super) fn has_places(&self) -> bool {
        self.done
            .iter()
            .any(|piece| matches!(piece, Piece::Place(_)))
    }

    pub(super) fn finish(mut self) -> Vec<Piece> {
        self.end_text();
        self.done
    }

    fn end_text(&mut self) {
        if !self.text.is_empty() {
            self.done.push(Piece::Text(std::mem::take(&mut self.text)));
        }
    }
}

/// Braces in a template: replacement strings, and slips.
#[derive(Debug)]
pub(super) struct Braces<'n> {
    names: &'n [String],
}

impl<'n> Braces<'n> {
    /// `names`: of the columns.
    pub(super) fn new(names: &'n [String]) -> Self {
        Self { names }
    }

    /// The replacement string with which `rest` begins, and what it stands for. After a `$` it
    /// would be a parameter of a shell: `${x}`, `${1}`.
    ///
    /// # Errors
    /// The name in it is that of two columns, or nearly that of one.
    pub(super) fn first<'t>(
        &self,
        rest: &'t str,
        after_dollar: bool,
    ) -> Result<Option<(&'t str, Stands)>, String> {
        let inner = rest.strip_prefix('{').unwrap_or_default();
        let Some(content) = inner.find('}').map(|end| &inner[..end]) else {
            return Ok(None);
        };
        if after_dollar && !strings::is_no_parameter(content) {
            return Ok(None);
        }
        let text = &rest[..content.len() + 2];
        let shown = for_terminal(text);
        let read = strings::read(content, self.names).map_err(|why| format!("{shown}: {why}"))?;
        if let (None, Some(name)) = (read, strings::near(content, self.names)) {
            let name = for_terminal(name);
            return Err(format!(
                "{shown} in the template: no column is called so; is {{{name}}} meant?"
            ));
        }
        Ok(read.map(|stands| (text, stands)))
    }
}

/// The pieces of a word that no shell reads. A brace after a backslash is not ours.
///
/// # Errors
/// A line for the user.
pub(super) fn of_word(word: &str, braces: &Braces<'_>) -> Result<Pieces, String> {
    let mut pieces = Pieces::default();
    let mut rest = word;
    while let Some(c) = rest.chars().next() {
        let after_dollar = pieces.last_text().ends_with('$');
        let place = match c {
            '{' => braces.first(rest, after_dollar)?,
            _ => None,
        };
        let length = match place {
            Some((text, stands)) => {
                pieces.place(Place {
                    stands,
                    quotes: Quotes::Single,
                    holds: Holds::Anything,
                    text: text.to_owned(),
                });
                text.len()
            }
            None => {
                let escaped = if c == '\\' { rest.chars().nth(1) } else { None };
                let length = c.len_utf8() + escaped.map_or(0, char::len_utf8);
                pieces.text(&rest[..length]);
                length
            }
        };
        rest = &rest[length..];
    }
    Ok(pieces)
}
