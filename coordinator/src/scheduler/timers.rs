//! When the scheduler has to act next: one table of instants, in which each timer has one.
//!
//! Jobs that are tried again, of which there may be millions, have one timer together
//! ([`Timer::Retries`]). Slots that fall idle have none: an index of the idle slots says when their
//! patience ends.

use super::Scheduler;
use super::queues::QueueKey;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::BatchSerial;
use std::collections::{BTreeMap, BTreeSet};

/// A reason to act at an instant. Of the timers that are due at once, those that stand first here
/// come first, whatever their instants are; those of one kind come in the order of the hosts,
/// queues or batches that they name. Hosts are given by their indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Everything that the original of a restored store has placed is surely over.
    Hold,
    /// The lease that ends first may have ended. Heartbeats move the ends of leases on and leave
    /// this timer where it is.
    Leases,
    /// A connected host must have sent its inventory by then.
    Ready(u32),
    /// Jobs that no host can run have waited for the host timeout.
    Absent(QueueKey),
    /// A batch has used up its time.
    TimeLimit(BatchSerial),
    /// The pause of the first delayed job before its next attempt ends.
    Retries,
    /// No client has looked after a batch for longer than a client may be away.
    Deserted(BatchSerial),
    /// Hosts that may run attempts of an earlier life are not expected back any longer.
    Return,
    /// An agent has been away for so long that people are told.
    Loss(u32),
    /// The jobs that still run on a drained host are taken away.
    Eviction(u32),
    /// A quarantine ends.
    Quarantine(u32),
    /// A batch may try another of its jobs on a host that it suspects.
    Probation(u32, BatchSerial),
    /// A host has kept idle slots for as long as it may.
    Kept(u32),
    /// A host that has kept slots in vain may keep some again.
    Rested(u32),
    /// Jobs that were sent in advance are taken back where idle slots can have them.
    Retract,
}

/// Which timers are set, and for when.
#[derive(Debug, Default)]
pub(super) struct Timers {
    by_instant: BTreeSet<(BootInstant, Timer)>,
    instants: BTreeMap<Timer, BootInstant>,
}

impl Timers {
    /// Sets a timer to `at`, and to no other time.
    pub(super) fn set(&mut self, timer: Timer, at: BootInstant) {
        if let Some(was) = self.instants.insert(timer, at) {
            self.by_instant.remove(&(was, timer));
        }
        self.by_instant.insert((at, timer));
    }

    /// Sets a timer to `at` unless it is set already. True if it was not.
    pub(super) fn begin(&mut self, timer: Timer, at: BootInstant) -> bool {
        let begins = !self.is_set(timer);
        if begins {
            self.set(timer, at);
        }
        begins
    }

    /// Sets a timer to `at` unless it is set to an earlier time.
    pub(super) fn set_no_later(&mut self, timer: Timer, at: BootInstant) {
        if self.at(timer).is_none_or(|was| at < was) {
            self.set(timer, at);
        }
    }

    /// Sets a timer to `at`; none: clears it.
    pub(super) fn set_or_clear(&mut self, timer: Timer, at: Option<BootInstant>) {
        match at {
            Some(at) => self.set(timer, at),
            None => self.clear(timer),
        }
    }

    /// Clears a timer.
    pub(super) fn clear(&mut self, timer: Timer) {
        if let Some(was) = self.instants.remove(&timer) {
            self.by_instant.remove(&(was, timer));
        }
    }

    /// The time to which a timer is set.
    pub(super) fn at(&self, timer: Timer) -> Option<BootInstant> {
        self.instants.get(&timer).copied()
    }

    /// Whether a timer is set.
    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.instants.contains_key(&timer)
    }

    /// When the next timer is due.
    pub(super) fn next(&self) -> Option<BootInstant> {
        self.by_instant.first().map(|(at, _)| *at)
    }

    /// The timers that are due at `now`, in the order of [`Timer`].
    pub(super) fn due(&self, now: BootInstant) -> Vec<Timer> {
        let due = self.by_instant.iter().take_while(|(at, _)| *at <= now);
        let mut due: Vec<Timer> = due.map(|(_, timer)| *timer).collect();
        due.sort_unstable();
        due
    }

    /// True if a timer is due at `now`; it is cleared then.
    pub(super) fn expires(&mut self, timer: Timer, now: BootInstant) -> bool {
        let is_due = self.at(timer).is_some_and(|at| at <= now);
        if is_due {
            self.clear(timer);
        }
        is_due
    }

    /// All timers that are set.
    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = Timer> {
        self.instants.keys().copied()
    }
}

