//! Hosts that are connected and of no use, or have fewer usable engines than slots.

use super::*;

impl Script {
    fn engines(&mut self, session: u64, ready: u16, failing: Option<&str>) -> String {
        let failing = failing.map(str::to_owned);
        self.event(Event::Agent(
            SessionId(session),
            ToCoordinator::UsableEngines { ready, failing },
        ))
    }

    fn reasons(&self, job: &str) -> String {
        self.scheduler
            .why(batch(1), job, self.now)
            .expect("a job")
            .join("; ")
    }
}

#[test]
fn a_host_of_which_no_engine_starts_counts_as_absent_and_says_why() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.agent(2, "b.x", 2);
    assert_eq!(
        s.engines(2, 0, Some("2 of 2 engines do not start: no room")),
        "fleet 1 agents, 2 engines"
    );
    let waits = s.submit(1, &[(&["b.x"], 0, 0), (&[], 0, 0)]);
    assert!(
        waits.contains("notice: 1 job waits for a host that is not connected: b.x; they end as errors after 0:01:00"),
        "{waits}"
    );
    assert!(
        waits.contains("1 < run 1/2.1") && !waits.contains("2 < run"),
        "{waits}"
    );
    assert_eq!(
        s.reasons("1"),
        "job 1 waits; b.x: is failing: 2 of 2 engines do not start: no room; 1 hosts are not among \
         those that the job requires"
    );
    let failing = s.scheduler.failing_hosts();
    assert_eq!(
        (failing.len(), &*failing[0].name, failing[0].usable),
        (1, "b.x", 0)
    );
    let ready = |s: &Script| {
        s.scheduler
            .host_status(s.now, |_| None)
            .iter()
            .map(|host| host.ready)
            .collect::<Vec<_>>()
    };
    assert_eq!(ready(&s), [true, false]);
    let ended = s.pass(60);
    let word = "none of its hosts was ready within the host timeout: b.x (b.x is failing: 2 of 2 engines do not start: no room)";
    assert!(ended.contains(word), "{ended}");
    // When its engines start again the host is present.
    assert_eq!(s.engines(2, 2, None), "fleet 2 agents, 4 engines");
    assert_eq!(
        (ready(&s), s.scheduler.failing_hosts().len()),
        (vec![true, true], 0)
    );
    assert!(
        s.submit(2, &[(&["b.x"], 0, 0)]).contains("2 < run 2/1.1"),
        "it gets work again"
    );
}

#[test]
fn a_job_whose_host_begins_to_fail_does_not_wait_for_ever() {
    let mut s = script();
    s.agent(1, "a.x", 0);
    s.submit(1, &[(&["a.x"], 0, 0)]);
    assert_eq!(s.pass(600), "", "it is only busy");
    let said = s.engines(1, 0, Some("2 of 2 engines do not start: no room"));
    assert!(said.contains("notice: 1 job waits"), "{said}");
    assert!(s.pass(60).contains("no_host"));
}

#[test]
fn a_host_has_the_slots_that_its_engines_start_for() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    assert_eq!(
        s.engines(1, 1, Some("1 of 2 engines do not start: no room")),
        "fleet 1 agents, 1 engines"
    );
    s.pull(1, 1, 1);
    s.open(1);
    let jobs = vec![
        Submission {
            slots: 2,
            ..any_job(1)
        },
        any_job(2),
    ];
    let said = s.add(1, vec![], jobs);
    assert!(
        said.contains("2 slots") && said.contains("1 < run 1/2.1"),
        "{said}"
    );
    assert_eq!(
        s.reasons("1"),
        "job 1 waits; a.x: has 1 slots, and the job takes 2 (1 of 2 engines do not start: no room)"
    );
}

#[test]
fn a_host_that_never_says_what_it_has_counts_as_absent_after_a_while() {
    let mut s = script();
    s.hello(1, "a.x", 1);
    let waits = s.submit(1, &[(&["a.x"], 0, 0)]);
    assert!(!waits.contains("notice"), "{waits}");
    assert_eq!(s.reasons("1"), "job 1 waits; a.x: has just connected");
    let late = s.pass(20);
    assert!(
        late.contains("notice: 1 job waits for a host that is not connected: a.x"),
        "{late}"
    );
    assert_eq!(
        s.reasons("1"),
        "job 1 waits; a.x: is failing: its agent has not said what runs there: its engines do not answer"
    );
    // The host is present when its inventory arrives, however late.
    assert!(s.inventory(1, &[]).contains("fleet 1 agents, 2 engines"));
    assert_eq!(s.pass(60), "");
    assert!(s.pull(1, 1, 1).contains("1 < run 1/1.1"));
    // The next session has the full time again.
    s.event(Event::AgentGone(SessionId(1)));
    s.hello(2, "a.x", 1);
    assert!(!s.reasons("1").contains("failing"));
    assert!(s.scheduler.failing_hosts().is_empty());
}
