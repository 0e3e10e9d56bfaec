//! Batches that are halted or cancelled: none of their jobs starts any more, whatever its state
//! was.

use super::*;
use mezcal_common::model::outcome::JobResult;

/// Every kind of halt, after one job of that kind.
const HALTS: [(bool, HaltWhy); 6] = [
    (true, HaltWhy::Success),
    (true, HaltWhy::Fail),
    (true, HaltWhy::Done),
    (false, HaltWhy::Success),
    (false, HaltWhy::Fail),
    (false, HaltWhy::Done),
];

/// Ends of jobs of batch 1, reported in one message.
fn ends(s: &mut Script, ends: &[(u32, i32)]) -> String {
    let first = s.seq + 1;
    s.seq += ends.len() as u64;
    let report = |(seq, (job, code)): (u64, &(u32, i32))| NumberedReport {
        seq,
        attempt: attempt(1, *job, 1),
        report: Report::Finished {
            engine: Some(EngineIndex(0)),
            outcome: Box::new(exited(*code)),
        },
    };
    let reports = (first..).zip(ends).map(report).collect();
    s.event(Event::Agent(SessionId(1), ToCoordinator::Reports(reports)))
}

fn result_of(said: &str, job: u32) -> Option<&str> {
    said.lines()
        .find(|line| line.starts_with(&format!("result {job}.")))
}

#[test]
fn what_comes_after_the_job_that_halts_a_batch_does_not_start() {
    for (now, why) in HALTS.into_iter().filter(|(_, why)| *why != HaltWhy::Fail) {
        let mut s = script();
        halt(&mut s, now, why, HaltCount::Jobs(1));
        s.agent(1, "a.x", 9);
        s.submit_jobs(1, vec![], ordered(&[&[], &[1], &[1], &[2]]));
        let said = ends(&mut s, &[(1, 0)]);
        assert!(!said.contains("< run"), "{now} {why:?}: {said}");
        for job in [2, 3] {
            assert!(
                result_of(&said, job).is_some_and(|line| line.contains("cancelled")),
                "{now} {why:?}: {said}"
            );
        }
        assert!(said.contains("batch 1 done"), "{now} {why:?}: {said}");
    }
}

#[test]
fn nothing_that_an_end_has_released_starts_when_a_later_one_in_the_same_message_halts_the_batch() {
    for (now, why) in HALTS {
        let mut s = script();
        let count = if why == HaltWhy::Fail { 1 } else { 2 };
        halt(&mut s, now, why, HaltCount::Jobs(count));
        s.agent(1, "a.x", 9);
        s.submit_jobs(1, vec![], ordered(&[&[], &[], &[1]]));
        let code = if why == HaltWhy::Success { 0 } else { 1 };
        let said = ends(&mut s, &[(1, 0), (2, code)]);
        assert!(!said.contains("< run"), "{now} {why:?}: {said}");
        assert!(
            result_of(&said, 3).is_some_and(|line| line.contains("cancelled")),
            "{now} {why:?}: {said}"
        );
        assert!(said.contains("batch 1 done"), "{now} {why:?}: {said}");
    }
}

/// A batch with one job, which has failed on a host and is tried again in ten seconds.
fn tried_again_in_ten_seconds(s: &mut Script, terms: BatchTerms) {
    s.open_with("okazaki", terms);
    s.agent(1, "a.x", 9);
    let again = Submission {
        retries: 5,
        retry_delay: Duration::from_secs(10),
        ..any_job(1)
    };
    s.add(1, vec![], vec![again]);
    assert_eq!(
        s.report(1, attempt(1, 1, 1), exited(1)),
        "1 < acknowledge 1"
    );
}

