//! Hosts that are being drained.

use super::*;

// A single story, which is longer than a function should be.
#[test]
fn a_deadline_of_a_drain_holds_across_restarts_and_for_hosts_that_come_back_later() {
    let mut s = script();
    for (host, first) in [("a.x", 0), ("b.x", 2)] {
        s.scheduler.replay(
            Record::Engines {
                host: host.into(),
                first: EngineId(first),
                slots: 2,
            },
            s.now,
        );
        let (reason, deadline) = (Some("new disks".into()), Some(Duration::from_secs(600)));
        s.scheduler.replay(
            Record::Drained {
                host: host.into(),
                reason,
                deadline,
            },
            s.now,
        );
    }
    s.replay(stored(terms(1), 0, vec![any_job(1), any_job(2)]));
    let earlier = |job| AttemptId {
        epoch: Epoch(6),
        ..attempt(1, job, 1)
    };
    for (host, job) in [("a.x", 1), ("b.x", 2)] {
        s.scheduler.replay(
            Record::Placed {
                host: host.into(),
                lease: Some(LEASE),
                attempts: vec![earlier(job)],
            },
            s.now,
        );
    }
    s.scheduler.restored(s.now);
    s.hello(1, "a.x", 1);
    assert!(!s.inventory(1, &[earlier(1)]).contains("evict"));
    assert_eq!(s.pass(599), "");
    assert_eq!(s.pass(1), "1 < evict 1.1");
    s.hello(2, "b.x", 1);
    let said = s.inventory(2, &[earlier(2)]);
    assert!(said.contains("2 < evict 2.1"), "{said}");
    // A restarted agent does not know why the attempt ended: nobody has cancelled it.
    let cancelled = Outcome::never_ran(Ended::Cancelled, None);
    assert_eq!(s.report(1, earlier(1), cancelled), "1 < acknowledge 1");
    let said = s.agent(9, "c.x", 1);
    assert!(
        said.contains("9 < run 1/1.2"),
        "it runs again elsewhere: {said}"
    );
    // Without the drain nothing is evicted.
    s.scheduler
        .drain(&["b.x".into()], None, None, s.now)
        .expect("a known host");
    assert_eq!(s.pass(3), "");
    s.hello(3, "b.x", 1);
    assert!(!s.inventory(3, &[earlier(2)]).contains("evict"));
}
