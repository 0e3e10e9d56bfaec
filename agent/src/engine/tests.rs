//! Scripts of the engine: what it does, in which order, for every way in which an attempt can end.

use super::*;
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::{BatchId, BatchSerial, Epoch, JobKey, JobNumber};
use mezcal_common::model::job::Command;

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

    /// What the keeper has been told since the last look.
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
fn a_cancel_terminates_then_kills_when_the_grace_is_over() {
    let mut s = script();
    s.run(1, None);
    s.event(Event::Spawned(Ok(())));
    insta::assert_snapshot!(s.event(Event::Cancel { attempt: attempt(1), stop: Stop::after(2 * SECOND) }), @"terminate");
    assert_eq!(s.pass(SECOND), "");
    insta::assert_snapshot!(s.pass(SECOND), @"sweep, discarding output");
    insta::assert_snapshot!(s.event(gone(WaitStatus::Signaled(9), 1)), @"finished 1.1 cancelled, code -9, killed 1, survivors 0");
}

#[test]
fn grace_ends_as_soon_as_nothing_is_left() {
    let mut s = script();
    s.run(1, None);
    s.event(Event::Spawned(Ok(())));
    s.event(Event::Cancel {
        attempt: attempt(1),
        stop: Stop::after(2 * SECOND),
    });
    insta::assert_snapshot!(s.event(Event::FirstEnded), @"probe");
    assert_eq!(
        s.event(Event::Probed { others: true }),
        "",
        "a child in another session still has its grace"
    );
    insta::assert_snapshot!(s.event(Event::OtherChanged), @"probe");
    insta::assert_snapshot!(s.event(Event::Probed { others: false }), @"sweep, discarding output");
    insta::assert_snapshot!(s.event(gone(WaitStatus::Signaled(15), 0)), @"finished 1.1 cancelled, code -15, killed 0, survivors 0");
}

#[test]
fn a_second_cancel_without_grace_kills_at_once() {
    let mut s = script();
    s.run(1, None);
    s.event(Event::Spawned(Ok(())));
    s.event(Event::Cancel {
        attempt: attempt(1),
        stop: Stop::after(10 * SECOND),
    });
    assert_eq!(
        s.event(Event::Cancel {
            attempt: attempt(1),
            stop: Stop::NOW
        }),
        ""
    );
    insta::assert_snapshot!(s.pass(Duration::ZERO), @"sweep, discarding output");
}

#[test]
fn a_cancel_during_the_spawn_is_carried_out_when_there_is_something_to_kill() {
    let mut s = script();
    s.run(1, None);
    assert_eq!(
        s.event(Event::Cancel {
            attempt: attempt(1),
            stop: Stop::NOW
        }),
        "",
        "no proof of death while a spawn is in flight"
    );
    insta::assert_snapshot!(s.event(Event::Spawned(Ok(()))), @"sweep, discarding output");
    insta::assert_snapshot!(s.event(gone(WaitStatus::Signaled(9), 1)), @"finished 1.1 cancelled, code -9, killed 1, survivors 0");
    s.run(2, None);
    s.event(Event::Cancel {
        attempt: attempt(2),
        stop: Stop::NOW,
    });
    insta::assert_snapshot!(s.event(Event::Spawned(Err(NotStarted::Job("no such directory".into())))), @"finished 2.1 cancelled, code none, killed 0, survivors 0");
}

#[test]
fn a_cancel_of_another_attempt_touches_nothing() {
    let mut s = script();
    s.run(1, None);
    s.event(Event::Spawned(Ok(())));
    assert_eq!(
        s.event(Event::Cancel {
            attempt: attempt(9),
            stop: Stop::NOW
        }),
        ""
    );
}

#[test]
fn a_timeout_is_a_kill_with_its_own_name() {
    let mut s = script();
    s.run(1, Some(5));
    s.event(Event::Spawned(Ok(())));
    assert_eq!(s.pass(4 * SECOND), "");
    insta::assert_snapshot!(s.pass(SECOND), @"terminate");
    s.event(Event::FirstEnded);
    s.event(Event::Probed { others: false });
    insta::assert_snapshot!(s.event(gone(WaitStatus::Signaled(15), 0)), @"finished 1.1 timeout, code -15, killed 0, survivors 0");
}

