//! The lease that a session gives: until when running attempts may go on, and waiting ones may
//! start.

use super::Supervisor;
use super::event::Effect;
use super::session::Session;
use mezcal_common::message::engine::{ToEngine, ToKeeper};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::EngineIndex;
use mezcal_common::model::outcome::{Ended, Outcome};

impl Supervisor {
    /// The coordinator has seen the message that we sent at `sent`. Its present session says how
    /// long that is good for, also when that is shorter than an earlier one said: the coordinator
    /// does not wait longer than that before it places the attempts that are here elsewhere.
    pub(super) fn renew(&mut self, sent: BootInstant) {
        let until = self
            .session
            .as_ref()
            .and_then(Session::lease)
            .map(|lease| sent + lease);
        if until == self.lease_until {
            return;
        }
        self.lease_until = until;
        for set in (0..self.sets.len())
            .filter(|set| !self.is_fenced(*set))
            .collect::<Vec<_>>()
        {
            self.tell_lease(set, until);
        }
    }

    pub(super) fn tell_lease(&mut self, set: usize, until: Option<BootInstant>) {
        self.effects
            .push_back(Effect::ToKeeper(set, ToKeeper::Lease { until }));
        for i in self.engines_of(set) {
            self.effects.push_back(Effect::ToEngine(
                EngineIndex(i as u16),
                ToEngine::Lease { until },
            ));
        }
    }

    /// Gives up the attempts that wait once the lease is over.
    pub(super) fn expire(&mut self, now: BootInstant) {
        if self.lease_until.is_none_or(|until| until > now) {
            return;
        }
        self.lease_until = None;
        for attempt in self.queue.take() {
            let why = "the coordinator was out of reach for longer than the lease";
            self.finished(
                None,
                attempt,
                Outcome::never_ran(Ended::Lost, why.to_owned()),
            );
        }
    }
}
