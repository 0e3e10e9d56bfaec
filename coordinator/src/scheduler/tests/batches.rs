//! Submitting jobs and closing batches.

use super::*;

#[test]
fn jobs_that_do_not_continue_a_batch_are_refused() {
    let mut s = script();
    s.open(1);
    let job = |n, hosts| Submission {
        hosts,
        ..Submission::new(JobNumber(n), Bytes::new())
    };
    let submit = |s: &mut Script, jobs| {
        s.event(Event::Submit {
            batch: batch(1),
            host_sets: vec![],
            jobs,
        })
    };
    insta::assert_snapshot!(submit(&mut s, vec![job(1, None), job(3, None)]), @r"
    accepted 1
    refused: job 3 does not continue the batch
    ");
    insta::assert_snapshot!(submit(&mut s, vec![job(2, Some(0))]), @r"
    accepted 1
    refused: job 2 is not acceptable
    ");
    insta::assert_snapshot!(s.event(Event::Submit { batch: batch(9), host_sets: vec![], jobs: vec![job(1, None)] }), @"refused: there is no such open batch");
}
