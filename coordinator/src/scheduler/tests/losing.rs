//! Hosts that are lost, come back, or are not the same as before.

use super::*;

#[test]
fn a_lost_host_gives_its_jobs_back_only_after_lease_and_margin() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.submit(1, &[(&[], 0, 0)]);
    s.agent(2, "b.x", 2);
    assert_eq!(
        s.event(Event::AgentGone(SessionId(1))),
        "fleet 1 agents, 2 engines"
    );
    insta::assert_snapshot!(s.pass(2), @"notice: lost the agent of a.x with 1 job; unless it comes back, they are given up there in 0:10:10");
    let beat = |s: &mut Script| {
        let message = ToCoordinator::Heartbeat {
            sent: s.now,
            load: Load::default(),
            clock_offset: None,
        };
        s.event(Event::Agent(SessionId(2), message))
    };
    s.pass(598);
    beat(&mut s);
    assert_eq!(s.pass(11), "");
    insta::assert_snapshot!(s.pass(1), @r"
    2 < context of batch 1
    2 < run 1/1.2
    ");
}

#[test]
fn a_host_that_comes_back_keeps_what_its_inventory_holds() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.submit(1, &[(&[], 0, 0), (&[], 0, 0)]);
    s.event(Event::AgentGone(SessionId(1)));
    s.hello(3, "a.x", 1);
    insta::assert_snapshot!(s.inventory(3, &[attempt(1, 1, 1)]), @"fleet 1 agents, 2 engines");
    insta::assert_snapshot!(s.pull(3, 1, 1), @r"
    3 < context of batch 1
    3 < run 1/2.2
    ");
    insta::assert_snapshot!(s.report(3, attempt(1, 1, 1), exited(0)), @r"
    result 1.1 exited on a.x
    3 < acknowledge 1
    ");
}

#[test]
fn another_boot_proves_that_everything_on_the_host_is_dead() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.submit(1, &[(&[], 0, 0)]);
    s.event(Event::AgentGone(SessionId(1)));
    s.hello(2, "a.x", 2);
    s.inventory(2, &[]);
    insta::assert_snapshot!(s.pull(2, 2, 2), @r"
    2 < context of batch 1
    2 < run 1/1.2
    ");
}

#[test]
fn a_copied_certificate_is_refused_and_a_restarted_agent_is_not() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    insta::assert_snapshot!(s.hello(2, "a.x", 9), @"close 2 (refused: false): another agent is connected with the certificate of a.x; if a.x was restarted, it is let in when its old connection has been silent for 20 s; else stop one");
    insta::assert_snapshot!(s.hello(3, "a.x", 1), @r"
    close 1 (refused: false): the agent of this host has connected again
    fleet 0 agents, 0 engines
    3 < welcome, engines from 0
    ");
}

#[test]
fn strangers_in_an_inventory_are_killed_and_their_reports_forgotten() {
    let mut s = script();
    s.hello(1, "a.x", 1);
    let old = AttemptId {
        epoch: Epoch(6),
        ..attempt(1, 1, 1)
    };
    insta::assert_snapshot!(s.inventory(1, &[old]), @r"
    1 < cancel 1.1 with grace 0ns
    fleet 1 agents, 2 engines
    ");
    insta::assert_snapshot!(s.report(1, old, exited(0)), @"1 < acknowledge 1");
}

#[test]
fn the_fourth_loss_of_a_job_is_its_last() {
    let mut s = script_with(None);
    let trace: Vec<String> = (1..=4)
        .map(|n| {
            s.agent(n, "a.x", 2);
            if n == 1 {
                s.submit(1, &[(&[], 0, 0)]);
            }
            s.event(Event::AgentGone(SessionId(n)))
        })
        .collect();
    insta::assert_snapshot!(trace[3], @"
    fleet 0 agents, 0 engines
    result 1.4 lost: attempt 1 on a.x: its agent is gone; attempt 2 on a.x: its agent is gone; attempt 3 on a.x: its agent is gone; attempt 4 on a.x: its agent is gone
    batch 1 done
    ");
}

#[test]
fn an_agent_that_leaves_and_comes_again_at_once_alarms_nobody() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 0)]);
    assert_eq!(
        s.event(Event::AgentGone(SessionId(1))),
        "fleet 0 agents, 0 engines"
    );
    s.pass(1);
    // A cancel meanwhile waits for the agent, too, and not for long.
    assert_eq!(s.event(cancel(Some(1), Duration::ZERO)), "");
    s.hello(2, "a.x", 1);
    insta::assert_snapshot!(s.inventory(2, &[attempt(1, 1, 1)]), @"
    2 < cancel 1.1 with grace 0ns
    fleet 1 agents, 2 engines
    ");
    assert_eq!(s.pass(60), "", "it was not lost");
    insta::assert_snapshot!(s.report(2, attempt(1, 1, 1), Outcome::never_ran(Ended::Cancelled, None)), @"
    result 1.1 cancelled on a.x
    request 1 done: 1 jobs, 0 killed, 0 alive, 0 out of reach for 0ns
    batch 1 done
    2 < acknowledge 1
    ");
}

#[test]
fn a_job_whose_lost_host_stays_away_ends_by_the_host_timeout() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&["a.x"], 0, 0)]);
    s.event(Event::AgentGone(SessionId(1)));
    insta::assert_snapshot!(s.pass(612), @"notice: 1 job waits for a host that is not connected: a.x; they end as errors after 0:01:00");
    insta::assert_snapshot!(s.pass(60), @r"
    result 1.1 no_host: none of its hosts was connected within the host timeout: a.x
    batch 1 done
    ");
}

