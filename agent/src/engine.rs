//! The engine's core: one slot, one attempt at a time, and the proof that nothing of it is left.
//!
//! No clock, no I/O: events in, effects out. [`driver`] performs the effects.
//!
//! ```text
//!         Run              Spawned              first process ended (with `leftover: wait`: all of them)
//!  Idle ───────▶ Spawning ─────────▶ Running ────────────────────────▶ Sweeping ── nothing left ──▶ Idle
//!                 ↺ │ cancelled        │ cancel, timeout, lease           ▲   │
//!                   ▼                  ▼                                  │   └─ 10 s ──▶ Stuck (slot held)
//!              (remembered) ──▶ Terminating (TERM, grace) ── gone or time ┘
//! ```
//!
//! A spawn that fails because the host lacks something is tried again for `SHORT_FOR` (↺), and then
//! the attempt goes back unstarted.
//!
//! The first process stays a zombie until its group has been killed: as long as it is unreaped, its
//! number cannot be used again, so no signal of ours can reach a stranger.
//!
//! The keeper is told which attempt is here and until when (`Watch`, `Over`) as soon as it matters:
//! when an attempt lasts, and when one is being killed. An engine that cannot keep its word is
//! killed with all processes that it runs.

mod clone;
mod counters;
pub mod driver;
mod environment;
mod event;
mod killing;
mod open;
mod order;
mod outcome;
mod processes;
mod program;
mod spawn;
mod starting;
mod state;
mod wait;

pub use event::{Effect, Event, Exit, NotStarted, OutOfMemory, Swept};

pub(crate) use environment::Inherited;
pub(crate) use spawn::can_spawn_into;
pub(crate) use wait::{Waited, kill_with_group, wait4, wait4_or_stopped};

use killing::{STOP_GRACE, SWEEP_MAX, TIMEOUT_GRACE};
use mezcal_common::message::engine::{EngineToKeeper, FromEngine};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::AttemptId;
use mezcal_common::model::job::Stop;
use mezcal_common::model::outcome::{Containment, Outcome};
use state::{Reason, Shortage, State};
use std::collections::VecDeque;
use std::time::Duration;

/// Processes that are still there for this long after a KILL are called unkillable: they are in
/// uninterruptible sleep, or not ours to signal.
pub const UNKILLABLE_AFTER: Duration = Duration::from_secs(10);

/// The decisions for one slot.
#[derive(Debug)]
pub struct Engine {
    state: State,
    /// Slots that the attempt takes, for an agent that does not know.
    slots: u16,
    lease: Option<BootInstant>,
    /// The lease has ended, and there is no other one.
    expired: bool,
    /// The engine dies with its agent, as in an embedded run.
    one_fate: bool,
    linked: bool,
    quitting: bool,
    containment: Containment,
    /// The keeper knows of the attempt.
    watched: bool,
    unacknowledged: Vec<(AttemptId, Outcome)>,
    effects: VecDeque<Effect>,
}

impl Engine {
    /// An idle engine. With `one_fate` it kills its attempt when the agent's link closes; otherwise
    /// it goes on until its lease ends.
    pub fn new(one_fate: bool, containment: Containment) -> Self {
        Self {
            containment,
            watched: false,
            state: State::Idle,
            slots: 1,
            lease: None,
            expired: false,
            one_fate,
            linked: false,
            quitting: false,
            unacknowledged: Vec::new(),
            effects: VecDeque::new(),
        }
    }

    /// Takes an event that happened at `now`.
    pub fn handle(&mut self, event: Event, now: BootInstant) {
        match event {
            Event::Run {
                attempt,
                spec,
                context,
                engine,
                slots,
            } => {
                if self.attempt().is_none() {
                    self.slots = slots;
                }
                self.run(attempt, spec, context, engine, now);
            }
            Event::Cancel { attempt, stop } => {
                if self.attempt() == Some(attempt) {
                    self.kill(Reason::Cancelled, stop, now);
                } else {
                    // The agent may have told the keeper to see to the attempt.
                    self.effects
                        .push_back(Effect::ToKeeper(EngineToKeeper::Over { attempt }));
                }
            }
            Event::Acknowledge { attempts } => {
                self.unacknowledged.retain(|(a, _)| !attempts.contains(a))
            }
            Event::Lease { until } => (self.lease, self.expired) = (until, false),
            Event::Linked => self.link(),
            Event::Unlinked => {
                self.linked = false;
                if self.one_fate {
                    self.quit(now);
                }
            }
            Event::Spawned(result) => self.spawned(result, now),
            Event::Lasts => {
                if !self.watched && !matches!(self.state, State::Sweeping { held: true, .. }) {
                    self.watch();
                }
            }
            Event::FirstEnded => self.first_ended(now),
            Event::OtherChanged => self.other_changed(),
            Event::Probed { others: true } => {}
            Event::Probed { others: false } => self.alone(now),
            Event::Swept(swept) => self.swept(swept, now),
            Event::Held => {
                if let State::Sweeping { held, .. } = &mut self.state {
                    *held = true;
                    self.over();
                }
            }
            Event::Quit => self.quit(now),
            Event::Stop => {
                self.quitting = true;
                self.kill(Reason::Stopped, Stop::after(STOP_GRACE), now);
            }
        }
        self.settle();
    }

