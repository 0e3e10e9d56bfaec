//! What every Mezcal process shares: the model (jobs, outcomes, hosts, clocks) and the wire.
//!
//! Nothing here decides anything about scheduling or killing, and nothing here starts a process.
//! [`wire`] is the only place that names quinn, rustls and bincode.

#[cfg(not(target_os = "linux"))]
compile_error!("Mezcal runs on Linux only: it relies on /proc, subreapers and CLOCK_BOOTTIME");

pub mod account;
pub mod clock;
pub mod config;
pub mod doctor;
pub mod duration;
pub mod environment;
pub mod escape;
pub mod files;
pub mod hosts;
pub mod identity;
pub mod ids;
pub mod job;
pub mod limits;
pub mod logging;
pub mod octets;
pub mod outcome;
pub mod proc;
pub mod runtime;
pub mod service_manager;
pub mod signal;
pub mod timer;
pub mod token;
pub mod wire;

/// The version of this build, as `--version` prints it and peers exchange it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
