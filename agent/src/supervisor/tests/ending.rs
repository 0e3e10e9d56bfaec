//! Cancels, and agents that stop or leave.

use super::*;

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
