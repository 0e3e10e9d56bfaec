//! The tokio runtime of all programs: one thread, and further ones for blocking calls.

use crate::model::limits;
use rustix::io::Errno;
use std::io::Error;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// Most pairs of descriptors that a runtime takes for itself.
const OWN_PAIRS: usize = 4;

/// Starts a runtime, with at most so many threads for blocking calls (`None`: tokio's 512). The
/// first of them exists from the start, and stays: blocking calls wait for it where further threads
/// are refused, while tokio panics if it has none.
///
/// # Errors
/// There is no room for its threads or descriptors; the limit is named.
pub fn start(blocking: Option<usize>) -> std::io::Result<Runtime> {
    // tokio would panic if it got none.
    let pairs: std::io::Result<Vec<_>> = (0..OWN_PAIRS).map(|_| UnixStream::pair()).collect();
    drop(pairs.map_err(no_room)?);
    let mut builder = Builder::new_current_thread();
    builder.enable_all().thread_keep_alive(Duration::MAX);
    if let Some(most) = blocking {
        builder.max_blocking_threads(most);
    }
    let runtime = builder.build().map_err(no_room)?;
    if !has_begun_to_block(&runtime) {
        runtime.shutdown_background();
        return Err(no_room(Errno::AGAIN.into()));
    }
    Ok(runtime)
}

/// Starts its first thread for blocking calls. tokio panics if there is no room for it, and other
/// processes of this account may take that room after any check. Called before other code runs in
/// this process, whose panics would have to be reported.
fn has_begun_to_block(runtime: &Runtime) -> bool {
    let report = take_hook();
    set_hook(Box::new(|_| {}));
    let begun = catch_unwind(AssertUnwindSafe(|| drop(runtime.spawn_blocking(|| {}))));
    set_hook(report);
    begun.is_ok()
}

fn no_room(e: Error) -> Error {
    Error::new(
        e.kind(),
        format!("not enough resources to start: {}", limits::named(e)),
    )
}
