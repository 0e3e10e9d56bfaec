//! Users: their priorities and shares, and the hosts that run their jobs.

use super::*;

/// The jobs in the order in which they run on one slot that is asked for again and again.
fn order_of(s: &mut Script, jobs: u64) -> Vec<String> {
    s.hello(1, "a.x", 1);
    s.inventory(1, &[]);
    let ran = (1..=jobs).flat_map(|credit| {
        let said = s.pull(1, credit, 1);
        said.lines()
            .filter_map(|line| Some(line.split_once("< run ")?.1.to_owned()))
            .collect::<Vec<_>>()
    });
    ran.collect()
}

#[test]
fn a_priority_above_the_limit_goes_before_its_users_own_jobs_and_not_before_others() {
    let mut s = script();
    of_user(&mut s, 1, "hog", 2, 0);
    of_user(&mut s, 2, "hog", 2, i32::MAX);
    of_user(&mut s, 3, "sato", 2, 0);
    assert_eq!(
        order_of(&mut s, 6),
        ["2/1.1", "3/1.1", "2/2.1", "3/2.1", "1/1.1", "1/2.1"],
        "they share equally"
    );
    // Priorities up to the limit count among users, and all users may lower theirs.
    let mut s = script();
    s.scheduler.set_max_priority(5, &[]);
    of_user(&mut s, 1, "ito", 1, -1);
    of_user(&mut s, 2, "sato", 2, 0);
    of_user(&mut s, 3, "hog", 2, 5);
    of_user(&mut s, 4, "mori", 1, i32::MAX);
    assert_eq!(
        order_of(&mut s, 6),
        ["3/1.1", "4/1.1", "3/2.1", "2/1.1", "2/2.1", "1/1.1"],
        "none counts for more than 5"
    );
}

#[test]
fn who_has_nothing_running_is_served_at_once_and_an_admin_before_everybody() {
    let mut s = script();
    s.scheduler.set_max_priority(0, &["root".into()]);
    s.agent(1, "a.x", 2);
    of_user(&mut s, 1, "hog", 9, i32::MAX);
    // A batch like one of `exec`, with the highest priority.
    of_user(&mut s, 2, "sato", 1, i32::MAX);
    of_user(&mut s, 3, "root", 2, i32::MAX);
    of_user(&mut s, 4, "ito", 1, 0);
    let runs = |said: String| {
        said.lines()
            .filter_map(|line| Some(line.split_once("< run ")?.1.to_owned()))
            .collect::<Vec<_>>()
    };
    assert_eq!(runs(s.pull(1, 4, 2)), ["3/1.1 3/2.1"]);
    assert_eq!(runs(s.pull(1, 6, 2)), ["2/1.1", "4/1.1"]);
    assert_eq!(s.pull(1, 7, 1), "1 < run 1/3.1");
}

#[test]
fn users_share_equally_however_much_each_has_waiting() {
    let mut s = script();
    s.submit(1, &[(NOWHERE, 0, 0); 20]);
    let terms = terms(2);
    s.open_with("sato", terms);
    let jobs = (1..=6)
        .map(|n| Submission {
            priority: i32::from(n == 6),
            ..any_job(n)
        })
        .collect();
    s.add(2, vec![], jobs);
    // Priority goes first; then the user with fewer running.
    let placed = s.agent(1, "a.x", 7);
    assert!(
        placed.contains("run 2/6.1") && placed.contains("1/1.1"),
        "{placed}"
    );
    let count = |s: &Script, user: u32| s.scheduler.users.slots(user);
    assert_eq!((count(&s, 0), count(&s, 1)), (4, 3));
    // A free slot goes to the user who has fewer running.
    let next = s.report(1, attempt(2, 6, 1), exited(0)) + &s.pull(1, 8, 0);
    assert!(next.contains("run 2/"), "{next}");
}