#[test]
fn what_a_stopping_agent_gives_back_goes_elsewhere_and_is_no_loss() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.submit(1, &[(&[], 0, 0)]);
    s.pull(1, 1, 0);
    let returned = |s: &mut Script, session, n| {
        let report = NumberedReport {
            seq: 1,
            attempt: attempt(1, 1, n),
            report: Report::Returned,
        };
        s.event(Event::Agent(
            SessionId(session),
            ToCoordinator::Reports(vec![report]),
        ))
    };
    insta::assert_snapshot!(returned(&mut s, 1, 1), @"1 < acknowledge 1");
    for n in 2..9 {
        s.agent(u64::from(n), "b.x", 1);
        s.pull(u64::from(n), 1, 0);
        returned(&mut s, u64::from(n), n);
        s.event(Event::Agent(
            SessionId(u64::from(n)),
            ToCoordinator::Goodbye,
        ));
        s.event(Event::AgentGone(SessionId(u64::from(n))));
    }
    insta::assert_snapshot!(s.agent(20, "c.x", 1), @r"
    20 < context of batch 1
    20 < run 1/1.9
    ");
}

#[test]
fn what_was_sent_in_a_session_is_not_missed_in_an_inventory_of_the_same_one() {
    let mut s = script();
    s.host_of(1, "a.x", &["okazaki", "sato"]);
    s.submit(1, &[(NOWHERE, 0, 0)]);
    s.served(1, &["sato"], &["okazaki"]);
    // The attempt was on its way, and the agent has not seen it when it sends this.
    assert_eq!(s.has(1, "okazaki", &[], &[]), "1 < known of okazaki:");
    s.served(1, &["okazaki", "sato"], &[]);
    let result = s.report(1, attempt(1, 1, 1), exited(0));
    assert!(result.contains("result 1.1 exited"), "{result}");
}

// A single story, which is longer than a function should be.
#[test]
fn longer_leases_are_recorded_for_what_an_earlier_life_placed_before_an_agent_hears_of_them() {
    let mut s = script();
    s.scheduler = Scheduler::new(Epoch(8), StoreId(1), Some(2 * LEASE), WAIT).durable(2 * LEASE);
    s.scheduler.replay(
        Record::Engines {
            host: "a.x".into(),
            first: EngineId(0),
            slots: 2,
        },
        s.now,
    );
    s.replay(stored(terms(1), 0, vec![any_job(1)]));
    let placed = |lease| Record::Placed {
        host: "a.x".into(),
        lease: Some(lease),
        attempts: vec![attempt(1, 1, 1)],
    };
    s.scheduler.replay(placed(LEASE), s.now);
    s.scheduler.restored(s.now);
    let first = s.scheduler.poll_effect();
    assert_eq!(first, Some(Effect::Persist(placed(2 * LEASE))));
    let hello = Hello {
        versions: (1, 2),
        program: "test".into(),
        keeper: 1,
        boot_id: [1; 16],
        slots: 2,
        aliases: vec![],
        cpus: 2,
        memory: 0,
        users: None,
    };
    s.scheduler.handle(
        Event::AgentHello {
            session: SessionId(1),
            name: "a.x".into(),
            hello,
        },
        s.now,
    );
    let welcome =
        std::iter::from_fn(|| s.scheduler.poll_effect()).find(|e| matches!(e, Effect::Welcome(..)));
    assert!(
        !welcome.expect("a welcome").overtakes_the_store(),
        "it waits for the store"
    );
    // The next life has a shorter lease, and has to wait for the longest.
    let mut next = Scheduler::new(Epoch(9), StoreId(1), Some(LEASE / 2), WAIT).durable(LEASE);
    for record in stored(terms(1), 0, vec![any_job(1)]) {
        next.replay(record, s.now);
    }
    next.replay(placed(LEASE), s.now);
    next.replay(placed(2 * LEASE), s.now);
    next.restored(s.now);
    assert_eq!(next.lease, Some(2 * LEASE));
}
