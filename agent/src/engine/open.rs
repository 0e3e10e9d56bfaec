//! The files of a job, opened without ever waiting for a partner, and the meaning of a failure.

use super::NotStarted;
use super::order::OutputTo;
use crate::kernel::paths::{self, OutputFile};
use mezcal_common::model::job::{BatchContext, JobSpec};
use mezcal_common::model::limits;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::path::Path;
use std::sync::Arc;

/// Opens the file to which the job writes, and truncates it.
pub(super) fn open_output(cd: &OwnedFd, to: &OutputTo) -> Result<Arc<OwnedFd>, NotStarted> {
    match to {
        OutputTo::Pipe(write) => Ok(write.clone()),
        OutputTo::File(OutputFile { dir, path }) => {
            if let Some(dir) = dir {
                // If the directory cannot be made, opening the file says why.
                let _ = std::fs::create_dir_all(dir);
            }
            open_waitless(
                cd,
                path,
                OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC,
                "write",
            )
            .map(Arc::new)
        }
    }
}

pub(super) fn directory(spec: &JobSpec, context: &BatchContext) -> Result<OwnedFd, NotStarted> {
    let path = paths::directory(spec, context);
    rustix::fs::open(
        &path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| cannot("change to directory", &path, e))
}

/// A pipe whose read end does not block.
pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd), NotStarted> {
    let make = || {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
        Ok((read, write))
    };
    make().map_err(|e: Errno| not_started(format!("cannot make a pipe: {}", reason(e)), e))
}

fn open_at(cd: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        cd,
        path,
        flags | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o666),
    )
}

/// Opens a file without ever waiting for a partner. A FIFO is refused: its other end would decide
/// when the job starts and ends.
pub(super) fn open_waitless(
    cd: &OwnedFd,
    path: &Path,
    flags: OFlags,
    verb: &str,
) -> Result<OwnedFd, NotStarted> {
    let fifo = || format!("cannot {verb} {path:?}: it is a FIFO; redirect inside `cmd` to use one");
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = open_at(cd, path, flags).map_err(|e| {
        if e == Errno::NXIO {
            fifo().into()
        } else {
            cannot(verb, path, e)
        }
    })?;
    let stat = rustix::fs::fstat(&file).map_err(|e| cannot(verb, path, e))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
        return Err(fifo().into());
    }
    rustix::fs::fcntl_setfl(&file, OFlags::empty()).map_err(|e| cannot(verb, path, e))?;
    Ok(file)
}

pub(super) fn same_file(a: &OwnedFd, b: &OwnedFd) -> bool {
    match (rustix::fs::fstat(a), rustix::fs::fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

pub(super) fn cannot(verb: &str, path: &Path, error: Errno) -> NotStarted {
    not_started(format!("cannot {verb} {path:?}: {}", reason(error)), error)
}

/// Tells a lack of the host's, with the thing that it lacks, from a fault of the job's: a lack may
/// pass.
pub(super) fn not_started(text: String, error: Errno) -> NotStarted {
    match limits::behind(error) {
        Some(limit) => NotStarted::Short(format!("{text} ({limit})")),
        None => NotStarted::Job(text),
    }
}

/// The system's text of an error without Rust's "(os error N)".
pub(super) fn reason(error: Errno) -> String {
    let text = std::io::Error::from(error).to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