#[test]
fn the_end_of_the_lease_kills_without_grace_and_outcomes_wait_for_a_link() {
    let mut s = script();
    s.run(1, None);
    s.event(Event::Spawned(Ok(())));
    s.event(Event::Lease {
        until: Some(s.now + 10 * SECOND),
    });
    assert_eq!(
        s.event(Event::Unlinked),
        "",
        "a lost agent alone kills nothing"
    );
    insta::assert_snapshot!(s.pass(10 * SECOND), @"sweep, discarding output");
    assert_eq!(s.event(gone(WaitStatus::Signaled(9), 1)), "");
    insta::assert_snapshot!(s.event(Event::Linked), @"finished 1.1 lost, code -9, killed 1, survivors 0; ready, running none");
    s.event(Event::Acknowledge {
        attempts: vec![attempt(1)],
    });
    assert_eq!(s.event(Event::Linked), "ready, running none");
}

#[test]
fn what_does_not_die_is_called_unkillable_and_holds_the_slot() {
    let mut s = script();
    s.run(1, None);
    s.event(Event::Spawned(Ok(())));
    s.event(Event::Cancel {
        attempt: attempt(1),
        stop: Stop::NOW,
    });
    s.event(still(1));
    insta::assert_snapshot!(s.pass(UNKILLABLE_AFTER), @"sweep, discarding output");
    insta::assert_snapshot!(s.event(still(1)), @"finished 1.1 unkillable, code none, killed 0, survivors 1");
    insta::assert_snapshot!(s.run(2, None), @"finished 2.1 start_failed, code none, killed 0, survivors 0");
    s.pass(SECOND);
    insta::assert_snapshot!(s.event(gone(WaitStatus::Signaled(9), 1)), @"ready, running none");
}

#[test]
fn without_its_keeper_it_kills_and_exits() {
    let mut s = script();
    s.run(1, None);
    s.event(Event::Spawned(Ok(())));
    insta::assert_snapshot!(s.event(Event::Quit), @"sweep, discarding output");
    insta::assert_snapshot!(s.event(gone(WaitStatus::Signaled(9), 1)), @"finished 1.1 lost, code -9, killed 1, survivors 0; exit");
}

#[test]
fn asked_to_end_it_gives_its_job_time_and_exits() {
    let mut s = script();
    s.run(1, None);
    s.event(Event::Spawned(Ok(())));
    insta::assert_snapshot!(s.event(Event::Stop), @"terminate");
    s.pass(SECOND);
    insta::assert_snapshot!(s.pass(SECOND), @"sweep, discarding output");
    insta::assert_snapshot!(s.run(2, None), @"finished 2.1 start_failed, code none, killed 0, survivors 0");
    // A report would bring the next job here.
    insta::assert_snapshot!(s.event(gone(WaitStatus::Signaled(9), 1)), @"exit");
    insta::assert_snapshot!(s.run(3, None), @"finished 3.1 lost, code none, killed 0, survivors 0; exit");
    let mut idle = script();
    insta::assert_snapshot!(idle.event(Event::Stop), @"exit");
    // Unless somebody waits for it.
    let mut cancelled = script();
    cancelled.run(1, None);
    cancelled.event(Event::Spawned(Ok(())));
    cancelled.event(Event::Stop);
    insta::assert_snapshot!(cancelled.event(Event::Cancel { attempt: attempt(1), stop: Stop::NOW }), @"");
    cancelled.pass(Duration::ZERO);
    insta::assert_snapshot!(cancelled.event(gone(WaitStatus::Signaled(9), 1)), @"finished 1.1 cancelled, code -9, killed 1, survivors 0; exit");
}

