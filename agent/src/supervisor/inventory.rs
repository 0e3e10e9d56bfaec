//! The inventory, by which the coordinator learns of all attempts that are here: one once every
//! engine has been heard, or one for each user who is served.

use super::Supervisor;
use super::event::Effect;
use super::reports::Entry;
use super::sets::{HEARD_WITHIN, Set};
use super::slot::Engine;
use mezcal_common::message::agent::{ENGINES_FAIL, SERVES_USERS, ToCoordinator};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::AttemptId;

impl Supervisor {
    /// When the next engine will have been vacant for long.
    pub(super) fn failing_at(&self) -> Option<BootInstant> {
        let new = self.engines.iter().filter(|engine| !engine.failing);
        new.filter_map(|engine| Some(engine.vacant? + HEARD_WITHIN))
            .min()
    }

    pub(super) fn send_inventory(&mut self) {
        let Some(session) = &self.session else { return };
        if self.shared && session.speaks(SERVES_USERS) {
            return self.send_inventories();
        }
        // Without any engine a host has nothing to do, and a coordinator that does not hear of that
        // takes the host for ready.
        let useless = !session.speaks(ENGINES_FAIL)
            && !self.engines.is_empty()
            && !self.engines.iter().any(Engine::is_heard);
        if session.is_known() || useless || self.engines.iter().any(Engine::is_unknown) {
            return;
        }
        self.effects
            .push_back(Effect::ToCoordinator(ToCoordinator::Inventory {
                queued: self.queue.attempts().collect(),
                running: (0..self.engines.len())
                    .filter_map(|i| self.held_by(i))
                    .collect(),
                unacknowledged: self.reports.attempts().collect(),
                containment: self.containment,
                clock_offset: self.clock_offset,
            }));
        self.is_known_now();
    }

    /// The attempts in the engines of each user who is served, and the users who are left out. Sent
    /// again when that changes.
    fn send_inventories(&mut self) {
        let known = self.is_known();
        if !known && self.sets.iter().any(Set::is_awaited) {
            return;
        }
        let mut changed = !known;
        for set in 0..self.sets.len() {
            if !self.sets[set].tell_standing() {
                continue;
            }
            changed = true;
            let user = self.sets[set].user().to_owned();
            if self.sets[set].is_served() {
                let theirs =
                    |attempt: &AttemptId| self.batches.owner(attempt.key.batch) == Some(&user);
                let of_set = self.reports.iter().filter(|entry| entry.set() == Some(set));
                self.effects
                    .push_back(Effect::ToCoordinator(ToCoordinator::UserInventory {
                        queued: self.queue.attempts().filter(theirs).collect(),
                        running: self
                            .engines_of(set)
                            .filter_map(|i| self.held_by(i))
                            .collect(),
                        unacknowledged: of_set.map(Entry::attempt).collect(),
                        user: user.clone(),
                    }));
            }
        }
        if !changed {
            return;
        }
        let unheard = self
            .sets
            .iter()
            .filter_map(|set| Some((set.user().to_owned(), set.why()?.clone())));
        self.effects
            .push_back(Effect::ToCoordinator(ToCoordinator::Served {
                users: self
                    .sets
                    .iter()
                    .filter(|set| set.is_served())
                    .map(|set| set.user().to_owned())
                    .collect(),
                unheard: unheard.collect(),
                containment: self.containment,
                clock_offset: self.clock_offset,
            }));
        if !known {
            self.is_known_now();
        }
    }

    /// The coordinator has been told which attempts are here.
    pub(super) fn is_known_now(&mut self) {
        if let Some(session) = &mut self.session {
            session.is_known_now();
        }
        self.reports.send_all();
    }

    /// Reports the engines that have been vacant for long. For engines of users, the users who are
    /// not served are reported instead.
    pub(super) fn look_at_failures(&mut self, now: BootInstant) {
        for engine in &mut self.engines {
            engine.failing |= engine
                .vacant
                .is_some_and(|since| since + HEARD_WITHIN <= now);
        }
        let Some(session) = self
            .session
            .as_mut()
            .filter(|session| !self.shared && session.speaks(ENGINES_FAIL))
        else {
            return;
        };
        let failing = || self.engines.iter().filter(|engine| engine.failing);
        let (slots, count) = (self.slots as u16, failing().count() as u16);
        let words = (count > 0).then(|| {
            let why = failing()
                .find_map(|engine| engine.why.as_deref())
                .unwrap_or("its keeper does not say why");
            format!("{count} of {slots} engines do not start: {why}")
        });
        let engines = (slots - count, words);
        if session.tell_usable(&engines) {
            let (ready, failing) = engines;
            self.effects
                .push_back(Effect::ToCoordinator(ToCoordinator::UsableEngines {
                    ready,
                    failing,
                }));
        }
    }
}
