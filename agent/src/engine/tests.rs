//! Scripts of the engine: its effects and their order, for every way in which an attempt can end.

mod killing;
mod starting;

use super::*;
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::{BatchId, BatchSerial, EngineId, Epoch, JobKey, JobNumber};
use mezcal_common::model::job::{BatchContext, Command, JobSpec, Leftover};
use mezcal_common::model::outcome::{Span, WaitStatus};
use std::sync::Arc;
use std::time::Duration;

struct Script {
    engine: Engine,
    to_keeper: Vec<String>,
    now: BootInstant,
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

fn exit(status: WaitStatus) -> Option<Exit> {
    let span = Span {
        started: WallTime(0),
        completed: WallTime(5),
        elapsed: Duration::from_micros(5),
    };
    Some(Exit { status, span })
}

fn gone(status: WaitStatus, killed: u32) -> Event {
    Event::Swept(Swept {
        exit: exit(status),
        killed,
        ..Swept::default()
    })
}

fn still(alive: u32) -> Event {
    Event::Swept(Swept {
        alive,
        ..Swept::default()
    })
}

fn script() -> Script {
    let mut s = Script {
        to_keeper: vec![],
        engine: Engine::new(false, Containment::Subreaper),
        now: BootInstant(Duration::from_secs(100)),
    };
    assert_eq!(s.event(Event::Linked), "ready, running none");
    s
}

impl Script {
    fn event(&mut self, event: Event) -> String {
        self.engine.handle(event, self.now);
        self.trace()
    }

    fn run(&mut self, job: u32, timeout: Option<u64>) -> String {
        let spec = JobSpec {
            timeout: timeout.map(Duration::from_secs),
            ..JobSpec::new(Command::Shell("true".into()))
        };
        let context = BatchContext::new(BatchId(uuid_nil()), "/".into(), 0o22);
        let context = Arc::new(context);
        self.event(Event::Run {
            attempt: attempt(job),
            spec: Ok(Box::new(spec)),
            context,
            engine: EngineId(0),
            slots: 1,
        })
    }

    fn pass(&mut self, time: Duration) -> String {
        self.now = self.now + time;
        if self.engine.poll_timeout().is_some_and(|at| at <= self.now) {
            self.engine.handle_timeout(self.now);
            assert!(
                self.engine.poll_timeout().is_none_or(|at| at > self.now),
                "a deadline that stays in the past spins"
            );
        }
        self.trace()
    }

    fn said(&self, message: &EngineToKeeper) -> String {
        match message {
            EngineToKeeper::Watch {
                attempt,
                until,
                ended,
                killing,
            } => {
                let until = until.map_or("good".into(), |at| format!("{:?}", at.since(self.now)));
                format!(
                    "has {attempt} for {until} as {}{}",
                    ended.as_str(),
                    if *killing { ", killing" } else { "" }
                )
            }
            EngineToKeeper::Over { attempt } => format!("has not {attempt}"),
        }
    }

    /// The messages to the keeper since the last look.
    fn keeper_heard(&mut self) -> String {
        std::mem::take(&mut self.to_keeper).join("; ")
    }

