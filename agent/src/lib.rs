//! One host's part of a cluster: the agent, its keepers and their engines.
//!
//! ```text
//!  coordinator ◀── QUIC ──▶ agent (driver ⇄ Supervisor) ◀── unix sockets ──▶ engine 0 (driver ⇄ Engine) ── bash -c CMD
//!                             ▲                                              engine 1 …
//!                             └── keeper: parent of the engines, outlives the agent
//! ```
//!
//! Decisions are made in three pure cores, [`supervisor::Supervisor`], [`keeper::Keeper`] and
//! [`engine::Engine`]; drivers perform them.

// A reader that has left must not end a program by a panic: `tell!`, and what returns an error.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

#[macro_use(tell)]
extern crate mezcal_common;

pub mod boot;
pub mod cli;
pub mod config;
pub mod engine;
pub mod keeper;
pub mod kernel;
pub mod supervisor;
pub mod verb;