impl Scheduler {
    /// Acts for a timer that is due.
    pub(super) fn fire(&mut self, timer: Timer, now: BootInstant) {
        match timer {
            Timer::Hold => self.end_hold(),
            Timer::Leases => self.look_at_leases(now),
            Timer::Ready(host) => self.host_is_late(host),
            Timer::Absent(queue) => self.end_absent(queue, now),
            Timer::TimeLimit(batch) => self.time_is_up(batch, now),
            Timer::Retries => self.retry_in_turn(now),
            Timer::Deserted(batch) => self.end_deserted(batch, now),
            Timer::Return => self.expect_no_more(now),
            Timer::Loss(host) => self.say_loss(host, now),
            Timer::Eviction(host) => self.evict(host),
            Timer::Quarantine(host) => self.end_quarantine(host, now),
            Timer::Probation(..) => self.unserved = true,
            Timer::Kept(host) => self.keep_no_longer(host, now),
            Timer::Rested(host) => self.keep_after_a_rest(host, now),
            Timer::Retract => self.retract_prefetched(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(second: u64) -> BootInstant {
        BootInstant(Duration::from_secs(second))
    }

    /// Clears and returns all timers that are due, in order.
    fn all_due(timers: &mut Timers, now: u64) -> Vec<Timer> {
        let due = timers.due(at(now));
        assert!(due.iter().all(|timer| timers.expires(*timer, at(now))));
        due
    }

    #[test]
    fn none_is_due_before_its_instant() {
        let mut timers = Timers::default();
        timers.set(Timer::Retract, at(3));
        timers.set(Timer::Loss(1), at(5));
        timers.set(Timer::Hold, at(4));
        assert_eq!(timers.next(), Some(at(3)));
        assert_eq!(all_due(&mut timers, 2), []);
        assert!(!timers.expires(Timer::Loss(1), at(4)));
        assert_eq!(all_due(&mut timers, 4), [Timer::Hold, Timer::Retract]);
        assert_eq!(timers.next(), Some(at(5)));
        assert_eq!(all_due(&mut timers, 9), [Timer::Loss(1)]);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn those_that_are_due_come_in_the_order_of_their_list() {
        let mut timers = Timers::default();
        let ordered = [
            Timer::Leases,
            Timer::TimeLimit(BatchSerial(1)),
            Timer::TimeLimit(BatchSerial(2)),
            Timer::Retries,
            Timer::Kept(0),
        ];
        for (second, timer) in ordered.iter().rev().enumerate() {
            timers.set(*timer, at(second as u64));
        }
        assert_eq!(all_due(&mut timers, 9), ordered);
    }

    #[test]
    fn one_that_is_cleared_or_set_anew_meanwhile_does_not_expire() {
        let mut timers = Timers::default();
        timers.set(Timer::Kept(1), at(1));
        timers.set(Timer::Kept(2), at(1));
        let due = timers.due(at(1));
        timers.clear(Timer::Kept(1));
        timers.set(Timer::Kept(2), at(2));
        assert!(!due.iter().any(|timer| timers.expires(*timer, at(1))));
        assert_eq!(timers.next(), Some(at(2)));
    }

    #[test]
    fn each_has_one_instant() {
        let mut timers = Timers::default();
        timers.set(Timer::Kept(7), at(1));
        timers.set(Timer::Kept(7), at(2));
        assert_eq!(all_due(&mut timers, 1), []);
        assert!(!timers.begin(Timer::Kept(7), at(1)), "it has begun");
        assert_eq!(timers.at(Timer::Kept(7)), Some(at(2)));
        timers.set_no_later(Timer::Kept(7), at(3));
        assert_eq!(timers.next(), Some(at(2)));
        timers.set_no_later(Timer::Kept(7), at(1));
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(all_due(&mut timers, 9), [Timer::Kept(7)]);
        assert!(timers.begin(Timer::Kept(7), at(9)));
    }

    #[test]
    fn one_that_is_cleared_is_never_due() {
        let mut timers = Timers::default();
        timers.set(Timer::Deserted(BatchSerial(1)), at(1));
        timers.clear(Timer::Deserted(BatchSerial(1)));
        timers.clear(Timer::Deserted(BatchSerial(2)));
        timers.set_or_clear(Timer::Retries, Some(at(1)));
        timers.set_or_clear(Timer::Retries, None);
        assert!(!timers.is_set(Timer::Retries));
        assert_eq!(timers.next(), None);
        assert_eq!(all_due(&mut timers, 9), []);
    }
}
