//! The verbs of `mezcal-agent`, one file each.

pub mod doctor;
pub mod engines;
pub mod join;
pub(crate) mod run;
