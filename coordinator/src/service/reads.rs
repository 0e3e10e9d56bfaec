//! Reads of the store, which may be slow, beside the loop.

use crate::store::{READERS, Reader};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Ended batches that are read whole at a time, to be run again: each may take a good part of the
/// memory.
const WHOLE: usize = 1;

/// The way to the store's contents. Only tasks beside the loop can use it: the loop cannot read.
///
/// [`READERS`] read at a time, for all clients together, and the others wait their turn. The number
/// that waits is bounded by the clients: a question takes all the places of its connection until it
/// is answered (`intake.rs`).
#[derive(Clone)]
pub(super) struct Reads {
    reader: Reader,
    places: Arc<Semaphore>,
    whole: Arc<Semaphore>,
}

impl Reads {
    pub(super) fn new(reader: Reader) -> Self {
        Self {
            reader,
            places: Arc::new(Semaphore::new(READERS)),
            whole: Arc::new(Semaphore::new(WHOLE)),
        }
    }

    /// Runs `read` when it is its turn.
    ///
    /// # Errors
    /// The read did not come to its end.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> T + Send + 'static,
    ) -> Result<T, String> {
        let _place = self.places.acquire().await;
        let reader = self.reader.clone();
        let reading = tokio::task::spawn_blocking(move || read(&reader));
        reading.await.map_err(|e| e.to_string())
    }

    /// The same for a read of a whole batch.
    ///
    /// # Errors
    /// As above.
    pub(super) async fn read_whole<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> T + Send + 'static,
    ) -> Result<T, String> {
        let _turn = self.whole.acquire().await;
        self.read(read).await
    }
}
