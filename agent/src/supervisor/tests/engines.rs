//! Engines that die, do not start, or have lost their link.

use super::*;

#[test]
fn a_dead_engine_loses_its_attempt_and_comes_back() {
    let mut s = script();
    s.run(&[1]);
    insta::assert_snapshot!(s.event(Event::EngineEnded { engine: EngineIndex(0), attempt: None, ended: Ended::Lost, killed: 2, survivors: 0 }), @"report #1 1.1 lost");
    insta::assert_snapshot!(s.ready(0, None), @r"
    0 < lease until Some(1600s)
    pull to 3, 2 idle
    ");
}

#[test]
fn a_host_takes_work_on_the_engines_that_start_and_says_what_is_wrong_with_the_others() {
    let mut s = unheard();
    s.welcome_by(ENGINES_FAIL);
    assert_eq!(
        s.ready(0, None),
        "0 < lease until Some(1600s)",
        "what the other one has is not known"
    );
    // The engine is dead, and nothing waits for the next one, however often that dies.
    let known = "inventory: queued [] running [] unacknowledged []\npull to 1, 1 idle";
    assert_eq!(s.fails(1), known);
    s.pass(Duration::ZERO);
    assert_eq!(s.event(Event::LinkMade(EngineIndex(1))) + &s.fails(1), "");
    assert_eq!(
        s.run(&[1, 2]),
        "0 < run 1.1 as engine 40 with context\npull to 2, 0 idle"
    );
    s.pass(HEARD_WITHIN - Duration::from_secs(1));
    assert!(
        !s.pass(Duration::from_millis(999)).contains("engines"),
        "one that dies now and then is no news"
    );
    let told = s.pass(Duration::from_millis(1));
    assert_eq!(
        told,
        "UsableEngines { ready: 1, failing: Some(\"1 of 2 engines do not start: no room\") }"
    );
    assert_eq!(s.fails(1), "", "it is said once");
    // When an engine starts after all, it takes the attempts that wait.
    let back = s.ready(1, None);
    assert!(
        back.contains("UsableEngines { ready: 2, failing: None }") && back.contains("1 < run 2.1"),
        "{back}"
    );
}

#[test]
fn a_host_without_any_engine_says_so_and_what_it_does_not_have() {
    // A coordinator that does not understand that hears nothing, and does not take the host for
    // ready.
    for (version, first, later) in [
        (ENGINES_FAIL - 1, "", false),
        (ENGINES_FAIL, "inventory", true),
    ] {
        let mut s = unheard();
        s.welcome_by(version);
        s.fails(0);
        let known = s.fails(1);
        assert!(
            known.starts_with(first) && known.is_empty() == first.is_empty(),
            "{known}"
        );
        let told = s.pass(HEARD_WITHIN);
        assert_eq!(
            told.contains("ready: 0, failing: Some(\"2 of 2 engines do not start: no room\")"),
            later,
            "{told}"
        );
    }
}

#[test]
fn an_engine_that_may_have_something_is_waited_for() {
    let mut s = unheard();
    s.welcome_by(ENGINES_FAIL);
    s.ready(0, None);
    // A process of the engine is still alive, and its attempt is in no inventory.
    let end = |survivors| Event::EngineEnded {
        engine: EngineIndex(1),
        attempt: None,
        ended: Ended::Lost,
        killed: 0,
        survivors,
    };
    s.event(end(0));
    s.event(Event::Disconnected);
    s.ready(1, Some(attempt(7)));
    s.event(Event::LinkLost(EngineIndex(1)));
    assert!(
        !s.welcome_by(ENGINES_FAIL).contains("inventory"),
        "its successor has been heard since, and may run that"
    );
    assert!(s.event(end(0)).contains("inventory"));
}

#[test]
fn a_broken_link_is_made_again_and_the_attempt_of_its_engine_has_an_end() {
    let mut s = script();
    s.run(&[1, 2]);
    s.pass(Duration::from_millis(200));
    s.event(Event::Coordinator(ToAgent::Acknowledge { through: 2 }));
    assert_eq!(
        s.event(Event::LinkLost(EngineIndex(0))),
        "",
        "its end may be on its way"
    );
    s.event(Event::LinkLost(EngineIndex(1)));
    insta::assert_snapshot!(s.pass(Duration::from_millis(250)), @"
    keeper of set 0 < link 0 again
    keeper of set 0 < link 1 again
    ");
    let cancel = ToAgent::Cancel {
        attempts: vec![attempt(1)],
        stop: Stop::after(Duration::from_secs(2)),
    };
    s.event(Event::Coordinator(cancel));
    insta::assert_snapshot!(s.ready(0, Some(attempt(1))), @"
    0 < lease until Some(1600s)
    keeper < 0 kills 1.1 within 2s
    0 < cancel 1.1, grace 2s
    ");
    insta::assert_snapshot!(s.ready(1, None), @"
    1 < lease until Some(1600s)
    report #3 2.1 lost
    pull to 3, 1 idle
    ");
}

/// The engine reads an attempt over the new link after it has said that it has none: that word must
/// not end the attempt.
#[test]
fn an_engine_with_another_link_is_given_nothing_until_it_has_been_heard_over_that() {
    let mut s = script();
    assert_eq!(
        s.event(Event::LinkMade(EngineIndex(0))),
        "pull to 2, 1 idle"
    );
    let said = s.run(&[1, 2]);
    assert!(
        said.contains("1 < run 1.1") && !said.contains("0 < run"),
        "{said}"
    );
    let said = s.ready(0, None);
    assert!(
        said.contains("0 < run 2.1") && !said.contains("lost"),
        "{said}"
    );
    // An attempt that was given over the old link is still its own.
    s.event(Event::LinkMade(EngineIndex(0)));
    let said = s.ready(0, Some(attempt(2)));
    assert!(!said.contains("report") && !said.contains("run"), "{said}");
}

impl Script {
    /// The engine has died once more, and its keeper has said so and why.
    fn fails(&mut self, engine: u16) -> String {
        let (engine, attempt, ended) = (EngineIndex(engine), None, Ended::Lost);
        let words = self.event(Event::EngineFails {
            engine,
            why: "no room".to_owned(),
        });
        words
            + &self.event(Event::EngineEnded {
                engine,
                attempt,
                ended,
                killed: 0,
                survivors: 0,
            })
    }
}
