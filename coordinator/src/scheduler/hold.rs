//! Batches of a copied store: the jobs that its original has placed since the copy was made are
//! unknown here, so none of these batches' jobs are placed until all of those are surely over.
//!
//! A job that the original has placed ends when its host has not heard from the original for a
//! lease. A host stops hearing from it when it dies, or when the host has met this store, whose
//! generation is newer. Held jobs wait among those that are tried again later.

use super::{FENCE_MARGIN, Record, Scheduler, Timer};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{BatchSerial, Generation, JobKey};
use mezcal_common::model::outcome::{Ended, Outcome};
use std::time::Duration;

/// Which batches are held, and until when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hold {
    /// Batches with numbers below this one are held.
    below: BatchSerial,
    /// The longest lease under which any of their jobs may run.
    lease: Option<Duration>,
    /// None while records are still being replayed.
    until: Option<BootInstant>,
}

impl Scheduler {
    /// Numbers given from now on belong to this generation, and agents are told of it.
    #[must_use]
    pub fn of_generation(mut self, generation: Generation) -> Self {
        self.generation = generation;
        self.batches.number_from(generation.first_batch());
        self
    }

    /// This store is a copy: its batches before `below` may run for the original's coordinator, for
    /// at least `lease` after its last message.
    #[must_use]
    pub fn holding(mut self, below: BatchSerial, lease: Option<Duration>) -> Self {
        self.hold = Some(Hold {
            below,
            lease,
            until: None,
        });
        self
    }

    /// An attempt was placed under this lease before the copy was made.
    pub(super) fn placed_under(&mut self, lease: Option<Duration>) {
        if let Some(hold) = &mut self.hold {
            hold.lease = hold.lease.max(lease);
        }
    }

    /// All records are replayed: the wait begins.
    pub(super) fn hold_begins(&mut self, now: BootInstant) {
        let own = self.lease;
        if let Some(hold) = &mut self.hold {
            // Without a lease no attempt outlives its coordinator.
            let until = now + hold.lease.max(own).unwrap_or_default() + FENCE_MARGIN;
            hold.until = Some(until);
            self.timers.set(Timer::Hold, until);
        }
    }

    /// Until when no job of this batch is placed; none: it is not held.
    pub(super) fn held_until(&self, batch: BatchSerial) -> Option<BootInstant> {
        self.hold.filter(|hold| batch < hold.below)?.until
    }

    /// Lets a job wait if it may run elsewhere. True if it waits.
    pub(super) fn is_held_back(&mut self, key: JobKey) -> bool {
        let Some(until) = self.held_until(key.batch) else {
            return false;
        };
        self.delay(key, until);
        true
    }

    /// Ends the hold: no job that the original placed can run any more.
    pub(super) fn end_hold(&mut self) {
        self.hold = None;
        self.persist(|| Record::Released);
    }
}

/// Adds to an outcome decided here that the job may run for another coordinator until `until`.
pub(super) fn admit_ignorance(outcome: &mut Outcome, until: BootInstant, now: BootInstant) {
    match outcome.ended {
        Ended::Cancelled | Ended::Lost | Ended::NoHost | Ended::Skipped | Ended::StartFailed => {
            let seconds = until.since(now).as_secs();
            let text = format!(
                "jobs that the original of this restored store has placed since may go on, out of \
                 reach, until their leases end, within {seconds} s"
            );
            let said = outcome
                .error
                .take()
                .map_or(text.clone(), |said| format!("{said}; {text}"));
            outcome.error = Some(said);
        }
        // A host has observed these ends.
        Ended::Exited
        | Ended::Signaled
        | Ended::Timeout
        | Ended::OutOfMemory
        | Ended::Unkillable
        | Ended::HostShort => {}
    }
}
