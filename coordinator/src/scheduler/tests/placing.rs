//! Which job goes where: credit, priorities, required and preferred hosts, and what was handed out in advance.

use super::*;
use std::collections::HashMap;

#[test]
fn jobs_go_where_there_is_credit_in_order_of_priority() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    insta::assert_snapshot!(s.submit(1, &[(&[], 0, 0), (&[], 5, 0), (&[], 0, 0)]), @r"
    accepted 3
    1 < context of batch 1
    1 < run 1/2.1
    1 < run 1/1.1
    ");
    insta::assert_snapshot!(s.report(1, attempt(1, 2, 1), exited(0)), @r"
    result 2.1 exited on a.x
    1 < acknowledge 1
    ");
    insta::assert_snapshot!(s.pull(1, 3, 1), @"1 < run 1/3.1");
    s.report(1, attempt(1, 1, 1), exited(0));
    insta::assert_snapshot!(s.report(1, attempt(1, 3, 1), exited(9)), @r"
    result 3.1 exited on a.x
    batch 1 done
    1 < forget batch 1
    1 < acknowledge 3
    ");
}

#[test]
fn idle_slots_of_all_hosts_come_before_prefetch_of_one() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.pull(1, 6, 2);
    s.agent(2, "b.x", 2);
    insta::assert_snapshot!(s.submit(1, &[(NOWHERE, 0, 0); 5]), @r"
    accepted 5
    1 < context of batch 1
    1 < run 1/1.1
    2 < context of batch 1
    2 < run 1/2.1
    1 < run 1/3.1
    2 < run 1/4.1
    1 < run 1/5.1
    ");
}

#[test]
fn what_was_handed_out_in_advance_does_not_run() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.pull(1, 6, 2);
    s.submit(1, &[(NOWHERE, 0, 0); 3]);
    s.submit(2, &[(NOWHERE, 0, 0); 3]);
    assert_eq!(
        s.scheduler.left_of(batch(2)),
        Some((3, 0)),
        "all are on the host, which has two slots"
    );
    assert_eq!(
        s.scheduler.running_by_batch(),
        HashMap::from([(BatchSerial(1), 2)])
    );
    s.started(1, attempt(2, 3, 1), 1);
    assert_eq!(
        s.scheduler.running_by_batch(),
        HashMap::from([(BatchSerial(1), 1), (BatchSerial(2), 1)])
    );
}

#[test]
fn required_hosts_are_honoured_by_full_and_short_name() {
    let mut s = script();
    s.agent(1, "a.x", 9);
    insta::assert_snapshot!(s.submit(1, &[(&["b"], 0, 0), (&["c.x", "a.x"], 0, 0), (&["b.x"], 0, 0)]), @r"
    accepted 3
    notice: 1 job waits for a host that is not connected: b; they end as errors after 0:01:00
    notice: 1 job waits for a host that is not connected: b.x; they end as errors after 0:01:00
    1 < context of batch 1
    1 < run 1/2.1
    ");
    s.pass(59);
    insta::assert_snapshot!(s.agent(2, "b.x", 9), @r"
    2 < context of batch 1
    2 < run 1/1.1 1/3.1
    ");
    assert_eq!(s.pass(60), "", "the waits ended when the host came");
}

#[test]
fn jobs_of_a_host_that_never_comes_end_as_errors() {
    let mut s = script();
    insta::assert_snapshot!(s.submit(1, &[(&["h01", "h02"], 0, 3)]), @r"
    accepted 1
    notice: 1 job waits for a host that is not connected: h[01-02]; they end as errors after 0:01:00
    ");
    insta::assert_snapshot!(s.pass(60), @r"
    result 1.0 no_host: none of its hosts was connected within the host timeout: h[01-02]
    batch 1 done
    ");
}

#[test]
fn jobs_go_to_the_hosts_that_they_prefer_and_then_to_whoever_is_free() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.agent(2, "b.x", 2);
    // Job 4 prefers a host that is not connected: it does not wait for it.
    insta::assert_snapshot!(choosy(&mut s, &[&[], &["b.x"], &["b.x", "a.x"], &["z.x"]]), @r"
    accepted 4
    1 < context of batch 1
    1 < run 1/3.1
    2 < context of batch 1
    2 < run 1/2.1
    2 < run 1/1.1
    ");
    // Local jobs before free ones, and the better place before the worse.
    s.report(1, attempt(1, 3, 1), exited(0));
    insta::assert_snapshot!(s.pull(1, 2, 1), @"1 < run 1/4.1");
    let results = s.report(2, attempt(1, 2, 1), exited(0));
    assert!(
        results.starts_with("result 2.1 exited on b.x, local"),
        "{results}"
    );
}

#[test]
fn an_idle_slot_waits_for_its_own_so_long_and_no_longer() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.agent(2, "b.x", 2);
    // All of them prefer the same host, as in SPARK-18886.
    insta::assert_snapshot!(choosy(&mut s, &[&["a.x"], &["a.x"], &["a.x"], &["a.x"], &["a.x"]]), @r"
    accepted 5
    1 < context of batch 1
    1 < run 1/1.1
    ");
    assert_eq!(s.pass(2), "");
    // The other host is served meanwhile, which does not restart the wait.
    s.report(1, attempt(1, 1, 1), exited(0));
    insta::assert_snapshot!(s.pull(1, 2, 1), @"1 < run 1/2.1");
    insta::assert_snapshot!(s.pass(1), @r"
    2 < context of batch 1
    2 < run 1/3.1
    2 < run 1/4.1
    ");
    // The wait is counted for each slot: a slot that has just fallen idle waits.
    let results = s.report(2, attempt(1, 3, 1), exited(0));
    assert!(
        results.starts_with("result 3.1 exited on b.x, elsewhere"),
        "{results}"
    );
    assert_eq!(s.pull(2, 3, 1), "");
    insta::assert_snapshot!(s.pass(3), @"2 < run 1/5.1");
}

#[test]
fn a_preferred_host_that_is_lost_is_preferred_no_longer() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.agent(2, "b.x", 1);
    choosy(&mut s, &[&["a.x"], &["a.x"]]);
    insta::assert_snapshot!(s.event(Event::AgentGone(SessionId(1))), @"
    fleet 1 agents, 2 engines
    2 < context of batch 1
    2 < run 1/2.1
    ");
}

#[test]
fn what_waits_on_a_full_host_goes_to_an_idle_slot_elsewhere() {
    let mut s = script();
    // The jobs before were short: this agent, of two slots, has asked for three more in advance.
    s.agent(1, "a.x", 5);
    s.submit(1, &[(NOWHERE, 0, 0); 5]);
    s.agent(2, "b.x", 2);
    assert_eq!(s.pass(0), "");
    s.now = s.now + Duration::from_millis(50);
    s.scheduler.handle_timeout(s.now);
    insta::assert_snapshot!(s.trace(), @"1 < retract 5.1 4.1");
    let back = |n: u32, seq| NumberedReport {
        seq,
        attempt: attempt(1, n, 1),
        report: Report::Returned,
    };
    insta::assert_snapshot!(s.event(Event::Agent(SessionId(1), ToCoordinator::Reports(vec![back(4, 1), back(5, 2)]))), @"
    1 < acknowledge 2
    2 < context of batch 1
    2 < run 1/4.2
    2 < run 1/5.2
    ");
    assert_eq!(s.pass(10), "", "nobody is idle any more");
}

#[test]
fn what_waits_on_a_full_host_stays_there_if_no_idle_slot_may_have_it() {
    let taken_back = "1 < retract 5.1 4.1";
    for (job, users, silent, then) in [
        (
            Submission {
                hosts: Some(0),
                ..any_job(1)
            },
            None,
            10,
            "",
        ),
        (any_job(1), Some(vec!["sato".to_owned()]), 10, ""),
        // When the slot has been idle for the locality wait it gets the jobs.
        (
            Submission {
                prefer: Some(0),
                ..any_job(1)
            },
            None,
            WAIT.as_secs() - 1,
            taken_back,
        ),
        // No connected host would be better for these jobs.
        (
            Submission {
                prefer: Some(1),
                ..any_job(1)
            },
            None,
            0,
            taken_back,
        ),
    ] {
        let mut s = script();
        s.agent(1, "a.x", 5);
        s.open(1);
        let (host_sets, jobs) = (
            [["a"], ["z"]]
                .map(|set| set.map(str::to_owned).to_vec())
                .to_vec(),
            1..=5,
        );
        let jobs = jobs
            .map(|n| Submission {
                job: JobNumber(n),
                ..job.clone()
            })
            .collect();
        s.add(1, host_sets, jobs);
        s.hello_for(2, "b.x", 1, users);
        s.inventory(2, &[]);
        s.pull(2, 2, 2);
        assert_eq!(s.pass(silent), "", "{job:?}");
        assert_eq!(s.pass(1), then, "{job:?}");
    }
}

#[test]
fn what_waits_behind_long_jobs_on_a_host_that_comes_back_goes_to_idle_slots() {
    let mut s = script();
    s.agent(1, "a.x", 4);
    // Two jobs run and two wait there, which only the host knows.
    s.submit(1, &[(NOWHERE, 0, 0); 4]);
    s.agent(2, "b.x", 2);
    s.event(Event::AgentGone(SessionId(1)));
    s.hello(3, "a.x", 1);
    let all = [1, 2, 3, 4].map(|job| attempt(1, job, 1));
    // The newest ones run, as after a restart: none of the waiting ones is the last.
    let inventory = ToCoordinator::Inventory {
        queued: all[..2].to_vec(),
        running: all[2..].to_vec(),
        unacknowledged: vec![],
        containment: Containment::Subreaper,
        clock_offset: None,
    };
    s.event(Event::Agent(SessionId(3), inventory));
    // The host has nothing to ask for, and the other one has asked long ago.
    insta::assert_snapshot!(s.pass(1), @"3 < retract 2.1 1.1");
}