    /// Does everything that is due at `now`.
    pub fn handle_timeout(&mut self, now: BootInstant) {
        match &mut self.state {
            State::Spawning {
                attempt,
                timeout,
                deadline,
                short: Some(Shortage { again, .. }),
                ..
            } if again.is_some_and(|at| at <= now) => {
                *again = None;
                *deadline = timeout.map(|t| (now + t, t));
                self.effects
                    .push_back(Effect::SpawnAgain { attempt: *attempt });
                if self.watched {
                    self.watch();
                }
            }
            State::Spawning { deadline, .. } | State::Running { deadline, .. }
                if deadline.is_some_and(|(at, _)| at <= now) =>
            {
                if let Some((_, limit)) = deadline.take() {
                    self.kill(Reason::Timeout(limit), Stop::after(TIMEOUT_GRACE), now);
                }
            }
            State::Terminating {
                attempt,
                reason,
                kill_at,
                ..
            } if *kill_at <= now => {
                let (attempt, reason) = (*attempt, *reason);
                self.sweep(attempt, Some(reason), now);
            }
            State::Sweeping {
                again,
                pause,
                reason,
                held: false,
                ..
            } if *again <= now => {
                *pause = (*pause * 2).min(SWEEP_MAX);
                *again = now + *pause;
                let discard_output = reason.is_some();
                self.effects.push_back(Effect::Sweep { discard_output });
            }
            State::Stuck { again, .. } if *again <= now => {
                *again = now + SWEEP_MAX;
                self.effects.push_back(Effect::Sweep {
                    discard_output: true,
                });
            }
            State::Idle
            | State::Spawning { .. }
            | State::Running { .. }
            | State::Terminating { .. }
            | State::Sweeping { .. }
            | State::Stuck { .. } => {}
        }
        if self.lease.is_some_and(|until| until <= now) {
            (self.lease, self.expired) = (None, true);
            self.kill(Reason::LeaseOver, Stop::NOW, now);
        }
        self.settle();
    }

    /// The time at which [`Engine::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<BootInstant> {
        let own = match &self.state {
            State::Idle => return None,
            State::Spawning {
                short: Some(Shortage {
                    again: Some(again), ..
                }),
                ..
            } => Some(*again),
            State::Spawning { deadline, .. } | State::Running { deadline, .. } => {
                deadline.map(|(at, _)| at)
            }
            State::Terminating { kill_at, .. } => Some(*kill_at),
            State::Sweeping { held: true, .. } => None,
            State::Sweeping { again, .. } | State::Stuck { again, .. } => Some(*again),
        };
        own.into_iter().chain(self.lease).min()
    }

    /// The next effect to perform.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn attempt(&self) -> Option<AttemptId> {
        match self.state {
            State::Idle => None,
            State::Spawning { attempt, .. }
            | State::Running { attempt, .. }
            | State::Terminating { attempt, .. }
            | State::Sweeping { attempt, .. }
            | State::Stuck { attempt, .. } => Some(attempt),
        }
    }

    fn link(&mut self) {
        self.linked = true;
        // `Ready` last: when the agent has heard it, it has heard everything.
        for (attempt, outcome) in self.unacknowledged.clone() {
            self.effects
                .push_back(Effect::Send(FromEngine::Finished { attempt, outcome }));
        }
        let running = self.attempt().map(|attempt| (attempt, self.slots));
        self.effects
            .push_back(Effect::Send(FromEngine::Ready { running }));
    }

    fn report(&mut self, attempt: AttemptId, outcome: Outcome) {
        if self.linked {
            self.effects.push_back(Effect::Send(FromEngine::Finished {
                attempt,
                outcome: outcome.clone(),
            }));
        }
        self.unacknowledged.push((attempt, outcome));
    }

    fn settle(&mut self) {
        if self.quitting && matches!(self.state, State::Idle | State::Stuck { .. }) {
            self.effects.push_back(Effect::Exit);
        }
    }
}

#[cfg(test)]
mod tests;
