//! The output for people and files: result lines, progress, and the files that a run writes.

pub mod format;
mod lock;
pub(crate) mod notice;
pub mod output;
pub mod outputs;
pub mod progress;
pub mod resume;
pub(crate) mod table;
