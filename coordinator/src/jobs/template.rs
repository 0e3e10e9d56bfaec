//! Templates: a command with replacement strings, and the sources of their arguments, which together
//! make a job list.
//!
//! ```text
//!  words of the command line ── words ──▶ template ── shell, pieces ──▶ pieces ─┐
//!                                └──────▶ sources ─── source, sources ──────────┴─▶ the nth job
//! ```
//!
//! A **core**: files are read elsewhere. Jobs are made by their number when they are needed, so that
//! a million jobs cost their arguments.

mod array;
mod ends;
mod evaluated;
mod pieces;
mod quote;
mod shell;
mod source;
mod sources;
mod strings;
mod words;

pub use array::Array;
pub use source::{ColumnSeparator, Source};
pub use sources::{Manner, Sources};
pub use words::{Named, Origin, check, sources, split};

use super::object::write_octets;
use mezcal_common::model::escape::{for_terminal, shell_word};
use mezcal_common::model::job::Command;
use pieces::{Braces, Piece, Place};
use quote::{Holds, Quotes};
use std::borrow::Cow;
use strings::{Cut, Stands, Which};

/// The slot of a job, from 1, as the shell of the job finds it: `MEZCAL_SLOT` counts from 0.
const SLOT: &str = "$((MEZCAL_SLOT + 1))";

/// A template with its arguments.
#[derive(Debug)]
pub struct Template {
    form: Form,
    sources: Sources,
    warnings: Vec<String>,
}

/// How a job is started.
#[derive(Debug)]
enum Form {
    /// By a shell, which reads this.
    Shell(Vec<Piece>),
    /// Without one, from these words.
    Argv(Vec<Vec<Piece>>),
}

/// The arguments of a job by their position.
type Arguments<'a> = [Option<Cow<'a, str>>];

impl Template {
    /// The template of these words, in the form of octets: one is a command for a shell, several
    /// are a program and its arguments.
    ///
    /// # Errors
    /// A line for the user.
    pub fn new(words: &[String], sources: Sources) -> Result<Self, String> {
        let names = sources.names();
        let braces = Braces::new(&names);
        let form = match words {
            [command] => Form::Shell(shell::pieces(command, &braces)?),
            words => argv(words, &braces)?,
        };
        let template = Self {
            warnings: warnings(words, &form),
            form,
            sources,
        };
        if template.jobs() > 0 {
            for place in template.places() {
                if let Stands::Argument(Which::Position(position), _) = place.stands {
                    template.sources.check(position, &place.text)?;
                }
            }
        }
        Ok(template)
    }

    /// The number of jobs.
    pub fn jobs(&self) -> usize {
        self.sources.jobs()
    }

    /// Oddities that are not mistakes, in lines for the user.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The command of a job, from 1.
    pub(super) fn command(&self, number: u32) -> Command {
        self.filled(number, &self.arguments(number))
    }

    /// A job, from 1, as a JSON object with its command and `args`, its arguments.
    pub(super) fn object(&self, number: u32) -> String {
        let arguments = self.arguments(number);
        let mut out = Vec::new();
        let list = |out: &mut Vec<u8>, words: &mut dyn Iterator<Item = &str>| {
            for (at, word) in words.enumerate() {
                out.extend_from_slice(if at == 0 { b"" } else { b", " });
                write_octets(out, word);
            }
        };
        match self.filled(number, &arguments) {
            Command::Shell(command) => {
                out.extend_from_slice(b"{\"cmd\": ");
                write_octets(&mut out, &command);
            }
            Command::Argv(words) => {
                out.extend_from_slice(b"{\"argv\": [");
                list(&mut out, &mut words.iter().map(String::as_str));
                out.push(b']');
            }
        }
        out.extend_from_slice(b", \"args\": [");
        list(
            &mut out,
            &mut arguments.iter().flatten().map(|argument| &**argument),
        );
        out.extend_from_slice(b"]}");
        // JSON is UTF-8.
        String::from_utf8(out).unwrap_or_default()
    }

