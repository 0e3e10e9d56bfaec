//! The end of an attempt: how it is killed, and how it is swept until nothing of it is left.

use super::event::{Effect, Swept};
use super::outcome::outcome;
use super::state::{Reason, Shortage, State};
use super::{Engine, UNKILLABLE_AFTER};
use mezcal_common::message::engine::{EngineToKeeper, FromEngine};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::AttemptId;
use mezcal_common::model::job::{Leftover, Stop};
use mezcal_common::model::outcome::{Ended, Outcome};
use std::time::Duration;

/// First pause between two sweeps when no child reports its end; doubles up to [`SWEEP_MAX`].
const SWEEP_FIRST: Duration = Duration::from_millis(2);

pub(super) const SWEEP_MAX: Duration = Duration::from_millis(100);

/// The same for a job whose engine is asked to end: service managers wait for the engine, and so
/// does a host that shuts down.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(2);

/// Grace between TERM and KILL of a job that ran into its timeout.
pub(super) const TIMEOUT_GRACE: Duration = Duration::from_secs(2);

impl Engine {
    pub(super) fn first_ended(&mut self, now: BootInstant) {
        match &mut self.state {
            State::Running {
                attempt,
                leftover: Leftover::Kill,
                ..
            } => {
                let attempt = *attempt;
                self.sweep(attempt, None, now);
            }
            State::Running {
                leftover: Leftover::Wait,
                lingering,
                ..
            } => {
                *lingering = true;
                self.effects.push_back(Effect::Probe);
            }
            State::Terminating { first_ended, .. } => {
                *first_ended = true;
                self.effects.push_back(Effect::Probe);
            }
            // The processes were killed, and are dead now.
            State::Sweeping { .. } | State::Stuck { .. } => self.other_changed(),
            State::Idle | State::Spawning { .. } => {}
        }
    }

    pub(super) fn other_changed(&mut self) {
        match &self.state {
            State::Terminating {
                first_ended: true, ..
            }
            | State::Running {
                lingering: true, ..
            } => {
                self.effects.push_back(Effect::Probe);
            }
            State::Sweeping { reason, .. } => {
                let discard_output = reason.is_some();
                self.effects.push_back(Effect::Sweep { discard_output });
            }
            State::Stuck { .. } => self.effects.push_back(Effect::Sweep {
                discard_output: true,
            }),
            State::Idle
            | State::Spawning { .. }
            | State::Running { .. }
            | State::Terminating { .. } => {}
        }
    }

    /// No process but the first is alive.
    pub(super) fn alone(&mut self, now: BootInstant) {
        match self.state {
            State::Terminating {
                attempt,
                reason,
                first_ended: true,
                ..
            } => self.sweep(attempt, Some(reason), now),
            State::Running {
                attempt,
                lingering: true,
                ..
            } => self.sweep(attempt, None, now),
            State::Idle
            | State::Spawning { .. }
            | State::Running { .. }
            | State::Terminating { .. }
            | State::Sweeping { .. }
            | State::Stuck { .. } => {}
        }
    }

    pub(super) fn kill(&mut self, new: Reason, stop: Stop, now: BootInstant) {
        match &mut self.state {
            State::Idle => return,
            State::Spawning {
                attempt,
                short: Some(Shortage { again: Some(_), .. }),
                ..
            } => {
                let attempt = *attempt;
                return self.never_started(attempt, new);
            }
            State::Spawning { kill, .. } => {
                // There is no proof of death while a spawn is in flight: the kill is remembered,
                // and done as soon as there is a process to kill.
                let by = now + stop.grace;
                *kill = Some(kill.map_or((new, stop, by), |(reason, earlier, at)| {
                    (reason, earlier.stricter(stop), at.min(by))
                }));
            }
            State::Running {
                attempt, lingering, ..
            } => {
                let (attempt, first_ended) = (*attempt, *lingering);
                if stop.grace.is_zero() {
                    return self.sweep(attempt, Some(new), now);
                }
                let signal = stop.signal;
                self.effects.push_back(Effect::Terminate { signal });
                self.state = State::Terminating {
                    attempt,
                    reason: new,
                    signal,
                    kill_at: now + stop.grace,
                    first_ended,
                };
            }
            State::Terminating {
                kill_at,
                signal,
                reason,
                ..
            } => {
                // Somebody waits for this cancel.
                if (*reason, new) == (Reason::Stopped, Reason::Cancelled) {
                    *reason = new;
                }
                *kill_at = (*kill_at).min(now + stop.grace);
                if *signal != stop.signal {
                    *signal = stop.signal;
                    self.effects.push_back(Effect::Terminate {
                        signal: stop.signal,
                    });
                }
            }
            State::Sweeping {
                reason, give_up, ..
            } => {
                // The command had already ended by itself when it was cancelled; only processes
                // that it left are still being killed, or its output is still being taken.
                if reason.is_none() {
                    *give_up = now + UNKILLABLE_AFTER;
                    self.effects.push_back(Effect::Sweep {
                        discard_output: true,
                    });
                }
            }
            State::Stuck { .. } => {}
        }
        self.watch();
    }

