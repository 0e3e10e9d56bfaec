//! The coordinator: owns the truth of which job is where, and the verbs of its command line.
//!
//! [`scheduler::Scheduler`] decides; [`service`] performs what it decides for agents and clients; the rest are clients.

/// A line on standard error, if anybody reads that: unlike `eprintln!`, whose panic would take the results along.
macro_rules! tell {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($text)*)));
    }};
}

pub mod batches;
pub mod cancel;
pub mod cli;
pub mod client;
pub mod complete;
pub mod describe;
pub mod detach;
pub mod doctor;
pub mod embedded;
pub mod enrol;
pub mod exec;
pub mod exit;
pub mod follow;
pub mod format;
pub mod halt;
pub mod hosts;
pub mod http;
pub mod jobs;
pub mod locate;
pub mod logs;
pub mod manage;
pub mod members;
mod memory;
pub mod note;
pub mod output;
pub mod outputs;
pub mod profile;
pub mod progress;
pub mod provision;
pub mod resume;
pub mod run;
pub mod scheduler;
pub mod serve;
pub mod service;
mod signals;
pub mod store;
mod stream;
pub mod submit;
pub mod why;
