//! The simulation: one real scheduler, real supervisors and engines, a virtual clock, and a network
//! and hosts that fail.
//!
//! Everything that decides is the product's own code; what is made up here are the drivers:
//! connections that delay, stall one way or both and break at their two ends at different times,
//! agents, engines and keepers that die and come back, agents that are stopped, hosts that reboot
//! or are suspended, clocks that differ and drift and start anew, a coordinator that dies and comes
//! back with what its store had, and a store that is copied and served again while its original is
//! dead or alive. A seed gives the whole run. After every step the promises are checked: no job has
//! two live processes (P1), nothing has two results (P2), what is said to be over is dead and stays
//! so (P3), nothing runs where it may not, and no slot waits too long for work that prefers it
//! (P4), every result is of the attempt that it names (P7), no host runs more than it has slots
//! for, nothing of a batch that is halted or cancelled is placed; in the end, with the faults over,
//! every job has its result.
//!
//! In every fourth run the hosts serve two users, of whom one has no jobs and engines of their own
//! making: those say of others' attempts what comes to their mind, or nothing at all.
//!
//! In runs of their own the hosts are upgraded one after another: their agents are newer then than
//! their engines, which are replaced once they are idle.
//!
//! A run that breaks a promise shows its last lines; the same plan does exactly the same again.
//!
//! A [`Mutant`] plants a known mistake. The tests show that the checks find each.

mod batch;
mod chance;
mod coordinator;
mod copies;
mod faults;
mod host;
mod hostile;
mod log;
mod mutants;
mod network;
mod plan;
mod promises;
mod slot;
mod steps;
mod upgrades;
mod world;

pub use chance::Chance;
pub use mutants::Mutant;
pub use plan::Plan;

use world::World;

/// What a run has done, line by line, and how it has ended.
pub struct Played {
    /// Every step and what followed from it; in the end how much chance it took.
    pub log: Vec<String>,
    /// The promise that was broken, with what led to it.
    pub end: Result<(), String>,
}

/// Runs a plan to its end.
///
/// # Errors
/// The promise that was broken, with what led to it.
pub fn run(plan: Plan) -> Result<(), String> {
    play(plan).end
}

/// Runs a plan to its end and keeps what it has done.
pub fn play(plan: Plan) -> Played {
    let mut world = World::new(plan);
    let end = world.run().map_err(|broken| {
        format!(
            "{broken}\n  with {plan:?}, at {:?}\n{}",
            world.now, world.log
        )
    });
    let World {
        log, chance, now, ..
    } = &mut world;
    log.line(*now, format_args!("over: {:x}", chance.0));
    let log = world.log.0;
    Played { log, end }
}
