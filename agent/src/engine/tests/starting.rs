//! Spawns that hang, fail, or are never made.

use super::*;
use crate::engine::starting::{SHORT_FIRST, SHORT_MAX};

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
    // A kill that comes meanwhile does not wait, whether or not a try is under way.
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
fn what_comes_after_the_lease_is_not_started() {
    let mut s = script();
    let until = s.now;
    s.event(Event::Lease { until: Some(until) });
    assert_eq!(
        s.run(1, None),
        "finished 1.1 lost, code none, killed 0, survivors 0"
    );
    // The end may have been noticed before.
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