#[test]
fn a_job_whose_next_try_is_due_when_its_batch_is_deserted_does_not_start() {
    let mut s = script();
    s.scheduler = s.scheduler.durable(Duration::from_secs(10));
    tried_again_in_ten_seconds(
        &mut s,
        BatchTerms {
            once: true,
            ..terms(1)
        },
    );
    s.event(Event::Unattended { batch: batch(1) });
    insta::assert_snapshot!(s.pass(10), @"
    result 1.1 cancelled: its client was gone for longer than 10s
    batch 1 done
    1 < forget batch 1
    ");
}

#[test]
fn a_job_whose_next_try_is_due_when_the_time_of_its_batch_is_up_does_not_start() {
    let mut s = script();
    tried_again_in_ten_seconds(
        &mut s,
        BatchTerms {
            time_limit: Some(Duration::from_secs(10)),
            ..terms(1)
        },
    );
    insta::assert_snapshot!(s.pass(10), @"result 1.1 cancelled: cancelled: the batch was not done within its time limit of 10s");
}

#[test]
fn jobs_that_no_host_may_run_halt_those_beside_them() {
    let mut s = script();
    halt(&mut s, true, HaltWhy::Fail, HaltCount::Jobs(1));
    let jobs = (1..=3).map(|n| Submission {
        hosts: Some(0),
        ..any_job(n)
    });
    let jobs = jobs
        .chain([Submission {
            after: vec![JobNumber(9)],
            ..any_job(4)
        }])
        .collect();
    s.add(1, vec![vec!["b.x".into()]], jobs);
    s.event(Event::Close { batch: batch(1) });
    let said = s.pass(60);
    assert_eq!(
        said.lines()
            .filter(|line| line.starts_with("result"))
            .count(),
        3,
        "{said}"
    );
    assert!(
        result_of(&said, 1).is_some_and(|line| line.contains("no_host")),
        "{said}"
    );
    assert!(said.contains("batch 1 done"), "{said}");
}

#[test]
fn what_a_drained_host_gives_back_of_a_halted_batch_does_not_start_elsewhere() {
    for now in [true, false] {
        let mut s = script();
        halt(&mut s, now, HaltWhy::Fail, HaltCount::Jobs(1));
        s.agent(1, "a.x", 3);
        s.submit_jobs(1, vec![], ordered(&[&[], &[], &[], &[2]]));
        s.agent(2, "b.x", 2);
        s.scheduler
            .drain(
                &["a.x".into()],
                Some("repair"),
                Some(Duration::from_secs(5)),
                s.now,
            )
            .expect("a known host");
        s.trace();
        ends(&mut s, &[(1, 1)]);
        s.pass(5);
        let back = |seq, job| NumberedReport {
            seq,
            attempt: attempt(1, job, 1),
            report: Report::Returned,
        };
        let said = s.event(Event::Agent(
            SessionId(1),
            ToCoordinator::Reports(vec![back(2, 2), back(3, 3)]),
        ));
        assert!(
            !said.contains("< run") && said.contains("batch 1 done"),
            "{said}"
        );
    }
}

#[test]
fn a_drain_that_is_said_again_keeps_its_deadline_unless_it_names_one() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(NOWHERE, 0, 0)]);
    let drain = |s: &mut Script, reason, deadline: Option<u64>| {
        s.scheduler
            .drain(
                &["a.x".into()],
                reason,
                deadline.map(Duration::from_secs),
                s.now,
            )
            .expect("a known host");
        s.trace()
    };
    drain(&mut s, Some("repair"), Some(10));
    s.pass(4);
    drain(&mut s, Some("new disks"), None);
    assert_eq!(s.pass(5), "");
    let said = s.pass(1);
    assert!(said.contains("1 < evict 1.1"), "{said}");
    // A new reason keeps the deadline also when it has passed.
    drain(&mut s, Some("newer disks"), None);
    assert!(s.pass(0).contains("1 < evict 1.1"));
    drain(&mut s, None, None);
    drain(&mut s, Some("again"), None);
    assert_eq!(s.pass(600), "", "what was ended is forgotten");
}