    fn trace(&mut self) -> String {
        let mut lines = Vec::new();
        while let Some(effect) = self.engine.poll_effect() {
            lines.push(match effect {
                Effect::Spawn { attempt, .. } => format!("spawn {attempt}"),
                Effect::SpawnAgain { attempt } => format!("spawn {attempt} again"),
                Effect::Terminate { signal: 15 } => "terminate".into(),
                Effect::Terminate { signal } => format!("terminate with signal {signal}"),
                Effect::ToKeeper(message) => {
                    let text = self.said(&message);
                    self.to_keeper.push(text);
                    continue;
                }
                Effect::Probe => "probe".into(),
                Effect::Sweep { discard_output } => format!("sweep{}", if discard_output { ", discarding output" } else { "" }),
                Effect::Send(FromEngine::Ready { running }) => {
                    format!("ready, running {}", running.map_or("none".into(), |(a, _)| a.to_string()))
                }
                Effect::Send(FromEngine::Finished { attempt, outcome }) => {
                    let code = outcome.status.map_or("none".into(), |s| s.code().to_string());
                    let (how, killed, survivors) = (outcome.ended.as_str(), outcome.killed, outcome.survivors);
                    format!("finished {attempt} {how}, code {code}, killed {killed}, survivors {survivors}")
                }
                Effect::Send(FromEngine::Output { .. } | FromEngine::Shown { .. } | FromEngine::ShownAll { .. }) => "output".into(),
                Effect::Exit => "exit".into(),
            });
        }
        lines.join("; ")
    }
}

fn uuid_nil() -> uuid::Uuid {
    uuid::Uuid::nil()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_job_that_ends_by_itself_is_swept_before_it_is_reported() {
    let mut s = script();
    insta::assert_snapshot!(s.run(1, None), @"spawn 1.1");
    assert_eq!(s.event(Event::Spawned(Ok(()))), "");
    insta::assert_snapshot!(s.event(Event::FirstEnded), @"sweep");
    insta::assert_snapshot!(s.event(gone(WaitStatus::Exited(3), 0)), @"finished 1.1 exited, code 3, killed 0, survivors 0");
    insta::assert_snapshot!(s.run(2, None), @"spawn 2.1");
}

#[test]
fn leftovers_are_swept_until_none_is_left() {
    let mut s = script();
    s.run(1, None);
    s.event(Event::Spawned(Ok(())));
    s.event(Event::FirstEnded);
    assert_eq!(
        s.event(Event::Swept(Swept {
            exit: exit(WaitStatus::Exited(0)),
            alive: 2,
            ..Swept::default()
        })),
        ""
    );
    insta::assert_snapshot!(s.event(Event::OtherChanged), @"sweep");
    assert_eq!(s.event(still(1)), "");
    insta::assert_snapshot!(s.pass(SECOND), @"sweep");
    insta::assert_snapshot!(s.event(Event::Swept(Swept { killed: 2, ..Swept::default() })), @"finished 1.1 exited, code 0, killed 2, survivors 0");
}

#[test]
fn leftovers_are_waited_for_where_that_is_asked_for() {
    let mut s = script();
    let spec = JobSpec {
        leftover: Some(Leftover::Wait),
        ..JobSpec::new(Command::Shell("sleep 1 &".into()))
    };
    let context = Arc::new(BatchContext::new(BatchId(uuid_nil()), "/".into(), 0o22));
    s.event(Event::Run {
        attempt: attempt(1),
        spec: Ok(Box::new(spec)),
        context,
        engine: EngineId(0),
        slots: 1,
    });
    s.event(Event::Spawned(Ok(())));
    assert_eq!(s.event(Event::FirstEnded), "probe");
    assert_eq!(s.event(Event::Probed { others: true }), "");
    assert_eq!(s.event(Event::OtherChanged), "probe");
    assert_eq!(s.event(Event::Probed { others: false }), "sweep");
    insta::assert_snapshot!(s.event(gone(WaitStatus::Exited(4), 0)), @"finished 1.1 exited, code 4, killed 0, survivors 0");
}

#[test]
fn what_only_waits_for_its_output_to_be_taken_is_not_watched() {
    let mut s = script();
    s.run(1, None);
    s.event(Event::Spawned(Ok(())));
    s.event(Event::Lasts);
    s.keeper_heard();
    assert_eq!(s.event(Event::FirstEnded), "sweep");
    s.event(Event::Held);
    assert_eq!(
        s.keeper_heard(),
        "has 1.1 for 10s as lost, killing; has not 1.1"
    );
    assert_eq!(s.engine.poll_timeout(), None, "however long that takes");
    s.event(gone(WaitStatus::Exited(0), 0));
    // Nor is the keeper told of an attempt that ends before it lasts.
    s.run(2, None);
    s.event(Event::Spawned(Ok(())));
    s.event(Event::FirstEnded);
    s.event(Event::Held);
    s.event(Event::Lasts);
    assert_eq!(s.keeper_heard(), "");
    // A cancel lets go of the output.
    assert_eq!(
        s.event(Event::Cancel {
            attempt: attempt(2),
            stop: Stop::NOW
        }),
        "sweep, discarding output"
    );
    assert_eq!(
        s.event(gone(WaitStatus::Exited(0), 0)),
        "finished 2.1 exited, code 0, killed 0, survivors 0"
    );
}
