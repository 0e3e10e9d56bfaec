//! Results on their way to whoever follows a batch: from memory while they are new, else from the
//! store, and no more at a time than the client has room for.

use super::batch::{Batch, Watch, Wish};
use super::input::Input;
use super::outlet::{Outlet, size_estimate};
use super::peers::ClientId;
use super::reading::{NotRead, Page, RESULT_BYTES, Reading};
use super::state::Service;
use mezcal_common::message::client::{Attachment, COUNTS_OUTPUT, ToClient};
use mezcal_common::model::ids::{BatchId, JobNumber};
use mezcal_common::model::outcome::JobResult;
use std::collections::VecDeque;
use std::time::Duration;

/// Results that a client may have on its way without having taken them, and that are kept in memory
/// beside a store.
pub(super) const RESULT_WINDOW: u64 = 8192;
/// And their bytes, of each batch: those of a full window with a few lines of output each. What is
/// older is read from the store again.
const TAIL_BYTES: usize = 4 << 20;
/// Before results that could not be read are asked for again: a disk that does not answer, or too
/// many open files.
const READ_AGAIN: Duration = Duration::from_secs(1);

impl Service {
    /// A job is over, and that is safe.
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
        // One that came back from the store has been counted.
        if seq <= batch.results {
            return;
        }
        if let Some(observed) = &mut self.observed {
            observed.result(id, job, &result);
        }
        batch.results = seq;
        batch.failed += u64::from(!result.outcome.succeeded());
        batch.aside.add(&result.outcome);
        batch.tail_bytes += size_estimate(&result);
        batch.tail.push_back((job, result));
        while batch.stored
            && (batch.tail.len() as u64 > RESULT_WINDOW || batch.tail_bytes > TAIL_BYTES)
        {
            batch.tail_bytes -= batch
                .tail
                .pop_front()
                .map_or(0, |(_, result)| size_estimate(&result));
        }
    }

    /// Nobody may be waiting for the results of a batch any more: then they need not be in memory.
    pub(super) fn let_go(&mut self, id: BatchId) {
        let Some(batch) = self
            .batches
            .get_mut(id)
            .filter(|batch| batch.done && batch.stored)
        else {
            return;
        };
        if !self
            .clients
            .values()
            .any(|client| client.watches.contains_key(&id))
        {
            (batch.tail, batch.tail_bytes) = (VecDeque::new(), 0);
        }
    }

    /// Hands clients what they have room for. What stays is tried again at their next
    /// acknowledgement.
    pub(super) fn deliver(&mut self) {
        let mut reads = Vec::new();
        for (id, client) in &mut self.clients {
            // Output and notices that came before a result reach the client before it.
            if client.pass_on() {
                for (name, watch) in &mut client.watches {
                    let Some(batch) = self.batches.get_mut(*name) else {
                        continue;
                    };
                    if let Some(read) =
                        next_results(*name, batch, watch, client.version, &mut client.outlet)
                    {
                        reads.push((*id, *name, read));
                    }
                    say_end(*name, batch, watch, &mut client.outlet);
                }
            }
            if client.must_be_told() {
                let (id, drained, inputs) = (*id, client.outlet.drained(), self.inputs.clone());
                tokio::spawn(async move {
                    drained.await;
                    if let Some(inputs) = inputs.upgrade() {
                        // A service that has ended hands nothing over.
                        let _ = inputs.send(Input::Room(id)).await;
                    }
                });
            }
        }
        for (client, batch, after) in reads {
            self.read(client, batch, after, Duration::ZERO);
        }
    }

    /// Reads the next results for a client, beside the loop and after a pause, unless that is being
    /// done for somebody else.
    fn read(&mut self, id: ClientId, batch: BatchId, after: u64, pause: Duration) {
        let (Some(kept), Some(known)) = (&self.kept, self.batches.get(batch)) else {
            return;
        };
        let Some(watch) = self
            .clients
            .get_mut(&id)
            .and_then(|client| client.watches.get_mut(&batch))
        else {
            return;
        };
        watch.reading = true;
        let described = match watch.wish {
            Wish::Attached(Attachment::Results { failed, .. }) => Some(failed),
            Wish::Results | Wish::Attached(Attachment::End) => None,
        };
        let what = Reading {
            batch,
            after,
            described,
        };
        if let Some(others) = self.readings.get_mut(&what) {
            return others.push(id);
        }
        self.readings.insert(what, vec![id]);
        let (reads, serial, so_far) = (kept.reads().clone(), known.serial, known.results);
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
            tracing::warn!(why, "results cannot be read, and are read again");
        }
        for id in self.readings.remove(&what).unwrap_or_default() {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            // One that follows it no more, or from elsewhere, needs none of it.
            let Some(watch) = client
                .watches
                .get_mut(&batch)
                .filter(|watch| watch.reading && watch.sent == after)
            else {
                continue;
            };
            watch.reading = false;
            match page {
                Ok(page) => {
                    watch.sent = page.through;
                    for message in &page.messages {
                        let message = as_client_knows(message.clone(), client.version);
                        client.tell(message);
                    }
                }
                Err(NotRead { passes: true, .. }) => self.read(id, batch, after, READ_AGAIN),
                Err(NotRead { why, passes: false }) => {
                    client.watches.remove(&batch);
                    client.tell(ToClient::Refused {
                        reason: why.clone(),
                    });
                }
            }
        }
    }
}

