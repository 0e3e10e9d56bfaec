//! All known hosts, with indices by what they want and what they have.

use super::{Host, Scheduler, queues::Queues};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{EngineId, SessionId};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

/// Hosts by name, and by index: the order in which they became known. Lists that people see are in
/// the order of names. The maps use a fast hash without randomness: their keys are names in
/// certificates and our own numbers, which no outsider chooses, and a core with the same past does
/// the same.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    by_name: FxHashMap<Arc<str>, Host>,
    /// By index; names of forgotten hosts remain.
    names: Vec<Arc<str>>,
    sessions: FxHashMap<SessionId, Arc<str>>,
    /// Hosts that have asked for more than they have got.
    wanting: BTreeSet<u32>,
    /// Hosts that have more attempts than slots.
    overfull: BTreeSet<u32>,
    /// Hosts that may now have room for a job of several slots, and had none before.
    roomier: BTreeSet<u32>,
    /// Hosts with idle slots, ordered by their longest idle slot.
    idle: BTreeSet<(BootInstant, u32)>,
    /// Connected agents that can be given jobs, and their slots.
    fleet: (u32, u32),
    /// The first engine number that no host has.
    next_engine: u32,
}

impl Hosts {
    /// Adds a host, without an agent as yet; returns its index.
    pub(super) fn add(&mut self, name: Arc<str>, now: BootInstant) -> u32 {
        let index = self.names.len() as u32;
        self.names.push(name.clone());
        let host = Host::of_earlier_life(name.clone(), index, now);
        self.by_name.insert(name, host);
        index
    }

    /// Takes a host out; it must be in none of the indices.
    pub(super) fn remove(&mut self, name: &str) -> Option<Host> {
        self.by_name.remove(name)
    }

    /// Puts a host back that was taken out, and may have been changed.
    pub(super) fn put_back(&mut self, host: Host) {
        self.by_name.insert(host.name.clone(), host);
    }

    pub(super) fn get(&self, name: &str) -> Option<&Host> {
        self.by_name.get(name)
    }

    /// A caller that changes what the host wants or has calls [`Scheduler::reindex`] afterwards.
    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Host> {
        self.by_name.get_mut(name)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// All hosts, in no order.
    pub(super) fn values(&self) -> impl Iterator<Item = &Host> {
        self.by_name.values()
    }

    /// All hosts, in no order.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Host> {
        self.by_name.values_mut()
    }

    /// All hosts, in the order of their names.
    pub(super) fn in_order(&self) -> Vec<&Host> {
        let mut hosts: Vec<&Host> = self.by_name.values().collect();
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        hosts
    }

    /// The name of the host with this index.
    pub(super) fn name_at(&self, index: u32) -> Option<Arc<str>> {
        self.names.get(index as usize).cloned()
    }

    /// The host with this index. If that was forgotten, the host that has its name now.
    pub(super) fn at(&self, index: u32) -> Option<&Host> {
        self.by_name.get(self.names.get(index as usize)?)
    }

    /// See [`Hosts::get_mut`].
    pub(super) fn at_mut(&mut self, index: u32) -> Option<&mut Host> {
        self.by_name.get_mut(self.names.get(index as usize)?)
    }

    /// The host whose agent has this session.
    pub(super) fn of_session(&self, session: SessionId) -> Option<Arc<str>> {
        self.sessions.get(&session).cloned()
    }

    pub(super) fn session_begins(&mut self, session: SessionId, name: Arc<str>) {
        self.sessions.insert(session, name);
    }

    /// Ends a session; returns the host whose agent had it.
    pub(super) fn session_ends(&mut self, session: SessionId) -> Option<Arc<str>> {
        self.sessions.remove(&session)
    }

    /// Numbers for so many engines, which no other engines have.
    pub(super) fn number_engines(&mut self, slots: u16) -> EngineId {
        let first = EngineId(self.next_engine);
        self.next_engine += u32::from(slots);
        first
    }

    /// Marks the numbers of engines that were given in an earlier life.
    pub(super) fn engines_are_numbered(&mut self, first: EngineId, slots: u16) {
        self.next_engine = self.next_engine.max(first.0 + u32::from(slots));
    }

