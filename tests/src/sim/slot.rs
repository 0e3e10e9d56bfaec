//! An engine and the process that it runs: the driver of a real engine.

use super::World;
use super::plan::SLOW_DEATH;
use super::steps::Step;
use mezcal_agent::engine::{Engine, Exit, Swept};
use mezcal_agent::{engine, supervisor};
use mezcal_common::message::engine::{FromEngine, ToEngine};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::ids::{AttemptId, EngineIndex, JobNumber};
use mezcal_common::model::job::BatchContext;
use mezcal_common::model::outcome::{Containment, Ended, Span, WaitStatus};
use mezcal_common::wire::codec;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Slot {
    pub(super) engine: Engine,
    /// Number of this slot's engine; messages for a dead one are dropped.
    pub(super) life: u64,
    /// Number of the link, in the same way.
    pub(super) link: u64,
    pub(super) to: VecDeque<ToEngine>,
    pub(super) from: VecDeque<FromEngine>,
    pub(super) context: Option<Arc<BatchContext>>,
    pub(super) alive: Option<AttemptId>,
    pub(super) spawning: Option<AttemptId>,
    pub(super) ended: bool,
    /// When killed processes are dead: some take their time.
    pub(super) dies_at: Option<Duration>,
    /// The engine is dead and the processes that it left are being swept.
    pub(super) dead: bool,
}

impl Slot {
    pub(super) fn new() -> Self {
        Self {
            engine: Engine::new(false, Containment::Subreaper),
            life: 0,
            link: 0,
            to: VecDeque::new(),
            from: VecDeque::new(),
            context: None,
            alive: None,
            spawning: None,
            ended: false,
            dies_at: None,
            dead: false,
        }
    }

    /// Replaces an engine that is gone with all its state.
    pub(super) fn start_anew(&mut self) {
        *self = Self {
            life: self.life + 1,
            link: self.link + 1,
            ..Self::new()
        };
    }

    /// Makes a new link to an agent; messages on the old link are lost.
    pub(super) fn relink(&mut self, at: BootInstant) {
        self.link += 1;
        self.to.clear();
        self.from.clear();
        self.engine.handle(engine::Event::Linked, at);
    }
}

impl World {
    pub(super) fn engine_swept(&mut self, n: usize, index: usize, life: u64) {
        let at = self.at(n);
        let host = &mut self.hosts[n];
        if host.slots[index].life != life || !host.up {
            return;
        }
        let attempt = host.slots[index].alive;
        let link = host.slots[index].link;
        host.slots[index] = Slot {
            life: life + 1,
            link,
            ..Slot::new()
        };
        host.ends.extend(attempt.map(|a| (index, Some(a))));
        if let Some(supervisor) = &mut host.supervisor {
            let engine = EngineIndex(index as u16);
            supervisor.handle(
                supervisor::Event::EngineEnded {
                    engine,
                    attempt,
                    ended: Ended::Lost,
                    killed: 1,
                    survivors: 0,
                },
                at,
            );
            host.relink_engine(index, at);
        }
    }

    pub(super) fn deliver_to_engine(&mut self, n: usize, index: usize, link: u64) {
        let at = self.at(n);
        let slot = &mut self.hosts[n].slots[index];
        if slot.link != link || slot.dead {
            return;
        }
        let Some(message) = slot.to.pop_front() else {
            return;
        };
        let event = match message {
            ToEngine::Run {
                attempt,
                spec,
                context,
                engine,
                slots,
            } => {
                slot.context = context.map(Arc::new).or_else(|| slot.context.take());
                let Some(context) = slot.context.clone() else {
                    return;
                };
                let spec = codec::decode_exact(&spec)
                    .map(Box::new)
                    .map_err(|e| e.to_string());
                engine::Event::Run {
                    attempt,
                    spec,
                    context,
                    engine,
                    slots,
                }
            }
            ToEngine::Cancel { attempt, stop } => engine::Event::Cancel { attempt, stop },
            ToEngine::Acknowledge { attempts } => engine::Event::Acknowledge { attempts },
            ToEngine::Lease { .. } if self.mutants.keeps_leases_from_engines() => return,
            ToEngine::Lease { until } => engine::Event::Lease { until },
            ToEngine::OutputTaken { .. } | ToEngine::Show { .. } | ToEngine::Hide { .. } => return,
        };
        slot.engine.handle(event, at);
    }

    /// Performs an engine's effect.
    pub(super) fn engine_effect(&mut self, n: usize, index: usize, effect: engine::Effect) {
        let at = self.at(n);
        match effect {
            engine::Effect::Spawn { attempt, .. } => self.spawn(n, index, attempt, false),
            engine::Effect::SpawnAgain { attempt } => self.spawn(n, index, attempt, true),
            engine::Effect::Send(message) => self.engine_says(n, index, message),
            engine::Effect::Probe => {
                let engine = &mut self.hosts[n].slots[index].engine;
                engine.handle(engine::Event::Probed { others: false }, at);
            }
            engine::Effect::Sweep { .. } => self.sweep(n, index),
            engine::Effect::Terminate { .. }
            | engine::Effect::ToKeeper(_)
            | engine::Effect::Exit => {}
        }
    }

