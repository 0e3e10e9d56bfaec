//! The verbs of `coordinator`, one file each.

pub mod batches;
pub mod cancel;
pub mod certs;
pub mod doctor;
pub mod exec;
pub mod follow;
pub mod hosts;
pub mod join;
pub mod logs;
pub mod manage;
pub mod provision;
pub mod revoke;
pub mod run;
pub mod serve;
pub mod token;
pub mod why;
