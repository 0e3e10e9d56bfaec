//! The subjects of messages: jobs, outcomes, hosts, times, names, and words for errors. No wire
//! encoding, no I/O.

pub mod clock;
pub mod duration;
pub mod escape;
pub mod hosts;
pub mod identity;
pub mod ids;
pub mod job;
pub mod limits;
pub mod octets;
pub mod outcome;
pub mod pause;
pub mod signal;
pub mod token;
