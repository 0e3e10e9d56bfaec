//! The very first look of a program of this crate: each of them has this file, since only what is
//! linked into a program itself is sure to be called.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether standard output was closed when this process began.
static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Called by the loader, before Rust's runtime opens `/dev/null` on whatever is closed of the first
/// three descriptors (std::rt): afterwards results into nowhere look like `>/dev/null`, which is
/// somebody's wish.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    // SAFETY: the number is used for this one question, whose answer may be that nothing is open
    // there.
    let stdout = unsafe { BorrowedFd::borrow_raw(1) };
    STDOUT_WAS_CLOSED.store(rustix::io::fcntl_getfd(stdout).is_err(), Ordering::Relaxed);
}

/// Whether standard output was closed when this process began.
pub(crate) fn stdout_was_closed() -> bool {
    STDOUT_WAS_CLOSED.load(Ordering::Relaxed)
}
