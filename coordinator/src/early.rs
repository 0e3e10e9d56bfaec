//! The first check of a program of this crate. Each program includes this file, since only code
//! that is linked into the program itself is sure to be called.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether standard output was closed when this process began.
static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// The loader calls this before Rust's runtime opens `/dev/null` on those of the first three
/// descriptors that are closed (std::rt). After that, a closed standard output looks like
/// `>/dev/null`, which a user may have wanted.
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
