//! Messages for people about hosts and about their batches while these run.

use super::submission::HaltWhy;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A message that a client should show its user at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// Jobs require hosts of which none is connected.
    HostsAbsent {
        /// The hosts that may run them, folded for people.
        hosts: String,
        /// Number of jobs that wait for them.
        jobs: u64,
        /// Time after which these jobs end as errors.
        after: Duration,
    },
    /// An agent's connection ended while it held jobs of this batch.
    AgentLost {
        /// Name of the host.
        host: String,
        /// Number of jobs that it held.
        jobs: u64,
        /// Time after which they may be placed elsewhere, if the agent does not come back.
        fenced_for: Duration,
    },
    /// Jobs take more slots than any connected host that may run them has.
    TooWide {
        /// Number of slots.
        slots: u16,
        /// Number of jobs that wait for them.
        jobs: u64,
        /// Time after which these jobs end as errors.
        after: Duration,
    },
    /// A host fails all jobs that it gets, of this batch or of several users: for a while it gets
    /// no jobs.
    Quarantined {
        /// Name of the host.
        host: String,
        /// For how long. Zero: it gets one job of this batch at a time.
        length: Duration,
        /// The evidence against the host.
        reason: String,
    },
    /// The batch's [`Halt`](super::Halt) has come about: no more of its jobs start.
    Halted {
        /// The kind of jobs that was counted.
        why: HaltWhy,
        /// How many there were.
        count: u64,
    },
    /// No connected host that may run them runs jobs of this user.
    Unserved {
        /// The user who owns the jobs.
        user: String,
        /// Number of jobs that wait.
        jobs: u64,
        /// Time after which they end as errors.
        after: Duration,
    },
    /// Jobs require names that several hosts have, and that therefore stand for none of them.
    Ambiguous {
        /// The names.
        names: String,
        /// The hosts that have the first of them.
        hosts: String,
        /// Number of jobs that wait.
        jobs: u64,
        /// Time after which they end as errors.
        after: Duration,
    },
    /// The coordinator's store cannot be written, or can be again.
    StoreTrouble {
        /// The error; none: it can be written again.
        why: Option<String>,
    },
}
