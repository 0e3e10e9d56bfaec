//! The coordinator, which alone knows where every job is, and the verbs of its command line.
//!
//! [`scheduler::Scheduler`] decides; [`service`] carries its decisions out for agents and clients;
//! the other modules are clients.

/// A line on standard error, if that has a reader: `eprintln!` would panic without one, and the
/// results would be lost.
macro_rules! tell {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($text)*)));
    }};
}

pub mod cli;
pub mod client;
pub mod exit;
pub mod jobs;
pub mod report;
pub mod scheduler;
pub mod service;
pub mod store;
pub mod verb;
