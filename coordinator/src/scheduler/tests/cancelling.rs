//! Cancels of batches and of jobs, and when they are done.

use super::*;

#[test]
fn a_cancel_drops_what_waits_and_kills_what_runs() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 9), (&[], 0, 0), (&["z"], 0, 0)]);
    insta::assert_snapshot!(s.event(cancel(None, Duration::from_secs(2))), @r"
    1 < cancel 1.1 with grace 2s
    result 2.0 cancelled
    result 3.0 cancelled
    ");
    let killed = Outcome {
        ended: Ended::Cancelled,
        status: Some(WaitStatus::Signaled(15)),
        ..exited(0)
    };
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 1), killed), @r"
    result 1.1 cancelled on a.x
    batch 1 done
    1 < forget batch 1
    1 < acknowledge 1
    ");
}

#[test]
fn a_cancel_that_cannot_reach_a_host_says_so() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 0)]);
    s.event(Event::AgentGone(SessionId(1)));
    s.pass(2);
    insta::assert_snapshot!(s.event(cancel(None, Duration::ZERO)), @r"
    result 1.1 lost: cancelled while a.x was out of reach: it may go on there until its lease ends, within 610 s
    batch 1 done
    ");
}

#[test]
fn a_cancel_does_not_wait_for_long_for_an_agent_that_may_come_again() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 0)]);
    s.event(Event::AgentGone(SessionId(1)));
    assert_eq!(s.event(cancel(Some(1), Duration::ZERO)), "");
    // An agent that comes and goes again is lost when it stays away.
    s.pass(1);
    s.hello(2, "a.x", 1);
    s.event(Event::AgentGone(SessionId(2)));
    assert_eq!(s.pass(1), "");
    insta::assert_snapshot!(s.pass(1), @"
    notice: lost the agent of a.x with 1 job; unless it comes back, they are given up there in 0:10:10
    result 1.1 lost: cancelled while a.x was out of reach: it may go on there until its lease ends, within 610 s
    request 1 done: 1 jobs, 0 killed, 0 alive, 1 out of reach for 610s
    batch 1 done
    ");
}

#[test]
fn a_cancel_that_was_sent_into_the_void_is_sent_again_after_the_inventory() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 0)]);
    s.hello(2, "a.x", 1);
    s.event(cancel(None, Duration::from_secs(2)));
    insta::assert_snapshot!(s.inventory(2, &[attempt(1, 1, 1)]), @r"
    2 < cancel 1.1 with grace 2s
    fleet 1 agents, 2 engines
    ");
}

#[test]
fn a_cancel_of_jobs_is_answered_when_the_last_of_them_is_over() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.agent(2, "b.x", 1);
    s.submit(1, &[(&[], 0, 9), (&[], 0, 9), (&[], 0, 0), (&[], 0, 0)]);
    insta::assert_snapshot!(s.event(cancel_jobs(Some(8), Duration::from_secs(2), &["1", "2", "4", "4"])), @r"
    result 4.0 cancelled
    1 < cancel 1.1 with grace 2s
    2 < cancel 2.1 with grace 2s
    ");
    // A second cancel of the same job shortens the grace, and both are answered.
    insta::assert_snapshot!(s.event(cancel_jobs(Some(9), Duration::ZERO, &["1"])), @"1 < cancel 1.1 with grace 0ns");
    let killed = |killed| Outcome {
        killed,
        ..Outcome::never_ran(Ended::Cancelled, None)
    };
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 1), killed(3)), @r"
    result 1.1 cancelled on a.x
    request 9 done: 1 jobs, 3 killed, 0 alive, 0 out of reach for 0ns
    1 < acknowledge 1
    ");
    // Job 2 failed by itself before the cancel arrived: it is not retried.
    insta::assert_snapshot!(s.report(2, attempt(1, 2, 1), exited(1)), @r"
    result 2.1 exited on b.x
    request 8 done: 2 jobs, 3 killed, 0 alive, 0 out of reach for 0ns
    2 < acknowledge 2
    ");
    insta::assert_snapshot!(s.event(cancel_jobs(Some(10), Duration::ZERO, &["1"])), @"request 10 done: 0 jobs, 0 killed, 0 alive, 0 out of reach for 0ns");
    insta::assert_snapshot!(s.event(cancel_jobs(Some(11), Duration::ZERO, &["3", "x"])), @r#"request 11 refused: batch 00000000-0000-0000-0000-000000000001 has no job "x": it has 4 jobs, named by their `id` or their number"#);
}

#[test]
fn a_number_is_a_number_whatever_ids_look_like() {
    let mut s = script();
    s.open(1);
    let job = |n: u32| Submission {
        label: Some((n - 1).to_string()),
        ..any_job(n)
    };
    s.add(1, vec![], vec![job(1), job(2), job(3)]);
    let mut cancelled = |job| {
        let what = vec![Wanted {
            batch: batch(1),
            job: Some(job),
        }];
        s.event(Event::Cancel {
            request: None,
            what,
            stop: Stop::NOW,
            why: None,
        })
    };
    assert!(cancelled(WantedJob::Number(JobNumber(2))).starts_with("result 2.0 cancelled"));
    assert!(
        cancelled(WantedJob::Named("2".into())).starts_with("result 3.0 cancelled"),
        "it has that id"
    );
}

#[test]
fn a_cancel_of_what_cannot_be_reached_says_for_how_long() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 0)]);
    s.event(cancel(Some(1), Duration::from_secs(2)));
    s.pass(12);
    // The connection is lost before the proof has arrived.
    assert_eq!(
        s.event(Event::AgentGone(SessionId(1))),
        "fleet 0 agents, 0 engines"
    );
    insta::assert_snapshot!(s.pass(2), @"
    notice: lost the agent of a.x with 1 job; unless it comes back, they are given up there in 0:09:58
    result 1.1 lost: cancelled while a.x was out of reach: it may go on there until its lease ends, within 598 s
    request 1 done: 1 jobs, 0 killed, 0 alive, 1 out of reach for 598s
    batch 1 done
    ");
}

#[test]
fn a_job_may_be_named_by_its_users_id() {
    let mut s = script();
    s.open(1);
    let job = |n, label: &str| Submission {
        label: Some(label.into()),
        ..any_job(n)
    };
    s.add(1, vec![], vec![job(1, "2"), job(2, "two")]);
    // A job's `id` takes precedence over a number.
    insta::assert_snapshot!(s.event(cancel_jobs(Some(1), Duration::ZERO, &["2"])), @r"
    result 1.0 cancelled
    request 1 done: 1 jobs, 0 killed, 0 alive, 0 out of reach for 0ns
    ");
}

#[test]
fn a_cancel_of_what_an_agent_that_returns_has_waits_for_the_proof() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(NOWHERE, 0, 0)]);
    s.event(cancel(Some(1), Duration::ZERO));
    // The agent was restarted, and its old session has not even been missed yet.
    let said = s.hello(2, "a.x", 1);
    assert!(!said.contains("out of reach"), "{said}");
    insta::assert_snapshot!(s.inventory(2, &[attempt(1, 1, 1)]), @r"
    2 < cancel 1.1 with grace 0ns
    fleet 1 agents, 2 engines
    ");
}
