//! Waiting for one thing while others go on: queued output is still written, and an instant may
//! never come.

use crate::client::signals::Signals;
use std::collections::VecDeque;
use tokio::sync::mpsc::error::SendError;
use tokio::sync::mpsc::{Permit, Sender};
use tokio::time::Instant;

/// Hands one waiting message over. A thread that has ended takes none; other code notices its end.
pub(crate) fn pass_on<T>(permit: Result<Permit<'_, T>, SendError<()>>, waiting: &mut VecDeque<T>) {
    if let (Ok(permit), Some(message)) = (permit, waiting.pop_front()) {
        permit.send(message);
    }
}

/// Waits for `work` or a signal, while queued output is still written.
pub(crate) async fn beside<T, R>(
    work: impl Future<Output = R>,
    to: &Sender<T>,
    waiting: &mut VecDeque<T>,
    signals: &mut Signals,
) -> Result<R, u8> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            permit = to.reserve(), if !waiting.is_empty() => pass_on(permit, waiting),
            number = signals.next() => return Err(number),
        }
    }
}

/// Waits for an instant; for ever without one.
pub(crate) async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
