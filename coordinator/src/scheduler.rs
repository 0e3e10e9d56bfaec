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
//! What keeps a job from running twice (P1): an attempt leaves a host's table only by proof that it
//! is over: its report, an inventory without it, a goodbye, another boot of the host, or the end of
//! the lease plus [`FENCE_MARGIN`]. Until then the job is not placed again.

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

/// All decisions of a coordinator.
#[derive(Debug)]
pub struct Scheduler {
    epoch: Epoch,
    store: StoreId,
    generation: Generation,
    /// Batches that may run for another coordinator.
    hold: Option<hold::Hold>,
    /// What it decides is recorded.
    durable: bool,
    restoring: record::Restoring,
    client_lease: Duration,
    lease: Option<Duration>,
    /// It is longer than what was recorded with attempts of an earlier life: no agent hears of it
    /// before the store has it.
    leases_grow: bool,
    batches: Batches,
    hosts: Hosts,
    names: names::Names,
    present: fleet::Present,
    told: absence::Told,
    queues: Queues,
    users: Users,
    /// Idle slots that wait for jobs that take several.
    keeping: wide::Keeping,
    /// Jobs wait that hosts could take which have asked already.
    unserved: bool,
    /// How long a slot is idle before it gets a job that prefers another host.
    locality_wait: Duration,
    /// When slots that had been idle for that long were last looked at.
    looked_at: BootInstant,
    pending: after::Pending,
    cancels: cancel::Cancels,
    timers: Timers,
    effects: VecDeque<Effect>,
    mistake: Option<Mistake>,
    /// Somebody watches: what was placed against P4.
    watch: Option<near::Watch>,
}

impl Scheduler {
    /// Takes what happened at `now`.
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

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: BootInstant) {
        for timer in self.timers.due(now) {
            // What has been done for one of them may have cleared another.
            if self.timers.expires(timer, now) {
                self.is_due(timer, now);
            }
        }
        self.serve_impatient(now);
        self.settle(now);
    }

    /// When [`Scheduler::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<BootInstant> {
        let timers = self.timers.next().into_iter();
        timers.chain(self.patience_ends()).min()
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }
}

#[cfg(test)]
mod tests;
