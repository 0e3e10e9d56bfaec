//! Room for threads, before something depends on it.

use crate::model::limits::named;
use std::path::Path;

/// Starts a thread, ends it, and waits until the kernel has forgotten it.
///
/// # Errors
/// There is no room for a thread; the limit is named.
pub fn try_thread() -> std::io::Result<()> {
    let thread = std::thread::Builder::new()
        .spawn(rustix::thread::gettid)
        .map_err(named)?;
    if let Ok(id) = thread.join() {
        let task = format!("/proc/self/task/{}", id.as_raw_nonzero());
        while Path::new(&task).exists() {
            std::thread::yield_now();
        }
    }
    Ok(())
}
