//! Jobs that come after others.

use super::*;

#[test]
fn a_job_starts_when_those_that_it_comes_after_have_succeeded() {
    let mut s = script();
    s.agent(1, "a.x", 4);
    // The first job comes after the third, which is still to come.
    insta::assert_snapshot!(s.submit_ordered(&[&[3], &[], &[], &[1, 2]]), @r"
    accepted 4
    1 < context of batch 1
    1 < run 1/2.1
    1 < run 1/3.1
    ");
    s.report(1, attempt(1, 2, 1), exited(0));
    insta::assert_snapshot!(s.report(1, attempt(1, 3, 1), exited(0)), @r"
    result 3.1 exited on a.x
    1 < acknowledge 2
    1 < run 1/1.1
    ");
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 1), exited(0)), @r"
    result 1.1 exited on a.x
    1 < acknowledge 3
    1 < run 1/4.1
    ");
}

#[test]
fn what_comes_after_a_failure_is_skipped_all_the_way() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit_ordered(&[&[], &[1], &[2], &[2, 3]]);
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 1), exited(1)), @r"
    result 1.1 exited on a.x
    1 < acknowledge 1
    result 2.0 skipped: job 1, which it comes after, did not succeed
    result 3.0 skipped: job 2, which it comes after, did not succeed
    result 4.0 skipped: job 2, which it comes after, did not succeed
    batch 1 done
    1 < forget batch 1
    ");
}

#[test]
fn what_comes_after_nothing_that_ever_comes_is_skipped() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    insta::assert_snapshot!(s.submit_ordered(&[&[7]]), @r"
    accepted 1
    result 1.0 skipped: job 7, which it comes after, did not succeed
    batch 1 done
    ");
}

#[test]
fn a_chain_as_long_as_a_batch_is_skipped_without_recursion() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    let after: Vec<Vec<u32>> = (0..50_000)
        .map(|n| if n == 0 { vec![] } else { vec![n] })
        .collect();
    let after: Vec<&[u32]> = after.iter().map(Vec::as_slice).collect();
    s.open(1);
    let submitted = Event::Submit {
        batch: batch(1),
        host_sets: vec![],
        jobs: ordered(&after),
    };
    s.scheduler.handle(submitted, s.now);
    s.scheduler.handle(Event::Close { batch: batch(1) }, s.now);
    s.scheduler
        .handle(cancel_jobs(None, Duration::ZERO, &["2"]), s.now);
    while s.scheduler.poll_effect().is_some() {}
    assert_eq!(
        s.scheduler
            .batches
            .get(&BatchSerial(1))
            .map(|batch| batch.done),
        Some(49_999),
        "all but the one that runs"
    );
}

#[test]
fn a_waiting_job_can_be_cancelled_and_drags_its_followers_along() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit_ordered(&[&[], &[1], &[2]]);
    insta::assert_snapshot!(s.event(cancel_jobs(Some(1), Duration::ZERO, &["2"])), @r"
    result 2.0 cancelled
    request 1 done: 1 jobs, 0 killed, 0 alive, 0 out of reach for 0ns
    result 3.0 skipped: job 2, which it comes after, did not succeed
    ");
}
