//! The limits under which a process stands: their names in errors, and a look at what is left before something depends on it.

use rustix::io::Errno;
use std::io::Error;
use std::path::Path;

/// What EAGAIN of fork(2), execve(2) and pthread_create(3) means: they do not say which.
pub const PROCESSES: &str =
    "EAGAIN: processes and threads, `ulimit -u` of the account, `pids.max` of its control group, or `sysctl kernel.threads-max`";

/// What the host lacks, if that is behind an error of any kind of call.
pub fn behind(error: Errno) -> Option<&'static str> {
    match error {
        Errno::MFILE => Some("EMFILE: open files of one process, `ulimit -n`"),
        Errno::NFILE => Some("ENFILE: open files of the host, `sysctl fs.file-max`"),
        Errno::NOMEM => Some("ENOMEM: memory of the host, or of its control group, `memory.max`"),
        _ => None,
    }
}

/// The same error of what makes a process or a thread, with the limit that it has met.
pub fn named(error: Error) -> Error {
    let limit = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::AGAIN) => Some(PROCESSES),
        other => other.and_then(behind),
    };
    match limit {
        Some(limit) => Error::new(error.kind(), format!("{error} ({limit})")),
        None => error,
    }
}

/// Starts a thread and ends it, and waits until the kernel has forgotten it, too.
///
/// # Errors
/// There is no room for one; the limit is named.
pub fn try_thread() -> std::io::Result<()> {
    let thread = std::thread::Builder::new().spawn(rustix::thread::gettid).map_err(named)?;
    if let Ok(id) = thread.join() {
        let task = format!("/proc/self/task/{}", id.as_raw_nonzero());
        while Path::new(&task).exists() {
            std::thread::yield_now();
        }
    }
    Ok(())
}