    /// A bound for the length of the commands of all jobs; `None`: each has to be looked at anyway.
    pub(super) fn longest(&self) -> Option<usize> {
        let (sum, longest) = self.sources.longest();
        // Of one character four can become by quotes, and quotes and blanks surround an argument.
        let quoted = |bytes: usize, arguments: usize| {
            bytes
                .saturating_mul(4)
                .saturating_add(arguments.saturating_mul(12))
        };
        let place = |place: &Place| match (place.holds, place.stands) {
            (Holds::Whole { .. }, Stands::Argument(..)) => None,
            (_, Stands::Argument(Which::All, _)) => Some(quoted(sum, self.sources.most())),
            (_, Stands::Argument(Which::Position(_), _)) => Some(quoted(longest, 1)),
            (_, Stands::Number | Stands::Slot) => Some(quoted(SLOT.len(), 1)),
        };
        let length = |piece: &Piece| match piece {
            Piece::Text(text) => Some(text.len()),
            Piece::Place(here) => place(here),
        };
        let lengths: Option<Vec<usize>> = self.pieces().map(length).collect();
        Some(lengths?.into_iter().fold(0, usize::saturating_add))
    }

    /// Why a job, from 1, cannot be made: an argument cannot stand where it should.
    ///
    /// # Errors
    /// A line for the user.
    pub(super) fn check_job(&self, number: u32) -> Result<(), String> {
        let arguments = self.arguments(number);
        for place in self.places() {
            let Stands::Argument(which, cut) = place.stands else {
                continue;
            };
            let mut arguments = chosen(&arguments, which).map(|argument| cut.of(argument));
            let wrong = arguments
                .find_map(|argument| Some((quote::check(place.holds, argument).err()?, argument)));
            if let Some((why, argument)) = wrong {
                return Err(format!(
                    "{} {why}, and would be {:?}",
                    for_terminal(&place.text),
                    mezcal_common::model::octets::shown(argument)
                ));
            }
        }
        Ok(())
    }

    fn arguments(&self, number: u32) -> Vec<Option<Cow<'_, str>>> {
        self.sources.of_job(number as usize - 1)
    }

    fn pieces(&self) -> impl Iterator<Item = &Piece> {
        let (command, words): (&[Piece], &[Vec<Piece>]) = match &self.form {
            Form::Shell(pieces) => (pieces, &[]),
            Form::Argv(words) => (&[], words),
        };
        command.iter().chain(words.iter().flatten())
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        self.pieces().filter_map(|piece| match piece {
            Piece::Place(place) => Some(place),
            Piece::Text(_) => None,
        })
    }

    fn filled(&self, number: u32, arguments: &Arguments<'_>) -> Command {
        match &self.form {
            Form::Shell(pieces) => {
                let mut out = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Text(text) => out.push_str(text),
                        Piece::Place(place) => push_quoted(&mut out, place, number, arguments),
                    }
                }
                Command::Shell(out)
            }
            Form::Argv(words) => {
                let mut out = Vec::with_capacity(words.len());
                words
                    .iter()
                    .for_each(|pieces| push_words(&mut out, pieces, number, arguments));
                Command::Argv(out)
            }
        }
    }
}

/// The arguments that are meant; an argument that a job lacks is empty.
fn chosen<'a>(arguments: &'a Arguments<'_>, which: Which) -> impl Iterator<Item = &'a str> {
    let (all, one) = match which {
        Which::All => (Some(arguments.iter().flatten()), None),
        Which::Position(position) => {
            let argument = arguments.get(position as usize - 1);
            (
                None,
                Some(argument.and_then(Option::as_deref).unwrap_or("")),
            )
        }
    };
    all.into_iter()
        .flatten()
        .map(|argument| &**argument)
        .chain(one)
}

/// Appends what a shell reads as the arguments that are meant.
fn push_quoted(out: &mut String, place: &Place, number: u32, arguments: &Arguments<'_>) {
    match place.stands {
        Stands::Argument(which, cut) => {
            for (at, argument) in chosen(arguments, which).enumerate() {
                out.push_str(if at == 0 { "" } else { " " });
                quote::push(out, cut.of(argument), place.quotes);
            }
        }
        Stands::Number => quote::push(out, &number.to_string(), place.quotes),
        Stands::Slot => match place.quotes {
            Quotes::None { .. } | Quotes::Double { .. } | Quotes::Arithmetic => out.push_str(SLOT),
            Quotes::Single | Quotes::Dollar => out.extend(["'", SLOT, "'"]),
        },
    }
}