    /// There was no process to kill yet, and there will be none.
    fn never_started(&mut self, attempt: AttemptId, why: Reason) {
        self.idle();
        if why != Reason::Stopped {
            let short = "its host was short of the resources to start it";
            self.report(attempt, Outcome::never_ran(why.ended(), short.to_owned()));
        }
    }

    /// Tells the keeper which attempt is here, and by when it should be over.
    pub(super) fn watch(&mut self) {
        let timed_out = |at: BootInstant| (Some(at + TIMEOUT_GRACE), Ended::Timeout);
        let endless = (None, Ended::Lost);
        let (until, ended) = match &self.state {
            State::Idle => return,
            State::Spawning {
                kill: Some((reason, _, by)),
                ..
            } => (Some(*by), reason.ended()),
            State::Spawning { deadline, .. } | State::Running { deadline, .. } => {
                deadline.map_or(endless, |(at, _)| timed_out(at))
            }
            State::Terminating {
                reason, kill_at, ..
            } => (Some(*kill_at), reason.ended()),
            State::Sweeping {
                reason, give_up, ..
            } => (Some(*give_up), reason.map_or(Ended::Lost, Reason::ended)),
            State::Stuck { .. } => endless,
        };
        let killing = match &self.state {
            State::Idle | State::Running { .. } => false,
            State::Spawning { kill, .. } => kill.is_some(),
            State::Terminating { .. } | State::Sweeping { .. } | State::Stuck { .. } => true,
        };
        if let Some(attempt) = self.attempt() {
            self.watched = true;
            self.effects
                .push_back(Effect::ToKeeper(EngineToKeeper::Watch {
                    attempt,
                    until,
                    ended,
                    killing,
                }));
        }
    }

    /// There is nothing here any more.
    pub(super) fn idle(&mut self) {
        self.over();
        self.state = State::Idle;
    }

    /// There is nothing alive any more that the keeper would have to see to.
    pub(super) fn over(&mut self) {
        if let Some(attempt) = self.attempt()
            && std::mem::take(&mut self.watched)
        {
            self.effects
                .push_back(Effect::ToKeeper(EngineToKeeper::Over { attempt }));
        }
    }

    pub(super) fn sweep(&mut self, attempt: AttemptId, reason: Option<Reason>, now: BootInstant) {
        self.effects.push_back(Effect::Sweep {
            discard_output: reason.is_some(),
        });
        self.state = State::Sweeping {
            attempt,
            reason,
            give_up: now + UNKILLABLE_AFTER,
            again: now + SWEEP_FIRST,
            pause: SWEEP_FIRST,
            exit: None,
            held: false,
        };
        if reason.is_some() || self.watched {
            self.watch();
        }
    }

    pub(super) fn swept(&mut self, mut swept: Swept, now: BootInstant) {
        match &mut self.state {
            State::Sweeping {
                attempt,
                reason,
                give_up,
                exit,
                ..
            } => {
                if swept.exit.is_some() {
                    *exit = swept.exit.take();
                }
                let (attempt, reason) = (*attempt, *reason);
                if swept.alive == 0 && exit.is_some() {
                    let outcome = outcome(reason, exit.take(), swept, self.containment);
                    if reason == Some(Reason::Stopped) {
                        // The keeper, too, learns of it from the end of this process.
                        self.state = State::Idle;
                        return;
                    }
                    self.idle();
                    self.report(attempt, outcome);
                } else if *give_up <= now {
                    swept.alive = swept.alive.max(1);
                    let outcome = outcome(reason, exit.take(), swept, self.containment);
                    self.state = State::Stuck {
                        attempt,
                        again: now + SWEEP_MAX,
                    };
                    self.watch();
                    self.report(attempt, outcome);
                }
            }
            State::Stuck { .. } if swept.alive == 0 => {
                self.idle();
                self.effects
                    .push_back(Effect::Send(FromEngine::Ready { running: None }));
            }
            State::Idle
            | State::Spawning { .. }
            | State::Running { .. }
            | State::Terminating { .. }
            | State::Stuck { .. } => {}
        }
    }

    pub(super) fn quit(&mut self, now: BootInstant) {
        self.quitting = true;
        self.kill(Reason::LeaseOver, Stop::NOW, now);
    }
}
