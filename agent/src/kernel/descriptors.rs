//! Descriptors that a process of ours was started with: jobs must not get them.

use rustix::fd::OwnedFd;
use std::io::Result;

/// Marks every descriptor but 0, 1 and 2 close-on-exec: the program that started us may have left
/// some open, and jobs must not get them.
pub(crate) fn seal_descriptors() {
    // SAFETY: close_range(2) with this flag closes nothing.
    let sealed = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    } == 0;
    if sealed {
        return;
    }
    // Before Linux 5.11: descriptor by descriptor.
    for fd in std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
    {
        if let Some(fd) = fd
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
            .filter(|fd| *fd > 2)
        {
            // SAFETY: fcntl(2) on a number that may have been closed meanwhile fails harmlessly.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// Moves descriptor 0, which is a socket, to a close-on-exec descriptor and puts `/dev/null` in its
/// place.
pub(crate) fn take_stdin() -> Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(socket)
}
