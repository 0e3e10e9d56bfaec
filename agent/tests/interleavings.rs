//! After a cancel is acknowledged, no process of it starts or lives: the supervisor and two engines
//! under every order in which messages, spawns and ends of processes can meet, with lost
//! connections and restarted agents between them.

use mezcal_agent::engine::{self, Engine, Exit, Swept};
use mezcal_agent::supervisor::{self, Supervisor};
use mezcal_common::message::agent::{Placement, Report, ToAgent, ToCoordinator};
use mezcal_common::message::engine::{FromEngine, ToEngine};
use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::model::ids::{
    AttemptId, BatchId, BatchSerial, EngineId, EngineIndex, Epoch, JobKey, JobNumber, StoreId,
};
use mezcal_common::model::job::{BatchContext, Command, JobSpec, Stop};
use mezcal_common::model::outcome::{Containment, Span, WaitStatus};
use mezcal_common::wire::codec;
use proptest::prelude::*;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

const ENGINES: usize = 2;

/// An engine with its links and its process.
struct Slot {
    engine: Engine,
    to: VecDeque<ToEngine>,
    from: VecDeque<FromEngine>,
    /// A spawn under way.
    spawning: Option<AttemptId>,
    alive: Option<AttemptId>,
    context: Option<Arc<BatchContext>>,
}

struct World {
    now: BootInstant,
    supervisor: Supervisor,
    to_agent: VecDeque<ToAgent>,
    to_coordinator: VecDeque<ToCoordinator>,
    slots: Vec<Slot>,
    placed: u32,
    /// Number of attempts placed in earlier sessions.
    earlier: u32,
    told: bool,
    cancelled: BTreeSet<AttemptId>,
    /// Attempts that the coordinator knows to have ended.
    over: BTreeSet<AttemptId>,
}

fn attempt(job: u32) -> AttemptId {
    AttemptId {
        epoch: Epoch(1),
        key: JobKey {
            batch: BatchSerial(1),
            job: JobNumber(job),
        },
        attempt: 1,
    }
}

impl World {
    fn new() -> Self {
        let slot = || Slot {
            engine: Engine::new(false, Containment::Subreaper),
            to: VecDeque::new(),
            from: VecDeque::new(),
            spawning: None,
            alive: None,
            context: None,
        };
        let mut world = World {
            now: BootInstant(Duration::from_secs(1)),
            supervisor: Supervisor::new(ENGINES as u16, None),
            to_agent: VecDeque::new(),
            to_coordinator: VecDeque::new(),
            slots: (0..ENGINES).map(|_| slot()).collect(),
            placed: 0,
            earlier: 0,
            told: false,
            cancelled: BTreeSet::new(),
            over: BTreeSet::new(),
        };
        world.link_all();
        world.connect();
        world
    }

    fn link_all(&mut self) {
        for i in 0..ENGINES {
            self.slots[i].to.clear();
            self.slots[i].from.clear();
            self.slots[i].engine.handle(engine::Event::Linked, self.now);
            self.perform(i);
        }
    }

    /// A new session: messages in transit are lost.
    fn connect(&mut self) {
        self.to_agent.clear();
        self.to_coordinator.clear();
        self.told = false;
        self.earlier = self.placed;
        self.agent(supervisor::Event::Disconnected);
        let hello_sent = self.now;
        let lease = Some(Duration::from_secs(100_000));
        self.agent(supervisor::Event::Welcomed {
            version: 2,
            store: StoreId(1),
            lease,
            first_engine: EngineId(0),
            hello_sent,
        });
    }

    fn agent(&mut self, event: supervisor::Event) {
        self.supervisor.handle(event, self.now);
        self.drain_agent();
    }

    fn drain_agent(&mut self) {
        while let Some(effect) = self.supervisor.poll_effect() {
            match effect {
                supervisor::Effect::ToCoordinator(message) => {
                    self.to_coordinator.push_back(message)
                }
                supervisor::Effect::ToEngine(index, message) => {
                    self.slots[usize::from(index.0)].to.push_back(message)
                }
                supervisor::Effect::ToKeeper(..) | supervisor::Effect::Exit => {}
            }
        }
    }

