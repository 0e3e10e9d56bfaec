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
//! A spawn that fails for want of something of the host's is tried again for `SHORT_FOR` (↺), and
//! then the attempt goes back unstarted.
//!
//! The first process stays a zombie until its group has been killed: as long as it is unreaped, its
//! number cannot be used again, so no signal of ours can reach a stranger.
//!
//! The keeper is told what is here and until when (`Watch`, `Over`) as soon as it matters: when an
//! attempt lasts, and when one is being killed. An engine that cannot keep its word is killed with
//! all that it runs.

mod clone;
pub mod driver;
mod processes;
mod spawn;

pub(crate) use processes::{Waited, kill_with_group, wait4, wait4_or_stopped};
pub(crate) use spawn::{Inherited, can_spawn_into};

use bytes::Bytes;
use mezcal_common::message::engine::{EngineToKeeper, FromEngine};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::ids::{AttemptId, EngineId};
use mezcal_common::model::job::{BatchContext, JobSpec, Leftover, Stop};
use mezcal_common::model::outcome::{
    Containment, Ended, Outcome, Span, Usage, WaitStatus, Written,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// What was killed and is still there after this long is called unkillable: a process in
/// uninterruptible sleep, or not ours to signal.
pub const UNKILLABLE_AFTER: Duration = Duration::from_secs(10);
/// First pause between two sweeps when no child reports its end; doubles up to [`SWEEP_MAX`].
const SWEEP_FIRST: Duration = Duration::from_millis(2);
const SWEEP_MAX: Duration = Duration::from_millis(100);
/// Grace between TERM and KILL of a job that ran into its timeout.
const TIMEOUT_GRACE: Duration = Duration::from_secs(2);
/// The same for a job whose engine is asked to end: service managers wait for that, and so does a
/// host that shuts down.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// A host that is short of processes, descriptors or memory may have them again soon: so long a
/// spawn is tried again.
const SHORT_FOR: Duration = Duration::from_secs(5);
/// First pause between two of these tries; doubles up to [`SHORT_MAX`].
const SHORT_FIRST: Duration = Duration::from_millis(10);
const SHORT_MAX: Duration = Duration::from_millis(500);

/// Why a spawn has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotStarted {
    /// It would anywhere, as far as is known.
    Job(String),
    /// The host lacks something just now; which limit that is.
    Short(String),
}

impl From<String> for NotStarted {
    fn from(why: String) -> Self {
        NotStarted::Job(why)
    }
}

/// What happens to an engine.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
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
        /// Slots that it takes.
        slots: u16,
    },
    /// The agent wants it killed.
    Cancel {
        /// Which.
        attempt: AttemptId,
        /// How.
        stop: Stop,
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
    Spawned(Result<(), NotStarted>),
    /// The attempt has been here for a while: it is no short job, or its spawn takes long.
    Lasts,
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
    /// That answer comes later: nothing is alive, but the far end is still taking what was written.
    Held,
    /// The keeper is gone or wants an end: kill, then exit.
    Quit,
    /// It is asked to end, as everything is when the host shuts down: the same with grace, and
    /// without a report that would bring the next job here. Whoever comes after it is the proof.
    Stop,
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Swept {
    /// The first process, once it has been reaped.
    pub exit: Option<Exit>,
    /// When the attempt ran as a whole, once nothing of it is alive.
    pub whole: Option<Span>,
    /// Processes of the attempt that died by our KILL, in all sweeps so far.
    pub killed: u32,
    /// Processes still alive after this sweep.
    pub alive: u32,
    /// Who they are, when they have been alive for long: pids, names and states (proc(5)).
    pub names: String,
    /// What it has used so far.
    pub usage: Usage,
    /// Whether the kernel's out-of-memory killer was here.
    pub out_of_memory: OutOfMemory,
    /// Tails of standard output and error, when nothing is alive and they were kept.
    pub tails: (Option<Bytes>, Option<Bytes>),
    /// How much was read, when nothing is alive.
    pub written: Written,
}

/// What is known of the kernel's out-of-memory killer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutOfMemory {
    /// Nothing.
    #[default]
    No,
    /// It killed something on this host while the attempt ran; whether that was of this attempt,
    /// the kernel does not say here.
    OnThisHost,
    /// It killed a process of this attempt (`memory.events` of its control group).
    Killed,
}

/// The end of the first process.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// How.
    pub status: WaitStatus,
    /// When it ran; with those that were waited for.
    pub span: Span,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there are few at a time, and most are ends of attempts"
)]
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
    /// Start what could not be started before, and answer in the same way.
    SpawnAgain {
        /// The attempt.
        attempt: AttemptId,
    },
    /// This signal, then CONT, to the first process's group.
    Terminate {
        /// Which.
        signal: i32,
    },
    /// Look whether any process but the first is alive; answer with [`Event::Probed`].
    Probe,
    /// KILL the group, reap the first process, KILL and reap all other children; answer with
    /// [`Event::Swept`].
    Sweep {
        /// Whether output that the far end has not taken may be dropped.
        discard_output: bool,
    },
    /// Tell the agent.
    Send(FromEngine),
    /// Tell the keeper.
    ToKeeper(EngineToKeeper),
    /// End this process.
    Exit,
}

