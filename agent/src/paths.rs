//! Where a job starts and where its output goes: the same answer for the engine that opens the files and for whoever reads them later.

use mezcal_common::ids::AttemptId;
use mezcal_common::job::{BatchContext, JobSpec};
use std::path::{Path, PathBuf};

/// A file that takes one output stream of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OutputFile {
    /// The batch's directory for output, if it is there; it is made if it is missing.
    pub(crate) dir: Option<String>,
    /// Relative to the job's directory.
    pub(crate) path: String,
}

/// The job's directory.
pub(crate) fn directory(spec: &JobSpec, context: &BatchContext) -> PathBuf {
    Path::new(&context.cd).join(spec.cd.as_deref().unwrap_or_default())
}

/// The user's `id`, or the job's number.
pub(crate) fn label(spec: &JobSpec, attempt: AttemptId) -> String {
    spec.label.clone().unwrap_or_else(|| attempt.key.job.to_string())
}

/// Where standard output goes; none: into a pipe of the engine's.
pub(crate) fn out(spec: &JobSpec, attempt: AttemptId, context: &BatchContext) -> Option<OutputFile> {
    file(spec.out.as_deref(), "out", spec, attempt, context)
}

/// Where standard error goes; none: into a pipe of the engine's.
pub(crate) fn err(spec: &JobSpec, attempt: AttemptId, context: &BatchContext) -> Option<OutputFile> {
    file(spec.err.as_deref(), "err", spec, attempt, context)
}

fn file(own: Option<&str>, extension: &str, spec: &JobSpec, attempt: AttemptId, context: &BatchContext) -> Option<OutputFile> {
    if let Some(path) = own {
        return Some(OutputFile { dir: None, path: path.to_owned() });
    }
    let dir = context.output_dir.as_ref()?;
    let name = label(spec, attempt).replace(['/', '\0'], "_");
    Some(OutputFile { dir: Some(dir.clone()), path: format!("{dir}/{name}.{extension}") })
}