    fn perform(&mut self, i: usize) {
        let now = self.now;
        while let Some(effect) = self.slots[i].engine.poll_effect() {
            let slot = &mut self.slots[i];
            match effect {
                engine::Effect::Spawn { attempt, .. } | engine::Effect::SpawnAgain { attempt } => {
                    assert!(
                        !self.over.contains(&attempt),
                        "{attempt} starts after it was said to be over"
                    );
                    slot.spawning = Some(attempt);
                }
                engine::Effect::Send(message) => slot.from.push_back(message),
                engine::Effect::Probe => slot
                    .engine
                    .handle(engine::Event::Probed { others: false }, now),
                engine::Effect::Sweep { .. } => {
                    slot.alive = None;
                    let span = Span {
                        started: WallTime(0),
                        completed: WallTime(1),
                        elapsed: Duration::from_micros(1),
                    };
                    let exit = Some(Exit {
                        status: WaitStatus::Exited(0),
                        span,
                    });
                    slot.engine.handle(
                        engine::Event::Swept(Swept {
                            exit,
                            ..Swept::default()
                        }),
                        now,
                    );
                }
                engine::Effect::Terminate { .. }
                | engine::Effect::ToKeeper(_)
                | engine::Effect::Exit => {}
            }
        }
    }

    fn heard(&mut self, message: ToCoordinator) {
        let over: Vec<AttemptId> = match message {
            ToCoordinator::Reports(reports) => {
                let through = reports.iter().map(|r| r.seq).max().unwrap_or(0);
                self.to_agent.push_back(ToAgent::Acknowledge { through });
                reports
                    .iter()
                    .filter(|r| !matches!(r.report, Report::Started { .. }))
                    .map(|r| r.attempt)
                    .collect()
            }
            ToCoordinator::Absent { attempts } => attempts,
            ToCoordinator::Inventory {
                queued,
                running,
                unacknowledged,
                ..
            } => {
                let here: BTreeSet<AttemptId> = queued
                    .into_iter()
                    .chain(running)
                    .chain(unacknowledged)
                    .collect();
                // The coordinator repeats the requests that were not answered.
                let open: Vec<AttemptId> = self
                    .cancelled
                    .iter()
                    .filter(|a| here.contains(a))
                    .copied()
                    .collect();
                if !open.is_empty() {
                    self.to_agent.push_back(ToAgent::Cancel {
                        attempts: open,
                        stop: Stop::NOW,
                    });
                }
                // An attempt that an earlier session placed and this one does not list is not on
                // this host.
                (1..=self.earlier)
                    .map(attempt)
                    .filter(|a| !here.contains(a))
                    .collect()
            }
            _ => return,
        };
        for attempt in over {
            for slot in &self.slots {
                assert!(
                    slot.alive != Some(attempt) && slot.spawning != Some(attempt),
                    "{attempt} lives and is said to be over"
                );
            }
            self.over.insert(attempt);
        }
    }

