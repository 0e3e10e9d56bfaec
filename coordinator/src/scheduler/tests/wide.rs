//! Jobs that take several slots. Every host of these scripts has two.

use super::*;
use std::collections::BTreeMap;

/// Submits jobs that take so many slots each, and closes the batch.
fn submit(s: &mut Script, n: u128, slots: &[u16], priority: i32) -> String {
    s.open(n);
    let jobs = slots.iter().enumerate().map(|(i, slots)| {
        let job = any_job(i as u32 + 1);
        Submission {
            slots: *slots,
            priority,
            ..job
        }
    });
    let jobs = jobs.collect();
    s.submit_jobs(n, vec![], jobs)
}

#[test]
fn a_wide_job_starts_where_enough_slots_are_idle() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    insta::assert_snapshot!(submit(&mut s, 1, &[1, 2], 0), @"
    accepted 2
    1 < context of batch 1
    1 < run 1/2.1
    ");
    s.report(1, attempt(1, 2, 1), exited(0));
    insta::assert_snapshot!(s.pull(1, 4, 2), @"1 < run 1/1.1");
}

#[test]
fn idle_slots_are_kept_for_a_wide_job_and_used_again_after_it() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    submit(&mut s, 1, &[1, 1, 1, 1], 0);
    submit(&mut s, 2, &[2], 5);
    s.report(1, attempt(1, 1, 1), exited(0));
    assert_eq!(
        s.pull(1, 3, 1),
        "",
        "the first idle slot waits for the second"
    );
    insta::assert_snapshot!(s.scheduler.why(batch(2), "1", s.now).expect("a job").join("\n"), @"
    job 1 waits
    a.x: has 1 idle slots, and the job takes 2; they are kept for this job or one like it
    ");
    insta::assert_snapshot!(s.scheduler.why(batch(1), "3", s.now).expect("a job").join("\n"), @"
    job 3 waits
    a.x: its idle slots are kept for a job of batch 00000000-0000-0000-0000-000000000002 that takes 2
    ");
    s.report(1, attempt(1, 2, 1), exited(0));
    insta::assert_snapshot!(s.pull(1, 4, 2), @"
    1 < context of batch 2
    1 < run 2/1.1
    ");
    s.report(1, attempt(2, 1, 1), exited(0));
    insta::assert_snapshot!(s.pull(1, 6, 2), @"1 < run 1/3.1 1/4.1");
}

#[test]
fn a_wide_job_goes_at_once_where_what_was_on_its_way_has_ended() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.agent(2, "b.x", 2);
    submit(&mut s, 1, &[1; 4], 0);
    s.report(1, attempt(1, 1, 1), exited(0));
    s.pull(1, 3, 1);
    // The agent reports both slots as idle before it has got the next job.
    s.pull(2, 4, 2);
    submit(&mut s, 2, &[2], 5);
    let on = |s: &Script, session| {
        s.scheduler
            .hosts
            .values()
            .find(|h| h.session == Some(SessionId(session)))
            .expect("there")
            .attempts
            .len()
    };
    assert_eq!(
        (on(&s, 1), on(&s, 2)),
        (1, 2),
        "the first host keeps its slot, and the second one has no room"
    );
    let on_b: Vec<AttemptId> = s
        .scheduler
        .hosts
        .values()
        .filter(|h| &*h.name == "b.x")
        .flat_map(|h| h.attempts.ids())
        .collect();
    s.report(2, on_b[0], exited(0));
    let said = s.report(2, on_b[1], exited(0));
    assert!(said.contains("2 < run 2/1.1"), "{said}");
}

#[test]
fn a_host_gives_up_keeping_slots_and_rests_before_it_does_so_again() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    submit(&mut s, 1, &[1; 9], 0);
    submit(&mut s, 2, &[2], 5);
    let end = |s: &mut Script, job, credit| {
        s.report(1, attempt(1, job, 1), exited(0));
        s.pull(1, credit, 1)
    };
    assert_eq!(end(&mut s, 1, 3), "");
    assert_eq!(s.pass(59), "");
    insta::assert_snapshot!(s.pass(1), @"1 < run 1/3.1");
    insta::assert_snapshot!(end(&mut s, 2, 4), @"1 < run 1/4.1");
    s.pass(60);
    assert_eq!(end(&mut s, 3, 5), "", "it has rested");
}

#[test]
fn what_was_handed_out_in_advance_makes_room_for_a_wide_job() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.pull(1, 4, 2);
    submit(&mut s, 1, &[1; 6], 0);
    submit(&mut s, 2, &[2], 5);
    s.report(1, attempt(1, 1, 1), exited(0));
    insta::assert_snapshot!(s.pull(1, 5, 0), @"1 < retract 2.1 3.1 4.1");
    let back = |n: u32, seq| NumberedReport {
        seq,
        attempt: attempt(1, n, 1),
        report: Report::Returned,
    };
    let reports = ToCoordinator::Reports(vec![back(3, 2), back(4, 3)]);
    insta::assert_snapshot!(s.event(Event::Agent(SessionId(1), reports)), @"1 < acknowledge 3");
}

#[test]
fn a_wide_job_does_not_follow_narrow_ones_that_are_still_on_their_way() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    submit(&mut s, 1, &[1; 4], 0);
    submit(&mut s, 2, &[2], 5);
    // The agent has not got the two jobs that were sent to it.
    assert_eq!(s.pull(1, 4, 2), "");
    s.report(1, attempt(1, 1, 1), exited(0));
    insta::assert_snapshot!(s.report(1, attempt(1, 2, 1), exited(0)), @r"
    result 2.1 exited on a.x
    1 < acknowledge 2
    1 < context of batch 2
    1 < run 2/1.1
    ");
}

