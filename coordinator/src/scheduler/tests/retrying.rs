//! Jobs that are tried again.

use super::*;

#[test]
fn failures_use_up_retries_and_nothing_else_does() {
    let mut s = script();
    s.agent(1, "a.x", 9);
    s.submit(1, &[(&[], 0, 1)]);
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 1), exited(3)), @"
    1 < acknowledge 1
    1 < run 1/1.2
    ");
    let lost = Outcome::never_ran(Ended::Lost, "its engine died".to_owned());
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 2), lost), @"
    1 < acknowledge 2
    1 < run 1/1.3
    ");
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 3), exited(4)), @r"
    result 1.3 exited on a.x
    batch 1 done
    1 < forget batch 1
    1 < acknowledge 3
    ");
}

#[test]
fn only_failures_that_are_worth_it_are_tried_again_and_not_at_once() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.open(1);
    let rules = vec![RetryOn::Code(75), RetryOn::Outcome(Ended::Timeout)];
    let job = |n| Submission {
        retries: 5,
        retry_on: rules.clone(),
        retry_delay: Duration::from_secs(10),
        ..any_job(n)
    };
    s.add(1, vec![], vec![job(1), job(2)]);
    s.event(Event::Close { batch: batch(1) });
    insta::assert_snapshot!(s.report(1, attempt(1, 2, 1), exited(1)), @r"
    result 2.1 exited on a.x
    1 < acknowledge 1
    ");
    assert_eq!(
        s.report(1, attempt(1, 1, 1), exited(75)),
        "1 < acknowledge 2"
    );
    s.pull(1, 4, 2);
    assert_eq!(s.pass(9), "");
    assert_eq!(s.pass(1), "1 < run 1/1.2");
    let timeout = Outcome {
        ended: Ended::Timeout,
        ..exited(0)
    };
    s.report(1, attempt(1, 1, 2), timeout);
    assert_eq!(s.pass(19), "");
    assert_eq!(s.pass(1), "1 < run 1/1.3", "twice as long");
}

#[test]
fn only_failures_make_the_pause_before_the_next_try_longer() {
    let mut s = script();
    s.agent(1, "a.x", 9);
    s.open(1);
    let job = Submission {
        retries: 5,
        retry_delay: Duration::from_secs(10),
        ..any_job(1)
    };
    s.add(1, vec![], vec![job]);
    for n in 1..4 {
        let back = NumberedReport {
            seq: u64::from(n),
            attempt: attempt(1, 1, n),
            report: Report::Returned,
        };
        s.event(Event::Agent(
            SessionId(1),
            ToCoordinator::Reports(vec![back]),
        ));
    }
    assert_eq!(
        s.report(1, attempt(1, 1, 4), exited(1)),
        "1 < acknowledge 1"
    );
    assert_eq!(s.pass(9), "");
    assert_eq!(s.pass(1), "1 < run 1/1.5");
}
