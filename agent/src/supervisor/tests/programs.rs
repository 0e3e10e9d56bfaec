//! Engines of another version than their agent.

use super::*;
use mezcal_common::message::agent::TELLS_ENGINES;

impl Script {
    fn meet(&mut self, version: u16) -> String {
        let (lease, hello_sent) = (Some(LEASE), self.now);
        self.event(Event::Welcomed {
            version,
            store: StoreId(1),
            lease,
            first_engine: EngineId(40),
            hello_sent,
        })
    }

    /// An engine of this version is heard for the first time.
    fn engine(&mut self, engine: u16, version: &str, running: Option<AttemptId>) -> String {
        // An engine that is too old says no version.
        let mut said = Vec::new();
        if !version.is_empty() {
            said.push(self.event(Event::Runs(EngineIndex(engine), version.into())));
        }
        said.push(self.ready(engine, running));
        said.retain(|lines| !lines.is_empty());
        without_leases(&said.join("\n"))
    }

    fn kept(&mut self, through: u64) -> String {
        without_leases(&self.event(Event::Coordinator(ToAgent::Acknowledge { through })))
    }
}

fn without_leases(trace: &str) -> String {
    trace
        .lines()
        .filter(|line| !line.contains(" < lease until "))
        .collect::<Vec<_>>()
        .join("\n")
}

/// An agent of 0.2.0 with two engines of its own.
fn upgraded() -> Script {
    let mut s = unheard();
    s.supervisor = s.supervisor.of_version("0.2.0");
    s.meet(TELLS_ENGINES);
    s
}

#[test]
fn old_engines_take_no_job_once_idle_and_are_replaced_when_the_last_has_ended() {
    let mut s = upgraded();
    s.engine(0, "", Some(attempt(5)));
    insta::assert_snapshot!(s.engine(1, "", None), @r#"
    inventory: queued [] running [5.1] unacknowledged []
    Engines { versions: [("", 2)], replacing: [] }
    "#);
    assert_eq!(
        s.run(&[6]).lines().last(),
        Some("report #1 6.1 returned"),
        "one that was on its way runs elsewhere"
    );
    assert_eq!(s.kept(1), "");
    insta::assert_snapshot!(s.finished(0, 5, Duration::from_secs(1)), @"report #2 5.1 exited");
    insta::assert_snapshot!(s.kept(2), @"keeper of set 0 < stop");
    assert!(s.supervisor.replaces_engines());
    assert!(
        !s.pass(Duration::from_secs(5)).contains("stop"),
        "it is said once"
    );
}

#[test]
fn what_an_engine_has_said_is_acknowledged_before_it_is_replaced() {
    let mut s = upgraded();
    s.engine(0, "0.1.9", Some(attempt(5)));
    s.engine(1, "0.1.9", None);
    s.finished(0, 5, Duration::from_secs(1));
    s.event(Event::Disconnected);
    assert!(
        !s.supervisor.replaces_engines(),
        "nobody has the outcome but these two"
    );
    s.meet(TELLS_ENGINES);
    assert!(!s.supervisor.replaces_engines());
    assert!(s.kept(1).contains("keeper of set 0 < stop"));
}

#[test]
fn engines_of_the_agents_version_or_a_newer_one_are_left_alone() {
    for version in ["0.2.0", "0.3.0"] {
        let mut s = upgraded();
        s.engine(0, version, None);
        let said = s.engine(1, version, None);
        assert!(
            said.contains(&format!("versions: [(\"{version}\", 2)]"))
                && said.contains("pull to 2, 2 idle"),
            "{said}"
        );
        assert!(!s.supervisor.replaces_engines());
    }
}

#[test]
fn what_is_replaced_once_is_used_as_it_comes_back() {
    let mut s = upgraded();
    (0..2).for_each(|engine| drop(s.engine(engine, "", None)));
    assert!(s.supervisor.replaces_engines());
    // Another process starts the engines, from a program that is as old.
    let carried = s.supervisor.leave();
    s.supervisor = Supervisor::new(2, None)
        .carrying(carried)
        .of_version("0.2.0");
    s.meet(TELLS_ENGINES);
    s.engine(0, "", None);
    assert!(s.engine(1, "", None).contains("pull to 2, 2 idle"));
    assert!(!s.supervisor.replaces_engines());
}

/// An agent of 0.2.0 that serves two users: the first one's engines are old.
fn upgraded_for_users(version: u16) -> Script {
    let mut s = shared();
    s.supervisor = s.supervisor.of_version("0.2.0");
    s.meet(version);
    s.engine(0, "", None);
    s.engine(1, "", Some(of(1, 5)));
    s.engine(2, "0.2.0", None);
    s.engine(3, "0.2.0", None);
    s.event(Event::Coordinator(ToAgent::Known {
        user: "okazaki".into(),
        attempts: vec![(of(1, 5), 1)],
    }));
    s.contexts();
    s
}

#[test]
fn users_get_new_engines_one_by_one_and_nobody_else_is_disturbed() {
    let mut s = upgraded_for_users(TELLS_ENGINES);
    insta::assert_snapshot!(s.place(&[of(1, 6), of(2, 1)]), @"
    2 < run 1.1 as engine 40 with context
    report #1 6.1 returned
    pull to 2, 0 idle
    ");
    insta::assert_snapshot!(s.says_over(1, of(1, 5)), @"
    report #2 5.1 exited
    pull to 3, 1 idle
    ");
    insta::assert_snapshot!(s.kept(2), @"
    keeper of set 0 < stop
    served: sato; not okazaki: their engines are being replaced by those of another version
    ");
    insta::assert_snapshot!(s.event(Event::KeeperGone { set: 0, why: "their keeper is gone".into() }), @r#"Engines { versions: [("0.2.0", 2)], replacing: ["okazaki"] }"#);
    s.event(Event::KeeperHere {
        user: "okazaki".into(),
    });
    s.engine(0, "0.2.0", None);
    s.engine(1, "0.2.0", None);
    insta::assert_snapshot!(without_leases(&s.pass(Duration::from_secs(1))), @r#"
    inventory of okazaki: queued [] running [] unacknowledged []
    served: okazaki sato
    heartbeat
    Engines { versions: [("0.2.0", 4)], replacing: [] }
    report #3 1.1 started on 0
    "#);
    let run = s.place(&[of(1, 6)]);
    assert!(run.contains("1 < run 6.1"), "{run}");
}

#[test]
fn a_coordinator_that_cannot_be_told_is_refused_nothing() {
    let mut s = upgraded_for_users(SERVES_USERS);
    let run = s.place(&[of(1, 6)]);
    assert!(run.contains("0 < run 6.1"), "{run}");
    s.says_over(1, of(1, 5));
    s.says_over(0, of(1, 6));
    let said = s.kept(2);
    assert!(
        said.contains("keeper of set 0 < stop")
            && said.contains("served: sato; not okazaki: their engines are being replaced"),
        "{said}"
    );
}