#[test]
fn the_keeper_hears_of_what_lasts_and_of_every_kill() {
    let mut s = script();
    s.run(1, None);
    s.event(Event::Spawned(Ok(())));
    s.event(Event::FirstEnded);
    s.event(gone(WaitStatus::Exited(0), 0));
    assert_eq!(s.keeper_heard(), "", "short jobs cost no message");
    s.run(2, Some(60));
    s.event(Event::Spawned(Ok(())));
    s.event(Event::Lasts);
    assert_eq!(s.keeper_heard(), "has 2.1 for 62s as timeout");
    s.event(Event::Cancel {
        attempt: attempt(2),
        stop: Stop::after(2 * SECOND),
    });
    assert_eq!(s.keeper_heard(), "has 2.1 for 2s as cancelled, killing");
    s.pass(2 * SECOND);
    assert_eq!(s.keeper_heard(), "has 2.1 for 10s as cancelled, killing");
    s.event(gone(WaitStatus::Signaled(9), 1));
    assert_eq!(s.keeper_heard(), "has not 2.1");
    s.event(Event::Cancel {
        attempt: attempt(2),
        stop: Stop::NOW,
    });
    assert_eq!(
        s.keeper_heard(),
        "has not 2.1",
        "a cancel that comes too late is answered"
    );
}

