//! Attempts that an earlier life has placed, and how they end if they must not go on.

use super::*;

/// A scheduler that has replayed a batch opened `age` seconds ago, whose two jobs are on a host.
fn after_a_restart(time_limit: Option<u64>, age: u64) -> Script {
    let mut s = script();
    s.scheduler = s.scheduler.durable(Duration::from_secs(3600));
    let terms = BatchTerms {
        time_limit: time_limit.map(Duration::from_secs),
        ..terms(1)
    };
    let placed = Record::Placed {
        host: "a.x".into(),
        lease: Some(LEASE),
        attempts: vec![old(1), old(2)],
    };
    let closed = Record::Closed {
        batch: BatchSerial(1),
    };
    let stored = stored(terms, age, vec![any_job(1), any_job(2)]);
    s.restore(stored.into_iter().chain([placed, closed]));
    s
}

/// An attempt of the life before.
fn old(job: u32) -> AttemptId {
    AttemptId {
        epoch: Epoch(6),
        ..attempt(1, job, 1)
    }
}

fn killed(processes: u32) -> Outcome {
    Outcome {
        killed: processes,
        ..Outcome::never_ran(Ended::Cancelled, None)
    }
}

/// A trace without its records.
fn said(trace: &str) -> String {
    trace
        .lines()
        .filter(|line| !line.starts_with("persist"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn a_time_limit_that_passed_meanwhile_waits_for_the_host_and_cancels_with_proof() {
    let mut s = after_a_restart(Some(30), 60);
    assert_eq!(said(&s.pass(0)), "", "its host may be back in a moment");
    s.hello(1, "a.x", 1);
    insta::assert_snapshot!(said(&s.inventory(1, &[old(1), old(2)])), @"
    1 < cancel 1.1 with grace 2s
    1 < cancel 2.1 with grace 2s
    fleet 1 agents, 2 engines
    ");
    insta::assert_snapshot!(said(&s.report(1, old(1), killed(3))), @"
    result 1.1 cancelled on a.x: cancelled: the batch was not done within its time limit of 30s
    1 < acknowledge 1
    ");
}

#[test]
fn a_time_limit_that_passed_meanwhile_waits_for_the_lease_of_a_host_that_stays_away() {
    let mut s = after_a_restart(Some(30), 60);
    s.pass(0);
    assert_eq!(said(&s.pass(611)), "");
    insta::assert_snapshot!(said(&s.pass(1)), @"
    result 1.1 cancelled: its host was out of reach for longer than the lease
    result 2.1 cancelled: its host was out of reach for longer than the lease
    batch 1 done
    ");
}

#[test]
fn a_cancel_soon_after_a_restart_waits_for_the_host() {
    let mut s = after_a_restart(None, 0);
    assert_eq!(said(&s.event(cancel(Some(1), Duration::ZERO))), "");
    let wait = |attempts, fenced_for| {
        vec![CancelWait {
            host: "a.x".into(),
            attempts,
            fenced_for,
        }]
    };
    s.pass(2);
    assert_eq!(
        s.scheduler.cancel_waits(1, s.now),
        wait(2, Some(Duration::from_secs(610)))
    );
    s.hello(1, "a.x", 1);
    s.inventory(1, &[old(1), old(2)]);
    assert_eq!(
        s.scheduler.cancel_waits(1, s.now),
        wait(2, None),
        "it is there, and only its word counts"
    );
    s.report(1, old(1), killed(3));
    assert_eq!(s.scheduler.cancel_waits(1, s.now), wait(1, None));
    insta::assert_snapshot!(said(&s.report(1, old(2), killed(1))), @"
    result 2.1 cancelled on a.x
    request 1 done: 2 jobs, 4 killed, 0 alive, 0 out of reach for 0ns
    batch 1 done
    1 < acknowledge 2
    ");
    assert!(s.scheduler.cancel_waits(1, s.now).is_empty());
}

#[test]
fn a_cancel_after_a_restart_says_of_a_host_that_does_not_come_back_that_it_is_out_of_reach() {
    let mut s = after_a_restart(None, 0);
    s.event(cancel(Some(1), Duration::ZERO));
    assert_eq!(said(&s.pass(29)), "");
    let out_of_reach = "\
result 1.1 lost: cancelled while a.x was out of reach: it may go on there until its lease ends, within 582 s
result 2.1 lost: cancelled while a.x was out of reach: it may go on there until its lease ends, within 582 s
request 1 done: 2 jobs, 0 killed, 0 alive, 2 out of reach for 582s
batch 1 done";
    let mut lines: Vec<String> = s
        .pass(1)
        .lines()
        .map(str::to_owned)
        .filter(|line| !line.starts_with("persist"))
        .collect();
    lines.sort_by_key(|line| line.starts_with("batch"));
    assert_eq!(lines.join("\n"), out_of_reach);
    // A cancel that comes later does not wait.
    let mut s = after_a_restart(None, 0);
    s.pass(30);
    assert_eq!(
        said(&s.event(cancel(Some(1), Duration::ZERO)))
            .lines()
            .count(),
        4
    );
}

#[test]
fn a_cancel_counts_what_it_has_cancelled_and_not_what_ended_by_itself() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.submit(1, &[(NOWHERE, 0, 0); 3]);
    s.event(cancel(Some(1), Duration::ZERO));
    s.report(1, attempt(1, 1, 1), exited(0));
    insta::assert_snapshot!(s.report(1, attempt(1, 2, 1), killed(2)), @"
    result 2.1 cancelled on a.x
    request 1 done: 2 jobs, 2 killed, 0 alive, 0 out of reach for 0ns
    batch 1 done
    1 < forget batch 1
    1 < acknowledge 2
    ");
}

#[test]
fn a_job_that_has_failed_before_a_restart_waits_before_its_next_try() {
    let mut s = script();
    s.scheduler = s.scheduler.durable(Duration::from_secs(3600));
    let job = |n| Submission {
        retries: 5,
        retry_delay: Duration::from_secs(10),
        ..any_job(n)
    };
    let again = |n, job, retries| Record::Again {
        attempt: attempt(1, job, n),
        retries,
        losses: 0,
        outcome: None,
    };
    let placed = |n| Record::Placed {
        host: "a.x".into(),
        lease: None,
        attempts: vec![attempt(1, 1, n), attempt(1, 2, n)],
    };
    let stored = stored(terms(1), 0, vec![job(1), job(2)]);
    s.restore(stored.into_iter().chain([
        placed(1),
        placed(2),
        again(1, 1, 4),
        again(1, 2, 4),
        // The second attempt of job 2 was given back.
        again(2, 1, 3),
        again(2, 2, 4),
        Record::Closed {
            batch: BatchSerial(1),
        },
    ]));
    assert!(s.agent(1, "a.x", 2).contains("1 < run 1/2.3"));
    assert_eq!(said(&s.pass(19)), "");
    assert_eq!(said(&s.pass(1)), "1 < run 1/1.3");
}
