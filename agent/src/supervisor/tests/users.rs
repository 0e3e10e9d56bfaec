//! Several users on one host, whose engines are their own: which users are served, and which
//! engines nobody believes.

use super::*;

// Long: one host, from its first inventory until one user is gone.
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
    // The report names the slot, whichever user's engine was in it.
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
    // The engine may end its own attempt, in whatever way.
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
    // The coordinator knows of one of the two attempts that run, and not of the other.
    let known = ToAgent::Known {
        user: "sato".into(),
        attempts: vec![(of(2, 7), 1)],
    };
    insta::assert_snapshot!(s.event(Event::Coordinator(known)), @"
    served: okazaki; not sato: an engine of theirs runs a job that the coordinator does not know
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
    served: okazaki; not sato: an engine of theirs runs a job that this agent has not given it
    pull to 2, 2 idle
    ");
    insta::assert_snapshot!(s.place(&[of(1, 1), of(1, 2)]), @"
    0 < run 1.1 as engine 40 with context
    1 < run 2.1 as engine 41 with context
    pull to 2, 0 idle
    ");
    // The coordinator is asked, and may know of the attempt.
    insta::assert_snapshot!(s.pass(Duration::from_secs(1)), @"
    2 < lease until Some(1600s)
    3 < lease until Some(1600s)
    inventory of sato: queued [] running [9.1] unacknowledged []
    served: okazaki sato
    report #1 1.1 started on 0, #2 2.1 started on 1
    ");
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
    // Attempts of theirs that may be there are not said to be absent.
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
    // The successor of the keeper has nothing of the attempt.
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
    // A user who is new here.
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
