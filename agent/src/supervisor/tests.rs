//! Scripts of the supervisor.

mod ending;
mod engines;
mod lease;
mod programs;
mod reports;
mod shortage;
mod users;
mod wide;

use super::*;
use bytes::Bytes;
use mezcal_common::message::agent::{
    COUNTS_OUTPUT, ENGINES_FAIL, Placement, Report, SERVES_USERS, ToAgent, ToCoordinator,
};
use mezcal_common::message::engine::{FromEngine, ToEngine, ToKeeper};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::{
    AttemptId, BatchId, BatchSerial, EngineId, EngineIndex, Epoch, JobKey, JobNumber, StoreId,
};
use mezcal_common::model::job::{BatchContext, Stop};
use mezcal_common::model::outcome::{Ended, Outcome, Span, WaitStatus, Written};
use std::time::Duration;

struct Script {
    supervisor: Supervisor,
    now: BootInstant,
}

const LEASE: Duration = Duration::from_secs(600);

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

fn exited(run: Duration) -> Outcome {
    let span = Span {
        started: WallTime(0),
        completed: WallTime(0),
        elapsed: run,
    };
    Outcome {
        status: Some(WaitStatus::Exited(0)),
        span: Some(span),
        ..Outcome::never_ran(Ended::Exited, None)
    }
}

/// Two slots, both heard, in a session.
fn script() -> Script {
    let mut s = unheard();
    s.welcome();
    s.ready(0, None);
    s.ready(1, None);
    assert_eq!(
        s.pass(Duration::ZERO),
        "heartbeat",
        "the first one goes at once"
    );
    s
}

fn unheard() -> Script {
    Script {
        supervisor: Supervisor::new(2, None),
        now: BootInstant(Duration::from_secs(1000)),
    }
}

impl Script {
    fn event(&mut self, event: Event) -> String {
        self.supervisor.handle(event, self.now);
        self.trace()
    }

    fn welcome(&mut self) -> String {
        self.welcome_of(1)
    }

    fn welcome_of(&mut self, store: u64) -> String {
        let (lease, hello_sent) = (Some(LEASE), self.now);
        self.event(Event::Welcomed {
            version: SERVES_USERS,
            store: StoreId(store),
            lease,
            first_engine: EngineId(40),
            hello_sent,
        })
    }

    fn ready(&mut self, engine: u16, running: Option<AttemptId>) -> String {
        self.event(Event::Engine(
            EngineIndex(engine),
            FromEngine::Ready {
                running: running.map(|a| (a, 1)),
            },
        ))
    }

    fn run(&mut self, jobs: &[u32]) -> String {
        let context = BatchContext::new(BatchId(uuid::Uuid::nil()), "/".into(), 0o22);
        self.supervisor.handle(
            Event::Coordinator(ToAgent::Context {
                batch: BatchSerial(1),
                context,
                user: "okazaki".into(),
            }),
            self.now,
        );
        let placements = jobs
            .iter()
            .map(|n| Placement {
                attempt: attempt(*n),
                spec: Bytes::new(),
                slots: 1,
            })
            .collect();
        self.event(Event::Coordinator(ToAgent::Run(placements)))
    }

    fn finished(&mut self, engine: u16, job: u32, run: Duration) -> String {
        let outcome = exited(run);
        self.event(Event::Engine(
            EngineIndex(engine),
            FromEngine::Finished {
                attempt: attempt(job),
                outcome,
            },
        ))
    }

    fn pass(&mut self, time: Duration) -> String {
        self.now = self.now + time;
        if self
            .supervisor
            .poll_timeout()
            .is_some_and(|at| at <= self.now)
        {
            self.supervisor.handle_timeout(self.now);
            assert!(
                self.supervisor
                    .poll_timeout()
                    .is_none_or(|at| at > self.now),
                "a deadline that stays in the past spins"
            );
        }
        self.trace()
    }

