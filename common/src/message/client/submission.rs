//! Jobs that a client submits, and the terms of their batch.

use crate::model::ids::JobNumber;
use crate::model::job::BatchContext;
use crate::model::outcome::Ended;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The data of a job that the scheduler needs, and the rest as bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// Number of the job.
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
    /// Number of further attempts after failures of its own.
    pub retries: u32,
    /// Failures that lead to another attempt; empty: all.
    pub retry_on: Vec<RetryOn>,
    /// Delay before the second attempt; it doubles for each further one.
    pub retry_delay: Duration,
    /// Jobs of the batch that have to succeed first.
    pub after: Vec<JobNumber>,
    /// The reason why the client has found that it cannot be started: it gets a result and does not
    /// run.
    pub stillborn: Option<String>,
}

impl Submission {
    /// A job without options.
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

    /// Upper bound of its size in a message, in bytes, a few bytes above the true one.
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

/// A failure that leads to another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RetryOn {
    /// This exit status, or −N for signal N.
    Code(i32),
    /// This outcome.
    Outcome(Ended),
}

/// A batch without its jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchTerms {
    /// The settings that all its jobs share.
    pub context: BatchContext,
    /// How long a job waits for a host that is absent.
    pub host_timeout: Duration,
    /// Place every job only once: a job whose host is lost is lost, too.
    pub once: bool,
    /// When to give up the remaining jobs.
    pub halt: Option<Halt>,
    /// Cancel the jobs that have not ended this long after the batch was opened.
    pub time_limit: Option<Duration>,
    /// It continues when no client is connected to it.
    pub detached: bool,
    /// The user's name for it.
    pub name: Option<String>,
}

impl BatchTerms {
    /// A batch with this context and without options.
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
    /// Kill the running jobs; otherwise only start no more.
    pub now: bool,
    /// The kind of jobs that is counted.
    pub why: HaltWhy,
    /// The number to reach.
    pub count: HaltCount,
}

/// The kind of jobs that a [`Halt`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HaltWhy {
    /// Jobs that failed.
    Fail,
    /// Jobs that ended with exit status 0.
    Success,
    /// Jobs that ended.
    Done,
}

/// The number that a [`Halt`] needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HaltCount {
    /// This many.
    Jobs(u64),
    /// This share of all jobs of the batch, in hundredths of a percent; decided once all are known.
    Share(u32),
}