#[test]
fn no_more_hosts_keep_slots_than_there_are_wide_jobs() {
    let mut s = script();
    for (session, name) in [(1, "a.x"), (2, "b.x")] {
        s.agent(session, name, 2);
    }
    submit(&mut s, 1, &[1; 6], 0);
    submit(&mut s, 2, &[2], 5);
    // Jobs 1 and 3 are on host a, 2 and 4 on host b.
    s.report(1, attempt(1, 1, 1), exited(0));
    assert_eq!(s.pull(1, 3, 1), "");
    s.report(2, attempt(1, 2, 1), exited(0));
    insta::assert_snapshot!(s.pull(2, 3, 1), @"2 < run 1/5.1");
    // The wide job is cancelled: the slot can be used again at once.
    let what = vec![Wanted {
        batch: batch(2),
        job: None,
    }];
    insta::assert_snapshot!(s.event(Event::Cancel { request: None, what, stop: Stop::NOW, why: None }), @"
    result 1.0 cancelled
    batch 2 done
    1 < run 1/6.1
    ");
}

#[test]
fn a_job_that_is_too_wide_for_every_host_says_so_and_ends_as_an_error() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    insta::assert_snapshot!(submit(&mut s, 1, &[3], 0), @"
    accepted 1
    notice: 1 job takes 3 slots, and no connected host has so many for them; they end as errors after 0:01:00
    ");
    insta::assert_snapshot!(s.scheduler.why(batch(1), "1", s.now).expect("a job").join("\n"), @"
    job 1 waits
    a.x: has 2 slots, and the job takes 3
    ");
    insta::assert_snapshot!(s.pass(60), @"
    result 1.0 no_host: it takes 3 slots, and no host that was connected within the host timeout has more than 2 for it
    batch 1 done
    ");
}

#[test]
fn a_larger_host_ends_the_wait_of_a_wide_job() {
    let mut s = script();
    submit(&mut s, 1, &[2], 0);
    s.agent(1, "a.x", 1);
    assert_eq!(s.pass(61), "", "it is not an error any more");
    insta::assert_snapshot!(s.pull(1, 2, 2), @"
    1 < context of batch 1
    1 < run 1/1.1
    ");
}

/// Runs narrow jobs of `run` seconds without end, which start in turn on two slots, half of that
/// apart; after `run` seconds a wide job is next. Returns how long that job waits, and for how much
/// of that time slots were idle.
fn starves(run: u64) -> (u64, u64) {
    let mut s = script_with(None);
    s.agent(1, "a.x", 1);
    submit(&mut s, 1, &[1; 200], 0);
    // When the running jobs end, and how many slots were asked for.
    let (mut ends, mut credit, mut idle, mut waited) =
        (BTreeMap::from([(run / 2, 1)]), 1, 1, None::<(u64, u64)>);
    for second in 1.. {
        let mut said = s.pass(1);
        if let Some(job) = ends.remove(&second) {
            said.push_str(&s.report(1, attempt(1, job, 1), exited(0)));
            (credit, idle) = (credit + 1, idle + 1);
            said.push_str(&s.pull(1, credit, idle));
        }
        if second == 1 {
            // The other slot starts now.
            credit += 1;
            said.push_str(&s.pull(1, credit, 1));
        }
        if second == run {
            said.push_str(&submit(&mut s, 2, &[2], 5));
            waited = Some((second, 0));
        }
        let started = said.split_whitespace().filter_map(|word| {
            word.strip_prefix("1/")?
                .strip_suffix(".1")?
                .parse::<u32>()
                .ok()
        });
        for job in started {
            ends.insert(second + run, job);
            idle -= 1;
        }
        let Some((since, vain)) = &mut waited else {
            continue;
        };
        if said.contains("2/1.1") || second > *since + 100 * run {
            return (second - *since, *vain);
        }
        *vain += u64::from(idle > 0);
    }
    unreachable!()
}

#[test]
fn a_wide_job_starts_within_its_bound_however_long_the_jobs_before_it_are() {
    for run in [10, 100, 150, 500, 3600] {
        let (waited, vain) = starves(run);
        assert!(
            waited <= u64::from(WIDE_WAIT) * run,
            "jobs of {run} s: it waited for {waited} s"
        );
        assert!(
            vain <= waited / 2 + run,
            "jobs of {run} s: a slot was idle for {vain} s of {waited} s"
        );
    }
}

#[test]
fn slots_are_kept_twice_as_long_after_each_time_in_vain_and_rest_as_long() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    submit(&mut s, 1, &[1; 9], 0);
    submit(&mut s, 2, &[2], 5);
    let end = |s: &mut Script, job, credit| {
        s.report(1, attempt(1, job, 1), exited(0));
        s.pull(1, credit, 1)
    };
    assert_eq!(end(&mut s, 1, 3), "");
    insta::assert_snapshot!(s.pass(60), @"1 < run 1/3.1");
    assert_eq!(
        s.pass(60),
        "",
        "it has rested, and keeps what falls idle for two minutes from now on"
    );
    assert_eq!(s.pass(50), "");
    assert_eq!(end(&mut s, 3, 4), "");
    assert_eq!(s.pass(69), "");
    insta::assert_snapshot!(s.pass(1), @"1 < run 1/4.1");
    s.pass(119);
    insta::assert_snapshot!(end(&mut s, 4, 5), @"1 < run 1/5.1");
    s.pass(1);
    assert_eq!(end(&mut s, 5, 6), "", "for four minutes now");
    assert_eq!(s.pass(239), "");
    s.report(1, attempt(1, 2, 1), exited(0));
    insta::assert_snapshot!(s.pull(1, 7, 2), @"
    1 < context of batch 2
    1 < run 2/1.1
    ");
}