    /// Hosts that have asked for more than they have got.
    pub(super) fn wanting(&self) -> impl Iterator<Item = Arc<str>> {
        self.wanting.iter().filter_map(|index| self.name_at(*index))
    }

    /// Hosts that have more attempts than slots.
    pub(super) fn overfull(&self) -> impl Iterator<Item = &Host> {
        self.overfull.iter().filter_map(|index| self.at(*index))
    }

    pub(super) fn has_overfull(&self) -> bool {
        !self.overfull.is_empty()
    }

    /// Hosts with idle slots, ordered by their longest idle slot.
    pub(super) fn idle(&self) -> impl Iterator<Item = &Host> {
        self.idle.iter().filter_map(|(_, index)| self.at(*index))
    }

    pub(super) fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Hosts whose longest idle slot fell idle after `since`, in that order: the time and the index
    /// of each.
    pub(super) fn idle_after(
        &self,
        since: Option<BootInstant>,
    ) -> impl Iterator<Item = &(BootInstant, u32)> {
        let after = since.map_or(Bound::Unbounded, |since| Bound::Excluded((since, u32::MAX)));
        self.idle.range((after, Bound::Unbounded))
    }

    /// Hosts that may have got room for a job of several slots since the last call.
    pub(super) fn take_roomier(&mut self) -> Vec<Arc<str>> {
        let roomier = std::mem::take(&mut self.roomier);
        let names = roomier.into_iter().filter_map(|index| self.name_at(index));
        names.collect()
    }

    /// Updates the indices after a change to what a host wants or has.
    pub(super) fn reindex(&mut self, name: &str, queues: &Queues) {
        let Some(host) = self.by_name.get_mut(name) else {
            return;
        };
        let there = host.is_known();
        let is = (
            there && host.credit.is_left(),
            host.credit.longest_idle().filter(|_| there),
        );
        let was = std::mem::replace(&mut host.indexed, is);
        let index = host.index;
        let room = host.room();
        if room > std::mem::replace(&mut host.had_room, room) && room > 1 && queues.has_wide() {
            self.roomier.insert(index);
        }
        if there && host.is_overfull() {
            self.overfull.insert(index);
        } else {
            self.overfull.remove(&index);
        }
        if was.0 != is.0 {
            if is.0 {
                self.wanting.insert(index)
            } else {
                self.wanting.remove(&index)
            };
        }
        if was.1 != is.1 {
            if let Some(since) = was.1 {
                self.idle.remove(&(since, index));
            }
            self.idle.extend(is.1.map(|since| (since, index)));
        }
    }

    /// Connected agents that can be given jobs, and their slots.
    pub(super) fn fleet(&self) -> (u32, u32) {
        self.fleet
    }

    /// Counts a host anew; returns the fleet if it has changed.
    pub(super) fn recount(&mut self, name: &str) -> Option<(u32, u32)> {
        let host = self.by_name.get_mut(name)?;
        let counts = if host.is_known() && host.slots() > 0 {
            (1, u32::from(host.slots()))
        } else {
            (0, 0)
        };
        let was = std::mem::replace(&mut host.counted, counts);
        if was == counts {
            return None;
        }
        self.fleet = (
            self.fleet.0 + counts.0 - was.0,
            self.fleet.1 + counts.1 - was.1,
        );
        Some(self.fleet)
    }

    #[cfg(test)]
    pub(super) fn is_wanting(&self, index: u32) -> bool {
        self.wanting.contains(&index)
    }

    #[cfg(test)]
    pub(super) fn is_indexed_as_overfull(&self, index: u32) -> bool {
        self.overfull.contains(&index)
    }

    #[cfg(test)]
    pub(super) fn indexed_idle(&self, index: u32) -> Option<BootInstant> {
        let found = self.idle.iter().find(|(_, other)| *other == index)?;
        Some(found.0)
    }
}

impl Scheduler {
    /// Updates the indices after a change to what a host wants or has.
    pub(super) fn reindex(&mut self, name: &str) {
        self.hosts.reindex(name, &self.queues);
    }
}
