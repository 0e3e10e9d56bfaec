//! Handing a job list over, message by message, from the first job that is missing there.

use crate::jobs::Jobs;
use mezcal_common::message::client::{Submission, ToService};
use mezcal_common::model::ids::BatchId;
use std::collections::VecDeque;
use std::sync::Arc;

/// The most jobs, and bytes, in one submit message.
pub const SUBMIT_JOBS: usize = 4096;
pub(crate) const SUBMIT_BYTES: usize = 256 * 1024;

/// Whether `next` goes into a message with `jobs`, which have `bytes`; adds its size to
/// `bytes`. A job that is too long alone is sent alone.
pub(crate) fn fits(next: &Submission, jobs: &[Submission], bytes: &mut usize) -> bool {
    *bytes += next.size();
    jobs.is_empty() || (jobs.len() < SUBMIT_JOBS && *bytes <= SUBMIT_BYTES)
}

/// The part of a job list that is still to be handed over.
pub struct Submitter {
    jobs: Arc<Jobs>,
    batch: BatchId,
    sets: VecDeque<Vec<String>>,
    /// The number of the next job.
    next: u32,
    /// The coordinator has been told that no more jobs come.
    closed: bool,
    /// The coordinator has said how much of the batch it has.
    ready: bool,
}

impl Submitter {
    /// Waits for the coordinator to say how much of the batch it has.
    pub fn new(jobs: Arc<Jobs>, batch: BatchId) -> Self {
        Self {
            jobs,
            batch,
            sets: VecDeque::new(),
            next: 1,
            closed: false,
            ready: false,
        }
    }

    /// Continues after the `host_sets` and `jobs` that the coordinator has.
    pub fn opened(&mut self, host_sets: u64, jobs: u64, closed: bool) {
        let sets = self.jobs.host_sets();
        self.sets = sets
            .into_iter()
            .skip(usize::try_from(host_sets).unwrap_or(usize::MAX))
            .collect();
        // A coordinator cannot have more jobs than the list.
        self.next = jobs.min(self.jobs.len() as u64) as u32 + 1;
        (self.closed, self.ready) = (closed, true);
    }

    /// The connection is gone: messages under way may not have arrived.
    pub fn interrupted(&mut self) {
        self.ready = false;
    }

    /// Whether there is a message to send now.
    pub fn has_more(&self) -> bool {
        self.ready && !self.closed
    }

    /// Whether any job has been handed over.
    pub fn has_begun(&self) -> bool {
        self.next > 1
    }

    /// The next message: host sets, then jobs, then the end of the batch.
    pub fn next_message(&mut self) -> ToService {
        let batch = self.batch;
        let (mut host_sets, mut bytes) = (Vec::new(), 0);
        while bytes < SUBMIT_BYTES
            && let Some(set) = self.sets.pop_front()
        {
            bytes += set.iter().map(|name| name.len() + 8).sum::<usize>();
            host_sets.push(set);
        }
        if !host_sets.is_empty() {
            return ToService::Submit {
                batch,
                host_sets,
                jobs: Vec::new(),
            };
        }
        let mut jobs: Vec<Submission> = Vec::new();
        while self.next as usize <= self.jobs.len() {
            // Each job was readable when it was checked.
            if let Some(submission) = self.jobs.submission(self.next) {
                if !fits(&submission, &jobs, &mut bytes) {
                    break;
                }
                jobs.push(submission);
            }
            self.next += 1;
        }
        if jobs.is_empty() {
            self.closed = true;
            return ToService::Close { batch };
        }
        ToService::Submit {
            batch,
            host_sets: Vec::new(),
            jobs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::Format;
    use mezcal_common::model::job::MAX_AFTER;
    use mezcal_common::wire::codec::{decode_exact, encode_body};

    fn messages(text: String) -> Result<Vec<ToService>, String> {
        let jobs = Arc::new(Jobs::read("in", text.into_bytes(), Format::Json, 0)?);
        let mut submitter = Submitter::new(jobs, BatchId::random());
        submitter.opened(0, 0, false);
        Ok(std::iter::from_fn(|| submitter.has_more().then(|| submitter.next_message())).collect())
    }

    /// `first` jobs, and `then` jobs that come after all of those.
    fn after(first: usize, then: usize) -> String {
        let all: Vec<String> = (1..=first).map(|n| format!("\"{n}\"")).collect();
        "{\"cmd\": \"true\"}\n".repeat(first)
            + &format!("{{\"cmd\": \"true\", \"after\": [{}]}}\n", all.join(", ")).repeat(then)
    }

    #[test]
    fn every_message_fits_a_frame() {
        for (first, then) in [(700, 700), (MAX_AFTER, 1)] {
            let messages = messages(after(first, then)).expect("good jobs");
            assert!(messages.iter().all(|message| {
                decode_exact::<ToService>(&encode_body(message).expect("it fits")).is_ok()
            }));
            let jobs = messages.iter().map(|message| {
                if let ToService::Submit { jobs, .. } = message {
                    jobs.len()
                } else {
                    0
                }
            });
            assert_eq!(jobs.sum::<usize>(), first + then);
        }
        let refused = messages(after(MAX_AFTER + 1, 1)).expect_err("it would not fit");
        assert!(refused.contains("too many to come after"), "{refused}");
    }
}
