//! The coordinator, which alone knows where every job is, and the verbs of its command line.
//!
//! [`scheduler::Scheduler`] decides; [`service`] carries its decisions out for agents and clients;
//! the other modules are clients.

// A reader that has left must not end a program by a panic: `tell!`, and what returns an error.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

#[macro_use(tell)]
extern crate mezcal_common;

pub mod cli;
pub mod client;
pub mod exit;
pub mod jobs;
pub mod report;
pub mod scheduler;
pub mod service;
pub mod store;
pub mod verb;
