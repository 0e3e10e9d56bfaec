//! Results on their way to whoever follows a batch: from memory while they are new, else from the store, and no more at a time than the
//! client has room for.

use super::state::Service;
use super::{ClientId, Input};
use crate::describe::describe_job;
use crate::store::{BatchRow, Described};
use mezcal_common::ids::{BatchId, BatchSerial, JobNumber};
use mezcal_common::outcome::JobResult;
use mezcal_common::wire::client::{Attachment, ToClient};
use std::collections::VecDeque;
use tokio::sync::mpsc;

/// Results that a client may have on its way without having taken them, and that are kept in memory beside a store.
pub(super) const RESULT_WINDOW: u64 = 8192;
/// Bytes of results in one message, roughly; several times this fits a frame.
pub(super) const RESULT_BYTES: usize = 256 * 1024;

/// A batch as the service knows it.
pub(super) struct Batch {
    pub(super) serial: BatchSerial,
    pub(super) owner: String,
    /// What they call it.
    pub(super) name: Option<String>,
    /// It is in the store.
    pub(super) stored: bool,
    /// Results so far, of which the last ones are here.
    pub(super) results: u64,
    tail: VecDeque<(JobNumber, JobResult)>,
    /// Results that were no success.
    pub(super) failed: u64,
    /// All its jobs are over.
    pub(super) done: bool,
}

impl Batch {
    pub(super) fn new(serial: BatchSerial, owner: String, stored: bool) -> Self {
        Self { serial, owner, name: None, stored, results: 0, tail: VecDeque::new(), failed: 0, done: false }
    }

    pub(super) fn named(self, name: Option<String>) -> Self {
        Self { name, ..self }
    }

    pub(super) fn stored(row: &BatchRow) -> Self {
        let BatchRow { serial, status } = row;
        let (results, failed, done) = (status.ended, status.ended - status.succeeded, status.done.is_some());
        Self { results, failed, done, ..Self::new(*serial, status.user.clone(), true).named(status.name.clone()) }
    }

    /// Results before the first one that is in memory.
    fn before_tail(&self) -> u64 {
        self.results - self.tail.len() as u64
    }
}

/// One client's view of one batch.
pub(super) struct Watch {
    /// The client has opened it, and it lives with its clients.
    pub(super) owner: bool,
    wish: Wish,
    /// Results that were sent, or passed over; and of those that the client has kept.
    sent: u64,
    pub(super) taken: u64,
    /// Some are being read.
    reading: bool,
    /// The client has been told that there are no more.
    ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Results alone: it has the jobs itself.
    Results,
    Attached(Attachment),
}

impl Watch {
    /// That of whoever has opened the batch, and has so many results.
    pub(super) fn of_owner(have: u64) -> Self {
        Self { owner: true, wish: Wish::Results, sent: have, taken: have, reading: false, ended: false }
    }

    pub(super) fn attached(wish: Attachment) -> Self {
        Self { owner: false, wish: Wish::Attached(wish), sent: 0, taken: 0, reading: false, ended: false }
    }

    /// What the client says that it has kept.
    pub(super) fn take(&mut self, results: u64) {
        self.taken = results.clamp(self.taken, self.sent);
    }

    /// Nothing of the batch is left to be said.
    pub(super) fn is_over(&self, batch: &Batch) -> bool {
        batch.done && self.taken == batch.results
    }
}

/// What was read for a client.
pub(super) struct Page {
    batch: BatchId,
    /// The results that were passed before, to tell an answer that comes too late.
    after: u64,
    content: Result<Content, String>,
}

enum Content {
    Results(Vec<(JobNumber, JobResult)>),
    /// With the directory of their batch.
    Described(String, Vec<Described>),
}

impl Service {
    /// A job is over, and that is safe.
    pub(super) fn has_result(&mut self, batch: BatchId, seq: u64, job: JobNumber, result: JobResult) {
        let id = batch;
        let Some(batch) = self.batches.get_mut(&batch) else { return };
        // One that came back from the store has been counted.
        if seq <= batch.results {
            return;
        }
        if let Some(observed) = &mut self.observed {
            observed.result(id, job, &result);
        }
        batch.results = seq;
        batch.failed += u64::from(!result.outcome.succeeded());
        batch.tail.push_back((job, result));
        if batch.stored && batch.tail.len() as u64 > RESULT_WINDOW {
            batch.tail.pop_front();
        }
    }

    /// Hands clients what they have room for. What stays is tried again at their next acknowledgement.
    pub(super) fn deliver(&mut self) {
        let mut reads = Vec::new();
        for (id, client) in &mut self.clients {
            while let Some(message) = client.outbox.pop_front() {
                if let Err(mpsc::error::TrySendError::Full(message)) = client.sender.try_send(message) {
                    client.outbox.push_front(message);
                    break;
                }
            }
            // Output and notices that came before a result reach the client before it.
            if !client.outbox.is_empty() {
                continue;
            }
            for (name, watch) in &mut client.watches {
                let Some(batch) = self.batches.get_mut(name) else { continue };
                if let Some(read) = next_results(*name, batch, watch, &client.sender) {
                    reads.push((*id, *name, read));
                }
                say_end(*name, batch, watch, &client.sender);
            }
        }
        for (client, batch, after) in reads {
            self.read(client, batch, after);
        }
    }

