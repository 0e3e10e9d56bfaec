//! What people and files are told: result lines, progress, and the files that a run writes.

pub mod format;
pub mod output;
pub mod outputs;
pub mod progress;
pub mod resume;