#[test]
fn a_detached_batch_starts_when_it_is_whole() {
    let mut s = script();
    s.agent(1, "a.x", 9);
    s.open_with(
        "okazaki",
        BatchTerms {
            detached: true,
            ..terms(1)
        },
    );
    assert_eq!(s.add(1, vec![], ordered(&[&[], &[1]])), "accepted 2");
    assert_eq!(s.pass(5), "");
    assert!(s.scheduler.why(batch(1), "1", s.now).expect("a job")[0].contains("handed over whole"));
    assert!(s.scheduler.why(batch(1), "2", s.now).expect("a job")[0].contains("comes after"));
    assert_eq!(s.add(1, vec![], vec![any_job(3)]), "accepted 3");
    insta::assert_snapshot!(s.event(Event::Close { batch: batch(1) }), @"
    1 < context of batch 1
    1 < run 1/1.1
    1 < run 1/3.1
    ");
    s.scheduler.handle(Event::Close { batch: batch(1) }, s.now);
    assert!(
        matches!(
            s.scheduler.poll_effect(),
            Some(Effect::Accepted {
                jobs: 3,
                closed: true,
                ..
            })
        ),
        "it is said again"
    );
}

#[test]
fn a_detached_batch_that_was_not_whole_when_the_coordinator_died_is_still_not_started() {
    let mut s = script();
    s.scheduler = s.scheduler.durable(Duration::from_secs(600));
    let terms = BatchTerms {
        detached: true,
        ..terms(1)
    };
    s.restore(stored(terms, 0, ordered(&[&[], &[1], &[1], &[]])));
    assert!(!s.agent(1, "a.x", 9).contains("< run"));
    let said = s.event(Event::Close { batch: batch(1) });
    assert!(
        said.contains("< run 1/1.1") && said.contains("< run 1/4.1"),
        "{said}"
    );
}

#[test]
fn a_detached_batch_that_never_becomes_whole_ends_with_its_clients_lease() {
    let mut s = script();
    s.scheduler = s.scheduler.durable(Duration::from_secs(600));
    s.agent(1, "a.x", 9);
    s.open_with(
        "okazaki",
        BatchTerms {
            detached: true,
            ..terms(1)
        },
    );
    let jobs = vec![any_job(1)];
    s.add(1, vec![], jobs);
    s.event(Event::Unattended { batch: batch(1) });
    let said = s.pass(600);
    assert!(
        !said.contains("< run")
            && said.contains("result 1.0 cancelled")
            && said.contains("batch 1 done"),
        "{said}"
    );
}

/// The records of a batch of four jobs: the first has ended, two come after it, one is on a host.
fn in_the_store(halt: Option<Halt>, stopped: Option<Record>, code: i32) -> Vec<Record> {
    let serial = BatchSerial(1);
    let result = JobResult {
        attempt: 1,
        place: None,
        local: None,
        outcome: exited(code),
    };
    let jobs = ordered(&[&[], &[1], &[1], &[]]);
    let records = [
        Record::Placed {
            host: "a.x".into(),
            lease: Some(LEASE),
            attempts: vec![attempt(1, 1, 1), attempt(1, 4, 1)],
        },
        Record::Ended {
            batch: serial,
            seq: 1,
            job: JobNumber(1),
            result: Box::new(result),
        },
    ];
    let terms = BatchTerms { halt, ..terms(1) };
    stored(terms, 0, jobs)
        .into_iter()
        .chain(records)
        .chain(stopped)
        .chain([Record::Closed { batch: serial }])
        .collect()
}

#[test]
fn nothing_of_a_batch_that_is_given_up_starts_after_a_restart() {
    let stopped = |stop| Record::Stopped {
        batch: BatchSerial(1),
        stop,
        why: None,
    };
    for (now, why) in HALTS {
        let halt = Some(Halt {
            now,
            why,
            count: HaltCount::Jobs(1),
        });
        let code = if why == HaltWhy::Fail { 1 } else { 0 };
        let stop = stopped(now.then_some(Stop::NOW));
        // The store has the end that halts the batch, and may have the halt itself.
        for records in [
            in_the_store(halt, None, code),
            in_the_store(halt, Some(stop.clone()), code),
            in_the_store(None, Some(stop), code),
        ] {
            let mut s = script();
            s.scheduler = s.scheduler.durable(Duration::from_secs(600));
            let mut said = s.restore(records);
            for message in [s.agent(1, "a.x", 9), s.agent(2, "b.x", 9), s.pass(700)] {
                said.push_str(&message);
            }
            assert!(!said.contains("< run"), "{now} {why:?}: {said}");
        }
    }
}
