//! Exit statuses of `coordinator`, as its help and the README document them; sysexits(3) numbers
//! where one fits.

pub use mezcal_common::model::escape::chain;

/// A job, or the command on some host, did not exit with 0.
pub const FAILED: u8 = 1;
/// Usage, or bad input: nothing was started.
pub const USAGE: u8 = 2;
/// The coordinator cannot be reached or refused us, or no agent came.
pub const UNREACHABLE: u8 = 3;
/// A bug (EX_SOFTWARE).
pub const BUG: u8 = 70;
/// Output cannot be written (EX_IOERR).
pub const OUTPUT: u8 = 74;
pub use mezcal_common::system::output::PIPE;

/// An error with its exit status.
#[derive(Debug)]
pub struct Exit {
    /// A constant of this module.
    pub status: u8,
    /// For the user; empty if everything has been printed.
    pub message: String,
}

impl Exit {
    /// An error of usage or input.
    pub fn usage(message: impl std::fmt::Display) -> Self {
        Self {
            status: USAGE,
            message: message.to_string(),
        }
    }

    /// The coordinator or agents cannot be reached, or permission is refused.
    pub fn unreachable(message: impl std::fmt::Display) -> Self {
        Self {
            status: UNREACHABLE,
            message: message.to_string(),
        }
    }

    /// Standard output or error took no more. A reader that has left needs no message.
    pub fn unwritten(e: &std::io::Error) -> Self {
        match e.kind() {
            std::io::ErrorKind::BrokenPipe => Self {
                status: PIPE,
                message: String::new(),
            },
            _ => Self::output(format!("cannot write output: {e}")),
        }
    }

    /// Output that cannot be written.
    pub fn output(message: impl std::fmt::Display) -> Self {
        Self {
            status: OUTPUT,
            message: message.to_string(),
        }
    }
}
