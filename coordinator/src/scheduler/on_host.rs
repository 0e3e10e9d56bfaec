//! The attempts that are or may be on a host.

use mezcal_common::model::ids::{AttemptId, Epoch, JobKey, SessionId};
use std::collections::BTreeMap;

/// An attempt on a host.
#[derive(Clone, Copy, Debug)]
pub(super) struct OnHost {
    /// The engine that runs it, once that is known.
    pub(super) engine: Option<u16>,
    /// It has left the host's queue: the agent cannot give it back any more.
    pub(super) started: bool,
    pub(super) slots: u16,
    /// The number of its user.
    pub(super) user: u32,
    /// The session in which it was sent; none: an earlier life of ours sent it.
    pub(super) session: Option<SessionId>,
}

/// Attempts in the order of their ids, and the sum of their slots.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    by_id: BTreeMap<AttemptId, OnHost>,
    slots: u64,
}

impl Attempts {
    /// Adds an attempt that has not started, as far as is known.
    pub(super) fn add(
        &mut self,
        attempt: AttemptId,
        user: u32,
        slots: u16,
        session: Option<SessionId>,
    ) {
        let on = OnHost {
            engine: None,
            started: false,
            slots,
            user,
            session,
        };
        self.by_id.insert(attempt, on);
        self.slots += u64::from(slots);
    }

    pub(super) fn remove(&mut self, attempt: AttemptId) -> Option<OnHost> {
        let removed = self.by_id.remove(&attempt)?;
        self.slots -= u64::from(removed.slots);
        Some(removed)
    }

    /// Notes that an attempt has started, and on which engine if known; ignored if it is not here.
    pub(super) fn starts(&mut self, attempt: AttemptId, engine: Option<u16>) {
        if let Some(on) = self.by_id.get_mut(&attempt) {
            (on.engine, on.started) = (engine.or(on.engine), true);
        }
    }

    pub(super) fn get(&self, attempt: AttemptId) -> Option<&OnHost> {
        self.by_id.get(&attempt)
    }

    pub(super) fn has(&self, attempt: AttemptId) -> bool {
        self.by_id.contains_key(&attempt)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = AttemptId> {
        self.by_id.keys().copied()
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (AttemptId, &OnHost)> {
        self.by_id.iter().map(|(attempt, on)| (*attempt, on))
    }

    /// Attempts that wait in the host's queue, as far as is known; the last in the queue is last.
    pub(super) fn unstarted(&self) -> impl DoubleEndedIterator<Item = (AttemptId, &OnHost)> {
        self.iter().filter(|(_, on)| !on.started)
    }

    /// The present attempt of a job, if it is here. Attempts of an earlier life of ours have
    /// another epoch.
    pub(super) fn present(&self, epoch: Epoch, key: JobKey, attempt: u32) -> Option<AttemptId> {
        let own = AttemptId {
            epoch,
            key,
            attempt,
        };
        if self.has(own) {
            return Some(own);
        }
        self.ids().find(|a| a.key == key && a.attempt == attempt)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The slots that all of them take.
    pub(super) fn slots(&self) -> u64 {
        self.slots
    }
}
