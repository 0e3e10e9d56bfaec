//! Scripts of the supervisor.

mod programs;

use super::*;
use bytes::Bytes;
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::ids::{BatchId, Epoch, JobKey, JobNumber, StoreId};
use mezcal_common::model::job::BatchContext;
use mezcal_common::model::outcome::{Span, WaitStatus, Written};

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
                // The engines are told, too.
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

#[test]
fn the_inventory_waits_until_every_engine_has_been_heard() {
    let mut s = unheard();
    insta::assert_snapshot!(s.welcome(), @r"
    0 < lease until Some(1600s)
    1 < lease until Some(1600s)
    ");
    insta::assert_snapshot!(s.ready(0, Some(attempt(5))), @"0 < lease until Some(1600s)");
    insta::assert_snapshot!(s.ready(1, None), @r"
    1 < lease until Some(1600s)
    inventory: queued [] running [5.1] unacknowledged []
    pull to 1, 1 idle
    ");
}

#[test]
fn an_outcome_is_reported_until_it_is_acknowledged_and_only_then_forgotten() {
    let mut s = script();
    insta::assert_snapshot!(s.run(&[1, 2]), @r"
    0 < run 1.1 as engine 40 with context
    1 < run 2.1 as engine 41 with context
    pull to 2, 0 idle
    ");
    insta::assert_snapshot!(s.finished(0, 1, Duration::from_secs(1)), @r"
    report #1 1.1 exited
    pull to 3, 1 idle
    ");
    s.event(Event::Disconnected);
    assert_eq!(
        s.finished(0, 1, Duration::from_secs(1)),
        "",
        "an engine may repeat itself"
    );
    insta::assert_snapshot!(s.welcome(), @r"
    inventory: queued [] running [2.1] unacknowledged [1.1]
    report #1 1.1 exited
    pull to 1, 1 idle
    ");
    assert_eq!(
        s.event(Event::Coordinator(ToAgent::Acknowledge { through: 1 })),
        "",
        "there is no hurry"
    );
    insta::assert_snapshot!(s.run(&[3]), @r"
    0 < acknowledge 1.1
    0 < run 3.1 as engine 40 with context
    pull to 1, 0 idle
    ");
    s.finished(1, 2, Duration::from_secs(1));
    s.event(Event::Coordinator(ToAgent::Acknowledge { through: 2 }));
    insta::assert_snapshot!(s.pass(Duration::from_secs(1)), @r"
    heartbeat
    1 < acknowledge 2.1
    report #3 3.1 started on 0
    ");
}

#[test]
fn only_short_jobs_are_fetched_ahead_and_their_reports_share_a_message() {
    let mut s = script();
    s.run(&[1, 2]);
    insta::assert_snapshot!(s.finished(0, 1, Duration::from_millis(2)), @r"
    report #1 1.1 exited
    pull to 23, 1 idle
    ");
    s.event(Event::Coordinator(ToAgent::Acknowledge { through: 1 }));
    s.run(&(3..=23).collect::<Vec<_>>());
    insta::assert_snapshot!(s.finished(1, 2, Duration::from_millis(2)), @"1 < run 4.1 as engine 41");
    insta::assert_snapshot!(s.finished(0, 3, Duration::from_millis(2)), @"0 < run 5.1 as engine 40");
    insta::assert_snapshot!(s.pass(Duration::from_millis(50)), @r"
    report #2 2.1 exited, #3 3.1 exited
    pull to 25, 0 idle
    ");
}

#[test]
fn what_an_attempt_wrote_is_said_to_coordinators_that_know_it() {
    for (version, said) in [
        (COUNTS_OUTPUT - 1, "1.1 exited"),
        (COUNTS_OUTPUT, "1.1 exited, wrote Some(5000) None"),
    ] {
        let mut s = script();
        s.run(&[1]);
        s.event(Event::Disconnected);
        let (lease, hello_sent) = (Some(LEASE), s.now);
        s.event(Event::Welcomed {
            version,
            store: StoreId(1),
            lease,
            first_engine: EngineId(40),
            hello_sent,
        });
        let written = Written {
            out: Some(5000),
            err: None,
        };
        let outcome = Outcome {
            written,
            ..exited(Duration::from_secs(1))
        };
        let trace = s.event(Event::Engine(
            EngineIndex(0),
            FromEngine::Finished {
                attempt: attempt(1),
                outcome,
            },
        ));
        assert!(
            trace.starts_with(&format!("report #1 {said}\n")),
            "{version}: {trace}"
        );
    }
}

#[test]
fn reports_wait_for_a_coordinator_that_is_behind() {
    let mut s = script();
    s.run(&[1, 2]);
    insta::assert_snapshot!(s.finished(0, 1, Duration::from_secs(1)), @"
    report #1 1.1 exited
    pull to 3, 1 idle
    ");
    insta::assert_snapshot!(s.finished(1, 2, Duration::from_secs(1)), @"
    report #2 2.1 exited
    pull to 4, 2 idle
    ");
    s.run(&[3, 4]);
    assert_eq!(s.pass(Duration::from_millis(20)), "");
    assert_eq!(
        s.finished(0, 3, Duration::from_secs(1)),
        "",
        "the first is on its way for so long"
    );
    insta::assert_snapshot!(s.event(Event::Coordinator(ToAgent::Acknowledge { through: 2 })), @"
    report #3 3.1 exited
    pull to 5, 1 idle
    ");
    s.run(&[5]);
    assert_eq!(s.pass(Duration::from_millis(30)), "");
    assert_eq!(s.finished(1, 4, Duration::from_secs(1)), "");
    assert_eq!(s.pass(Duration::from_millis(169)), "");
    insta::assert_snapshot!(s.pass(Duration::from_millis(1)), @"
    report #4 4.1 exited, #5 5.1 started on 0
    pull to 6, 1 idle
    ");
}

#[test]
fn a_job_that_takes_longer_is_reported_as_started() {
    let mut s = script();
    s.run(&[1]);
    assert_eq!(s.pass(Duration::from_millis(190)), "");
    insta::assert_snapshot!(s.pass(Duration::from_millis(10)), @"report #1 1.1 started on 0");
}

#[test]
fn a_cancel_is_answered_for_every_attempt_in_it() {
    let mut s = script();
    s.run(&[1, 2, 3]);
    let cancel = ToAgent::Cancel {
        attempts: vec![attempt(2), attempt(3), attempt(9)],
        stop: Stop::after(Duration::from_secs(2)),
    };
    insta::assert_snapshot!(s.event(Event::Coordinator(cancel)), @r"
    keeper < 1 kills 2.1 within 2s
    1 < cancel 2.1, grace 2s
    absent 9.1
    report #1 3.1 cancelled
    ");
    assert_eq!(
        s.finished(0, 1, Duration::from_secs(1))
            .matches("run")
            .count(),
        0,
        "what was cancelled never starts"
    );
}

#[test]
fn without_heartbeats_nothing_that_waits_starts_after_the_lease() {
    let mut s = script();
    s.run(&[1, 2, 3]);
    s.event(Event::Disconnected);
    s.pass(LEASE);
    assert_eq!(
        s.finished(0, 1, Duration::from_secs(1)),
        "",
        "its slot stays empty: 3 is given up"
    );
    insta::assert_snapshot!(s.welcome(), @r"
    0 < lease until Some(2200s)
    1 < lease until Some(2200s)
    inventory: queued [] running [2.1] unacknowledged [3.1 1.1]
    report #1 3.1 lost, #2 1.1 exited
    pull to 1, 1 idle
    ");
}

#[test]
fn heartbeats_renew_the_lease_from_when_they_were_sent() {
    let mut s = script();
    insta::assert_snapshot!(s.pass(HEARTBEAT), @"heartbeat");
    let sent = s.now;
    s.pass(Duration::from_secs(3));
    let seen = Event::Coordinator(ToAgent::HeartbeatSeen {
        sent,
        clock: WallTime(0),
    });
    insta::assert_snapshot!(s.event(seen), @r"
    0 < lease until Some(1605s)
    1 < lease until Some(1605s)
    ");
}

#[test]
fn a_shorter_lease_counts_as_soon_as_it_is_heard_of() {
    let mut s = script();
    s.run(&[1]);
    s.event(Event::Disconnected);
    s.pass(Duration::from_secs(5));
    let lease = Some(Duration::from_secs(15));
    let welcomed = Event::Welcomed {
        version: SERVES_USERS,
        store: StoreId(1),
        lease,
        first_engine: EngineId(40),
        hello_sent: s.now,
    };
    insta::assert_snapshot!(s.event(welcomed), @"
    0 < lease until Some(1020s)
    1 < lease until Some(1020s)
    inventory: queued [] running [1.1] unacknowledged []
    pull to 1, 1 idle
    ");
    s.pass(HEARTBEAT);
    let seen = ToAgent::HeartbeatSeen {
        sent: s.now,
        clock: WallTime(0),
    };
    insta::assert_snapshot!(s.event(Event::Coordinator(seen)), @"
    0 < lease until Some(1025s)
    1 < lease until Some(1025s)
    ");
}

#[test]
fn a_dead_engine_loses_its_attempt_and_comes_back() {
    let mut s = script();
    s.run(&[1]);
    insta::assert_snapshot!(s.event(Event::EngineEnded { engine: EngineIndex(0), attempt: None, ended: Ended::Lost, killed: 2, survivors: 0 }), @"report #1 1.1 lost");
    insta::assert_snapshot!(s.ready(0, None), @r"
    0 < lease until Some(1600s)
    pull to 3, 2 idle
    ");
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

    /// It has died once more, and its keeper has said so and why.
    fn fails(&mut self, engine: u16) -> String {
        let (engine, attempt, ended) = (EngineIndex(engine), None, Ended::Lost);
        let words = self.event(Event::EngineFails {
            engine,
            why: "no room".to_owned(),
        });
        words
            + &self.event(Event::EngineEnded {
                engine,
                attempt,
                ended,
                killed: 0,
                survivors: 0,
            })
    }
}

#[test]
fn a_host_takes_work_on_the_engines_that_start_and_says_what_is_wrong_with_the_others() {
    let mut s = unheard();
    s.welcome_by(ENGINES_FAIL);
    assert_eq!(
        s.ready(0, None),
        "0 < lease until Some(1600s)",
        "what the other one has is not known"
    );
    // It is dead, and nothing waits for the next one, however often that dies.
    let known = "inventory: queued [] running [] unacknowledged []\npull to 1, 1 idle";
    assert_eq!(s.fails(1), known);
    s.pass(Duration::ZERO);
    assert_eq!(s.event(Event::LinkMade(EngineIndex(1))) + &s.fails(1), "");
    assert_eq!(
        s.run(&[1, 2]),
        "0 < run 1.1 as engine 40 with context\npull to 2, 0 idle"
    );
    s.pass(HEARD_WITHIN - Duration::from_secs(1));
    assert!(
        !s.pass(Duration::from_millis(999)).contains("engines"),
        "one that dies now and then is no news"
    );
    let told = s.pass(Duration::from_millis(1));
    assert_eq!(
        told,
        "UsableEngines { ready: 1, failing: Some(\"1 of 2 engines do not start: no room\") }"
    );
    assert_eq!(s.fails(1), "", "it is said once");
    // When it starts after all, it takes what waits.
    let back = s.ready(1, None);
    assert!(
        back.contains("UsableEngines { ready: 2, failing: None }") && back.contains("1 < run 2.1"),
        "{back}"
    );
}

#[test]
fn a_host_without_any_engine_says_so_and_what_it_does_not_have() {
    // Whoever does not understand that hears nothing, and does not take the host for ready.
    for (version, first, later) in [
        (ENGINES_FAIL - 1, "", false),
        (ENGINES_FAIL, "inventory", true),
    ] {
        let mut s = unheard();
        s.welcome_by(version);
        s.fails(0);
        let known = s.fails(1);
        assert!(
            known.starts_with(first) && known.is_empty() == first.is_empty(),
            "{known}"
        );
        let told = s.pass(HEARD_WITHIN);
        assert_eq!(
            told.contains("ready: 0, failing: Some(\"2 of 2 engines do not start: no room\")"),
            later,
            "{told}"
        );
    }
}

#[test]
fn an_engine_that_may_have_something_is_waited_for() {
    let mut s = unheard();
    s.welcome_by(ENGINES_FAIL);
    s.ready(0, None);
    // Something of it is still alive, and what it runs is in no inventory.
    let end = |survivors| Event::EngineEnded {
        engine: EngineIndex(1),
        attempt: None,
        ended: Ended::Lost,
        killed: 0,
        survivors,
    };
    s.event(end(0));
    s.event(Event::Disconnected);
    s.ready(1, Some(attempt(7)));
    s.event(Event::LinkLost(EngineIndex(1)));
    assert!(
        !s.welcome_by(ENGINES_FAIL).contains("inventory"),
        "its successor has been heard since, and may run that"
    );
    assert!(s.event(end(0)).contains("inventory"));
}

#[test]
fn a_stopping_agent_kills_reports_and_leaves() {
    let mut s = script();
    s.run(&[1, 2, 3]);
    insta::assert_snapshot!(s.event(Event::Stop), @r"
    pull to 3, 0 idle
    keeper < 0 kills 1.1 within 2s
    0 < cancel 1.1, grace 2s
    keeper < 1 kills 2.1 within 2s
    1 < cancel 2.1, grace 2s
    report #1 3.1 returned
    ");
    let killed = Outcome {
        ended: Ended::Cancelled,
        ..exited(Duration::from_secs(1))
    };
    for (engine, job) in [(0, 1), (1, 2)] {
        s.event(Event::Engine(
            EngineIndex(engine),
            FromEngine::Finished {
                attempt: attempt(job),
                outcome: killed.clone(),
            },
        ));
    }
    insta::assert_snapshot!(s.event(Event::Coordinator(ToAgent::Acknowledge { through: 3 })), @r"
    Goodbye
    exit
    ");
}

#[test]
fn another_coordinator_finds_nothing_of_the_old_one_but_what_runs() {
    let mut s = script();
    s.run(&[1, 2, 3]);
    s.event(Event::Disconnected);
    insta::assert_snapshot!(s.welcome_of(2), @"inventory: queued [] running [1.1 2.1] unacknowledged []");
    let cancel = ToAgent::Cancel {
        attempts: vec![attempt(1), attempt(2)],
        stop: Stop::NOW,
    };
    s.event(Event::Coordinator(cancel));
    s.finished(0, 1, Duration::from_secs(1));
    let run = s.run(&[1]);
    assert!(
        run.contains("0 < run 1.1 as engine 40 with context"),
        "the context of another coordinator's batch 1 is not this one's: {run}"
    );
}

#[test]
fn absence_is_claimed_only_when_every_engine_has_been_heard() {
    let mut s = unheard();
    s.welcome();
    s.ready(0, None);
    let cancel = || {
        Event::Coordinator(ToAgent::Cancel {
            attempts: vec![attempt(7)],
            stop: Stop::NOW,
        })
    };
    assert_eq!(s.event(cancel()), "");
    s.ready(1, None);
    insta::assert_snapshot!(s.event(cancel()), @"absent 7.1");
}

#[test]
fn a_wide_attempt_waits_for_all_its_slots_and_is_not_overtaken() {
    let mut s = script();
    let wide = |job, slots| Placement {
        attempt: attempt(job),
        spec: Bytes::new(),
        slots,
    };
    s.run(&[1]);
    insta::assert_snapshot!(s.event(Event::Coordinator(ToAgent::Run(vec![wide(2, 2), wide(3, 1)]))), @"pull to 4, 0 idle");
    insta::assert_snapshot!(s.finished(0, 1, Duration::from_secs(1)), @"0 < run 2.1 as engine 40");
    insta::assert_snapshot!(s.finished(0, 2, Duration::from_secs(1)), @"
    0 < run 3.1 as engine 40
    report #1 1.1 exited, #2 2.1 exited
    pull to 5, 1 idle
    ");
}

#[test]
fn a_wide_attempt_keeps_its_slots_when_the_agent_is_restarted() {
    let mut s = unheard();
    s.welcome();
    s.event(Event::Engine(
        EngineIndex(0),
        FromEngine::Ready {
            running: Some((attempt(1), 2)),
        },
    ));
    insta::assert_snapshot!(s.ready(1, None), @"
    1 < lease until Some(1600s)
    inventory: queued [] running [1.1] unacknowledged []
    ");
    insta::assert_snapshot!(s.run(&[2]), @"pull to 1, 0 idle");
}

#[test]
fn nothing_starts_that_is_heard_of_after_the_lease() {
    let mut s = script();
    s.run(&[1, 2, 3]);
    // It was stopped, and hears what had come meanwhile before its timer.
    s.now = s.now + LEASE;
    insta::assert_snapshot!(s.finished(0, 1, LEASE), @"
    report #1 3.1 lost, #2 1.1 exited
    pull to 4, 1 idle
    ");
    insta::assert_snapshot!(s.run(&[4]), @"
    report #3 4.1 returned
    pull to 5, 1 idle
    ");
    let seen = ToAgent::HeartbeatSeen {
        sent: s.now,
        clock: WallTime(0),
    };
    insta::assert_snapshot!(s.event(Event::Coordinator(seen)), @"
    0 < lease until Some(2200s)
    1 < lease until Some(2200s)
    ");
}

#[test]
fn users_share_the_slots_of_a_host_each_with_engines_of_their_own() {
    let users = Some(vec!["okazaki".to_owned(), "sato".to_owned()]);
    let mut s = Script {
        supervisor: Supervisor::new(2, users),
        now: BootInstant(Duration::from_secs(1000)),
    };
    s.welcome();
    for engine in 0..3 {
        s.ready(engine, None);
    }
    let heard = s.ready(3, None);
    assert!(
        heard.contains("pull to 2, 2 idle"),
        "four engines are two slots: {heard}"
    );
    s.pass(Duration::ZERO);
    let of = |batch: u32, job: u32| AttemptId {
        key: JobKey {
            batch: BatchSerial(batch),
            job: JobNumber(job),
        },
        ..attempt(1)
    };
    for (batch, user) in [(1, "okazaki"), (2, "sato"), (3, "stranger")] {
        let context = BatchContext::new(BatchId(uuid::Uuid::nil()), "/".into(), 0o22);
        s.event(Event::Coordinator(ToAgent::Context {
            batch: BatchSerial(batch),
            context,
            user: user.into(),
        }));
    }
    let run = [of(1, 1), of(2, 1), of(2, 2)].map(|attempt| Placement {
        attempt,
        spec: Bytes::new(),
        slots: 1,
    });
    insta::assert_snapshot!(s.event(Event::Coordinator(ToAgent::Run(run.to_vec()))), @"
    0 < run 1.1 as engine 40 with context
    3 < run 1.1 as engine 41 with context
    pull to 3, 0 idle
    ");
    // What is reported is the slot, whosever engine was in it.
    let done = Event::Engine(
        EngineIndex(3),
        FromEngine::Finished {
            attempt: of(2, 1),
            outcome: exited(Duration::from_secs(9)),
        },
    );
    insta::assert_snapshot!(s.event(done), @"
    3 < run 2.1 as engine 41
    report #1 1.1 exited
    ");
    assert_eq!(s.supervisor.busy(), 2);
    let engine = |attempt| s.supervisor.engine_of(attempt);
    assert_eq!(
        (engine(of(1, 1)), engine(of(2, 2))),
        (Some(EngineIndex(0)), Some(EngineIndex(3)))
    );
    let stray = Placement {
        attempt: of(3, 1),
        spec: Bytes::new(),
        slots: 1,
    };
    s.event(Event::Coordinator(ToAgent::Run(vec![stray])));
    let done = Event::Engine(
        EngineIndex(0),
        FromEngine::Finished {
            attempt: of(1, 1),
            outcome: exited(Duration::from_secs(9)),
        },
    );
    insta::assert_snapshot!(s.event(done), @"
    report #2 1.1 exited, #3 1.1 returned
    pull to 5, 1 idle
    ");
}

#[test]
fn a_broken_link_is_made_again_and_the_attempt_of_its_engine_has_an_end() {
    let mut s = script();
    s.run(&[1, 2]);
    s.pass(Duration::from_millis(200));
    s.event(Event::Coordinator(ToAgent::Acknowledge { through: 2 }));
    assert_eq!(
        s.event(Event::LinkLost(EngineIndex(0))),
        "",
        "its end may be on its way"
    );
    s.event(Event::LinkLost(EngineIndex(1)));
    insta::assert_snapshot!(s.pass(Duration::from_millis(250)), @"
    keeper of set 0 < link 0 again
    keeper of set 0 < link 1 again
    ");
    let cancel = ToAgent::Cancel {
        attempts: vec![attempt(1)],
        stop: Stop::after(Duration::from_secs(2)),
    };
    s.event(Event::Coordinator(cancel));
    insta::assert_snapshot!(s.ready(0, Some(attempt(1))), @"
    0 < lease until Some(1600s)
    keeper < 0 kills 1.1 within 2s
    0 < cancel 1.1, grace 2s
    ");
    insta::assert_snapshot!(s.ready(1, None), @"
    1 < lease until Some(1600s)
    report #3 2.1 lost
    pull to 3, 1 idle
    ");
}

#[test]
fn what_has_not_started_goes_on_waiting_under_the_next_agent_of_the_process() {
    let mut s = script();
    s.run(&[1, 2, 3, 4]);
    let cancel = ToAgent::Cancel {
        attempts: vec![attempt(4)],
        stop: Stop::NOW,
    };
    s.event(Event::Coordinator(cancel));
    let carried = s.supervisor.leave();
    let mut next = unheard();
    next.supervisor = next.supervisor.carrying(carried);
    next.welcome();
    next.ready(0, Some(attempt(1)));
    insta::assert_snapshot!(next.ready(1, Some(attempt(2))), @"
    1 < lease until Some(1600s)
    inventory: queued [3.1] running [1.1 2.1] unacknowledged [4.1]
    report #1 4.1 cancelled
    ");
    insta::assert_snapshot!(next.finished(0, 1, Duration::from_secs(1)), @"
    0 < run 3.1 as engine 40 with context
    report #2 1.1 exited
    ");
}

#[test]
fn what_goes_on_waiting_does_so_within_its_lease_and_for_the_same_coordinator() {
    for (store, late) in [(1, true), (2, false)] {
        let mut s = script();
        s.run(&[1, 2, 3]);
        let carried = s.supervisor.leave();
        let mut next = unheard();
        next.supervisor = next.supervisor.carrying(carried);
        if late {
            next.pass(LEASE);
        }
        next.welcome_of(store);
        next.ready(0, None);
        let said = next.ready(1, None);
        assert!(
            said.contains("queued []") && !said.contains("< run"),
            "{said}"
        );
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

/// A job of the first or the second of them.
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

#[test]
fn an_engine_is_believed_about_what_it_was_given_and_about_nothing_else() {
    let mut s = shared();
    s.welcome();
    (0..4).for_each(|engine| drop(s.ready(engine, None)));
    s.pass(Duration::ZERO);
    s.contexts();
    let run = s.place(&[of(1, 1), of(2, 1), of(1, 2)]);
    assert!(
        run.contains("0 < run 1.1") && run.contains("3 < run 1.1"),
        "{run}"
    );
    assert_eq!(s.says_over(3, of(1, 1)), "", "somebody else's, who has it");
    assert_eq!(
        s.says_over(2, of(1, 1)),
        "",
        "by an engine that has nothing"
    );
    assert_eq!(s.says_over(3, of(1, 2)), "", "one that waits");
    assert_eq!(
        s.says_over(2, of(2, 1)),
        "",
        "the same user's, on another engine"
    );
    assert_eq!(
        s.says_over(2, of(1, 77)),
        "",
        "one that nobody here knows of"
    );
    let output = FromEngine::Output {
        attempt: of(1, 1),
        stream: mezcal_common::message::agent::Stream::Out,
        data: "x".into(),
    };
    assert_eq!(
        s.event(Event::Engine(EngineIndex(3), output)),
        "3 < output taken 1",
        "nor does it speak for another"
    );
    let ended = |engine, attempt, survivors| Event::EngineEnded {
        engine: EngineIndex(engine),
        attempt,
        ended: Ended::Lost,
        killed: 0,
        survivors,
    };
    assert_eq!(
        s.event(ended(2, Some(of(1, 1)), 0)),
        "",
        "a keeper is believed no more than its engines"
    );
    assert_eq!(s.supervisor.engine_of(of(1, 1)), Some(EngineIndex(0)));
    // Its own it may end, in whatever way.
    let own = s.says_over(3, of(2, 1));
    assert!(own.contains("report #1 1.1 exited"), "{own}");
}

#[test]
fn what_engines_claim_to_an_agent_that_is_new_counts_for_their_own_user_only() {
    let mut s = shared();
    s.welcome();
    s.ready(0, None);
    s.ready(1, None);
    s.says_over(2, of(1, 5));
    s.event(Event::Engine(
        EngineIndex(2),
        FromEngine::Ready {
            running: Some((of(1, 6), u16::MAX)),
        },
    ));
    insta::assert_snapshot!(s.ready(3, Some(of(2, 7))), @"
    3 < lease until Some(1600s)
    2 < lease until Some(1600s)
    3 < lease until Some(1600s)
    inventory of okazaki: queued [] running [] unacknowledged []
    inventory of sato: queued [] running [6.1 7.1] unacknowledged [5.1]
    served: okazaki sato
    report of sato #1 5.1
    ");
    // Neither is the coordinator's word that these run here, and the other one is.
    let known = ToAgent::Known {
        user: "sato".into(),
        attempts: vec![(of(2, 7), 1)],
    };
    insta::assert_snapshot!(s.event(Event::Coordinator(known)), @"
    served: okazaki; not sato: an engine of theirs runs what the coordinator does not know
    pull to 1, 1 idle
    ");
    s.contexts();
    insta::assert_snapshot!(s.place(&[of(1, 1)]), @"
    0 < run 1.1 as engine 40 with context
    pull to 1, 0 idle
    ");
}

#[test]
fn what_an_engine_claims_after_its_users_inventory_takes_nobodys_slots() {
    let mut s = shared();
    s.welcome();
    (0..4).for_each(|engine| drop(s.ready(engine, None)));
    s.pass(Duration::ZERO);
    s.contexts();
    s.event(Event::LinkLost(EngineIndex(3)));
    let claim = FromEngine::Ready {
        running: Some((of(1, 9), u16::MAX)),
    };
    insta::assert_snapshot!(s.event(Event::Engine(EngineIndex(3), claim)), @"
    3 < lease until Some(1600s)
    served: okazaki; not sato: an engine of theirs runs what this agent has not given it
    pull to 2, 2 idle
    ");
    insta::assert_snapshot!(s.place(&[of(1, 1), of(1, 2)]), @"
    0 < run 1.1 as engine 40 with context
    1 < run 2.1 as engine 41 with context
    pull to 2, 0 idle
    ");
    // The coordinator is asked, and may know of it.
    insta::assert_snapshot!(s.pass(Duration::from_secs(1)), @"
    2 < lease until Some(1600s)
    3 < lease until Some(1600s)
    inventory of sato: queued [] running [9.1] unacknowledged []
    served: okazaki sato
    report #1 1.1 started on 0, #2 2.1 started on 1
    ");
}

#[test]
fn of_batches_of_an_earlier_session_there_is_what_waits_and_whose_they_are() {
    let mut s = shared();
    s.welcome();
    (0..4).for_each(|engine| drop(s.ready(engine, None)));
    s.pass(Duration::ZERO);
    s.contexts();
    s.place(&[of(1, 1), of(1, 2), of(2, 1)]);
    s.event(Event::Disconnected);
    s.welcome();
    let said = s.says_over(0, of(1, 1));
    assert!(
        said.contains("2 < run 1.1 as engine 40 with context"),
        "what waits can start: {said}"
    );
    // Nothing of the other batch waits. The coordinator says in each session what its jobs have in
    // common before it sends one.
    s.place(&[of(1, 3)]);
    let said = s.says_over(1, of(1, 2));
    assert!(said.contains("3.1 start_failed"), "{said}");
    assert_eq!(
        s.supervisor.owners_of(BatchSerial(1)),
        Some(vec!["okazaki".to_owned()])
    );
    s.contexts();
    let said = s.place(&[of(1, 4)]);
    assert!(
        said.contains("1 < run 4.1 as engine 41 with context"),
        "{said}"
    );
}

#[test]
fn a_user_whose_engines_are_silent_is_left_out_and_comes_back_when_they_are_heard() {
    let mut s = shared();
    s.welcome();
    s.ready(0, None);
    s.ready(1, None);
    s.ready(2, None);
    assert_eq!(s.pass(HEARD_WITHIN - Duration::from_millis(1)), "");
    insta::assert_snapshot!(s.pass(Duration::from_millis(1)), @"
    inventory of okazaki: queued [] running [] unacknowledged []
    served: okazaki; not sato: their engines have not answered within 3 s
    heartbeat
    pull to 2, 2 idle
    ");
    s.contexts();
    insta::assert_snapshot!(s.place(&[of(1, 1), of(2, 1)]), @"
    0 < run 1.1 as engine 40 with context
    report #1 1.1 returned
    pull to 3, 1 idle
    ");
    // What may be there of theirs is not said to be absent.
    let cancel = |attempt| {
        Event::Coordinator(ToAgent::Cancel {
            attempts: vec![attempt],
            stop: Stop::NOW,
        })
    };
    assert_eq!(s.event(cancel(of(2, 9))), "");
    assert_eq!(s.event(cancel(of(1, 9))), "absent 9.1");
    let seen = |sent| {
        Event::Coordinator(ToAgent::HeartbeatSeen {
            sent,
            clock: WallTime(0),
        })
    };
    s.pass(HEARTBEAT);
    insta::assert_snapshot!(s.event(seen(s.now)), @"
    0 < lease until Some(1608s)
    1 < lease until Some(1608s)
    ");
    insta::assert_snapshot!(s.ready(3, None), @"
    2 < lease until Some(1608s)
    3 < lease until Some(1608s)
    inventory of sato: queued [] running [] unacknowledged [1.1]
    served: okazaki sato
    ");
}

#[test]
fn a_keeper_that_goes_takes_its_own_user_with_it_and_nobody_else() {
    let mut s = shared();
    s.welcome();
    (0..4).for_each(|engine| drop(s.ready(engine, None)));
    s.pass(Duration::ZERO);
    s.contexts();
    s.place(&[of(1, 1), of(2, 1), of(2, 2)]);
    insta::assert_snapshot!(s.event(Event::KeeperGone { set: 1, why: "their keeper is gone".into() }), @"
    served: okazaki; not sato: their keeper is gone
    report #1 2.1 returned
    ");
    insta::assert_snapshot!(s.says_over(0, of(1, 1)), @"
    report #2 1.1 exited
    pull to 4, 1 idle
    ");
    // Its successor has nothing of it.
    s.event(Event::KeeperHere {
        user: "sato".into(),
    });
    s.ready(2, None);
    s.ready(3, None);
    insta::assert_snapshot!(s.pass(Duration::from_secs(1)), @"
    2 < lease until Some(1600s)
    3 < lease until Some(1600s)
    inventory of sato: queued [] running [] unacknowledged [2.1 1.1]
    served: okazaki sato
    ");
    // Somebody who is new here.
    s.event(Event::KeeperHere {
        user: "mori".into(),
    });
    s.ready(4, None);
    insta::assert_snapshot!(s.ready(5, None), @"
    5 < lease until Some(1600s)
    4 < lease until Some(1600s)
    5 < lease until Some(1600s)
    inventory of mori: queued [] running [] unacknowledged []
    served: okazaki sato mori
    ");
}

#[test]
fn an_agent_that_serves_users_gives_back_what_has_not_started_before_it_leaves() {
    let mut s = shared();
    s.welcome();
    (0..4).for_each(|engine| drop(s.ready(engine, None)));
    s.pass(Duration::ZERO);
    s.contexts();
    s.place(&[of(1, 1), of(2, 1), of(2, 2)]);
    insta::assert_snapshot!(s.event(Event::Leave), @"
    pull to 3, 0 idle
    report #1 2.1 returned
    ");
    insta::assert_snapshot!(s.event(Event::Coordinator(ToAgent::Acknowledge { through: 1 })), @"exit");
}

/// What it is given over the new link is read after it has said that it has nothing: that must not
/// end what it has been given since.
#[test]
fn an_engine_with_another_link_is_given_nothing_until_it_has_been_heard_over_that() {
    let mut s = script();
    assert_eq!(
        s.event(Event::LinkMade(EngineIndex(0))),
        "pull to 2, 1 idle"
    );
    let said = s.run(&[1, 2]);
    assert!(
        said.contains("1 < run 1.1") && !said.contains("0 < run"),
        "{said}"
    );
    let said = s.ready(0, None);
    assert!(
        said.contains("0 < run 2.1") && !said.contains("lost"),
        "{said}"
    );
    // An attempt that was given over the old one is still its own.
    s.event(Event::LinkMade(EngineIndex(0)));
    let said = s.ready(0, Some(attempt(2)));
    assert!(!said.contains("report") && !said.contains("run"), "{said}");
}

#[test]
fn an_agent_that_stops_waits_for_what_runs_behind_a_broken_link() {
    let mut s = script();
    s.run(&[1]);
    s.event(Event::LinkLost(EngineIndex(0)));
    let said = s.event(Event::Stop);
    assert!(
        said.contains("0 < cancel 1.1") && !said.contains("Goodbye"),
        "{said}"
    );
    let said = s.event(Event::EngineEnded {
        engine: EngineIndex(0),
        attempt: None,
        ended: Ended::Lost,
        killed: 1,
        survivors: 0,
    });
    assert!(said.contains("1.1 returned"), "{said}");
    insta::assert_snapshot!(s.event(Event::Coordinator(ToAgent::Acknowledge { through: 1 })), @"
    keeper < end of 1.1 seen
    Goodbye
    exit
    ");
}

fn short(s: &mut Script, engine: u16, job: u32) -> String {
    let outcome = Outcome::never_ran(Ended::HostShort, "no processes".to_owned());
    s.event(Event::Engine(
        EngineIndex(engine),
        FromEngine::Finished {
            attempt: attempt(job),
            outcome,
        },
    ))
}

#[test]
fn a_host_that_is_short_of_something_gets_one_attempt_at_a_time_until_one_has_started() {
    let mut s = script();
    s.run(&[1, 2, 3]);
    insta::assert_snapshot!(short(&mut s, 0, 1), @r"
    pull to 3, 0 idle
    report #1 3.1 returned, #2 1.1 host_short
    ");
    // This one tells of the same.
    insta::assert_snapshot!(short(&mut s, 1, 2), @"report #3 2.1 host_short");
    insta::assert_snapshot!(s.pass(Duration::from_secs(1)), @"pull to 5, 2 idle");
    insta::assert_snapshot!(s.run(&[4, 5]), @r"
    0 < run 4.1 as engine 40
    pull to 5, 0 idle
    ");
    insta::assert_snapshot!(short(&mut s, 0, 4), @"pull to 5, 0 idle");
    assert!(
        !s.pass(Duration::from_secs(1)).contains("pull"),
        "twice as long"
    );
    insta::assert_snapshot!(s.pass(Duration::from_secs(1)), @"pull to 7, 2 idle");
    s.run(&[6, 7]);
    insta::assert_snapshot!(s.finished(0, 6, Duration::from_secs(1)), @"0 < run 7.1 as engine 40");
    // One that lasts has started, too.
    short(&mut s, 0, 7);
    s.pass(Duration::from_secs(1));
    s.run(&[8, 9]);
    assert!(!s.pass(Duration::from_secs(6)).contains("run"));
    insta::assert_snapshot!(s.pass(Duration::from_secs(1)), @r"
    1 < run 9.1 as engine 41
    report #8 8.1 started on 0
    ");
}

#[test]
fn what_an_older_coordinator_does_not_know_of_shortages_it_need_not() {
    let mut s = script();
    s.run(&[1]);
    s.event(Event::Disconnected);
    let hello_sent = s.now;
    s.event(Event::Welcomed {
        version: 1,
        store: StoreId(1),
        lease: Some(LEASE),
        first_engine: EngineId(40),
        hello_sent,
    });
    insta::assert_snapshot!(short(&mut s, 0, 1), @r"
    pull to 0, 0 idle
    report #1 1.1 returned
    ");
}
