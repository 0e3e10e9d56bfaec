//! Hosts with newer agents than engines, and the replacement of those engines: the agent asks for
//! it, their keeper ends, and the next keeper starts new ones.

use super::World;
use super::chance::Chance;
use super::plan::{PROGRAMS, USER};
use super::slot::Slot;
use super::steps::Step;
use mezcal_agent::supervisor;

/// The version of engines before an upgrade, and the version of everything else.
pub(super) const OLD: &str = "0.1.0";
pub(super) const NEW: &str = "0.2.0";

impl World {
    /// Hosts are upgraded one after another, while jobs run.
    pub(super) fn plan_upgrades(&mut self) {
        // Chances of their own: the other events of a seed stay the same.
        let mut chance = Chance(self.plan.seed ^ PROGRAMS);
        for n in 0..self.hosts.len() {
            let wait = chance.millis(200_000);
            self.after(wait, Step::Upgrade(n));
        }
    }

    /// A host gets new programs: its agent starts again at once, its keeper and engines do not.
    pub(super) fn upgrade(&mut self, n: usize) {
        self.hosts[n].is_upgraded = true;
        self.agent_dies(n);
        if self.mutants.replaces_engines_that_run_something() {
            self.ask_keeper_to_end(n);
        }
    }

    /// An agent asks the keeper of its engines to end. No agent starts until there is another
    /// keeper.
    pub(super) fn ask_keeper_to_end(&mut self, n: usize) {
        if self.mutants.ignores_that_keepers_have_to_end() {
            return;
        }
        let host = &mut self.hosts[n];
        host.keeper_dying = true;
        let keeper = host.keeper;
        let wait = self.chance.millis(1000);
        self.after(wait, Step::KeeperEnds { host: n, keeper });
    }

    /// A keeper that was asked to end ends, with its engines.
    pub(super) fn keeper_ends(&mut self, n: usize, keeper: u64) -> Result<(), String> {
        if !self.hosts[n].up || self.hosts[n].keeper != keeper {
            return Ok(());
        }
        self.engines_that_are_replaced_run_nothing(n)?;
        if self.plan.users().is_none() {
            // The agent leaves with its keeper.
            self.keeper_is_gone(n);
            return Ok(());
        }
        let at = self.at(n);
        let host = &mut self.hosts[n];
        host.has_old_engines = false;
        for slot in &mut host.slots {
            slot.start_anew();
            slot.dead = true;
        }
        if let Some(supervisor) = &mut host.supervisor {
            let (set, why) = (0, "it was asked to end".into());
            supervisor.handle(supervisor::Event::KeeperGone { set, why }, at);
        }
        let wait = self.chance.millis(5000);
        self.after(wait, Step::KeeperComes { host: n, keeper });
        Ok(())
    }

    /// A user's next keeper comes, with new engines.
    pub(super) fn keeper_comes(&mut self, n: usize, keeper: u64) {
        let at = self.at(n);
        let host = &mut self.hosts[n];
        if !host.up || host.keeper != keeper {
            return;
        }
        host.keeper_dying = false;
        host.slots.iter_mut().for_each(Slot::start_anew);
        let Some(supervisor) = &mut host.supervisor else {
            return self.agent_starts(n);
        };
        supervisor.handle(supervisor::Event::KeeperHere { user: USER.into() }, at);
        host.relink(at);
    }

    /// Hosts with engines from before the upgrade.
    pub(super) fn hosts_with_old_engines(&self) -> Vec<usize> {
        let hosts = self.hosts.iter().enumerate();
        hosts
            .filter(|(_, host)| host.has_old_engines)
            .map(|(n, _)| n)
            .collect()
    }
}
