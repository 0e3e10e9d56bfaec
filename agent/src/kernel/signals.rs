//! Signals of the processes of engines and keepers, which come through a descriptor: SIGCHLD and
//! SIGTERM.

use rustix::fd::OwnedFd;
use std::io::{Error, Result};

/// Takes the pending SIGCHLD and SIGTERM; true if SIGTERM was among them. Each is pending at most
/// once (signal(7)).
pub(crate) fn take_signals(signals: &OwnedFd) -> bool {
    const ONE: usize = size_of::<libc::signalfd_siginfo>();
    let mut taken = [0; 2 * ONE];
    let size = rustix::io::read(signals, &mut taken).unwrap_or(0);
    // The number of the signal comes first (signalfd(2)).
    let number = |info: &[u8]| {
        info.first_chunk()
            .map(|bytes| u32::from_ne_bytes(*bytes) as i32)
    };
    taken[..size]
        .chunks(ONE)
        .any(|info| number(info) == Some(libc::SIGTERM))
}

/// A signalfd(2) for SIGCHLD and SIGTERM, which are blocked in this thread and those it starts;
/// children get an empty mask at their spawn.
pub(crate) fn signals() -> Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use; the returned descriptor is ours
    // alone.
    unsafe {
        let mut set = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        if libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(Error::last_os_error());
        }
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        Ok(<OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd))
    }
}

/// Has the ends of children reported, whatever this program was started with: with SIGCHLD ignored,
/// the kernel would forget children at once, nobody would hear of their ends, and their numbers
/// would be other processes' before we know (wait(2), Notes).
pub fn heed_children() {
    // SAFETY: the default action runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}
