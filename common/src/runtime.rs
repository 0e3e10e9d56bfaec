//! The tokio runtime of every program: one thread, and others for what blocks.

use crate::limits;
use std::io::Error;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// Pairs of descriptors that a runtime takes for itself at most.
const OWN_PAIRS: usize = 4;

/// Starts one, with at most so many threads for what blocks (none given: tokio's 512). The first of them is there from the start, and
/// stays: what blocks waits for it where others are refused, while without any tokio panics.
///
/// # Errors
/// There is no room for its threads or descriptors; the limit is named.
pub fn start(blocking: Option<usize>) -> std::io::Result<Runtime> {
    // tokio would panic over these two.
    limits::try_thread().map_err(no_room)?;
    let pairs: std::io::Result<Vec<_>> = (0..OWN_PAIRS).map(|_| UnixStream::pair()).collect();
    drop(pairs.map_err(no_room)?);
    let mut builder = Builder::new_current_thread();
    builder.enable_all().thread_keep_alive(Duration::MAX);
    if let Some(most) = blocking {
        builder.max_blocking_threads(most);
    }
    let runtime = builder.build().map_err(no_room)?;
    runtime.spawn_blocking(|| {});
    Ok(runtime)
}

fn no_room(e: Error) -> Error {
    Error::new(e.kind(), format!("no room for this program to begin: {}", limits::named(e)))
}
