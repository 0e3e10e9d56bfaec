//! Jobs that prefer hosts, on hosts that have been idle for longer than the locality wait.

use super::*;

/// Hosts, preferred hosts, slots and predecessors of a job.
#[derive(Clone, Copy)]
struct Wish {
    host: &'static [&'static str],
    prefer: &'static [&'static str],
    slots: u16,
    after: &'static [u32],
}

const NOTHING: Wish = Wish {
    host: &[],
    prefer: &[],
    slots: 1,
    after: &[],
};

fn near(prefer: &'static [&'static str]) -> Wish {
    Wish { prefer, ..NOTHING }
}

/// Opens batch `n` and submits these jobs; it stays open, as a stream does.
fn submit(s: &mut Script, n: u128, wishes: &[Wish]) -> String {
    s.open(n);
    let mut host_sets: Vec<Vec<String>> = Vec::new();
    let mut set = |names: &[&str]| {
        (!names.is_empty()).then(|| {
            host_sets.push(names.iter().map(ToString::to_string).collect());
            host_sets.len() as u32 - 1
        })
    };
    let jobs = (1..).zip(wishes).map(|(number, wish)| Submission {
        hosts: set(wish.host),
        prefer: set(wish.prefer),
        slots: wish.slots,
        after: wish.after.iter().copied().map(JobNumber).collect(),
        ..any_job(number)
    });
    let jobs = jobs.collect();
    s.add(n, host_sets, jobs)
}

/// Three hosts of two slots each, idle for longer than the locality wait.
fn idle() -> Script {
    let mut s = script();
    for (session, name) in [(1, "a.x"), (2, "b.x"), (3, "c.x")] {
        s.agent(session, name, 2);
    }
    s.pass(4);
    s
}

#[test]
fn jobs_go_to_the_idle_slots_that_they_prefer_however_long_others_have_been_idle() {
    let mut s = idle();
    insta::assert_snapshot!(submit(&mut s, 1, &[near(&["c"]), near(&["b.x"]), near(&["c", "a"]), near(&["nowhere", "b"])]), @r"
    accepted 4
    1 < context of batch 1
    1 < run 1/3.1
    2 < context of batch 1
    2 < run 1/2.1
    3 < context of batch 1
    3 < run 1/1.1
    2 < run 1/4.1
    ");
    insta::assert_snapshot!(submit(&mut s, 2, &[near(&["c"])]), @r"
    accepted 1
    3 < context of batch 2
    3 < run 2/1.1
    ");
}

#[test]
fn what_finds_no_idle_slot_that_it_prefers_takes_another_at_once() {
    let mut s = idle();
    insta::assert_snapshot!(submit(&mut s, 1, &[near(&["c"]); 4]), @r"
    accepted 4
    3 < context of batch 1
    3 < run 1/1.1
    3 < run 1/2.1
    1 < context of batch 1
    1 < run 1/3.1
    2 < context of batch 1
    2 < run 1/4.1
    ");
}

#[test]
fn one_host_is_preferred_by_either_of_its_names() {
    let mut s = idle();
    let wish = Wish {
        host: &["a.x", "c.x"],
        prefer: &["c"],
        ..NOTHING
    };
    let other = Wish {
        host: &["a", "b"],
        prefer: &["b.x", "c.x"],
        ..NOTHING
    };
    insta::assert_snapshot!(submit(&mut s, 1, &[wish, other]), @r"
    accepted 2
    3 < context of batch 1
    3 < run 1/1.1
    2 < context of batch 1
    2 < run 1/2.1
    ");
}

#[test]
fn a_name_of_two_hosts_does_not_bring_a_job_where_it_may_not_run() {
    let mut s = script();
    s.agent(1, "h.a", 2);
    s.agent(2, "b.x", 2);
    s.pass(4);
    let wish = Wish {
        host: &["h.b", "b.x"],
        prefer: &["h"],
        ..NOTHING
    };
    insta::assert_snapshot!(submit(&mut s, 1, &[wish]), @r"
    accepted 1
    2 < context of batch 1
    2 < run 1/1.1
    ");
}

#[test]
fn a_job_of_two_slots_goes_where_both_are_idle() {
    let mut s = idle();
    let wide = |prefer| Wish {
        slots: 2,
        ..near(prefer)
    };
    insta::assert_snapshot!(submit(&mut s, 1, &[near(&["c"]), wide(&["c"]), wide(&["b"])]), @r"
    accepted 3
    3 < context of batch 1
    3 < run 1/2.1
    2 < context of batch 1
    2 < run 1/3.1
    1 < context of batch 1
    1 < run 1/1.1
    ");
}

#[test]
fn what_comes_after_another_goes_to_the_idle_slots_that_it_prefers() {
    let mut s = idle();
    let second = Wish {
        after: &[1],
        ..near(&["c"])
    };
    submit(&mut s, 1, &[near(&["b"]), second]);
    s.pass(60);
    insta::assert_snapshot!(s.report(2, attempt(1, 1, 1), exited(0)), @r"
    result 1.1 exited on b.x, local
    2 < acknowledge 1
    3 < context of batch 1
    3 < run 1/2.1
    ");
}

#[test]
fn hosts_that_cannot_take_it_keep_no_job_from_others() {
    let mut s = idle();
    s.scheduler
        .drain(&["c.x".into()], Some("repair"), None, s.now)
        .expect("a known host");
    insta::assert_snapshot!(submit(&mut s, 1, &[near(&["c"])]), @r"
    accepted 1
    1 < context of batch 1
    1 < run 1/1.1
    ");
}
