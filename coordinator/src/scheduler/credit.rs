//! How many slots a host's agent has asked for in its session, and since when its slots are idle.

use mezcal_common::model::clock::BootInstant;
use std::collections::VecDeque;

/// Credit, in slots, and idle slots.
#[derive(Debug, Default)]
pub(super) struct Credit {
    given: u64,
    used: u64,
    /// For each idle slot, since when; the longest idle first.
    idle_since: VecDeque<BootInstant>,
}

impl Credit {
    /// The agent has asked for `given` slots in all in this session, and has `idle` ones at `now`.
    pub(super) fn pull(&mut self, given: u64, idle: u16, now: BootInstant) {
        self.given = given;
        let idle = usize::from(idle);
        self.idle_since.resize(idle.max(self.idle_since.len()), now);
        // If a slot became busy without a job from us, it is the one that fell idle last.
        self.idle_since.truncate(idle);
    }

    /// A job of so many slots is sent: it takes those that have been idle for longest.
    pub(super) fn spend(&mut self, slots: u16) {
        self.used += u64::from(slots);
        let busy = usize::from(slots).min(self.idle_since.len());
        self.idle_since.drain(..busy);
    }

    /// The agent asks for nothing any more.
    pub(super) fn end(&mut self) {
        self.given = 0;
    }

    /// The agent has asked for more than it has got.
    pub(super) fn is_left(&self) -> bool {
        self.given > self.used
    }

    /// Slots that the agent has asked for and not yet got.
    pub(super) fn left(&self) -> u64 {
        self.given.saturating_sub(self.used)
    }

    /// How many slots are idle.
    pub(super) fn idle(&self) -> usize {
        self.idle_since.len()
    }

    /// Since when the longest idle slot has been idle.
    pub(super) fn longest_idle(&self) -> Option<BootInstant> {
        self.idle_since.front().copied()
    }
}
