//! Standard output of commands, whose reader may have left: `println!` would panic then.

use crate::model::escape::json_for_terminal;
use std::fmt::Display;
use std::io::{Error, ErrorKind, IsTerminal, Write};

/// The exit status of a program whose output had no reader left: 128 + SIGPIPE.
pub const PIPE: u8 = 141;

/// Standard output took no more.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
pub struct Unwritten(#[from] pub Error);

impl Unwritten {
    /// Whether the reader has left (`… | head`): that needs no message, and status [`PIPE`].
    pub fn has_no_reader(&self) -> bool {
        self.0.kind() == ErrorKind::BrokenPipe
    }
}

/// Writes JSON, or lines whose cells are safe. A terminal gets no character that it might obey.
///
/// # Errors
/// It cannot be written.
pub fn show(text: &str) -> Result<(), Unwritten> {
    let mut out = std::io::stdout().lock();
    let text = if out.is_terminal() {
        json_for_terminal(text)
    } else {
        text.into()
    };
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes a line.
///
/// # Errors
/// It cannot be written.
pub fn print(line: impl Display) -> Result<(), Unwritten> {
    show(&format!("{line}\n"))
}