#[test]
fn a_host_gets_jobs_of_the_users_whose_engines_are_there() {
    let mut s = script();
    for (session, name, users) in [
        (1, "a.x", vec!["sato".to_owned()]),
        (2, "b.x", vec!["okazaki".to_owned(), "sato".to_owned()]),
    ] {
        s.hello_for(session, name, 1, Some(users));
        s.inventory(session, &[]);
        s.pull(session, 1, 1);
    }
    insta::assert_snapshot!(s.submit(1, &[(NOWHERE, 0, 0); 2]), @"
    accepted 2
    2 < context of batch 1
    2 < run 1/1.1
    ");
    let why = s
        .scheduler
        .why(batch(1), "2", s.now)
        .expect("a job")
        .join("\n");
    insta::assert_snapshot!(why, @"
    job 2 waits
    a.x: runs no jobs of okazaki: root has not enabled mezcal-engines@okazaki.service there
    b.x: all 2 slots are busy
    ");
}

#[test]
fn a_user_whose_engines_are_replaced_gets_no_jobs_there_meanwhile_and_is_not_alarmed() {
    let mut s = script();
    let served = |users: &[&str], unheard: &[&str]| ToCoordinator::Served {
        users: users.iter().map(|user| user.to_string()).collect(),
        unheard: unheard
            .iter()
            .map(|user| (user.to_string(), "their engines are being replaced".into()))
            .collect(),
        containment: Containment::Subreaper,
        clock_offset: None,
    };
    let engines = |replacing: &[&str]| ToCoordinator::Engines {
        versions: vec![(String::new(), 2)],
        replacing: replacing.iter().map(|user| user.to_string()).collect(),
    };
    let say = |s: &mut Script, message| s.event(Event::Agent(SessionId(1), message));
    s.hello_for(1, "a.x", 1, Some(vec!["okazaki".into()]));
    say(&mut s, served(&["okazaki"], &[]));
    // An agent cannot hold back the jobs of a user whom it does not serve.
    say(&mut s, engines(&["okazaki", "sato"]));
    s.pull(1, 2, 2);
    assert_eq!(s.scheduler.standings()[0].engines, [(String::new(), 2)]);
    assert_eq!(
        s.submit(1, &[(NOWHERE, 0, 0), (&["a.x"], 0, 0)]),
        "accepted 2"
    );
    let why = s
        .scheduler
        .why(batch(1), "1", s.now)
        .expect("a job")
        .join("\n");
    insta::assert_snapshot!(why, @"
    job 1 waits
    a.x: takes no jobs of okazaki until those that run there have ended: the user's engines are of another version than its agent, and are replaced then
    ");
    // The user's keeper ends, and the next one starts.
    assert_eq!(say(&mut s, served(&[], &["okazaki"])), "");
    assert_eq!(say(&mut s, engines(&["okazaki"])), "");
    assert_eq!(s.pass(70), "", "no host timeout passes meanwhile");
    assert_eq!(say(&mut s, served(&["okazaki"], &[])), "");
    insta::assert_snapshot!(say(&mut s, engines(&[])), @"
    1 < context of batch 1
    1 < run 1/2.1
    1 < run 1/1.1
    ");
}

#[test]
fn a_user_whose_replaced_engines_do_not_come_back_hears_so() {
    let mut s = script();
    s.hello_for(1, "a.x", 1, Some(vec!["okazaki".into()]));
    let engines = |replacing: &[&str]| ToCoordinator::Engines {
        versions: vec![],
        replacing: replacing.iter().map(|user| user.to_string()).collect(),
    };
    let served = |users: &[&str]| ToCoordinator::Served {
        users: users.iter().map(|user| user.to_string()).collect(),
        unheard: vec![("okazaki".into(), "their engines are being replaced".into())],
        containment: Containment::Subreaper,
        clock_offset: None,
    };
    s.event(Event::Agent(SessionId(1), served(&["okazaki"])));
    s.event(Event::Agent(SessionId(1), engines(&["okazaki"])));
    s.event(Event::Agent(SessionId(1), served(&[])));
    assert_eq!(s.submit(1, &[(NOWHERE, 0, 0)]), "accepted 1");
    insta::assert_snapshot!(s.event(Event::Agent(SessionId(1), engines(&[]))), @"notice: 1 job waits for a host that runs jobs of okazaki (root enables mezcal-engines@okazaki.service there); they end as errors after 0:01:00");
}

#[test]
fn jobs_of_a_user_whom_no_host_serves_are_said_and_end_as_errors() {
    let mut s = script();
    s.hello_for(1, "a.x", 1, Some(vec!["sato".into()]));
    s.inventory(1, &[]);
    s.pull(1, 2, 2);
    insta::assert_snapshot!(s.submit(1, &[(NOWHERE, 0, 0), (&["a.x"], 0, 0)]), @"
    accepted 2
    notice: 1 job waits for a host that runs jobs of okazaki (root enables mezcal-engines@okazaki.service there); they end as errors after 0:01:00
    notice: 1 job waits for a host that runs jobs of okazaki (root enables mezcal-engines@okazaki.service there); they end as errors after 0:01:00
    ");
    // Another host that serves the user takes the jobs that it may; the other job waits.
    s.hello_for(2, "b.x", 1, Some(vec!["okazaki".into()]));
    s.inventory(2, &[]);
    insta::assert_snapshot!(s.pull(2, 2, 2), @"
    2 < context of batch 1
    2 < run 1/1.1
    ");
    insta::assert_snapshot!(s.pass(60), @"result 2.0 no_host: none of the hosts that may run it and \
        were connected within the host timeout runs jobs of okazaki (root enables \
        mezcal-engines@okazaki.service there)");
}

#[test]
fn an_agent_reports_on_its_own_attempts_and_on_nobody_elses() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(NOWHERE, 0, 0)]);
    s.agent(2, "b.x", 1);
    let said = s.report(2, attempt(1, 1, 1), exited(0));
    assert!(!said.contains("result"), "{said}");
    let absent = ToCoordinator::Absent {
        attempts: vec![attempt(1, 1, 1)],
    };
    let said = s.event(Event::Agent(SessionId(2), absent));
    assert!(!said.contains("run") && !said.contains("result"), "{said}");
    s.seq = 0;
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 1), exited(3)), @"
    result 1.1 exited on a.x
    batch 1 done
    1 < forget batch 1
    1 < acknowledge 1
    ");
}

#[test]
fn what_one_users_engines_say_counts_for_that_users_jobs_only() {
    let mut s = script();
    s.host_of(1, "a.x", &["okazaki", "sato"]);
    let placed = s.submit(1, &[(NOWHERE, 0, 0); 2]);
    assert!(
        placed.contains("1/1.1") && placed.contains("1/2.1"),
        "{placed}"
    );
    s.hello_for(2, "a.x", 1, Some(vec!["okazaki".into(), "sato".into()]));
    let (first, second) = (attempt(1, 1, 1), attempt(1, 2, 1));
    insta::assert_snapshot!(s.has(2, "okazaki", &[first, second], &[]), @"2 < known of okazaki: 1.1 takes 1 2.1 takes 1");
    // Sato can neither claim nor end these attempts, and a claim of sato's does not kill them.
    assert_eq!(s.has(2, "sato", &[first], &[second]), "2 < known of sato:");
    insta::assert_snapshot!(s.served(2, &["okazaki", "sato"], &[]), @"fleet 1 agents, 2 engines");
    insta::assert_snapshot!(s.report_of("sato", 2, first, exited(0)), @"2 < acknowledge 1");
    insta::assert_snapshot!(s.report_of("okazaki", 2, first, exited(0)), @"
    result 1.1 exited on a.x
    2 < acknowledge 2
    ");
    // A claim of sato's does not keep a job of okazaki's from being missed either.
    s.hello_for(3, "a.x", 1, Some(vec!["okazaki".into(), "sato".into()]));
    s.has(3, "sato", &[second], &[]);
    insta::assert_snapshot!(s.has(3, "okazaki", &[], &[]), @"3 < known of okazaki:");
    let why = s
        .scheduler
        .why(batch(1), "2", s.now)
        .expect("a job")
        .join("\n");
    assert!(why.starts_with("job 2 waits"), "{why}");
}

#[test]
fn of_users_who_are_not_heard_nothing_is_lost_before_their_leases_are_over() {
    let mut s = script();
    s.host_of(1, "a.x", &["okazaki", "sato"]);
    s.submit(1, &[(NOWHERE, 0, 0)]);
    s.hello_for(2, "a.x", 1, Some(vec!["okazaki".into(), "sato".into()]));
    s.has(2, "sato", &[], &[]);
    assert_eq!(
        s.served(2, &["sato"], &["okazaki"]),
        "fleet 1 agents, 2 engines",
        "its absence is no proof"
    );
    s.host_of(3, "b.x", &["okazaki"]);
    let beat = |sent| ToCoordinator::Heartbeat {
        sent,
        load: Load::default(),
        clock_offset: None,
    };
    let (begin, mut said) = (s.now, String::new());
    while said.is_empty() {
        for session in [2, 3] {
            s.event(Event::Agent(SessionId(session), beat(s.now)));
        }
        said = s.pass(4);
    }
    assert_eq!(s.now.since(begin), LEASE + FENCE_MARGIN);
    insta::assert_snapshot!(said, @"
    3 < context of batch 1
    3 < run 1/1.2
    ");
    // The host goes on with other users' jobs, and says why.
    s.submit(2, &[(NOWHERE, 0, 0); 3]);
    let why = s
        .scheduler
        .why(batch(2), "3", s.now)
        .expect("a job")
        .join("\n");
    insta::assert_snapshot!(why, @"
    job 3 waits
    a.x: runs no jobs of okazaki at present: their keeper is silent
    b.x: all 2 slots are busy
    ");
}
