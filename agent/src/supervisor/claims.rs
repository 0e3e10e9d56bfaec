//! What engines say that they run or have run, and this agent has not given them: it counts for
//! jobs of their own user, if the coordinator knows it, and for nothing else.

use super::Supervisor;
use super::slot::Slot;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, EngineIndex};

impl Supervisor {
    /// Whether somebody else than this engine, as far as is known here, has or had an attempt.
    pub(super) fn is_elsewhere(&self, attempt: AttemptId, index: EngineIndex) -> bool {
        let set = self.set_of_engine(index);
        let i = usize::from(index.0);
        self.shared
            && (self.has_queued(attempt)
                || self.reports.iter().any(|entry| {
                    entry.attempt() == attempt && entry.set() != Some(set) && !entry.is_claimed()
                })
                || self.engines.iter().enumerate().any(|(n, e)| {
                    n != i && e.slot.given().is_some_and(|(given, _)| given == attempt)
                }))
    }

    /// What an engine claims to run takes slots until the coordinator has answered for it, and it
    /// answers an inventory. If its set has had that, the next one comes when the set is served
    /// again.
    pub(super) fn look_at_claim(&mut self, index: EngineIndex, now: BootInstant) {
        let set = self.set_of_engine(index);
        let claims = matches!(
            self.engines[usize::from(index.0)].slot,
            Slot::Busy { claimed: true, .. }
        );
        if claims && self.session.is_some() && self.sets[set].is_told_served() {
            self.leave_out(
                set,
                "an engine of theirs runs what this agent has not given it".into(),
                now,
            );
        }
    }

    /// What the coordinator knows of what a user's engines say that they run.
    pub(super) fn known(&mut self, user: &str, attempts: &[(AttemptId, u16)]) {
        let Some(set) = self.set_of(user) else { return };
        let most = self.slots as u16;
        for i in self.engines_of(set) {
            let slot = &mut self.engines[i].slot;
            if let Slot::Busy {
                attempt,
                slots,
                claimed: claimed @ true,
                ..
            } = slot
            {
                match attempts.iter().find(|(known, _)| known == attempt) {
                    Some((_, taken)) => (*slots, *claimed) = ((*taken).clamp(1, most), false),
                    None => *slot = Slot::Unfit,
                }
            }
        }
    }
}
