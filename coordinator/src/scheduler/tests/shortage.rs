//! Hosts that lack the resources to start anything.

use super::*;

fn short() -> Outcome {
    Outcome::never_ran(Ended::HostShort, "no processes".to_owned())
}

fn job(n: u32, attempt: u32) -> AttemptId {
    super::attempt(1, n, attempt)
}

#[test]
fn what_a_host_is_too_short_of_something_to_start_goes_back_and_costs_nothing() {
    let mut s = script();
    s.agent(1, "a.x", 9);
    s.submit(1, &[(&[], 0, 0)]);
    // More often than a job may be lost, and without a retry.
    for n in 1..8 {
        let again = s.report(1, job(1, n), short());
        assert!(again.contains(&format!("1 < run 1/1.{}", n + 1)), "{again}");
        s.pass(5);
    }
    assert!(
        s.report(1, job(1, 8), exited(0))
            .contains("result 1.8 exited")
    );
}

#[test]
fn what_no_host_can_start_ends_after_the_host_timeout_with_the_limit() {
    let mut s = script();
    s.agent(1, "a.x", 9);
    s.submit(1, &[(&[], 0, 3), (&[], 0, 3)]);
    s.report(1, job(1, 1), short());
    s.pass(59);
    // A job that starts shows that the shortage has passed.
    s.report(1, job(2, 1), exited(0));
    s.pass(1);
    s.report(1, job(1, 2), short());
    s.pass(60);
    insta::assert_snapshot!(s.report(1, job(1, 3), short()), @r"
    result 1.3 start_failed on a.x: no processes; no job of its batch could be started there within the host timeout of 1m
    batch 1 done
    1 < forget batch 1
    1 < acknowledge 4
    ");
}

#[test]
fn what_another_host_may_start_does_not_end() {
    let mut s = script();
    s.agent(1, "a.x", 9);
    s.agent(2, "b.x", 0);
    s.submit(1, &[(&[], 0, 0)]);
    s.report(1, job(1, 1), short());
    s.pass(60);
    let again = s.report(1, job(1, 2), short());
    assert!(
        again.contains("run 1/1.3"),
        "the other one is only busy: {again}"
    );
    s.event(Event::AgentGone(SessionId(2)));
    let ended = s.report(1, job(1, 3), short());
    assert!(ended.contains("result 1.3 start_failed"), "{ended}");
}

#[test]
fn what_is_cancelled_meanwhile_ends_as_that() {
    let mut s = script();
    s.agent(1, "a.x", 9);
    s.submit(1, &[(&[], 0, 0)]);
    s.event(cancel(Some(1), Duration::ZERO));
    let ended = s.report(1, job(1, 1), short());
    assert!(ended.contains("result 1.1 cancelled"), "{ended}");
}