/// Appends the words of one word of a template: several arguments make several words.
fn push_words(out: &mut Vec<String>, pieces: &[Piece], number: u32, arguments: &Arguments<'_>) {
    let mut word = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => word.push_str(text),
            Piece::Place(place) => match place.stands {
                Stands::Argument(which, cut) => {
                    for (at, argument) in chosen(arguments, which).enumerate() {
                        if at > 0 {
                            out.push(std::mem::take(&mut word));
                        }
                        word.push_str(cut.of(argument));
                    }
                }
                Stands::Number => word.push_str(&number.to_string()),
                // `argv` leaves such a template to a shell.
                Stands::Slot => {}
            },
        }
    }
    out.push(word);
}

/// What is odd about a template of several words that starts a shell, or of one with `trap`.
fn warnings(words: &[String], form: &Form) -> Vec<String> {
    if let Form::Shell(pieces) = form {
        return in_a_trap(pieces).into_iter().collect();
    }
    let (Form::Argv(pieces), [program, option, script, ..]) = (form, words) else {
        return Vec::new();
    };
    let name = Cut::Base.of(program);
    let is_shell = matches!(name, "sh" | "bash" | "dash" | "zsh" | "ksh");
    let runs_script = option.starts_with('-') && option.ends_with('c');
    let place = pieces[2].iter().find_map(|piece| match piece {
        Piece::Place(place) => Some(for_terminal(&place.text)),
        Piece::Text(_) => None,
    });
    match place {
        Some(text) if is_shell && runs_script => vec![format!(
            "{text} in {script:?} becomes part of a script, which {name} reads without quotes around the argument; give the script alone, as the one word of a template, or write \"$1\" in it and {text} after it: {program} {option} '… \"$1\"' {name} {text}"
        )],
        Some(_) | None => Vec::new(),
    }
}

/// `trap` with a place among its words.
fn in_a_trap(pieces: &[Piece]) -> Option<String> {
    let mut before = String::new();
    for piece in pieces {
        let place = match piece {
            Piece::Text(text) => {
                before.push_str(text);
                continue;
            }
            Piece::Place(place) => place,
        };
        let separates = |c: char| c.is_ascii_whitespace() || ";&|(){}".contains(c);
        let mut words = before.rmatch_indices("trap").filter(|(at, word)| {
            let (earlier, later) = (&before[..*at], &before[at + word.len()..]);
            let begins = earlier.is_empty() || earlier.ends_with(separates);
            begins && later.starts_with([' ', '\t'])
        });
        let after = words.next().map(|(at, _)| &before[at..]);
        let odd = |text: &str, quote| !text.matches(quote).count().is_multiple_of(2);
        if after.is_some_and(|text| {
            odd(text, '\'') || odd(text, '"') || !text.contains([';', '&', '|', '\n'])
        }) {
            return Some(format!(
                "{} becomes part of a script, which `trap` reads without quotes around the argument; use a variable: x={{}}; trap '… \"$x\"' EXIT",
                for_terminal(&place.text)
            ));
        }
    }
    None
}

/// A template of several words. Only a shell of the job can say its slot: then each word is quoted.
fn argv(words: &[String], braces: &Braces<'_>) -> Result<Form, String> {
    let words = words.iter().map(|word| pieces::of_word(word, braces));
    let words: Vec<pieces::Pieces> = words.collect::<Result<_, _>>()?;
    let none = !words.iter().any(pieces::Pieces::has_places);
    let mut words: Vec<Vec<Piece>> = words.into_iter().map(pieces::Pieces::finish).collect();
    if none {
        words.push(pieces::of_word("{}", braces)?.finish());
    }
    let is_slot = |piece: &Piece| match piece {
        Piece::Place(place) => place.stands == Stands::Slot,
        Piece::Text(_) => false,
    };
    if !words.iter().flatten().any(is_slot) {
        return Ok(Form::Argv(words));
    }
    let mut command = vec![Piece::Text("exec --".to_owned())];
    for word in words {
        command.push(Piece::Text(" ".to_owned()));
        if word.is_empty() {
            command.push(Piece::Text("''".to_owned()));
        }
        command.extend(word.into_iter().map(|piece| match piece {
            Piece::Text(text) => Piece::Text(shell_word(&text)),
            Piece::Place(place) => Piece::Place(Place {
                quotes: Quotes::None { always: true },
                ..place
            }),
        }));
    }
    Ok(Form::Shell(command))
}

#[cfg(test)]
mod tests;
