//! The engine's core: one slot, one attempt at a time, and the proof that nothing of it is left.
//!
//! No clock, no I/O: events in, effects out. [`driver`] performs the effects.
//!
//! ```text
//!         Run              Spawned              first process ended
//!  Idle ───────▶ Spawning ─────────▶ Running ────────────────────────▶ Sweeping ── nothing left ──▶ Idle
//!                   │ cancelled        │ cancel, timeout, lease           ▲   │
//!                   ▼                  ▼                                  │   └─ 10 s ──▶ Stuck (slot held)
//!              (remembered) ──▶ Terminating (TERM, grace) ── gone or time ┘
//! ```
//!
//! The first process stays a zombie until its group has been killed: as long as it is unreaped, its number cannot be
//! used again, so no signal of ours can reach a stranger.

pub mod driver;
mod processes;
mod spawn;

pub(crate) use processes::{Waited, wait4};

use bytes::Bytes;
use mezcal_common::clock::BootInstant;
use mezcal_common::ids::{AttemptId, EngineId};
use mezcal_common::job::{BatchContext, JobSpec};
use mezcal_common::outcome::{Ended, Outcome, Span, Usage, WaitStatus};
use mezcal_common::wire::engine::FromEngine;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// What was killed and is still there after this long is called unkillable: a process in uninterruptible sleep, or not ours to signal.
pub const UNKILLABLE_AFTER: Duration = Duration::from_secs(10);
/// First pause between two sweeps when no child reports its end; doubles up to [`SWEEP_MAX`].
const SWEEP_FIRST: Duration = Duration::from_millis(2);
const SWEEP_MAX: Duration = Duration::from_millis(100);
/// Grace between TERM and KILL of a job that ran into its timeout.
const TIMEOUT_GRACE: Duration = Duration::from_secs(2);

/// What happens to an engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The agent wants an attempt run.
    Run {
        /// Its id.
        attempt: AttemptId,
        /// What to run, or why it cannot be read.
        spec: Result<Box<JobSpec>, String>,
        /// What its batch has in common.
        context: Arc<BatchContext>,
        /// The engine's cluster-wide number.
        engine: EngineId,
    },
    /// The agent wants it killed.
    Cancel {
        /// Which.
        attempt: AttemptId,
        /// Between TERM and KILL.
        grace: Duration,
    },
    /// The coordinator has kept outcomes.
    Acknowledge {
        /// Whose.
        attempts: Vec<AttemptId>,
    },
    /// Permission to run ends then.
    Lease {
        /// None: no end.
        until: Option<BootInstant>,
    },
    /// A new agent is there to talk to.
    Linked,
    /// The agent is gone.
    Unlinked,
    /// The spawn has ended, well or not.
    Spawned(Result<(), String>),
    /// The first process has ended; it is still unreaped.
    FirstEnded,
    /// A child that is not the first process has changed.
    OtherChanged,
    /// The answer to [`Effect::Probe`].
    Probed {
        /// Whether any process but the first is alive.
        others: bool,
    },
    /// The answer to [`Effect::Sweep`].
    Swept(Swept),
    /// The keeper is gone or wants an end: kill, then exit.
    Quit,
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Swept {
    /// The first process, once it has been reaped.
    pub exit: Option<Exit>,
    /// Processes of the attempt that died by our KILL, in all sweeps so far.
    pub killed: u32,
    /// Processes still alive after this sweep.
    pub alive: u32,
    /// Tails of standard output and error, when nothing is alive and they were kept.
    pub tails: (Option<Bytes>, Option<Bytes>),
}

/// The end of the first process.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// How.
    pub status: WaitStatus,
    /// What it used.
    pub usage: Usage,
    /// When it ran.
    pub span: Span,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Start it and answer with [`Event::Spawned`].
    Spawn {
        /// The attempt.
        attempt: AttemptId,
        /// What.
        spec: Box<JobSpec>,
        /// In which surroundings.
        context: Arc<BatchContext>,
        /// The engine's cluster-wide number.
        engine: EngineId,
    },
    /// TERM, then CONT, to the first process's group.
    Terminate,
    /// Look whether any process but the first is alive; answer with [`Event::Probed`].
    Probe,
    /// KILL the group, reap the first process, KILL and reap all other children; answer with [`Event::Swept`].
    Sweep {
        /// Whether output that the far end has not taken may be dropped.
        discard_output: bool,
    },
    /// Tell the agent.
    Send(FromEngine),
    /// End this process.
    Exit,
}