    /// Does one step; false if that step is not possible now.
    fn step(&mut self, choice: u8, arg: u8) -> bool {
        let i = usize::from(arg) % ENGINES;
        match choice {
            0 => {
                if !self.told {
                    self.told = true;
                    let context = BatchContext::new(BatchId(uuid::Uuid::nil()), "/".into(), 0o22);
                    self.to_agent.push_back(ToAgent::Context {
                        batch: BatchSerial(1),
                        context,
                        user: "okazaki".into(),
                    });
                }
                let spec = codec::encode_body(&JobSpec::new(Command::Shell("true".into())))
                    .expect("small");
                let count = u32::from(arg % 3) + 1;
                let run = (1..=count)
                    .map(|n| Placement {
                        attempt: attempt(self.placed + n),
                        spec: spec.clone(),
                        slots: 1,
                    })
                    .collect();
                self.placed += count;
                self.to_agent.push_back(ToAgent::Run(run));
            }
            1 if self.placed > 0 => {
                let chosen = attempt(u32::from(arg) % self.placed + 1);
                self.cancelled.insert(chosen);
                let grace = if arg.is_multiple_of(2) {
                    Stop::NOW
                } else {
                    Stop::after(Duration::from_secs(2))
                };
                self.to_agent.push_back(ToAgent::Cancel {
                    attempts: vec![chosen],
                    stop: grace,
                });
            }
            2 => {
                let Some(message) = self.to_agent.pop_front() else {
                    return false;
                };
                self.agent(supervisor::Event::Coordinator(message));
            }
            3 => {
                let Some(message) = self.to_coordinator.pop_front() else {
                    return false;
                };
                self.heard(message);
            }
            4 => {
                let Some(message) = self.slots[i].to.pop_front() else {
                    return false;
                };
                let slot = &mut self.slots[i];
                let event = match message {
                    ToEngine::Run {
                        attempt,
                        spec,
                        context,
                        engine,
                        slots,
                    } => {
                        slot.context = context.map(Arc::new).or_else(|| slot.context.take());
                        let context = slot.context.clone().expect("the first run has a context");
                        engine::Event::Run {
                            attempt,
                            spec: codec::decode_exact(&spec)
                                .map(Box::new)
                                .map_err(|e| e.to_string()),
                            context,
                            engine,
                            slots,
                        }
                    }
                    ToEngine::Cancel { attempt, stop } => engine::Event::Cancel { attempt, stop },
                    ToEngine::Acknowledge { attempts } => engine::Event::Acknowledge { attempts },
                    ToEngine::Lease { until } => engine::Event::Lease { until },
                    ToEngine::OutputTaken { .. }
                    | ToEngine::Show { .. }
                    | ToEngine::Hide { .. } => return true,
                };
                slot.engine.handle(event, self.now);
                self.perform(i);
            }
            5 => {
                let Some(message) = self.slots[i].from.pop_front() else {
                    return false;
                };
                self.agent(supervisor::Event::Engine(EngineIndex(i as u16), message));
            }
            6 => {
                let Some(attempt) = self.slots[i].spawning.take() else {
                    return false;
                };
                let result = if arg.is_multiple_of(5) {
                    Err(engine::NotStarted::Job("no such file".into()))
                } else {
                    Ok(())
                };
                self.slots[i].alive = result.is_ok().then_some(attempt);
                self.slots[i]
                    .engine
                    .handle(engine::Event::Spawned(result), self.now);
                self.perform(i);
            }
            7 => {
                if self.slots[i].alive.is_none() {
                    return false;
                }
                self.slots[i]
                    .engine
                    .handle(engine::Event::FirstEnded, self.now);
                self.perform(i);
            }
            8 => {
                self.now = self.now + Duration::from_secs(3);
                for i in 0..ENGINES {
                    self.slots[i].engine.handle_timeout(self.now);
                    self.perform(i);
                }
                self.supervisor.handle_timeout(self.now);
                self.drain_agent();
            }
            9 if arg.is_multiple_of(4) => self.connect(),
            10 if arg.is_multiple_of(4) => {
                // The agent dies and another one takes the engines over.
                self.supervisor = Supervisor::new(ENGINES as u16, None);
                for slot in &mut self.slots {
                    slot.engine.handle(engine::Event::Unlinked, self.now);
                }
                self.link_all();
                self.connect();
            }
            _ => return false,
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn nothing_starts_after_its_cancel_is_acknowledged(steps in proptest::collection::vec((0u8..11, any::<u8>()), 1..120)) {
        let mut world = World::new();
        for (choice, arg) in steps {
            world.step(choice, arg);
        }
        // In the end every cancel is answered.
        for _ in 0..200 {
            let mut any = false;
            for choice in 2..9 {
                for arg in 1..=ENGINES as u8 {
                    any |= world.step(choice, arg) && choice != 8;
                }
            }
            if !any {
                break;
            }
        }
        let here: BTreeSet<AttemptId> = world.slots.iter().flat_map(|s| s.alive.into_iter().chain(s.spawning)).collect();
        prop_assert!(world.cancelled.iter().all(|a| !here.contains(a)), "cancelled, but alive: {here:?}");
        prop_assert!(world.cancelled.iter().all(|a| world.over.contains(a)), "never answered: {:?}", world.cancelled.difference(&world.over));
    }
}
