//! Linux, for all processes: accounts, files, threads, timers, logs.

pub mod account;
pub mod config;
pub mod environment;
pub mod files;
pub mod logging;
pub mod output;
pub mod proc;
pub mod random;
pub mod runtime;
pub mod service_manager;
pub mod threads;
pub mod timer;
