//! What people hear of hosts and of their batches while these go on.

use super::submission::HaltWhy;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Something a client should tell its user now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// Jobs require hosts of which none is connected.
    HostsAbsent {
        /// The hosts that would do, folded for people.
        hosts: String,
        /// How many jobs wait for them.
        jobs: u64,
        /// When they end as errors.
        after: Duration,
    },
    /// An agent's connection ended while it held jobs of this batch.
    AgentLost {
        /// The host.
        host: String,
        /// Jobs that it held.
        jobs: u64,
        /// When they may be placed elsewhere, if the agent does not come back.
        fenced_for: Duration,
    },
    /// Jobs take more slots than any connected host has that may run them.
    TooWide {
        /// How many.
        slots: u16,
        /// How many jobs wait for them.
        jobs: u64,
        /// When they end as errors.
        after: Duration,
    },
    /// A host fails whatever it gets, of this batch or of several users: for a while it gets
    /// nothing.
    Quarantined {
        /// The host.
        host: String,
        /// For how long. Zero: it gets one job of this batch at a time.
        length: Duration,
        /// What speaks against it.
        reason: String,
    },
    /// The batch's [`Halt`](super::Halt) has come about: nothing more of it starts.
    Halted {
        /// What had to be counted.
        why: HaltWhy,
        /// How many there were.
        count: u64,
    },
    /// No connected host that may run them runs jobs of this user.
    Unserved {
        /// Whose jobs.
        user: String,
        /// How many wait.
        jobs: u64,
        /// When they end as errors.
        after: Duration,
    },
    /// Jobs require names that several hosts have, and that so stand for none of them.
    Ambiguous {
        /// The names.
        names: String,
        /// The hosts that have the first of them.
        hosts: String,
        /// How many wait.
        jobs: u64,
        /// When they end as errors.
        after: Duration,
    },
    /// The coordinator's store cannot be written, or can be again.
    StoreTrouble {
        /// Why not; none: it can.
        why: Option<String>,
    },
}
