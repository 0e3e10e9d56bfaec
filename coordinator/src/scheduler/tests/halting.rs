//! Batches that are given up because of their halt or their time limit.

use super::*;

#[test]
fn a_batch_that_halts_soon_lets_run_what_runs() {
    let mut s = script();
    halt(&mut s, false, HaltWhy::Fail, HaltCount::Jobs(1));
    s.agent(1, "a.x", 3);
    s.submit(1, &[(&[], 0, 0), (&[], 0, 5), (&[], 0, 0), (&[], 0, 0)]);
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 1), exited(1)), @r"
    result 1.1 exited on a.x
    notice: 1 job has failed: no more jobs of the batch start (--halt)
    result 4.0 cancelled: halted: 1 of the batch's jobs failed (--halt)
    1 < retract 2.1 3.1
    1 < acknowledge 1
    ");
    let returned = vec![NumberedReport {
        seq: 2,
        attempt: attempt(1, 3, 1),
        report: Report::Returned,
    }];
    insta::assert_snapshot!(s.event(Event::Agent(SessionId(1), ToCoordinator::Reports(returned))), @r"
    result 3.1 cancelled: halted: 1 of the batch's jobs failed (--halt)
    1 < acknowledge 2
    ");
    // The other running job fails, too, and is not tried again.
    insta::assert_snapshot!(s.report(1, attempt(1, 2, 1), exited(1)), @r"
    result 2.1 exited on a.x
    batch 1 done
    1 < forget batch 1
    1 < acknowledge 2
    ");
}

#[test]
fn a_batch_that_halts_now_kills_what_runs() {
    let mut s = script();
    halt(&mut s, true, HaltWhy::Success, HaltCount::Share(5000));
    s.agent(1, "a.x", 3);
    s.submit(1, &[(&[], 0, 0), (&[], 0, 0), (&[], 0, 0), (&[], 0, 0)]);
    s.report(1, attempt(1, 1, 1), exited(0));
    insta::assert_snapshot!(s.report(1, attempt(1, 2, 1), exited(0)), @r"
    result 2.1 exited on a.x
    notice: 2 jobs have succeeded: no more jobs of the batch start (--halt)
    1 < cancel 3.1 with grace 2s
    result 4.0 cancelled: not needed any more: 2 of the batch's jobs succeeded (--halt)
    1 < acknowledge 2
    ");
}

#[test]
fn a_job_that_cannot_run_halts_those_behind_it() {
    let mut s = script();
    s.agent(1, "a.x", 3);
    for (number, now) in [(1, true), (2, false)] {
        halt_batch(&mut s, number, now, HaltWhy::Fail, HaltCount::Jobs(1));
        let jobs = vec![
            Submission {
                stillborn: Some("too long".into()),
                ..any_job(1)
            },
            any_job(2),
            any_job(3),
        ];
        let said = s.add(number, vec![], jobs);
        assert!(
            !said.contains("< run") && said.contains("result 3.0 cancelled"),
            "{said}"
        );
    }
}

#[test]
fn a_batch_has_so_much_time_and_no_more() {
    let mut s = script();
    let time_limit = Some(Duration::from_secs(30));
    let terms = BatchTerms {
        time_limit,
        ..terms(1)
    };
    s.open_with("okazaki", terms);
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 0), (&[], 0, 0)]);
    assert_eq!(s.pass(29), "");
    insta::assert_snapshot!(s.pass(1), @r"
    1 < cancel 1.1 with grace 2s
    result 2.0 cancelled: cancelled: the batch was not done within its time limit of 30s
    ");
}

#[test]
fn the_time_of_a_batch_goes_on_across_restarts() {
    let mut s = script();
    for (number, age) in [(1, 10), (2, 3600)] {
        let terms = BatchTerms {
            time_limit: Some(Duration::from_secs(30)),
            ..terms(number.into())
        };
        let (batch, user, age) = (
            BatchSerial(number),
            "okazaki".to_owned(),
            Duration::from_secs(age),
        );
        s.scheduler.replay(
            Record::Opened {
                batch,
                user,
                terms: Box::new(terms),
                age,
            },
            s.now,
        );
    }
    s.scheduler.restored(s.now);
    assert_eq!(
        s.scheduler.poll_timeout(),
        Some(s.now),
        "one of them has no time left"
    );
    s.pass(0);
    assert_eq!(
        s.scheduler.poll_timeout(),
        Some(s.now + Duration::from_secs(20))
    );
}
