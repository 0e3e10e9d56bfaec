//! Cancels, timeouts, the end of a lease, and the reports about processes that were killed.

use super::*;

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
    // The end of a cancelled attempt is reported: somebody waits for it.
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