    /// A process exists from now on, and its engine hears of it a little later; or it never
    /// existed.
    fn spawn(&mut self, host: usize, slot: usize, attempt: AttemptId, again: bool) {
        let place = &mut self.hosts[host].slots[slot];
        let life = place.life;
        // The process may exist before its engine knows.
        (place.alive, place.spawning, place.ended, place.dies_at) =
            (Some(attempt), Some(attempt), false, None);
        let (spawn, fails) = (self.chance.millis(30), self.chance.one_in(40));
        // Some shortages pass soon, others do not.
        let result = match attempt.key.job.0 % 4 {
            0 if again => Err(engine::NotStarted::Short("no processes".into())),
            0 | 1 if fails => Err(engine::NotStarted::Short("no processes".into())),
            2.. if fails => Err(engine::NotStarted::Job("no such file".into())),
            _ => Ok(()),
        };
        let spawned = Step::Spawned {
            host,
            slot,
            life,
            result,
        };
        self.after(spawn, spawned);
        let run = self.length_of_run(attempt.key.job);
        let ends = Step::JobEnds {
            host,
            slot,
            attempt,
            life,
        };
        self.after(spawn + run, ends);
    }

    /// How long a job runs if nothing ends it.
    fn length_of_run(&mut self, job: JobNumber) -> Duration {
        // Every third run is of short jobs, which are handed out in advance, and a few long ones.
        let lengths = if self.plan.seed.is_multiple_of(3) {
            [20, 20, 60, 20_000]
        } else {
            [50, 2_000, 20_000, 90_000]
        };
        let most = lengths[if self.chance.one_in(3) {
            3
        } else {
            self.chance.below(3) as usize
        }];
        match self.plan.crowd && job.0 < self.plan.jobs {
            true => self.longest / 2 + self.chance.millis(self.longest.as_millis() as u64 / 2),
            false => self.chance.millis(most),
        }
    }

    /// The engine hears whether its process was started.
    pub(super) fn spawned(
        &mut self,
        host: usize,
        slot: usize,
        life: u64,
        result: Result<(), engine::NotStarted>,
    ) {
        let at = self.at(host);
        let place = &mut self.hosts[host].slots[slot];
        if place.life == life && place.spawning.take().is_some() {
            if result.is_err() {
                place.alive = None;
            }
            place.engine.handle(engine::Event::Spawned(result), at);
        }
    }

    /// A process ends by itself, unless something else has ended it before.
    pub(super) fn job_ends(&mut self, host: usize, slot: usize, attempt: AttemptId, life: u64) {
        let at = self.at(host);
        let place = &mut self.hosts[host].slots[slot];
        // Both were delayed on a suspended host: it cannot end before it has begun.
        if place.life == life && place.spawning == Some(attempt) {
            let again = Step::JobEnds {
                host,
                slot,
                attempt,
                life,
            };
            return self.after(Duration::from_millis(1), again);
        }
        let runs = place.alive == Some(attempt) && place.spawning.is_none() && !place.ended;
        if place.life == life && runs && place.dies_at.is_none() && !place.dead {
            place.ended = true;
            let attempt = (attempt.key, attempt.attempt);
            self.ended.insert(attempt);
            self.kept.insert(attempt, (host, slot, life));
            place.engine.handle(engine::Event::FirstEnded, at);
        }
    }

    fn engine_says(&mut self, n: usize, index: usize, message: FromEngine) {
        let at = self.at(n);
        let slot = &mut self.hosts[n].slots[index];
        if let FromEngine::Finished { attempt, .. } = &message
            && self.mutants.forgets_what_it_has_sent()
        {
            let attempts = vec![*attempt];
            let acknowledged = engine::Event::Acknowledge { attempts };
            slot.engine.handle(acknowledged, at);
        }
        slot.from.push_back(message);
        let link = slot.link;
        let wait = self.chance.millis(4);
        self.after(wait, Step::FromEngine(n, index, link));
    }

    /// The processes that an engine kills are dead at once, or some seconds later.
    fn sweep(&mut self, n: usize, index: usize) {
        let at = self.at(n);
        let patience = if self.chance.one_in(6) {
            SLOW_DEATH.as_millis() as u64
        } else {
            3
        };
        let now = self.now;
        let dies = now + self.chance.millis(patience);
        let slot = &mut self.hosts[n].slots[index];
        let dies = if slot.ended { now } else { dies };
        let dies = *slot.dies_at.get_or_insert(dies);
        let swept = if now < dies {
            Swept {
                alive: 1,
                ..Swept::default()
            }
        } else {
            let fails = |attempt: AttemptId| self.failing.contains(&attempt.key.job.0);
            let fails = slot.alive.is_some_and(fails);
            (slot.alive, slot.dies_at) = (None, None);
            let status = if slot.ended {
                WaitStatus::Exited(i32::from(fails))
            } else {
                WaitStatus::Signaled(9)
            };
            let span = Span {
                started: WallTime(0),
                completed: WallTime(1),
                elapsed: Duration::from_micros(1),
            };
            Swept {
                exit: Some(Exit { status, span }),
                ..Swept::default()
            }
        };
        slot.engine.handle(engine::Event::Swept(swept), at);
    }
}
