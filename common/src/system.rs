//! Linux, for all processes: accounts, files, limits, signals, timers, logs.

pub mod account;
pub mod config;
pub mod doctor;
pub mod environment;
pub mod files;
pub mod limits;
pub mod logging;
pub mod output;
pub mod proc;
pub mod random;
pub mod runtime;
pub mod service_manager;
pub mod signal;
pub mod timer;