/// Why an attempt is being killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Cancelled,
    Timeout(Duration),
    LeaseOver,
    Stopped,
}

impl Reason {
    fn ended(self) -> Ended {
        match self {
            Reason::Cancelled => Ended::Cancelled,
            Reason::Timeout(_) => Ended::Timeout,
            Reason::LeaseOver | Reason::Stopped => Ended::Lost,
        }
    }
}

/// The host lacks something that a spawn takes.
#[derive(Clone, Copy, Debug)]
struct Shortage {
    since: BootInstant,
    pause: Duration,
    /// Until then nothing is tried.
    again: Option<BootInstant>,
}

#[derive(Debug)]
enum State {
    Idle,
    Spawning {
        attempt: AttemptId,
        timeout: Option<Duration>,
        /// Counts from the spawn: opening files takes its time, too. Waiting for the host does not
        /// count.
        deadline: Option<(BootInstant, Duration)>,
        short: Option<Shortage>,
        leftover: Leftover,
        /// Remembered until there is something to kill; and when that should have been done.
        kill: Option<(Reason, Stop, BootInstant)>,
    },
    Running {
        attempt: AttemptId,
        deadline: Option<(BootInstant, Duration)>,
        leftover: Leftover,
        /// The first process has ended, and others are waited for.
        lingering: bool,
    },
    Terminating {
        attempt: AttemptId,
        reason: Reason,
        signal: i32,
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
        /// Nothing is alive any more; only its output is still being taken, for as long as that
        /// takes.
        held: bool,
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
    /// Slots that its attempt takes, for an agent that does not know.
    slots: u16,
    lease: Option<BootInstant>,
    /// It has ended, and there is no other one.
    expired: bool,
    /// Dies with its agent, as in an embedded run.
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

    /// Takes what happened at `now`.
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
                    // The agent may have told the keeper to see to it.
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
            Event::Probed { others: false } => match self.state {
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
            },
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

    /// Does what is due at `now`.
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

    /// When [`Engine::handle_timeout`] wants to be called.
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

    fn run(
        &mut self,
        attempt: AttemptId,
        spec: Result<Box<JobSpec>, String>,
        context: Arc<BatchContext>,
        engine: EngineId,
        now: BootInstant,
    ) {
        if self.attempt().is_some() || self.quitting {
            let outcome = match self.attempt() {
                // It was on its way when the engine was asked to end: no fault of the job's.
                None => Outcome::never_ran(Ended::Lost, "the engine is stopping".to_owned()),
                Some(other) => Outcome::never_ran(
                    Ended::StartFailed,
                    format!("the engine is held by attempt {other}"),
                ),
            };
            self.report(attempt, outcome);
            return;
        }
        match spec {
            // It was on its way when the lease ended.
            _ if self.expired || self.lease.is_some_and(|until| until <= now) => {
                let why = "it had not started when the lease ended".to_owned();
                self.report(attempt, Outcome::never_ran(Ended::Lost, why));
            }
            Ok(spec) => {
                let timeout = spec.timeout.or(context.timeout);
                let deadline = timeout.map(|t| (now + t, t));
                let leftover = spec.leftover.unwrap_or(context.leftover);
                self.state = State::Spawning {
                    attempt,
                    timeout,
                    deadline,
                    short: None,
                    leftover,
                    kill: None,
                };
                self.effects.push_back(Effect::Spawn {
                    attempt,
                    spec,
                    context,
                    engine,
                });
            }
            Err(why) => self.report(attempt, Outcome::never_ran(Ended::StartFailed, why)),
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

    fn spawned(&mut self, result: Result<(), NotStarted>, now: BootInstant) {
        let State::Spawning {
            attempt,
            timeout,
            deadline,
            short,
            leftover,
            kill,
        } = self.state
        else {
            return;
        };
        match result {
            Ok(()) => {
                self.state = State::Running {
                    attempt,
                    deadline,
                    leftover,
                    lingering: false,
                };
                if let Some((reason, stop, _)) = kill {
                    self.kill(reason, stop, now);
                }
            }
            Err(NotStarted::Short(_))
                if kill.is_none() && short.is_none_or(|short| now < short.since + SHORT_FOR) =>
            {
                let pause = short.map_or(SHORT_FIRST, |short| (short.pause * 2).min(SHORT_MAX));
                let short = Shortage {
                    since: short.map_or(now, |short| short.since),
                    pause,
                    again: Some(now + pause),
                };
                self.state = State::Spawning {
                    attempt,
                    timeout,
                    deadline: None,
                    short: Some(short),
                    leftover,
                    kill,
                };
                if self.watched {
                    self.watch();
                }
            }
            Err(why) => {
                self.idle();
                if kill.is_some_and(|(reason, ..)| reason == Reason::Stopped) {
                    return;
                }
                let (ended, why) = match why {
                    NotStarted::Job(why) => (Ended::StartFailed, why),
                    NotStarted::Short(why) => (Ended::HostShort, why),
                };
                let ended = kill.map_or(ended, |(reason, ..)| reason.ended());
                self.report(attempt, Outcome::never_ran(ended, why));
            }
        }
    }

    fn first_ended(&mut self, now: BootInstant) {
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
            // Killed, and dead now.
            State::Sweeping { .. } | State::Stuck { .. } => self.other_changed(),
            State::Idle | State::Spawning { .. } => {}
        }
    }

    fn other_changed(&mut self) {
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

    fn kill(&mut self, new: Reason, stop: Stop, now: BootInstant) {
        match &mut self.state {
            State::Idle => return,
            State::Spawning {
                attempt,
                short: Some(Shortage { again: Some(_), .. }),
                ..
            } => {
                let attempt = *attempt;
                self.idle();
                if new != Reason::Stopped {
                    let why = "its host was short of what it takes to start it";
                    self.report(attempt, Outcome::never_ran(new.ended(), why.to_owned()));
                }
                return;
            }
            State::Spawning { kill, .. } => {
                // No proof of death while a spawn is in flight: remembered, and done as soon as
                // there is something to kill.
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
                // Somebody waits for that.
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
                // The command had already ended by itself when it was cancelled; only what it left
                // is still being killed, or its output is still being taken.
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

    /// Tells the keeper what is here, and by when it should be over.
    fn watch(&mut self) {
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

    /// Nothing is here any more.
    fn idle(&mut self) {
        self.over();
        self.state = State::Idle;
    }

    /// Nothing is alive any more that the keeper would have to see to.
    fn over(&mut self) {
        if let Some(attempt) = self.attempt()
            && std::mem::take(&mut self.watched)
        {
            self.effects
                .push_back(Effect::ToKeeper(EngineToKeeper::Over { attempt }));
        }
    }

    fn sweep(&mut self, attempt: AttemptId, reason: Option<Reason>, now: BootInstant) {
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

    fn swept(&mut self, mut swept: Swept, now: BootInstant) {
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
                        // The keeper, too, hears of it by the end of this process.
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

    fn report(&mut self, attempt: AttemptId, outcome: Outcome) {
        if self.linked {
            self.effects.push_back(Effect::Send(FromEngine::Finished {
                attempt,
                outcome: outcome.clone(),
            }));
        }
        self.unacknowledged.push((attempt, outcome));
    }

    fn quit(&mut self, now: BootInstant) {
        self.quitting = true;
        self.kill(Reason::LeaseOver, Stop::NOW, now);
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
    swept: Swept,
    containment: Containment,
) -> Outcome {
    let status = exit.as_ref().map(|e| e.status);
    let survivors = swept.alive;
    let by_kill = matches!(status, Some(WaitStatus::Signaled(signal)) if signal == KILL);
    let (ended, error) = match (reason, swept.out_of_memory) {
        _ if survivors > 0 => {
            let names = swept.names;
            (Ended::Unkillable, Some(format!("{survivors} processes did not die within {UNKILLABLE_AFTER:?} of SIGKILL: {names}")))
        }
        (None, OutOfMemory::Killed) if status != Some(WaitStatus::Exited(0)) => {
            (Ended::OutOfMemory, Some("the kernel's out-of-memory killer ended a process of it".into()))
        }
        (None, OutOfMemory::OnThisHost) if by_kill => (
            Ended::Signaled,
            Some("SIGKILL from elsewhere; the kernel's out-of-memory killer was at work on this host while it ran".into()),
        ),
        (None, _) if matches!(status, Some(WaitStatus::Signaled(_))) => (Ended::Signaled, None),
        (None, _) => (Ended::Exited, None),
        (Some(Reason::Cancelled), _) => (Ended::Cancelled, None),
        (Some(Reason::Timeout(limit)), _) => {
            (Ended::Timeout, Some(format!("killed after its timeout of {}", format_duration(limit))))
        }
        (Some(Reason::LeaseOver), _) => {
            (Ended::Lost, Some("killed: the coordinator was out of reach for longer than the lease".into()))
        }
        (Some(Reason::Stopped), _) => (Ended::Lost, Some("killed: the engines of its host were stopped".into())),
    };
    Outcome {
        ended,
        status,
        error,
        // What has ended by itself has ended then, whatever it left; what we end has when all of it
        // is dead.
        span: swept
            .whole
            .filter(|_| reason.is_some())
            .or(exit.as_ref().map(|e| e.span)),
        usage: exit.map(|_| swept.usage),
        killed: swept.killed,
        survivors,
        containment: Some(containment),
        stdout_tail: swept.tails.0,
        stderr_tail: swept.tails.1,
        written: swept.written,
    }
}

/// SIGKILL's number (signal(7)).
const KILL: i32 = 9;

#[cfg(test)]
mod tests;
