//! The verbs of `coordinator`, one file each.

pub mod batches;
pub mod cancel;
pub mod doctor;
pub mod exec;
pub mod follow;
pub mod hosts;
pub mod logs;
pub mod manage;
pub mod members;
pub mod provision;
pub mod run;
pub mod serve;
pub mod why;