/// Why an attempt is being killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Cancelled,
    Timeout(Duration),
    LeaseOver,
}

#[derive(Debug)]
enum State {
    Idle,
    Spawning {
        attempt: AttemptId,
        timeout: Option<Duration>,
        kill: Option<(Reason, Duration)>,
    },
    Running {
        attempt: AttemptId,
        deadline: Option<(BootInstant, Duration)>,
    },
    Terminating {
        attempt: AttemptId,
        reason: Reason,
        kill_at: BootInstant,
        first_ended: bool,
    },
    Sweeping {
        attempt: AttemptId,
        reason: Option<Reason>,
        give_up: BootInstant,
        again: BootInstant,
        pause: Duration,
        exit: Option<Exit>,
    },
    Stuck {
        attempt: AttemptId,
        again: BootInstant,
    },
}

/// One slot's decisions.
#[derive(Debug)]
pub struct Engine {
    state: State,
    lease: Option<BootInstant>,
    /// Dies with its agent, as in an embedded run.
    one_fate: bool,
    linked: bool,
    quitting: bool,
    unacknowledged: Vec<(AttemptId, Outcome)>,
    effects: VecDeque<Effect>,
}

impl Engine {
    /// An idle engine. With `one_fate` it kills its attempt when the agent's link closes; otherwise it goes on until its lease ends.
    pub fn new(one_fate: bool) -> Self {
        Self {
            state: State::Idle,
            lease: None,
            one_fate,
            linked: false,
            quitting: false,
            unacknowledged: Vec::new(),
            effects: VecDeque::new(),
        }
    }

    /// Takes what happened at `now`.
    pub fn handle(&mut self, event: Event, now: BootInstant) {
        match event {
            Event::Run { attempt, spec, context, engine } => self.run(attempt, spec, context, engine),
            Event::Cancel { attempt, grace } => {
                if self.attempt() == Some(attempt) {
                    self.kill(Reason::Cancelled, grace, now);
                }
            }
            Event::Acknowledge { attempts } => self.unacknowledged.retain(|(a, _)| !attempts.contains(a)),
            Event::Lease { until } => self.lease = until,
            Event::Linked => self.link(),
            Event::Unlinked => {
                self.linked = false;
                if self.one_fate {
                    self.quit(now);
                }
            }
            Event::Spawned(result) => self.spawned(result, now),
            Event::FirstEnded => self.first_ended(now),
            Event::OtherChanged => self.other_changed(),
            Event::Probed { others } => {
                if let State::Terminating { attempt, reason, first_ended: true, .. } = self.state
                    && !others
                {
                    self.sweep(attempt, Some(reason), now);
                }
            }
            Event::Swept(swept) => self.swept(swept, now),
            Event::Quit => self.quit(now),
        }
        self.settle();
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: BootInstant) {
        match &mut self.state {
            State::Running { deadline: Some((at, limit)), .. } if *at <= now => {
                let limit = *limit;
                self.kill(Reason::Timeout(limit), TIMEOUT_GRACE, now);
            }
            State::Terminating { attempt, reason, kill_at, .. } if *kill_at <= now => {
                let (attempt, reason) = (*attempt, *reason);
                self.sweep(attempt, Some(reason), now);
            }
            State::Sweeping { again, pause, reason, .. } if *again <= now => {
                *pause = (*pause * 2).min(SWEEP_MAX);
                *again = now + *pause;
                let discard_output = reason.is_some();
                self.effects.push_back(Effect::Sweep { discard_output });
            }
            State::Stuck { again, .. } if *again <= now => {
                *again = now + SWEEP_MAX;
                self.effects.push_back(Effect::Sweep { discard_output: true });
            }
            State::Idle
            | State::Spawning { .. }
            | State::Running { .. }
            | State::Terminating { .. }
            | State::Sweeping { .. }
            | State::Stuck { .. } => {}
        }
        if self.lease.is_some_and(|until| until <= now) {
            self.lease = None;
            self.kill(Reason::LeaseOver, Duration::ZERO, now);
        }
        self.settle();
    }

