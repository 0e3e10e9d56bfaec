//! The coordinator's core: which job is where, and what happens to it next.
//!
//! No clock, no randomness, no I/O: events in, effects out. [`crate::service`] performs the
//! effects.
//!
//! ```text
//!            pull                     finished, acknowledged
//!  queued ─────────▶ placed on a host ─────────────────────▶ done (one final result)
//!    ▲                  │ failed and retries left, or its host was lost
//!    └──────────────────┘
//! ```
//!
//! No job runs twice (P1): an attempt leaves a host's table only on proof that it is over: its
//! report, an inventory without it, a goodbye, another boot of the host, or the end of the lease
//! plus [`FENCE_MARGIN`]. Until then the job is not placed again.

mod absence;
mod after;
mod agents;
mod attempts;
mod batch;
mod batches;
mod build;
mod cancel;
mod credit;
mod drain;
mod effect;
mod event;
mod fleet;
mod halt;
mod hold;
mod host;
mod hosts;
mod inventory;
mod leases;
mod losses;
mod mistake;
mod names;
mod near;
mod on_host;
mod output;
mod quarantine;
mod queues;
mod record;
mod retract;
mod serving;
mod shortage;
mod status;
mod text;
mod timers;
mod users;
mod why;
mod wide;

use batch::{Batch, Batches, Job, JobState};
pub use effect::{Effect, Placing, Text, Welcome};
pub use event::{Event, Wanted, WantedJob};
use host::{Host, REASON_CHARS};
use hosts::Hosts;
pub use leases::FENCE_MARGIN;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{Epoch, Generation, StoreId};
pub use mistake::Mistake;
pub use names::Aliases;
use on_host::OnHost;
use queues::Queues;
pub use record::Record;
pub use status::Standing;
use std::collections::VecDeque;
use std::time::Duration;
use timers::{Timer, Timers};
use users::Users;
pub use wide::WIDE_WAIT;

/// The state of a coordinator, and all its decisions.
#[derive(Debug)]
pub struct Scheduler {
    epoch: Epoch,
    store: StoreId,
    generation: Generation,
    /// Restored batches that may still run for another coordinator.
    hold: Option<hold::Hold>,
    /// Every decision is recorded.
    durable: bool,
    restoring: record::Restoring,
    client_lease: Duration,
    lease: Option<Duration>,
    /// The lease is longer than the one recorded with attempts of an earlier life: no agent is told
    /// of it before the store has it.
    leases_grow: bool,
    batches: Batches,
    hosts: Hosts,
    names: names::Names,
    present: fleet::Present,
    told: absence::Told,
    queues: Queues,
    users: Users,
    /// Idle slots that are kept for jobs of several slots.
    keeping: wide::Keeping,
    /// Some jobs wait that hosts could take, and these hosts have asked already.
    unserved: bool,
    /// How long a slot has to be idle before it gets a job that prefers another host.
    locality_wait: Duration,
    /// When the slots that had been idle for the locality wait were last checked.
    looked_at: BootInstant,
    pending: after::Pending,
    cancels: cancel::Cancels,
    timers: Timers,
    effects: VecDeque<Effect>,
    mistake: Option<Mistake>,
    /// Set in simulations: the placements that break P4.
    findings: Option<near::Findings>,
}

impl Scheduler {
    /// Handles an event that happened at `now`.
    pub fn handle(&mut self, event: Event, now: BootInstant) {
        match event {
            Event::AgentHello {
                session,
                name,
                hello,
            } => self.agent_hello(session, &name, hello, now),
            Event::Agent(session, message) => {
                if let Some(name) = self.hosts.of_session(session) {
                    self.agent_message(&name, message, now);
                }
            }
            Event::AgentGone(session) => {
                if let Some(name) = self.hosts.session_ends(session) {
                    self.agent_gone(&name, false, now);
                }
            }
            Event::Open { user, terms } => self.open(user, *terms, now),
            Event::Submit {
                batch,
                host_sets,
                jobs,
            } => self.submit(batch, &host_sets, jobs, now),
            Event::Close { batch } => self.close(batch, now),
            Event::Unattended { batch } => {
                if let Some(serial) = self.batches.serial(batch) {
                    self.unattended(serial, now);
                }
            }
            Event::Attended { batch } => {
                if let Some(serial) = self.batches.serial(batch) {
                    self.attended(serial);
                }
            }
            Event::Cancel {
                request,
                what,
                stop,
                why,
            } => self.cancel(request, &what, stop, why, now),
            Event::Logs {
                request,
                batch,
                job,
                wish,
            } => self.logs(request, batch, &job, wish),
            Event::OutputTaken { batch, job, bytes } => self.output_taken(batch, job, bytes),
        }
        self.settle(now);
    }

    /// Fires the timers that are due at `now`.
    pub fn handle_timeout(&mut self, now: BootInstant) {
        for timer in self.timers.due(now) {
            // The work for one timer may have cleared another.
            if self.timers.expires(timer, now) {
                self.fire(timer, now);
            }
        }
        self.serve_impatient(now);
        self.settle(now);
    }

    /// When [`Scheduler::handle_timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<BootInstant> {
        let timers = self.timers.next().into_iter();
        timers.chain(self.patience_ends()).min()
    }

    /// The next effect for the driver to perform.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }
}

#[cfg(test)]
mod tests;
