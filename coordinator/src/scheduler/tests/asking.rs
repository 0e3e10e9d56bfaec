//! Requests of users: why a job does not run, and its output.

use super::*;

#[test]
fn logs_are_asked_of_the_host_that_has_them() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 0), (&[], 0, 0)]);
    let wish = LogWish {
        out: true,
        err: true,
        follow: false,
    };
    let logs = |job: &str| Event::Logs {
        request: 5,
        batch: batch(1),
        job: job.into(),
        wish,
    };
    insta::assert_snapshot!(s.event(logs("1")), @"1 < logs of 1.1, request 5");
    insta::assert_snapshot!(s.event(logs("2")), @r#"logs 5: Err("job 2 has not started yet")"#);
    s.report(1, attempt(1, 1, 1), exited(0));
    insta::assert_snapshot!(s.event(logs("1")), @"1 < logs of 1.1, request 5");
    s.event(Event::AgentGone(SessionId(1)));
    insta::assert_snapshot!(s.event(logs("1")), @r#"logs 5: Err("a.x, where job 1 runs or ran, is not connected")"#);
}

#[test]
fn why_a_job_does_not_run_is_said_host_by_host() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.agent(2, "b.x", 1);
    s.agent(3, "c.x", 1);
    s.submit(
        1,
        &[
            (&["a"], 0, 0),
            (&["a", "b", "z"], 0, 0),
            (&["a", "b", "z"], 0, 0),
            (&["c"], 0, 0),
        ],
    );
    s.event(Event::AgentGone(SessionId(3)));
    s.pass(7);
    let why = |s: &Script, job: &str| {
        s.scheduler
            .why(batch(1), job, s.now)
            .expect("a job")
            .join("\n")
    };
    insta::assert_snapshot!(why(&s, "3"), @r"
    job 3 waits
    a.x: all 2 slots are busy
    b.x: all 2 slots are busy
    z: has never connected
    1 hosts are not among those that the job requires
    ");
    insta::assert_snapshot!(why(&s, "1"), @"job 1 is on a.x, attempt 1: it has just started, or is next there");
    s.inventory(2, &[attempt(1, 2, 1)]);
    insta::assert_snapshot!(why(&s, "2"), @"job 2 runs on b.x, attempt 1");
    s.started(1, attempt(1, 1, 1), 1);
    insta::assert_snapshot!(why(&s, "1"), @"job 1 runs on a.x in slot 1, attempt 1");
    insta::assert_snapshot!(why(&s, "4"), @"job 4 is on c.x, which is out of reach: it is given up there when its lease is surely over");
    insta::assert_snapshot!(s.scheduler.why(batch(1), "5", s.now).expect_err("none"), @r#"batch 00000000-0000-0000-0000-000000000001 has no job "5": it has 4 jobs, named by their `id` or their number"#);
}

#[test]
fn why_a_job_waits_for_others_or_for_better_places() {
    let mut s = script();
    s.agent(1, "a.x", 0);
    s.agent(2, "b.x", 1);
    s.submit_ordered(&[&[], &[1]]);
    insta::assert_snapshot!(s.scheduler.why(batch(1), "2", s.now).expect("a job").join("; "), @"job 2 comes after 1 jobs that have not ended: 1");
    let mut s = script();
    s.agent(1, "a.x", 0);
    s.agent(2, "b.x", 1);
    choosy(&mut s, &[&["a.x"]]);
    insta::assert_snapshot!(s.scheduler.why(batch(1), "1", s.now).expect("a job").join("\n"), @r"
    job 1 waits
    a.x: all 2 slots are busy
    b.x: has an idle slot, but the job prefers a.x, for another 4 s
    ");
}
