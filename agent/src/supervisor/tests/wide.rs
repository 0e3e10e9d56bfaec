//! Attempts that take several slots.

use super::*;

#[test]
fn a_wide_attempt_waits_for_all_its_slots_and_is_not_overtaken() {
    let mut s = script();
    let wide = |job, slots| Placement {
        attempt: attempt(job),
        spec: Bytes::new(),
        slots,
    };
    s.run(&[1]);
    insta::assert_snapshot!(s.event(Event::Coordinator(ToAgent::Run(vec![wide(2, 2), wide(3, 1)]))), @"pull to 4, 0 idle");
    insta::assert_snapshot!(s.finished(0, 1, Duration::from_secs(1)), @"0 < run 2.1 as engine 40");
    insta::assert_snapshot!(s.finished(0, 2, Duration::from_secs(1)), @"
    0 < run 3.1 as engine 40
    report #1 1.1 exited, #2 2.1 exited
    pull to 5, 1 idle
    ");
}

#[test]
fn a_wide_attempt_keeps_its_slots_when_the_agent_is_restarted() {
    let mut s = unheard();
    s.welcome();
    s.event(Event::Engine(
        EngineIndex(0),
        FromEngine::Ready {
            running: Some((attempt(1), 2)),
        },
    ));
    insta::assert_snapshot!(s.ready(1, None), @"
    1 < lease until Some(1600s)
    inventory: queued [] running [1.1] unacknowledged []
    ");
    insta::assert_snapshot!(s.run(&[2]), @"pull to 1, 0 idle");
}
