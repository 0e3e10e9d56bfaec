//! A picture of the moment, in the form for the dashboard.

use super::observed::{Failing, Recent};
use mezcal_common::model::ids::{BatchId, JobNumber};
use serde::Serialize;

/// A picture of the moment.
#[derive(Debug, Serialize)]
pub struct View {
    pub(super) now: i64,
    pub(super) version: &'static str,
    pub(super) hosts: Vec<HostView>,
    pub(super) batches: Vec<BatchView>,
    pub(super) ended: u64,
    pub(super) failed: u64,
    pub(super) cancelled: u64,
    pub(super) skipped: u64,
    pub(super) recent: Vec<Recent>,
    /// The number of the last of them: later ends are new.
    pub(crate) seq: u64,
    pub(super) failing: Vec<Failing>,
    pub(super) trouble: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct HostView {
    pub(super) name: String,
    pub(super) state: &'static str,
    pub(super) why: Option<String>,
    pub(super) first_engine: u32,
    pub(super) busy: u16,
    pub(super) load: f64,
    /// The job that is known to run in each engine.
    pub(super) engines: Vec<Option<Running>>,
}

#[derive(Debug, Serialize)]
pub(super) struct Running {
    pub(super) batch: BatchId,
    pub(super) job: JobNumber,
}

#[derive(Debug, Serialize)]
pub(super) struct BatchView {
    pub(super) id: BatchId,
    pub(super) user: String,
    pub(super) name: Option<String>,
    pub(super) jobs: u64,
    pub(super) running: u64,
    pub(super) ended: u64,
    pub(super) failed: u64,
    pub(super) cancelled: u64,
    pub(super) skipped: u64,
    pub(super) done: bool,
}
