//! An attempt that has to be started, and where its output goes: what the engine's loop hands to
//! the thread that spawns.

use crate::kernel::paths::OutputFile;
use mezcal_common::model::ids::{AttemptId, EngineId};
use mezcal_common::model::job::{BatchContext, JobSpec};
use rustix::fd::OwnedFd;
use std::sync::Arc;

/// An attempt that the spawner has to start.
pub(super) struct Order {
    pub(super) attempt: AttemptId,
    pub(super) spec: Box<JobSpec>,
    pub(super) context: Arc<BatchContext>,
    pub(super) engine: EngineId,
}

/// The place where an output stream goes.
pub(super) enum OutputTo {
    File(OutputFile),
    /// The write end.
    Pipe(Arc<OwnedFd>),
}
