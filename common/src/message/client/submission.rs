//! Jobs that a client hands over, and what their batch is.

use crate::model::ids::JobNumber;
use crate::model::job::BatchContext;
use crate::model::outcome::Ended;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the scheduler needs to know of a job, and the rest as bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The job.
    pub job: JobNumber,
    /// The user's `id`, by which the job can be addressed.
    pub label: Option<String>,
    /// An encoded [`crate::model::job::JobSpec`].
    pub spec: Bytes,
    /// Index of the set of hosts that may run it, in the batch's table; none: any host.
    pub hosts: Option<u32>,
    /// Index of the hosts that it prefers, best first, in the same table.
    pub prefer: Option<u32>,
    /// Higher goes first.
    pub priority: i32,
    /// Slots that it takes, at least 1.
    pub slots: u16,
    /// Further attempts after failures of its own.
    pub retries: u32,
    /// Which failures are worth another attempt; none: all.
    pub retry_on: Vec<RetryOn>,
    /// Before a second attempt; twice that before the third, and so on.
    pub retry_delay: Duration,
    /// Jobs of the batch that have to succeed first.
    pub after: Vec<JobNumber>,
    /// The client has found that it cannot be started, and why: it is answered, not run.
    pub stillborn: Option<String>,
}

impl Submission {
    /// A job that asks for nothing but to be run.
    pub fn new(job: JobNumber, spec: Bytes) -> Self {
        Self {
            job,
            label: None,
            spec,
            hosts: None,
            prefer: None,
            priority: 0,
            slots: 1,
            retries: 0,
            retry_on: Vec::new(),
            retry_delay: Duration::ZERO,
            after: Vec::new(),
            stillborn: None,
        }
    }

    /// Bytes that it takes in a message, or a few more.
    pub fn size(&self) -> usize {
        let texts = [&self.label, &self.stillborn]
            .into_iter()
            .flatten()
            .map(String::len)
            .sum::<usize>();
        // Numbers take five bytes at most.
        64 + self.spec.len() + texts + 5 * self.after.len() + 10 * self.retry_on.len()
    }
}

/// A failure that is worth another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RetryOn {
    /// This exit status, or −N for signal N.
    Code(i32),
    /// This outcome.
    Outcome(Ended),
}

/// What a batch is, apart from its jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchTerms {
    /// What its jobs have in common.
    pub context: BatchContext,
    /// How long a job waits for a host that is not there.
    pub host_timeout: Duration,
    /// Place every job once only: with its host lost, it is lost.
    pub once: bool,
    /// When to give up the rest.
    pub halt: Option<Halt>,
    /// Cancel what has not ended this long after the batch was opened.
    pub time_limit: Option<Duration>,
    /// It goes on when nobody is connected who looks after it.
    pub detached: bool,
    /// What its user calls it.
    pub name: Option<String>,
}

impl BatchTerms {
    /// A batch with these surroundings that asks for nothing else.
    pub fn new(context: BatchContext, host_timeout: Duration) -> Self {
        Self {
            context,
            host_timeout,
            once: false,
            halt: None,
            time_limit: None,
            detached: false,
            name: None,
        }
    }
}

/// When a batch is given up before all its jobs have ended, as in GNU Parallel's `--halt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// Kill what runs; otherwise only start nothing more.
    pub now: bool,
    /// What is counted.
    pub why: HaltWhy,
    /// How many.
    pub count: HaltCount,
}

/// What a [`Halt`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HaltWhy {
    /// Jobs that failed.
    Fail,
    /// Jobs that ended with 0.
    Success,
    /// Jobs that ended.
    Done,
}

/// How many of them it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HaltCount {
    /// This many.
    Jobs(u64),
    /// This share of all jobs of the batch, in hundredths of a percent; decided once all are known.
    Share(u32),
}
