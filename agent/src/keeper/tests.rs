//! Scripts of the keeper: which engines it trusts until when, and what it does about engines that
//! fail.

use super::slot::RESTART_MAX;
use super::sweeping::SWEEP_MAX;
use super::*;
use mezcal_common::message::engine::EngineToKeeper;
use mezcal_common::model::ids::{AttemptId, BatchSerial, Epoch, JobKey, JobNumber};

const SECOND: Duration = Duration::from_secs(1);

struct Script {
    keeper: Keeper,
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

/// A keeper with two engines and an agent.
fn script() -> Script {
    let now = BootInstant(Duration::from_secs(100));
    let mut s = Script {
        keeper: Keeper::new(now),
        now,
    };
    assert_eq!(
        s.event(Event::Agent(ToKeeper::Engines {
            count: 2,
            host: "h".into()
        })),
        "start 0; start 1; link 0; link 1"
    );
    s
}

impl Script {
    fn event(&mut self, event: Event) -> String {
        self.keeper.handle(event, self.now);
        self.trace()
    }

    fn watch(
        &mut self,
        engine: u16,
        job: u32,
        seconds: Option<u32>,
        ended: Ended,
        killing: bool,
    ) -> String {
        let until = seconds.map(|s| self.now + s * SECOND);
        self.event(Event::Engine(
            EngineIndex(engine),
            EngineToKeeper::Watch {
                attempt: attempt(job),
                until,
                ended,
                killing,
            },
        ))
    }

    fn over(&mut self, engine: u16, job: u32) -> String {
        self.event(Event::Engine(
            EngineIndex(engine),
            EngineToKeeper::Over {
                attempt: attempt(job),
            },
        ))
    }

    fn cancelled(&mut self, engine: u16, job: u32, grace: u32) -> String {
        let by = self.now + grace * SECOND;
        self.event(Event::Agent(ToKeeper::Cancelled {
            engine: EngineIndex(engine),
            attempt: attempt(job),
            by,
        }))
    }

    fn died(&mut self, engine: u16) -> String {
        self.event(Event::EngineDied(EngineIndex(engine)))
    }

    fn pass(&mut self, time: Duration) -> String {
        self.now = self.now + time;
        if self.keeper.poll_timeout().is_some_and(|at| at <= self.now) {
            self.keeper.handle_timeout(self.now);
            assert!(
                self.keeper.poll_timeout().is_none_or(|at| at > self.now),
                "a deadline that stays in the past spins"
            );
        }
        self.trace()
    }