/// Sends results that are in memory. Gives back after how many the store has to be asked for more.
fn next_results(
    name: BatchId,
    batch: &mut Batch,
    watch: &mut Watch,
    version: u16,
    outlet: &mut Outlet<ToClient>,
) -> Option<u64> {
    let described = match watch.wish {
        Wish::Results => false,
        Wish::Attached(Attachment::Results { .. }) => true,
        Wish::Attached(Attachment::End) => return None,
    };
    while !watch.reading && watch.sent < batch.results && watch.sent < watch.taken + RESULT_WINDOW {
        if described || watch.sent < batch.before_tail() {
            return Some(watch.sent);
        }
        if !outlet.has_room() {
            return None;
        }
        let room = (watch.taken + RESULT_WINDOW - watch.sent) as usize;
        let first = (watch.sent - batch.before_tail()) as usize;
        let mut bytes = 0;
        let fits = batch
            .tail
            .range(first..)
            .take(room)
            .take_while(|(_, result)| {
                bytes += size_estimate(result);
                bytes <= RESULT_BYTES
            });
        let count = fits.count().max(1);
        let results: Vec<_> = if batch.stored {
            batch.tail.range(first..first + count).cloned().collect()
        } else {
            // Nobody else will ask for them.
            batch.tail.drain(first..first + count).collect()
        };
        batch.tail_bytes -= if batch.stored {
            0
        } else {
            results
                .iter()
                .map(|(_, result)| size_estimate(result))
                .sum()
        };
        watch.sent += results.len() as u64;
        // A client that is gone needs them no more.
        outlet
            .try_send(as_client_knows(
                ToClient::Results {
                    batch: name,
                    results,
                },
                version,
            ))
            .ok()?;
    }
    None
}

/// Results with what jobs have written, for a client that understands it.
fn as_client_knows(message: ToClient, version: u16) -> ToClient {
    match message {
        ToClient::Results { batch, results } if version >= COUNTS_OUTPUT => {
            ToClient::CountedResults { batch, results }
        }
        message => message,
    }
}

/// Tells a client that there are no more results than it has been sent, once.
fn say_end(name: BatchId, batch: &Batch, watch: &mut Watch, outlet: &mut Outlet<ToClient>) {
    let over = match watch.wish {
        Wish::Results => return,
        Wish::Attached(Attachment::End) => batch.done,
        Wish::Attached(Attachment::Results { follow, .. }) => {
            !watch.reading && watch.sent == batch.results && (batch.done || !follow)
        }
    };
    if over && !watch.ended {
        watch.ended = outlet
            .try_send(ToClient::Ended {
                batch: name,
                failed: batch.failed,
            })
            .is_ok();
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
