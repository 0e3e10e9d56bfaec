//! Results on their way to the clients that follow a batch: from memory while they are new, else
//! from the store, and no more at a time than the client has room for.

use super::batch::{Batch, Following, Next};
use super::input::Input;
use super::outlet::Outlet;
use super::peers::{Client, ClientId};
use super::reading::{NotRead, Page, Reading};
use super::state::Service;
use mezcal_common::message::client::{COUNTS_OUTPUT, ToClient};
use mezcal_common::model::ids::{BatchId, JobNumber};
use mezcal_common::model::outcome::JobResult;
use std::time::Duration;

/// Wait before a retry of results that could not be read: the disk does not answer, or too many
/// files are open.
const READ_AGAIN: Duration = Duration::from_secs(1);

impl Service {
    /// A job is over, and its result is safe.
    pub(super) fn has_result(
        &mut self,
        batch: BatchId,
        seq: u64,
        job: JobNumber,
        result: JobResult,
    ) {
        let id = batch;
        let Some(batch) = self.batches.get_mut(batch) else {
            return;
        };
        // A result that came back from the store has been counted.
        if seq <= batch.results() {
            return;
        }
        if let Some(observed) = &mut self.observed {
            observed.result(id, job, &result);
        }
        batch.add(seq, job, result);
    }

    /// If no client waits for the results of a batch any more, they need not be in memory.
    pub(super) fn let_go(&mut self, id: BatchId) {
        let Some(batch) = self.batches.get_mut(id).filter(|batch| batch.is_done()) else {
            return;
        };
        let follows = |client: &Client| client.watch(id).is_some();
        if !self.clients.values().any(follows) {
            batch.let_go();
        }
    }

    /// Sends clients the messages that they have room for. The others are tried again at the
    /// client's next acknowledgement.
    pub(super) fn deliver(&mut self) {
        let mut reads = Vec::new();
        for (id, client) in &mut self.clients {
            // Output and notices that came before a result reach the client before it.
            if client.pass_on() {
                let version = client.version();
                let (watches, outlet) = client.deliveries();
                for (name, watch) in watches {
                    let Some(batch) = self.batches.get_mut(name) else {
                        continue;
                    };
                    if let Some(after) = send_results(name, batch, watch, version, outlet) {
                        reads.push((*id, name, after));
                    }
                    watch.say_end(batch, || {
                        let (batch, failed) = (name, batch.failed());
                        outlet.try_send(ToClient::Ended { batch, failed }).is_ok()
                    });
                }
            }
            if let Some(drained) = client.drained() {
                let (id, inputs) = (*id, self.inputs.clone());
                tokio::spawn(async move {
                    drained.await;
                    if let Some(inputs) = inputs.upgrade() {
                        // A service that has ended sends nothing.
                        let _ = inputs.send(Input::Room(id)).await;
                    }
                });
            }
        }
        for (client, batch, after) in reads {
            self.read(client, batch, after, Duration::ZERO);
        }
    }

    /// Reads the next results for a client, beside the loop and after a pause, unless they are
    /// being read for another client.
    fn read(&mut self, id: ClientId, batch: BatchId, after: u64, pause: Duration) {
        let (Some(durable), Some(known)) = (&self.durable, self.batches.get(batch)) else {
            return;
        };
        let client = self.clients.get_mut(&id);
        let Some(watch) = client.and_then(|client| client.watch_mut(batch)) else {
            return;
        };
        let described = watch.reads();
        let what = Reading {
            batch,
            after,
            described,
        };
        if let Some(others) = self.readings.get_mut(&what) {
            return others.push(id);
        }
        self.readings.insert(what, vec![id]);
        let (reads, serial, so_far) = (durable.reads().clone(), known.serial(), known.results());
        self.beside(async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let page = reads.read(move |reader| what.read(reader, serial, so_far));
            let unread = |why| NotRead { why, passes: false };
            Input::Read(what, page.await.map_err(unread).and_then(|page| page))
        });
    }

    pub(super) fn page_read(&mut self, what: Reading, page: &Result<Page, NotRead>) {
        let Reading { batch, after, .. } = what;
        if let Err(NotRead { why, passes: true }) = page {
            tracing::warn!(why, "results cannot be read; trying again");
        }
        for id in self.readings.remove(&what).unwrap_or_default() {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            // A client that follows it no more, or from another place, needs none of it.
            let Some(watch) = client.watch_mut(batch) else {
                continue;
            };
            if !watch.has_read(after) {
                continue;
            }
            match page {
                Ok(page) => {
                    watch.has_sent(page.through);
                    let version = client.version();
                    for message in &page.messages {
                        client.tell(as_client_knows(message.clone(), version));
                    }
                }
                Err(NotRead { passes: true, .. }) => self.read(id, batch, after, READ_AGAIN),
                Err(NotRead { why, passes: false }) => {
                    client.unfollow(batch);
                    let reason = why.clone();
                    client.tell(ToClient::Refused { reason });
                }
            }
        }
    }
}

/// Sends results that are in memory. Gives back after how many the store has to be asked for more.
fn send_results(
    name: BatchId,
    batch: &mut Batch,
    watch: &mut Following,
    version: u16,
    outlet: &mut Outlet<ToClient>,
) -> Option<u64> {
    loop {
        match watch.next(batch, || outlet.has_room()) {
            Next::Nothing => return None,
            Next::Stored(after) => return Some(after),
            Next::Results(results) => {
                let batch = name;
                let results = as_client_knows(ToClient::Results { batch, results }, version);
                // A client that is gone needs no more results.
                outlet.try_send(results).ok()?;
            }
        }
    }
}

/// Results with the bytes that jobs have written, for a client that understands them.
fn as_client_knows(message: ToClient, version: u16) -> ToClient {
    match message {
        ToClient::Results { batch, results } if version >= COUNTS_OUTPUT => {
            ToClient::CountedResults { batch, results }
        }
        message => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_of_an_earlier_version_is_sent_results_that_it_can_read() {
        let results = || ToClient::Results {
            batch: BatchId(uuid::Uuid::nil()),
            results: Vec::new(),
        };
        assert!(matches!(
            as_client_knows(results(), COUNTS_OUTPUT - 1),
            ToClient::Results { .. }
        ));
        assert!(matches!(
            as_client_knows(results(), COUNTS_OUTPUT),
            ToClient::CountedResults { .. }
        ));
    }
}
