//! Batches of a copy: what their original has placed since the copy was made is unknown here, so
//! nothing of them is placed until all that is surely over.
//!
//! Whatever the original has placed ends when its hosts have not heard from it for a lease; they
//! hear from it no more when it is dead, or when they have met this store, whose generation is
//! newer. Jobs that are held wait among those that are tried again later.

use super::{FENCE_MARGIN, Record, Scheduler, Timer};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{BatchSerial, Generation, JobKey};
use mezcal_common::model::outcome::{Ended, Outcome};
use std::time::Duration;

/// Which batches are held, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hold {
    /// Those before this one.
    below: BatchSerial,
    /// The longest lease under which anything of theirs may run.
    lease: Option<Duration>,
    /// None: the records have not all been taken back.
    until: Option<BootInstant>,
}

impl Scheduler {
    /// What is given out from now on has numbers of this generation, and agents hear of it.
    #[must_use]
    pub fn of_generation(mut self, generation: Generation) -> Self {
        self.generation = generation;
        self.batches.number_from(generation.first_batch());
        self
    }

    /// Batches before `below` may run for another coordinator, for `lease` without a word at least:
    /// the store is a copy of that one's.
    #[must_use]
    pub fn holding(mut self, below: BatchSerial, lease: Option<Duration>) -> Self {
        self.hold = Some(Hold {
            below,
            lease,
            until: None,
        });
        self
    }

    /// Something was placed under this lease before the copy was made.
    pub(super) fn placed_under(&mut self, lease: Option<Duration>) {
        if let Some(hold) = &mut self.hold {
            hold.lease = hold.lease.max(lease);
        }
    }

    /// The wait begins: all that is known is taken back.
    pub(super) fn hold_begins(&mut self, now: BootInstant) {
        let own = self.lease;
        if let Some(hold) = &mut self.hold {
            // Without a lease nothing outlives its coordinator.
            let until = now + hold.lease.max(own).unwrap_or_default() + FENCE_MARGIN;
            hold.until = Some(until);
            self.timers.set(Timer::Hold, until);
        }
    }

    /// Until when nothing of this batch is placed.
    pub(super) fn held_until(&self, batch: BatchSerial) -> Option<BootInstant> {
        self.hold.filter(|hold| batch < hold.below)?.until
    }

    /// What may run elsewhere waits, and true; false: it does not.
    pub(super) fn is_held_back(&mut self, key: JobKey) -> bool {
        let Some(until) = self.held_until(key.batch) else {
            return false;
        };
        self.delay(key, until);
        true
    }

    /// Nothing of an original runs any more.
    pub(super) fn end_hold(&mut self) {
        self.hold = None;
        self.persist(|| Record::Released);
    }
}

/// An end that this coordinator has decided, of a job that may run for another one until then, says
/// so.
pub(super) fn admit_ignorance(outcome: &mut Outcome, until: BootInstant, now: BootInstant) {
    match outcome.ended {
        Ended::Cancelled | Ended::Lost | Ended::NoHost | Ended::Skipped | Ended::StartFailed => {
            let seconds = until.since(now).as_secs();
            let text = format!(
                "what the original of this restored store has placed since may go on, out of reach, until its lease ends, within {seconds} s"
            );
            let said = outcome
                .error
                .take()
                .map_or(text.clone(), |said| format!("{said}; {text}"));
            outcome.error = Some(said);
        }
        // That is what a host has seen.
        Ended::Exited
        | Ended::Signaled
        | Ended::Timeout
        | Ended::OutOfMemory
        | Ended::Unkillable
        | Ended::HostShort => {}
    }
}
