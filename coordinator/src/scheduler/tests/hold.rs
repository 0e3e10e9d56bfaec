//! Stores that were restored from a copy, and the numbers of their generations.

use super::*;
use mezcal_common::model::clock::WallTime;

fn restored_once() -> Generation {
    Generation::default()
        .next(Generation::default(), WallTime(1_700_000_000_000_000))
        .expect("one of few")
}

/// A scheduler with a batch of two jobs from a copy, of which the first was placed.
fn copied(lease: Duration) -> Script {
    let mut s = script();
    let generation = restored_once();
    s.scheduler = s
        .scheduler
        .of_generation(generation)
        .holding(generation.first_batch(), Some(lease))
        .durable(LEASE);
    // No client looks after the batch for longer than a client may be away.
    let terms = BatchTerms {
        detached: true,
        ..terms(1)
    };
    s.replay(stored(terms, 0, vec![any_job(1), any_job(2)]));
    let attempts = vec![AttemptId {
        epoch: Epoch(6),
        ..attempt(1, 1, 1)
    }];
    s.scheduler.replay(
        Record::Placed {
            host: "a.x".into(),
            lease: Some(LEASE),
            attempts,
        },
        s.now,
    );
    s.scheduler.replay(
        Record::Closed {
            batch: BatchSerial(1),
        },
        s.now,
    );
    s.scheduler.restored(s.now);
    s
}

/// Lets so much time pass while an agent sends heartbeats.
fn beating(s: &mut Script, session: u64, time: Duration) -> String {
    let (end, mut said) = (s.now + time, String::new());
    while s.now < end {
        said += &s.pass(end.since(s.now).as_secs().min(60));
        let heartbeat = ToCoordinator::Heartbeat {
            sent: s.now,
            load: Load::default(),
            clock_offset: None,
        };
        said += &s.event(Event::Agent(SessionId(session), heartbeat));
        said.push('\n');
    }
    said
}

/// The lines of a trace that place attempts or end the hold.
fn runs(trace: &str) -> Vec<&str> {
    trace
        .lines()
        .filter(|line| line.contains("< run ") || line.contains("Released"))
        .collect()
}

#[test]
fn batches_of_a_copy_wait_until_nothing_of_their_original_can_run() {
    let longest = Duration::from_secs(1200);
    let mut s = copied(longest);
    s.trace();
    // Its host does not have the attempt that the copy has: the original may have placed the job
    // elsewhere since.
    let said = s.agent(1, "a.x", 2);
    assert_eq!(runs(&said), Vec::<&str>::new(), "{said}");
    assert!(
        s.scheduler.why(batch(1), "2", s.now).expect("known")[0].contains("restored from a copy")
    );
    // A new batch is not held, and has numbers above all that the original can give out.
    let said = s.submit(2, &[(&[], 0, 0)]);
    assert_eq!(runs(&said), ["1 < run 67108864/1.10000001"], "{said}");
    let said = beating(&mut s, 1, longest + FENCE_MARGIN - Duration::from_secs(1));
    assert_eq!(runs(&said), Vec::<&str>::new(), "{said}");
    let said = s.pass(1);
    assert_eq!(
        runs(&said)[0],
        "persist Released",
        "before anything that depends on it: {said}"
    );
    assert!(said.contains("< run 1/"), "{said}");
}

#[test]
fn attempts_of_a_copy_have_higher_numbers_and_are_counted_on() {
    let mut s = copied(Duration::from_secs(15));
    s.agent(1, "a.x", 1);
    // Job 1 was placed once before the copy was made; job 2 was not.
    let said = beating(&mut s, 1, LEASE + FENCE_MARGIN);
    let first = runs(&said)
        .into_iter()
        .find(|line| line.contains("< run "))
        .expect("one runs")
        .to_owned();
    assert!(
        first.contains("2.10000001") || first.contains("1.10000002"),
        "{said}"
    );
}

#[test]
fn a_retry_waits_no_longer_in_a_later_generation() {
    let mut s = script();
    s.scheduler = s.scheduler.of_generation(restored_once());
    s.open(1);
    let jobs = vec![Submission {
        retries: 2,
        retry_delay: Duration::from_secs(10),
        ..any_job(1)
    }];
    s.add(1, vec![], jobs);
    let said = s.agent(1, "a.x", 1);
    assert_eq!(runs(&said), ["1 < run 67108864/1.10000001"]);
    s.report(1, attempt(67_108_864, 1, 10_000_001), exited(1));
    s.pull(1, 2, 1);
    assert_eq!(runs(&s.pass(9)), Vec::<&str>::new());
    assert_eq!(
        runs(&s.pass(1)),
        ["1 < run 67108864/1.10000002"],
        "after ten seconds, as after any first attempt"
    );
    s.report(1, attempt(67_108_864, 1, 10_000_002), exited(1));
    s.pull(1, 3, 1);
    assert_eq!(runs(&s.pass(19)), Vec::<&str>::new());
    assert_eq!(
        runs(&s.pass(1)),
        ["1 < run 67108864/1.10000003"],
        "the pause doubles"
    );
    let said = s.report(1, attempt(67_108_864, 1, 10_000_003), exited(1));
    assert!(
        said.contains("result 1.10000003 exited"),
        "two retries are two retries: {said}"
    );
}

#[test]
fn an_agent_hears_of_a_generation_before_anything_else_if_it_knows_what_that_is() {
    let mut s = script();
    s.scheduler = s.scheduler.of_generation(restored_once());
    let hello = |versions| Hello {
        versions,
        slots: 2,
        ..Host::of_earlier_life("a.x".into(), 0, BootInstant::default())
            .hello()
            .clone()
    };
    let mut greet = |session, versions| {
        s.event(Event::AgentHello {
            session: SessionId(session),
            name: format!("a{session}.x"),
            hello: hello(versions),
        })
    };
    let said = greet(1, (1, 2));
    let first = said
        .lines()
        .find(|line| line.starts_with("1 <"))
        .expect("it is told something");
    assert_eq!(
        first, "1 < restored on 2023-11-14T22:13:20Z, restore 1",
        "{said}"
    );
    assert!(
        !greet(2, (1, 1)).contains("restored on"),
        "those of the first version do not"
    );
    let generation = restored_once();
    assert!(
        Effect::ToAgent(SessionId(1), ToAgent::Generation { generation }).overtakes_the_store(),
        "else a welcome that waits for nothing would come before it"
    );
    // An agent is not told that a store is an original either.
    let mut s = script();
    let said = s.event(Event::AgentHello {
        session: SessionId(1),
        name: "a.x".into(),
        hello: hello((1, 2)),
    });
    assert!(!said.contains("restore"), "{said}");
}

#[test]
fn a_cancel_of_what_may_run_for_another_coordinator_is_no_proof() {
    let mut s = copied(Duration::from_secs(1200));
    s.agent(1, "a.x", 2);
    let said = s.event(cancel(Some(8), Duration::ZERO));
    assert!(
        said.contains("request 8 done: 2 jobs, 0 killed, 0 alive, 2 out of reach for 1212s"),
        "{said}"
    );
    let results: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("result "))
        .collect();
    assert!(
        results.len() == 2
            && results
                .iter()
                .all(|line| line.contains("may go on, out of reach")),
        "{said}"
    );
}

#[test]
fn numbers_of_the_next_generation_are_given_to_nobody() {
    let mut s = script();
    s.scheduler.numbers_in_use(restored_once().first_batch());
    let said = s.open_with("okazaki", terms(9));
    assert!(
        said.starts_with("refused: the coordinator has used up the batch numbers"),
        "{said}"
    );
}
