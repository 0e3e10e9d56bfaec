//! A store that is copied and served again, while its original is dead or alive.

use super::World;
use super::coordinator::{Coordinator, scheduler_of};
use super::plan::LEASE;
use mezcal_common::model::ids::JobKey;
use mezcal_coordinator::scheduler::Record;
use std::collections::BTreeSet;

impl World {
    /// Whether the serving coordinator has a copy of the store.
    pub(super) fn is_copy(&self) -> bool {
        self.copied && !self.of_original
    }

    /// Whether no job of the original can run any more.
    pub(super) fn is_released(&self) -> bool {
        self.serving.stored.contains(&Record::Released)
    }

    /// Runs `act` for the original, if it is alive.
    pub(super) fn for_original(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let Some(original) = self.original.take() else {
            return Ok(());
        };
        let copy = std::mem::replace(&mut self.serving, original);
        self.of_original = true;
        let done = act(self);
        self.of_original = false;
        self.original = Some(std::mem::replace(&mut self.serving, copy));
        done
    }

    /// Runs `act` for the coordinator at the far end of a connection.
    pub(super) fn at_coordinator_of(&mut self, id: u64, act: impl FnOnce(&mut Self)) {
        let act = |world: &mut Self| {
            act(world);
            Ok(())
        };
        let done = match self.connections.get(&id).is_some_and(|c| c.original) {
            true => self.for_original(act),
            false => act(self),
        };
        done.expect("it cannot fail");
    }

    /// The copy is served from now on, at the original's address. Messages to and from the original
    /// on existing connections are lost.
    pub(super) fn restore(&mut self, alive: bool) -> Result<(), String> {
        let Some(copy) = self.copy.take() else {
            return Ok(());
        };
        self.log.line(
            self.now,
            format_args!(
                "restored; the original is {}",
                if alive { "alive" } else { "dead" }
            ),
        );
        if !alive {
            self.coordinator_dies();
        }
        for c in self.connections.values_mut() {
            (c.original, c.cut) = (true, true);
        }
        // The copy need not keep ends of attempts that it does not know.
        let placed = copy.iter().filter_map(|record| {
            if let Record::Placed { attempts, .. } = record {
                Some(attempts)
            } else {
                None
            }
        });
        let known: BTreeSet<(JobKey, u32)> = placed
            .flatten()
            .map(|attempt| (attempt.key, attempt.attempt))
            .collect();
        self.kept.retain(|attempt, _| known.contains(attempt));
        let generation = self.mutants.generation_of_the_copy();
        let life = self.serving.life + 1000;
        let served = Coordinator::new(
            scheduler_of(life, LEASE, self.mutants),
            life,
            copy,
            generation,
        );
        let original = std::mem::replace(&mut self.serving, served);
        self.original = Some(original).filter(|_| alive);
        self.copied = true;
        // Results and proofs since the copy was made are forgotten.
        self.results.clear();
        self.proven.clear();
        self.coordinator_comes_back()
    }
}