    /// When [`Engine::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<BootInstant> {
        let own = match &self.state {
            State::Idle => return None,
            State::Spawning { .. } => None,
            State::Running { deadline, .. } => deadline.map(|(at, _)| at),
            State::Terminating { kill_at, .. } => Some(*kill_at),
            State::Sweeping { again, .. } | State::Stuck { again, .. } => Some(*again),
        };
        own.into_iter().chain(self.lease).min()
    }

    /// The next thing to do.
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

    fn run(&mut self, attempt: AttemptId, spec: Result<Box<JobSpec>, String>, context: Arc<BatchContext>, engine: EngineId) {
        if self.attempt().is_some() || self.quitting {
            let held = self.attempt().map_or_else(|| "stopping".into(), |a| format!("held by attempt {a}"));
            self.report(attempt, Outcome::never_ran(Ended::StartFailed, format!("the engine is {held}")));
            return;
        }
        match spec {
            Ok(spec) => {
                let timeout = spec.timeout.or(context.timeout);
                self.state = State::Spawning { attempt, timeout, kill: None };
                self.effects.push_back(Effect::Spawn { attempt, spec, context, engine });
            }
            Err(why) => self.report(attempt, Outcome::never_ran(Ended::StartFailed, why)),
        }
    }

    fn link(&mut self) {
        self.linked = true;
        // `Ready` last: when the agent has heard it, it has heard everything.
        for (attempt, outcome) in self.unacknowledged.clone() {
            self.effects.push_back(Effect::Send(FromEngine::Finished { attempt, outcome }));
        }
        let running = self.attempt();
        self.effects.push_back(Effect::Send(FromEngine::Ready { running }));
    }

    fn spawned(&mut self, result: Result<(), String>, now: BootInstant) {
        let State::Spawning { attempt, timeout, kill } = self.state else { return };
        match result {
            Ok(()) => {
                self.state = State::Running { attempt, deadline: timeout.map(|t| (now + t, t)) };
                if let Some((reason, grace)) = kill {
                    self.kill(reason, grace, now);
                }
            }
            Err(why) => {
                self.state = State::Idle;
                let ended = if kill.is_some() { Ended::Cancelled } else { Ended::StartFailed };
                self.report(attempt, Outcome::never_ran(ended, why));
            }
        }
    }

    fn first_ended(&mut self, now: BootInstant) {
        match &mut self.state {
            State::Running { attempt, .. } => {
                let attempt = *attempt;
                self.sweep(attempt, None, now);
            }
            State::Terminating { first_ended, .. } => {
                *first_ended = true;
                self.effects.push_back(Effect::Probe);
            }
            State::Idle | State::Spawning { .. } | State::Sweeping { .. } | State::Stuck { .. } => {}
        }
    }

    fn other_changed(&mut self) {
        match &self.state {
            State::Terminating { first_ended: true, .. } => self.effects.push_back(Effect::Probe),
            State::Sweeping { reason, .. } => {
                let discard_output = reason.is_some();
                self.effects.push_back(Effect::Sweep { discard_output });
            }
            State::Stuck { .. } => self.effects.push_back(Effect::Sweep { discard_output: true }),
            State::Idle | State::Spawning { .. } | State::Running { .. } | State::Terminating { .. } => {}
        }
    }

    fn kill(&mut self, new: Reason, grace: Duration, now: BootInstant) {
        match &mut self.state {
            State::Idle | State::Stuck { .. } => {}
            State::Spawning { kill, .. } => {
                // No proof of death while a spawn is in flight: remembered, and done as soon as there is something to kill.
                *kill = Some(kill.map_or((new, grace), |(reason, earlier)| (reason, earlier.min(grace))));
            }
            State::Running { attempt, .. } => {
                let attempt = *attempt;
                if grace.is_zero() {
                    self.sweep(attempt, Some(new), now);
                } else {
                    self.effects.push_back(Effect::Terminate);
                    self.state = State::Terminating { attempt, reason: new, kill_at: now + grace, first_ended: false };
                }
            }
            State::Terminating { kill_at, .. } => *kill_at = (*kill_at).min(now + grace),
            State::Sweeping { reason, .. } => {
                // The command had already ended by itself when it was cancelled; only what it left is still being killed,
                // or its output is still being taken.
                if reason.is_none() {
                    self.effects.push_back(Effect::Sweep { discard_output: true });
                }
            }
        }
    }

    fn sweep(&mut self, attempt: AttemptId, reason: Option<Reason>, now: BootInstant) {
        self.effects.push_back(Effect::Sweep { discard_output: reason.is_some() });
        self.state = State::Sweeping {
            attempt,
            reason,
            give_up: now + UNKILLABLE_AFTER,
            again: now + SWEEP_FIRST,
            pause: SWEEP_FIRST,
            exit: None,
        };
    }

    fn swept(&mut self, swept: Swept, now: BootInstant) {
        match &mut self.state {
            State::Sweeping { attempt, reason, give_up, exit, .. } => {
                if swept.exit.is_some() {
                    *exit = swept.exit;
                }
                let (attempt, reason) = (*attempt, *reason);
                if swept.alive == 0 && exit.is_some() {
                    let outcome = outcome(reason, exit.take(), swept.killed, 0, swept.tails);
                    self.state = State::Idle;
                    self.report(attempt, outcome);
                } else if *give_up <= now {
                    let outcome = outcome(reason, exit.take(), swept.killed, swept.alive.max(1), swept.tails);
                    self.state = State::Stuck { attempt, again: now + SWEEP_MAX };
                    self.report(attempt, outcome);
                }
            }
            State::Stuck { .. } if swept.alive == 0 => {
                self.state = State::Idle;
                self.effects.push_back(Effect::Send(FromEngine::Ready { running: None }));
            }
            State::Idle | State::Spawning { .. } | State::Running { .. } | State::Terminating { .. } | State::Stuck { .. } => {}
        }
    }

    fn report(&mut self, attempt: AttemptId, outcome: Outcome) {
        if self.linked {
            self.effects.push_back(Effect::Send(FromEngine::Finished { attempt, outcome: outcome.clone() }));
        }
        self.unacknowledged.push((attempt, outcome));
    }

    fn quit(&mut self, now: BootInstant) {
        self.quitting = true;
        self.kill(Reason::LeaseOver, Duration::ZERO, now);
    }

    fn settle(&mut self) {
        if self.quitting && matches!(self.state, State::Idle | State::Stuck { .. }) {
            self.effects.push_back(Effect::Exit);
        }
    }
}

fn outcome(
    reason: Option<Reason>,
    exit: Option<Exit>,
    killed: u32,
    survivors: u32,
    tails: (Option<Bytes>, Option<Bytes>),
) -> Outcome {
    let status = exit.as_ref().map(|e| e.status);
    let (ended, error) = match reason {
        _ if survivors > 0 => {
            (Ended::Unkillable, Some(format!("{survivors} processes did not die within {UNKILLABLE_AFTER:?} of SIGKILL")))
        }
        None if matches!(status, Some(WaitStatus::Signaled(_))) => (Ended::Signaled, None),
        None => (Ended::Exited, None),
        Some(Reason::Cancelled) => (Ended::Cancelled, None),
        Some(Reason::Timeout(limit)) => (Ended::Timeout, Some(format!("killed after its timeout of {limit:?}"))),
        Some(Reason::LeaseOver) => (Ended::Lost, Some("killed: the coordinator was out of reach for longer than the lease".into())),
    };
    Outcome {
        ended,
        status,
        error,
        span: exit.as_ref().map(|e| e.span),
        usage: exit.as_ref().map(|e| e.usage),
        killed,
        survivors,
        stdout_tail: tails.0,
        stderr_tail: tails.1,
    }
}

#[cfg(test)]
mod tests;
