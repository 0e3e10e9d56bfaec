//! Results that are read from the store for clients, beside the loop.

use super::describe::describe_job;
use crate::store::{Described, Reader, StoreError};
use mezcal_common::message::client::ToClient;
use mezcal_common::model::ids::{BatchId, BatchSerial};

/// Bytes of results in one message, roughly; a frame has room for several times as many.
pub(super) const RESULT_BYTES: usize = 256 * 1024;

/// A read for all clients that wait for the same results.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reading {
    pub(super) batch: BatchId,
    /// The number of results that were passed before.
    pub(super) after: u64,
    /// Whether with their jobs; and if so, whether only those of jobs that did not succeed.
    pub(super) described: Option<bool>,
}

/// Why the results could not be read.
pub(super) struct NotRead {
    pub(super) why: String,
    /// Whether another try may succeed.
    pub(super) passes: bool,
}

impl From<StoreError> for NotRead {
    fn from(e: StoreError) -> Self {
        Self {
            why: crate::exit::chain(&e),
            passes: e.passes(),
        }
    }
}

/// The results of a read.
pub(super) struct Page {
    pub(super) messages: Vec<ToClient>,
    /// The number of the last result that has been passed now.
    pub(super) through: u64,
}

impl Reading {
    /// Reads the results. The store has at least `so_far` of them.
    pub(super) fn read(
        self,
        reader: &Reader,
        serial: BatchSerial,
        so_far: u64,
    ) -> Result<Page, NotRead> {
        let Self {
            batch,
            after,
            described,
        } = self;
        let Some(failed) = described else {
            let results = reader.results(serial, after, RESULT_BYTES)?;
            if results.is_empty() {
                return Err(NotRead {
                    why: "the store does not have the results of that batch".into(),
                    passes: false,
                });
            }
            let through = after + results.len() as u64;
            return Ok(Page {
                messages: vec![ToClient::Results { batch, results }],
                through,
            });
        };
        let cd = reader.terms(serial)?.context.cd;
        let jobs = reader.ended(serial, after, failed, RESULT_BYTES)?;
        // The results in between are not wanted.
        let through = jobs
            .last()
            .and_then(|job| job.ended.as_ref())
            .map_or(so_far, |(seq, _)| *seq);
        // The text of a job may be many times as long as its stored form.
        let (mut messages, mut texts, mut bytes) = (Vec::new(), Vec::new(), 0);
        for job in &jobs {
            let text = describe_job(job, &cd);
            bytes += text.len();
            if bytes > RESULT_BYTES && !texts.is_empty() {
                bytes = text.len();
                messages.push(ToClient::Described {
                    batch,
                    jobs: std::mem::take(&mut texts),
                });
            }
            texts.push((job.submission.job, text));
        }
        messages.push(ToClient::Described { batch, jobs: texts });
        let results = jobs
            .into_iter()
            .filter_map(|job: Described| Some((job.submission.job, job.ended?.1)))
            .collect();
        messages.push(ToClient::Results { batch, results });
        Ok(Page { messages, through })
    }
}
