//! How long waiting and running attempts may go on without the coordinator, and under the next
//! agent.

use super::*;

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
fn nothing_starts_that_is_heard_of_after_the_lease() {
    let mut s = script();
    s.run(&[1, 2, 3]);
    // The agent was stopped, and hears the messages that have come meanwhile before its timer.
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
    // No job of the other batch waits. The coordinator says in each session what the jobs of a
    // batch have in common before it sends one.
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
