//! Where a job starts and where its output goes: the same answer for the engine that opens the files and for whoever reads them later.

use mezcal_common::ids::AttemptId;
use mezcal_common::job::{BatchContext, JobSpec};
use std::path::{Path, PathBuf};

/// Where one output stream of a job goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sink {
    /// To this file, relative to the job's directory.
    File(String),
    /// To this file in the batch's directory for output, which is made if it is missing.
    InDirectory {
        /// The directory.
        dir: String,
        /// The file.
        path: String,
    },
    /// Into a pipe of the engine's.
    Captured,
}

impl Sink {
    /// The file, if it is one.
    pub(crate) fn path(&self) -> Option<&str> {
        match self {
            Sink::File(path) | Sink::InDirectory { path, .. } => Some(path),
            Sink::Captured => None,
        }
    }
}

/// The job's directory.
pub(crate) fn directory(spec: &JobSpec, context: &BatchContext) -> PathBuf {
    Path::new(&context.cd).join(spec.cd.as_deref().unwrap_or_default())
}

/// The user's `id`, or the job's number.
pub(crate) fn label(spec: &JobSpec, attempt: AttemptId) -> String {
    spec.label.clone().unwrap_or_else(|| attempt.key.job.to_string())
}

/// Standard output.
pub(crate) fn out(spec: &JobSpec, attempt: AttemptId, context: &BatchContext) -> Sink {
    sink(spec.out.as_deref(), "out", spec, attempt, context)
}

/// Standard error.
pub(crate) fn err(spec: &JobSpec, attempt: AttemptId, context: &BatchContext) -> Sink {
    sink(spec.err.as_deref(), "err", spec, attempt, context)
}

fn sink(own: Option<&str>, extension: &str, spec: &JobSpec, attempt: AttemptId, context: &BatchContext) -> Sink {
    match (own, &context.output_dir) {
        (Some(path), _) => Sink::File(path.to_owned()),
        (None, Some(dir)) => {
            let name = label(spec, attempt).replace(['/', '\0'], "_");
            Sink::InDirectory { dir: dir.clone(), path: format!("{dir}/{name}.{extension}") }
        }
        (None, None) => Sink::Captured,
    }
}
