//! Outcomes until they are acknowledged, and the inventory before them.

use super::*;

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
