//! One host's part of a cluster: the agent, its keepers and their engines.
//!
//! ```text
//!  coordinator ◀── QUIC ──▶ agent (driver ⇄ Supervisor) ◀── unix sockets ──▶ engine 0 (driver ⇄ Engine) ── bash -c CMD
//!                             ▲                                              engine 1 …
//!                             └── keeper: parent of the engines, outlives the agent
//! ```
//!
//! Decisions are made in three pure cores, [`supervisor::Supervisor`], [`keeper::Keeper`] and [`engine::Engine`]; drivers perform them.

pub mod boot;
mod cgroup;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod driver;
pub mod engine;
pub mod engines;
pub mod generations;
mod greeting;
pub mod host;
pub mod join;
pub mod keeper;
mod logs;
pub mod packet;
mod paths;
mod pauses;
pub mod renewal;
pub mod supervisor;
pub mod users;