    fn trace(&mut self) -> String {
        let mut lines = Vec::new();
        while let Some(effect) = self.keeper.poll_effect() {
            lines.push(match effect {
                Effect::Start(engine) => format!("start {engine}"),
                Effect::Link(engine) => format!("link {engine}"),
                Effect::Kill(engine) => format!("kill {engine}"),
                Effect::Continue(engine) => format!("continue {engine}"),
                Effect::Sweep { engines } => {
                    format!("sweep after {}", engines.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
                }
                Effect::Tell(FromKeeper::EngineEnded { engine, attempt, ended, killed, survivors }) => {
                    let attempt = attempt.map_or("nothing known".into(), |a| a.to_string());
                    format!("engine {engine} ended with {attempt}: {}, {killed} killed, {survivors} alive", ended.as_str())
                }
                Effect::Tell(other) => panic!("the core does not say {other:?}"),
                Effect::Exit => "exit".into(),
            });
        }
        lines.join("; ")
    }
}

#[test]
fn a_dead_engine_is_replaced_when_nothing_of_it_is_left() {
    let mut s = script();
    s.watch(0, 1, None, Ended::Lost, false);
    assert_eq!(s.died(0), "sweep after 0");
    assert_eq!(
        s.event(Event::Swept {
            killed: 2,
            alive: 1
        }),
        ""
    );
    assert_eq!(s.pass(SWEEP_MAX), "sweep after 0");
    assert_eq!(
        s.event(Event::Swept {
            killed: 1,
            alive: 0
        }),
        "engine 0 ended with 1.1: lost, 3 killed, 0 alive; start 0; link 0",
        "the end is told before the link to the new one"
    );
    assert_eq!(s.pass(100 * SECOND), "");
}

#[test]
fn a_stopped_engine_is_continued() {
    let mut s = script();
    assert_eq!(s.event(Event::EngineStopped(EngineIndex(1))), "continue 1");
}

#[test]
fn an_engine_that_does_not_answer_a_cancel_is_killed_a_second_late() {
    let mut s = script();
    s.watch(0, 1, None, Ended::Lost, false);
    s.cancelled(0, 1, 2);
    // The engine's word about a job that merely runs may be older than the cancel.
    s.watch(0, 1, None, Ended::Lost, false);
    assert_eq!(s.pass(2 * SECOND), "");
    assert_eq!(s.pass(LATE), "kill 0");
    assert_eq!(s.died(0), "sweep after 0");
    assert_eq!(
        s.event(Event::Swept {
            killed: 1,
            alive: 0
        }),
        "engine 0 ended with 1.1: cancelled, 1 killed, 0 alive; start 0; link 0"
    );
}

#[test]
fn an_engine_that_kills_in_time_is_left_alone() {
    let mut s = script();
    s.watch(0, 1, None, Ended::Lost, false);
    s.cancelled(0, 1, 2);
    s.watch(0, 1, Some(2), Ended::Cancelled, true);
    s.pass(2 * SECOND);
    s.watch(0, 1, Some(10), Ended::Cancelled, true);
    assert_eq!(s.pass(5 * SECOND), "");
    s.over(0, 1);
    // Nor is an engine killed that did not have the attempt any more.
    s.cancelled(0, 1, 0);
    s.over(0, 1);
    assert_eq!(s.pass(100 * SECOND), "");
}

#[test]
fn a_timeout_that_an_engine_does_not_enforce_is_enforced() {
    let mut s = script();
    s.watch(1, 7, Some(30), Ended::Timeout, false);
    assert_eq!(s.pass(30 * SECOND), "");
    assert_eq!(s.pass(LATE), "kill 1");
    s.died(1);
    assert_eq!(
        s.event(Event::Swept {
            killed: 1,
            alive: 0
        }),
        "engine 1 ended with 7.1: timeout, 1 killed, 0 alive; start 1; link 1"
    );
}

#[test]
fn the_lease_ends_what_runs_with_and_without_an_agent() {
    let mut s = script();
    s.watch(0, 1, None, Ended::Lost, false);
    let until = Some(s.now + 15 * SECOND);
    s.event(Event::Agent(ToKeeper::Lease { until }));
    s.event(Event::AgentGone);
    assert_eq!(s.pass(15 * SECOND), "");
    assert_eq!(s.pass(LATE), "kill 0", "the other one runs nothing");
    s.died(0);
    assert_eq!(
        s.event(Event::Swept {
            killed: 1,
            alive: 0
        }),
        "engine 0 ended with 1.1: lost, 1 killed, 0 alive; start 0; link 0"
    );
}

#[test]
fn ends_are_told_to_each_agent_until_they_are_acknowledged() {
    let mut s = script();
    s.watch(0, 1, None, Ended::Lost, false);
    s.event(Event::AgentGone);
    s.died(0);
    s.event(Event::Swept {
        killed: 1,
        alive: 0,
    });
    let again = "engine 0 ended with 1.1: lost, 1 killed, 0 alive; link 0; link 1";
    assert_eq!(
        s.event(Event::Agent(ToKeeper::Engines {
            count: 2,
            host: "h".into()
        })),
        again
    );
    assert_eq!(
        s.event(Event::Agent(ToKeeper::Engines {
            count: 2,
            host: "h".into()
        })),
        again
    );
    s.event(Event::Agent(ToKeeper::EndSeen {
        attempt: attempt(1),
    }));
    assert_eq!(
        s.event(Event::Agent(ToKeeper::Engines {
            count: 2,
            host: "h".into()
        })),
        "link 0; link 1"
    );
}

#[test]
fn what_does_not_die_is_told_and_its_slot_is_held() {
    let mut s = script();
    s.watch(0, 1, None, Ended::Lost, false);
    s.died(0);
    s.event(Event::Swept {
        killed: 0,
        alive: 1,
    });
    s.pass(crate::engine::UNKILLABLE_AFTER);
    assert_eq!(
        s.event(Event::Swept {
            killed: 0,
            alive: 1
        }),
        "engine 0 ended with 1.1: lost, 0 killed, 1 alive"
    );
    assert_eq!(
        s.event(Event::Agent(ToKeeper::Engines {
            count: 2,
            host: "h".into()
        })),
        "engine 0 ended with 1.1: lost, 0 killed, 1 alive; link 1"
    );
    s.event(Event::Agent(ToKeeper::EndSeen {
        attempt: attempt(1),
    }));
    assert_eq!(
        s.event(Event::Agent(ToKeeper::Engines {
            count: 2,
            host: "h".into()
        })),
        "engine 0 ended with nothing known: lost, 0 killed, 1 alive; link 1",
        "acknowledged, but another agent must not wait for that slot"
    );
    assert_eq!(
        s.event(Event::Swept {
            killed: 1,
            alive: 0
        }),
        "start 0; link 0"
    );
    // The engine itself is beyond reach: nothing can be said of the processes that it ran.
    s.cancelled(1, 2, 0);
    assert_eq!(s.pass(LATE), "kill 1");
    assert_eq!(
        s.pass(crate::engine::UNKILLABLE_AFTER),
        "engine 1 ended with 2.1: cancelled, 0 killed, 1 alive"
    );
    s.died(1);
    assert_eq!(
        s.event(Event::Swept {
            killed: 0,
            alive: 0
        }),
        "start 1; link 1"
    );
}

#[test]
fn a_keeper_without_an_agent_ends_but_not_before_the_lease() {
    let mut s = script();
    let until = Some(s.now + 3600 * SECOND);
    s.event(Event::Agent(ToKeeper::Lease { until }));
    s.event(Event::AgentGone);
    assert_eq!(s.pass(PATIENCE), "");
    s.now = s.now + 3600 * SECOND + AFTER_LEASE;
    s.keeper.handle_timeout(s.now);
    assert_eq!(s.trace(), "exit");
}

#[test]
fn a_cancel_of_what_is_over_kills_nobody() {
    let mut s = script();
    // The engine's answer is read before the agent's word.
    s.over(0, 1);
    s.cancelled(0, 1, 0);
    assert_eq!(s.pass(100 * SECOND), "");
    // The engine has died meanwhile, and another one has its slot.
    s.watch(0, 2, None, Ended::Lost, false);
    s.died(0);
    s.event(Event::Swept {
        killed: 0,
        alive: 0,
    });
    s.cancelled(0, 2, 0);
    assert_eq!(s.pass(100 * SECOND), "");
    // Nothing was known of this attempt: the engine runs another one now.
    s.cancelled(1, 3, 5);
    s.watch(1, 4, None, Ended::Lost, false);
    assert_eq!(s.pass(100 * SECOND), "");
}

#[test]
fn an_agent_with_fewer_slots_is_linked_when_the_others_are_dead() {
    let mut s = script();
    s.watch(1, 1, None, Ended::Lost, false);
    s.event(Event::AgentGone);
    assert_eq!(
        s.event(Event::Agent(ToKeeper::Engines {
            count: 1,
            host: "h".into()
        })),
        "kill 1",
        "its inventory would not be complete"
    );
    s.died(1);
    s.event(Event::Swept {
        killed: 0,
        alive: 1,
    });
    assert_eq!(
        s.event(Event::Swept {
            killed: 1,
            alive: 0
        }),
        "engine 1 ended with 1.1: lost, 1 killed, 0 alive; link 0"
    );
    s.event(Event::Agent(ToKeeper::EndSeen {
        attempt: attempt(1),
    }));
    assert_eq!(
        s.event(Event::Agent(ToKeeper::Engines {
            count: 2,
            host: "h".into()
        })),
        "start 1; link 0; link 1"
    );
}

#[test]
fn an_engine_that_cannot_be_started_is_tried_again() {
    let mut s = script();
    s.died(0);
    let started = "engine 0 ended with nothing known: lost, 0 killed, 0 alive; start 0; link 0";
    assert_eq!(
        s.event(Event::Swept {
            killed: 0,
            alive: 0
        }),
        started
    );
    let nothing = "engine 0 ended with nothing known: lost, 0 killed, 0 alive";
    assert_eq!(
        s.event(Event::NotStarted(EngineIndex(0))),
        nothing,
        "nobody waits for it"
    );
    assert_eq!(s.pass(RESTART_FIRST), "start 0; link 0");
    s.event(Event::NotStarted(EngineIndex(0)));
    assert_eq!(s.pass(RESTART_FIRST), "", "twice as long");
    let another_agent = s.event(Event::Agent(ToKeeper::Engines {
        count: 2,
        host: "h".into(),
    }));
    assert_eq!(
        another_agent,
        format!("{nothing}; link 1"),
        "it does not wait for one either of which nothing is there"
    );
    assert_eq!(s.pass(RESTART_FIRST), "start 0; link 0");
    s.event(Event::NotStarted(EngineIndex(0)));
    let one = |count| {
        Event::Agent(ToKeeper::Engines {
            count,
            host: "h".into(),
        })
    };
    assert_eq!(s.event(one(0)), "kill 1");
    assert_eq!(s.pass(RESTART_MAX), "", "it is not wanted any more");
}

#[test]
fn engines_that_die_at_once_are_started_with_pauses() {
    let mut s = script();
    let dies = |s: &mut Script| {
        s.died(1);
        s.event(Event::Swept {
            killed: 0,
            alive: 0,
        })
    };
    let said = "engine 1 ended with nothing known: lost, 0 killed, 0 alive";
    assert_eq!(
        dies(&mut s),
        format!("{said}; start 1; link 1"),
        "once may be chance"
    );
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert_eq!(dies(&mut s), said);
        let begin = s.now;
        let due = s.keeper.poll_timeout().expect("another start");
        assert_eq!(s.pass(due.since(begin)), "start 1; link 1");
        pauses.push(due.since(begin).as_millis());
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    assert_eq!(s.pass(LIVED), "");
    assert_eq!(
        dies(&mut s),
        format!("{said}; start 1; link 1"),
        "it has lived"
    );
}

#[test]
fn an_engine_is_linked_again_when_its_link_has_ended_and_killed_when_that_does_not_last() {
    let mut s = script();
    let relink = |engine| {
        Event::Agent(ToKeeper::Relink {
            engine: EngineIndex(engine),
        })
    };
    assert_eq!(s.event(relink(1)), "link 1");
    s.pass(11 * SECOND);
    assert_eq!(s.event(relink(1)), "link 1");
    assert_eq!(s.event(relink(0)), "link 0", "each for itself");
    assert_eq!(s.event(relink(1)), "kill 1");
    assert_eq!(s.event(relink(1)), "", "it is being replaced");
    assert_eq!(s.event(relink(7)), "", "there is none");
}