    /// Reads the next results for a client, beside the loop.
    fn read(&mut self, id: ClientId, batch: BatchId, after: u64) {
        let (Some(kept), Some(known)) = (&self.kept, self.batches.get(&batch)) else { return };
        let Some(watch) = self.clients.get_mut(&id).and_then(|client| client.watches.get_mut(&batch)) else { return };
        watch.reading = true;
        let (reader, serial, wish, inputs) = (kept.reader.clone(), known.serial, watch.wish, self.inputs.clone());
        tokio::spawn(async move {
            let read = move || match wish {
                Wish::Attached(Attachment::Results { failed, .. }) => {
                    let cd = reader.terms(serial)?.context.cd;
                    reader.ended(serial, after, failed, RESULT_BYTES).map(|jobs| Content::Described(cd, jobs))
                }
                Wish::Results | Wish::Attached(Attachment::End) => {
                    reader.results(serial, after, RESULT_BYTES).map(Content::Results)
                }
            };
            let content = tokio::task::spawn_blocking(read).await;
            let content = content.map_err(|e| e.to_string()).and_then(|r| r.map_err(|e| crate::exit::chain(&e)));
            if let Some(inputs) = inputs.upgrade() {
                // A service that has ended needs it no more.
                let _ = inputs.send(Input::Read(id, Box::new(Page { batch, after, content }))).await;
            }
        });
    }

    pub(super) fn page_read(&mut self, id: ClientId, page: Page) {
        let Page { batch, after, content } = page;
        let Some(known) = self.batches.get(&batch) else { return };
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some(watch) = client.watches.get_mut(&batch).filter(|watch| watch.sent == after) else { return };
        watch.reading = false;
        match content {
            Ok(Content::Results(results)) => {
                watch.sent += results.len() as u64;
                client.outbox.push_back(ToClient::Results { batch, results });
            }
            Ok(Content::Described(cd, jobs)) => {
                // Those in between are not wanted.
                watch.sent = jobs.last().and_then(|job| job.ended.as_ref()).map_or(known.results, |(seq, _)| *seq);
                let text = |job: &Described| (job.submission.job, describe_job(job, &cd));
                // Written out, a job may be many times as long as it is kept.
                let (mut texts, mut bytes) = (Vec::new(), 0);
                for (job, text) in jobs.iter().map(text) {
                    bytes += text.len();
                    if bytes > RESULT_BYTES && !texts.is_empty() {
                        client.outbox.push_back(ToClient::Described { batch, jobs: std::mem::take(&mut texts) });
                        bytes = text.len();
                    }
                    texts.push((job, text));
                }
                let results = jobs.into_iter().filter_map(|job| Some((job.submission.job, job.ended?.1))).collect();
                client.outbox.push_back(ToClient::Described { batch, jobs: texts });
                client.outbox.push_back(ToClient::Results { batch, results });
            }
            Err(reason) => {
                client.watches.remove(&batch);
                client.outbox.push_back(ToClient::Refused { reason });
            }
        }
    }
}

/// Sends results that are in memory. Gives back after how many the store has to be asked for more.
fn next_results(name: BatchId, batch: &mut Batch, watch: &mut Watch, sender: &mpsc::Sender<ToClient>) -> Option<u64> {
    let described = match watch.wish {
        Wish::Results => false,
        Wish::Attached(Attachment::Results { .. }) => true,
        Wish::Attached(Attachment::End) => return None,
    };
    while !watch.reading && watch.sent < batch.results && watch.sent < watch.taken + RESULT_WINDOW {
        if described || watch.sent < batch.before_tail() {
            return Some(watch.sent);
        }
        let permit = sender.try_reserve().ok()?;
        let room = (watch.taken + RESULT_WINDOW - watch.sent) as usize;
        let first = (watch.sent - batch.before_tail()) as usize;
        let mut bytes = 0;
        let fits = batch.tail.range(first..).take(room).take_while(|(_, result)| {
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
        watch.sent += results.len() as u64;
        permit.send(ToClient::Results { batch: name, results });
    }
    None
}

/// Tells a client that there are no more results than it has been sent, once.
fn say_end(name: BatchId, batch: &Batch, watch: &mut Watch, sender: &mpsc::Sender<ToClient>) {
    let over = match watch.wish {
        Wish::Results => return,
        Wish::Attached(Attachment::End) => batch.done,
        Wish::Attached(Attachment::Results { follow, .. }) => {
            !watch.reading && watch.sent == batch.results && (batch.done || !follow)
        }
    };
    if over
        && !watch.ended
        && let Ok(permit) = sender.try_reserve()
    {
        watch.ended = true;
        permit.send(ToClient::Ended { batch: name, failed: batch.failed });
    }
}

fn size_estimate(result: &JobResult) -> usize {
    let outcome = &result.outcome;
    let tails = [&outcome.stdout_tail, &outcome.stderr_tail].into_iter().flatten().map(bytes::Bytes::len).sum::<usize>();
    128 + tails + outcome.error.as_ref().map_or(0, String::len)
}