    // Long: one line for each effect.
    fn trace(&mut self) -> String {
        let ids = |list: &[AttemptId]| {
            list.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let mut lines = Vec::new();
        while let Some(effect) = self.supervisor.poll_effect() {
            lines.push(match effect {
                Effect::ToCoordinator(ToCoordinator::Inventory { queued, running, unacknowledged, .. }) => {
                    format!(
                        "inventory: queued [{}] running [{}] unacknowledged [{}]",
                        ids(&queued),
                        ids(&running),
                        ids(&unacknowledged)
                    )
                }
                Effect::ToCoordinator(ToCoordinator::UserInventory { user, queued, running, unacknowledged }) => {
                    let (queued, running, unacknowledged) = (ids(&queued), ids(&running), ids(&unacknowledged));
                    format!("inventory of {user}: queued [{queued}] running [{running}] unacknowledged [{unacknowledged}]")
                }
                Effect::ToCoordinator(ToCoordinator::Served { users, unheard, .. }) => {
                    let unheard = unheard.iter().map(|(user, why)| format!("; not {user}: {why}"));
                    format!("served: {}{}", users.join(" "), unheard.collect::<String>())
                }
                Effect::ToCoordinator(ToCoordinator::Pull { credit, idle }) => format!("pull to {credit}, {idle} idle"),
                Effect::ToCoordinator(ToCoordinator::ReportsOf { user, reports }) => {
                    let each = reports.iter().map(|r| format!("#{} {}", r.seq, r.attempt));
                    format!("report of {user} {}", each.collect::<Vec<_>>().join(", "))
                }
                Effect::ToCoordinator(ToCoordinator::Reports(reports)) => {
                    let each = reports.iter().map(|r| match &r.report {
                        Report::Started { engine } => format!("#{} {} started on {engine}", r.seq, r.attempt),
                        Report::Finished { outcome, .. } => format!("#{} {} {}", r.seq, r.attempt, outcome.ended.as_str()),
                        Report::Counted { outcome, .. } => {
                            let (ended, written) = (outcome.ended.as_str(), outcome.written);
                            format!("#{} {} {ended}, wrote {:?} {:?}", r.seq, r.attempt, written.out, written.err)
                        }
                        Report::Returned => format!("#{} {} returned", r.seq, r.attempt),
                    });
                    format!("report {}", each.collect::<Vec<_>>().join(", "))
                }
                Effect::ToCoordinator(ToCoordinator::Absent { attempts }) => format!("absent {}", ids(&attempts)),
                Effect::ToCoordinator(ToCoordinator::Heartbeat { .. }) => "heartbeat".into(),
                Effect::ToCoordinator(other) => format!("{other:?}"),
                Effect::ToEngine(e, ToEngine::Run { attempt, context, engine, .. }) => {
                    format!("{e} < run {attempt} as engine {engine}{}", if context.is_some() { " with context" } else { "" })
                }
                Effect::ToEngine(e, ToEngine::Cancel { attempt, stop }) => {
                    format!("{e} < cancel {attempt}, grace {:?}", stop.grace)
                }
                Effect::ToKeeper(_, ToKeeper::Cancelled { engine, attempt, by }) => {
                    format!("keeper < {engine} kills {attempt} within {:?}", by.since(self.now))
                }
                Effect::ToKeeper(_, ToKeeper::EndSeen { attempt }) => format!("keeper < end of {attempt} seen"),
                // The engines are told the lease, too.
                Effect::ToKeeper(_, ToKeeper::Lease { .. }) => continue,
                Effect::ToKeeper(set, ToKeeper::Relink { engine }) => format!("keeper of set {set} < link {engine} again"),
                Effect::ToKeeper(set, ToKeeper::Stop) => format!("keeper of set {set} < stop"),
                Effect::ToKeeper(_, other) => panic!("the supervisor does not say {other:?}"),
                Effect::ToEngine(e, ToEngine::Acknowledge { attempts }) => format!("{e} < acknowledge {}", ids(&attempts)),
                Effect::ToEngine(e, ToEngine::Lease { until }) => format!("{e} < lease until {:?}", until.map(|u| u.0)),
                Effect::ToEngine(e, ToEngine::OutputTaken { bytes, .. }) => format!("{e} < output taken {bytes}"),
                Effect::ToEngine(e, ToEngine::Hide { request }) => format!("{e} < hide {request}"),
                Effect::ToEngine(e, ToEngine::Show { request, .. }) => format!("{e} < show for {request}"),
                Effect::Exit => "exit".into(),
            });
        }
        lines.join("\n")
    }
}

const USERS: [&str; 2] = ["okazaki", "sato"];

/// Two slots for two users, who have two engines each: 0 and 1, 2 and 3.
fn shared() -> Script {
    let users = Some(USERS.map(str::to_owned).to_vec());
    Script {
        supervisor: Supervisor::new(2, users),
        now: BootInstant(Duration::from_secs(1000)),
    }
}

/// A job of the first or the second user.
fn of(user: u32, job: u32) -> AttemptId {
    AttemptId {
        key: JobKey {
            batch: BatchSerial(user),
            job: JobNumber(job),
        },
        ..attempt(1)
    }
}

impl Script {
    fn contexts(&mut self) {
        for (batch, user) in (1..).zip(USERS) {
            let context = BatchContext::new(BatchId(uuid::Uuid::nil()), "/".into(), 0o22);
            self.event(Event::Coordinator(ToAgent::Context {
                batch: BatchSerial(batch),
                context,
                user: user.into(),
            }));
        }
    }

    fn place(&mut self, attempts: &[AttemptId]) -> String {
        let run = attempts.iter().map(|attempt| Placement {
            attempt: *attempt,
            spec: Bytes::new(),
            slots: 1,
        });
        self.event(Event::Coordinator(ToAgent::Run(run.collect())))
    }

    fn says_over(&mut self, engine: u16, attempt: AttemptId) -> String {
        let outcome = exited(Duration::from_secs(1));
        self.event(Event::Engine(
            EngineIndex(engine),
            FromEngine::Finished { attempt, outcome },
        ))
    }
}

impl Script {
    fn welcome_by(&mut self, version: u16) -> String {
        let (lease, hello_sent) = (Some(LEASE), self.now);
        self.event(Event::Welcomed {
            version,
            store: StoreId(1),
            lease,
            first_engine: EngineId(40),
            hello_sent,
        })
    }
}
