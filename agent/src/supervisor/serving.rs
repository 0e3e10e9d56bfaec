//! The users whose jobs run here: users whose engines have all been heard are served, and the
//! others are left out.

use super::Supervisor;
use super::programs::Replacing;
use super::sets::{HEARD_WITHIN, Set};
use super::slot::{Engine, Slot};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, BatchSerial, EngineIndex};
use std::collections::HashSet;

/// The reasons why a set is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// An engine runs something that nobody here knows of.
    Unfit,
    /// An engine has not been heard.
    Unheard,
}

impl Supervisor {
    /// When to look at the sets again.
    pub(super) fn sets_at(&self) -> Option<BootInstant> {
        let sets = (0..self.sets.len()).filter(|_| self.shared);
        sets.filter_map(|set| self.sets[set].poll_timeout(self.what_is_wrong(set).is_none()))
            .min()
    }

    /// The set of this user.
    pub fn set_of(&self, user: &str) -> Option<usize> {
        self.sets
            .iter()
            .position(|set| set.user() == user)
            .filter(|_| self.shared)
    }

    /// The user of a set.
    pub fn user_of(&self, set: usize) -> Option<&str> {
        self.sets
            .get(set)
            .filter(|_| self.shared)
            .map(|set| set.user())
    }

    pub(super) fn is_served(&self, set: usize) -> bool {
        !self.shared || self.sets[set].is_served()
    }

    pub(super) fn engines_of(&self, set: usize) -> std::ops::Range<usize> {
        set * self.slots..(set + 1) * self.slots
    }

    pub(super) fn set_of_engine(&self, index: EngineIndex) -> usize {
        usize::from(index.0) / self.slots.max(1)
    }

    /// The users whose files a batch may have, if the agent runs jobs of others: its user, or all
    /// users. None: the agent runs only its own jobs.
    pub fn owners_of(&self, batch: BatchSerial) -> Option<Vec<String>> {
        let everybody = || self.sets.iter().map(|set| set.user().to_owned()).collect();
        self.shared.then(|| {
            self.batches
                .owner(batch)
                .map_or_else(everybody, |user| vec![user.to_owned()])
        })
    }

    /// The set of the user whose attempt it is, if that is known.
    pub(super) fn owner(&self, attempt: AttemptId) -> Option<usize> {
        self.batches
            .owner(attempt.key.batch)
            .and_then(|user| self.set_of(user))
    }

    /// Whether the engines that may have an attempt are heard.
    pub(super) fn can_be_absent(&self, attempt: AttemptId) -> bool {
        !self.shared
            || self.owner(attempt).map_or_else(
                || self.sets.iter().all(|set| set.is_served()),
                |set| self.sets[set].is_served(),
            )
    }

    /// Whether the coordinator fences the attempts of a set: leases are not renewed for them.
    pub(super) fn is_fenced(&self, set: usize) -> bool {
        self.shared && self.sets[set].is_left_out()
    }

    /// Why a set cannot be served, whatever it has been so far.
    pub(super) fn what_is_wrong(&self, set: usize) -> Option<Wrong> {
        let slots = || {
            self.engines[self.engines_of(set)]
                .iter()
                .map(|engine| engine.slot)
        };
        if slots().any(|slot| slot == Slot::Unfit) {
            return Some(Wrong::Unfit);
        }
        slots()
            .any(|slot| matches!(slot, Slot::Unheard { .. }))
            .then_some(Wrong::Unheard)
    }

    /// Serves the users whose engines have been heard, and leaves the others out.
    pub(super) fn look_at_sets(&mut self, now: BootInstant) {
        let sets = if self.shared { self.sets.len() } else { 0 };
        for set in 0..sets {
            if self.sets[set].take_over(now) {
                for i in self.engines_of(set) {
                    let slot = &mut self.engines[i].slot;
                    match slot {
                        Slot::Unheard { given } => *given = None,
                        Slot::Busy { .. } => *slot = Slot::Unfit,
                        Slot::Idle | Slot::Held { .. } | Slot::Unfit => {}
                    }
                }
            }
            if !self.sets[set].is_here() {
                continue;
            }
            match self.what_is_wrong(set) {
                None if self.sets[set].is_served() => self.sets[set].is_heard(),
                None => {
                    if self.sets[set].serve(now) {
                        self.sets[set].is_replaced();
                        self.programs.look_again();
                        if let Some(until) = self.lease_until {
                            // The set has missed the messages about leases meanwhile.
                            self.tell_lease(set, Some(until));
                        }
                    }
                }
                Some(Wrong::Unfit) => {
                    self.leave_out(
                        set,
                        "an engine of theirs runs a job that the coordinator does not know".into(),
                        now,
                    );
                }
                // A set that is left out is not waited for.
                Some(Wrong::Unheard) if self.sets[set].is_left_out() => {}
                Some(Wrong::Unheard) => {
                    let by = self.sets[set].due_by(now);
                    if by <= now {
                        let silent = || {
                            format!(
                                "their engines have not answered within {} s",
                                HEARD_WITHIN.as_secs()
                            )
                        };
                        let why = self.engines[self.engines_of(set)]
                            .iter()
                            .find_map(|engine| engine.vacant.and(engine.why.as_ref()));
                        let why = why.map_or_else(silent, |why| {
                            format!("their engines do not start: {why}")
                        });
                        self.leave_out(set, why, now);
                    }
                }
            }
        }
    }

    pub(super) fn leave_out(&mut self, set: usize, why: String, now: BootInstant) {
        let Some(left) = self.sets.get_mut(set) else {
            return;
        };
        if left.why() != Some(&why) {
            tracing::warn!(
                user = left.user(),
                "no jobs of {} are run: {why}",
                left.user()
            );
        }
        left.leave_out(why, self.lease_until, now);
        let user = left.user();
        let theirs = |attempt: &AttemptId| self.batches.owner(attempt.key.batch) == Some(user);
        let waiting: HashSet<AttemptId> = self.queue.attempts().filter(theirs).collect();
        self.return_some(&waiting);
    }

    pub(super) fn keeper_gone(&mut self, set: usize, why: String, now: BootInstant) {
        if !self.shared || set >= self.sets.len() {
            return;
        }
        for i in self.engines_of(set) {
            self.engines[i].is_gone();
        }
        self.sets[set].set_here(false);
        self.programs.look_again();
        match self.sets[set].replacing() {
            // That has been reported.
            Replacing::Ending { .. } => {}
            Replacing::Draining => {
                self.sets[set].set_replacing(Replacing::No);
                self.leave_out(set, why, now);
            }
            Replacing::No | Replacing::Done => self.leave_out(set, why, now),
        }
    }

    pub(super) fn keeper_here(&mut self, user: String) {
        match self.set_of(&user) {
            Some(set) => self.sets[set].set_here(true),
            // The numbers of engines have 16 bits.
            None if self.shared && self.engines.len() + self.slots <= usize::from(u16::MAX) => {
                self.sets.push(Set::new(user));
                self.engines.extend((0..self.slots).map(|_| Engine::new()));
            }
            None => tracing::warn!(
                user,
                "no jobs of {user} are run: there are too many engines"
            ),
        }
    }
}
