//! What a host's agent has asked for in its session, and since when its slots are idle.

use mezcal_common::model::clock::BootInstant;
use std::collections::VecDeque;

/// Credit, in slots, and idle slots.
#[derive(Debug, Default)]
pub(super) struct Credit {
    given: u64,
    used: u64,
    /// Since when its idle slots have been idle, longest first.
    idle_since: VecDeque<BootInstant>,
}

impl Credit {
    /// The agent has asked for `given` slots so far in this session, and so many are `idle` at
    /// `now`.
    pub(super) fn pull(&mut self, given: u64, idle: u16, now: BootInstant) {
        self.given = given;
        let idle = usize::from(idle);
        self.idle_since.resize(idle.max(self.idle_since.len()), now);
        // A slot that is busy again without our doing was the last one to fall idle.
        self.idle_since.truncate(idle);
    }

    /// A job is sent that takes so many slots: those that have been idle for longest.
    pub(super) fn spend(&mut self, slots: u16) {
        self.used += u64::from(slots);
        let busy = usize::from(slots).min(self.idle_since.len());
        self.idle_since.drain(..busy);
    }

    /// The agent wants nothing more.
    pub(super) fn end(&mut self) {
        self.given = 0;
    }

    /// The agent has asked for more than it has got.
    pub(super) fn is_left(&self) -> bool {
        self.given > self.used
    }

    /// Slots for which the agent has asked and got nothing.
    pub(super) fn left(&self) -> u64 {
        self.given.saturating_sub(self.used)
    }

    /// How many slots are idle.
    pub(super) fn idle(&self) -> usize {
        self.idle_since.len()
    }

    /// Since when the slot has been idle that has been so for longest.
    pub(super) fn longest_idle(&self) -> Option<BootInstant> {
        self.idle_since.front().copied()
    }
}
