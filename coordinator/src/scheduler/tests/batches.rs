//! Submitting jobs and closing batches.

use super::*;

#[test]
fn jobs_that_do_not_continue_a_batch_are_refused() {
    let mut s = script();
    s.open(1);
    let job = |n, hosts| Submission {
        hosts,
        ..any_job(n)
    };
    let submit = |s: &mut Script, jobs| s.add(1, vec![], jobs);
    insta::assert_snapshot!(submit(&mut s, vec![job(1, None), job(3, None)]), @r"
    accepted 1
    refused: job 3 does not continue the batch
    ");
    insta::assert_snapshot!(submit(&mut s, vec![job(2, Some(0))]), @r"
    accepted 1
    refused: job 2 is not acceptable
    ");
    insta::assert_snapshot!(s.add(9, vec![], vec![job(1, None)]), @"refused: there is no such open batch");
}
