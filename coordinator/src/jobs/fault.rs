//! Mistakes in job lists.

/// One mistake in a job.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Bytes from the start of the job's text.
    pub(super) at: usize,
    pub(super) text: String,
}
