//! A host that lacks the resources to start anything.

use super::*;

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
    // This attempt meets the same shortage.
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
    // An attempt that lasts has started, too.
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