#[test]
fn a_spawn_that_hangs_is_left_to_the_keeper_when_its_time_is_over() {
    let mut s = script();
    s.run(1, Some(5));
    s.event(Event::Lasts);
    assert_eq!(s.keeper_heard(), "has 1.1 for 7s as timeout");
    assert_eq!(s.pass(5 * SECOND), "", "there is nothing to kill yet");
    assert_eq!(s.keeper_heard(), "has 1.1 for 2s as timeout, killing");
    s.event(Event::Cancel {
        attempt: attempt(1),
        stop: Stop::NOW,
    });
    assert_eq!(s.keeper_heard(), "has 1.1 for 0ns as timeout, killing");
    insta::assert_snapshot!(s.event(Event::Spawned(Err(NotStarted::Job("stale handle".into())))), @"finished 1.1 timeout, code none, killed 0, survivors 0");
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
fn what_is_killed_has_run_until_all_of_it_is_dead() {
    let span = |seconds| Span {
        started: WallTime(0),
        completed: WallTime(0),
        elapsed: seconds * SECOND,
    };
    let mut s = script();
    let mut end = |job: u32, leftover, kill: bool| {
        let spec = JobSpec {
            leftover: Some(leftover),
            ..JobSpec::new(Command::Shell("sleep 9 & echo".into()))
        };
        let context = Arc::new(BatchContext::new(BatchId(uuid_nil()), "/".into(), 0o22));
        s.event(Event::Run {
            attempt: attempt(job),
            spec: Ok(Box::new(spec)),
            context,
            engine: EngineId(0),
            slots: 1,
        });
        s.event(Event::Spawned(Ok(())));
        s.event(Event::FirstEnded);
        s.event(Event::Probed { others: kill });
        if kill {
            s.event(Event::Cancel {
                attempt: attempt(job),
                stop: Stop::after(2 * SECOND),
            });
            s.pass(2 * SECOND);
        }
        let exit = Some(Exit {
            status: WaitStatus::Exited(0),
            span: span(1),
        });
        s.engine.handle(
            Event::Swept(Swept {
                exit,
                whole: Some(span(3)),
                ..Swept::default()
            }),
            s.now,
        );
        let ended = std::iter::from_fn(|| s.engine.poll_effect()).find_map(|effect| match effect {
            Effect::Send(FromEngine::Finished { outcome, .. }) => outcome.span,
            _ => None,
        });
        ended.expect("it is over").elapsed
    };
    assert_eq!(end(1, Leftover::Wait, true), 3 * SECOND);
    assert_eq!(
        end(2, Leftover::Wait, false),
        SECOND,
        "by itself: with the last process that was waited for"
    );
    assert_eq!(
        end(3, Leftover::Kill, false),
        SECOND,
        "by itself: with its first process"
    );
}

fn short() -> Event {
    Event::Spawned(Err(NotStarted::Short("no processes".into())))
}

#[test]
fn a_spawn_that_the_host_is_too_short_of_something_for_is_tried_again() {
    let mut s = script();
    s.run(1, Some(2));
    assert_eq!(s.event(short()), "");
    assert_eq!(s.pass(SHORT_FIRST), "spawn 1.1 again");
    s.event(short());
    assert_eq!(s.pass(SHORT_FIRST), "", "twice as long");
    assert_eq!(s.pass(SHORT_FIRST), "spawn 1.1 again");
    s.pass(SECOND);
    s.event(Event::Spawned(Ok(())));
    assert_eq!(
        s.pass(SECOND - SHORT_FIRST),
        "",
        "the wait does not count for its timeout"
    );
    assert_eq!(s.pass(SHORT_FIRST), "terminate");
}

#[test]
fn a_shortage_that_does_not_pass_gives_the_attempt_back() {
    let mut s = script();
    s.run(1, Some(1));
    let mut tries = 0;
    let end = loop {
        let end = s.event(short());
        if !end.is_empty() {
            break end;
        }
        tries += 1;
        assert_eq!(s.pass(SHORT_MAX), "spawn 1.1 again");
    };
    assert_eq!(
        end,
        "finished 1.1 host_short, code none, killed 0, survivors 0"
    );
    assert_eq!(tries, 10);
    assert_eq!(s.run(2, None), "spawn 2.1");
    // Whoever comes to kill it meanwhile does not wait, whether or not a try is under way.
    s.event(short());
    let cancel = |job| Event::Cancel {
        attempt: attempt(job),
        stop: Stop::after(2 * SECOND),
    };
    assert_eq!(
        s.event(cancel(2)),
        "finished 2.1 cancelled, code none, killed 0, survivors 0"
    );
    assert_eq!(s.pass(SECOND), "");
    s.run(3, None);
    s.event(Event::Lasts);
    s.event(short());
    s.pass(SHORT_FIRST);
    assert_eq!(s.event(cancel(3)), "");
    assert_eq!(
        s.event(short()),
        "finished 3.1 cancelled, code none, killed 0, survivors 0"
    );
    s.run(4, None);
    s.event(short());
    assert_eq!(s.event(Event::Stop), "exit");
}

#[test]
fn the_first_signal_is_the_users_choice() {
    let mut s = script();
    s.run(1, None);
    s.event(Event::Spawned(Ok(())));
    let int = Stop {
        signal: 2,
        grace: 10 * SECOND,
    };
    assert_eq!(
        s.event(Event::Cancel {
            attempt: attempt(1),
            stop: int
        }),
        "terminate with signal 2"
    );
    assert_eq!(
        s.event(Event::Cancel {
            attempt: attempt(1),
            stop: int
        }),
        ""
    );
    assert_eq!(
        s.event(Event::Cancel {
            attempt: attempt(1),
            stop: Stop::after(SECOND)
        }),
        "terminate"
    );
    assert_eq!(s.pass(SECOND), "sweep, discarding output");
}

#[test]
fn an_out_of_memory_kill_has_its_name_only_when_the_kernel_says_so() {
    let mut s = script();
    let mut end = |out_of_memory, status| {
        s.run(1, None);
        s.event(Event::Spawned(Ok(())));
        s.event(Event::FirstEnded);
        s.event(Event::Swept(Swept {
            exit: exit(status),
            out_of_memory,
            ..Swept::default()
        }))
    };
    insta::assert_snapshot!(end(OutOfMemory::Killed, WaitStatus::Exited(137)), @"finished 1.1 oom, code 137, killed 0, survivors 0");
    insta::assert_snapshot!(end(OutOfMemory::Killed, WaitStatus::Exited(0)), @"finished 1.1 exited, code 0, killed 0, survivors 0");
    insta::assert_snapshot!(end(OutOfMemory::OnThisHost, WaitStatus::Signaled(9)), @"finished 1.1 signaled, code -9, killed 0, survivors 0");
}

#[test]
fn what_comes_after_the_lease_is_not_started() {
    let mut s = script();
    let until = s.now;
    s.event(Event::Lease { until: Some(until) });
    assert_eq!(
        s.run(1, None),
        "finished 1.1 lost, code none, killed 0, survivors 0"
    );
    // It may have been noticed before.
    s.engine.handle_timeout(s.now);
    assert_eq!(
        s.run(2, None),
        "finished 2.1 lost, code none, killed 0, survivors 0"
    );
    let until = s.now + Duration::from_secs(15);
    s.event(Event::Lease { until: Some(until) });
    assert_eq!(s.run(3, None), "spawn 3.1");
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
    // Nor is what ends before it lasts.
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
