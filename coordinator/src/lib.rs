//! The coordinator: owns the truth of which job is where, and the verbs of its command line.
//!
//! [`scheduler::Scheduler`] decides; [`service`] performs what it decides for agents and clients;
//! the rest are clients.

/// A line on standard error, if anybody reads that: unlike `eprintln!`, whose panic would take the
/// results along.
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
