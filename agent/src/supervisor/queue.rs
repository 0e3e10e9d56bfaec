//! The attempts that wait for an engine, in order, and how many slots they will take.

use mezcal_common::message::agent::Placement;
use mezcal_common::model::ids::AttemptId;
use std::collections::{HashSet, VecDeque};

/// Placements that wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    placements: VecDeque<Placement>,
    slots: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.placements.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.placements.is_empty()
    }

    /// Slots that the placements will take.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    pub(super) fn attempts(&self) -> impl Iterator<Item = AttemptId> {
        self.placements.iter().map(|p| p.attempt)
    }

    pub(super) fn extend(&mut self, placements: Vec<Placement>) {
        self.slots += placements
            .iter()
            .map(|p| usize::from(p.slots))
            .sum::<usize>();
        self.placements.extend(placements);
    }

    /// Takes the first placement, if it takes no more slots than `free`. A placement that takes
    /// fewer does not pass it.
    pub(super) fn next_within(&mut self, free: usize) -> Option<Placement> {
        let first = self
            .placements
            .pop_front_if(|p| usize::from(p.slots) <= free)?;
        self.slots -= usize::from(first.slots);
        Some(first)
    }

    /// Takes all of them.
    pub(super) fn take(&mut self) -> Vec<AttemptId> {
        std::mem::take(self)
            .placements
            .into_iter()
            .map(|p| p.attempt)
            .collect()
    }

    /// Takes those of `wanted` that wait.
    pub(super) fn take_some(&mut self, wanted: &HashSet<AttemptId>) -> Vec<AttemptId> {
        let (taken, kept): (Vec<_>, Vec<_>) = std::mem::take(self)
            .placements
            .into_iter()
            .partition(|p| wanted.contains(&p.attempt));
        self.extend(kept);
        taken.into_iter().map(|p| p.attempt).collect()
    }
}
