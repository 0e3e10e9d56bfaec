//! Which host a name stands for.

use super::*;
use std::collections::BTreeMap;

impl Script {
    /// An idle agent that claims these names for its host, too.
    fn agent_called(&mut self, session: u64, name: &str, aliases: &[&str]) {
        let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
        let (versions, boot_id, program) = ((1, 1), [1; 16], "test".into());
        let hello = Hello {
            versions,
            program,
            keeper: 1,
            boot_id,
            slots: 2,
            aliases,
            cpus: 2,
            memory: 0,
            users: None,
        };
        self.event(Event::AgentHello {
            session: SessionId(session),
            name: name.into(),
            hello,
        });
        self.inventory(session, &[]);
        self.pull(session, 2, 2);
    }

    fn admit(&mut self, aliases: &[(&str, &[&str])]) -> String {
        let written = aliases.iter().map(|(host, names)| {
            (
                (*host).to_owned(),
                names.iter().map(|n| (*n).to_owned()).collect(),
            )
        });
        let aliases =
            Aliases::try_from(written.collect::<BTreeMap<_, _>>()).expect("names of one host each");
        self.scheduler.set_aliases(aliases, self.now);
        self.trace()
    }

    fn why(&self, n: u128) -> String {
        self.scheduler
            .why(batch(n), "1", self.now)
            .expect("a job")
            .join("\n")
    }
}

#[test]
fn a_host_is_called_as_its_certificate_says_and_not_as_its_agent_says() {
    let mut s = script();
    s.agent_called(1, "h2", &["h1", "h3.x"]);
    insta::assert_snapshot!(s.submit(1, &[(&["h1"], 0, 0), (&["h3"], 0, 0), (&["h2"], 0, 0)]), @r"
    accepted 3
    notice: 1 job waits for a host that is not connected: h1; they end as errors after 0:01:00
    notice: 1 job waits for a host that is not connected: h3; they end as errors after 0:01:00
    1 < context of batch 1
    1 < run 1/3.1
    ");
    insta::assert_snapshot!(s.why(1), @r"
    job 1 waits
    h1: has never connected
    1 hosts are not among those that the job requires
    ");
    // The host that is meant has gone: no other host takes its name.
    s.agent_called(2, "h1", &[]);
    s.event(Event::AgentGone(SessionId(2)));
    insta::assert_snapshot!(s.submit(2, &[(&["h1"], 0, 0)]), @r"
    accepted 1
    notice: 1 job waits for a host that is not connected: h1; they end as errors after 0:01:00
    ");
}

#[test]
fn a_name_that_several_hosts_have_stands_for_none_of_them() {
    let mut s = script();
    s.agent(1, "node1.a", 2);
    s.agent(2, "node1.b", 2);
    insta::assert_snapshot!(s.submit(1, &[(&["node1"], 0, 0), (&["node1.b"], 0, 0)]), @r"
    accepted 2
    notice: 1 job waits for node1, which may be any of node1.a,node1.b: write the full name; they end as errors after 0:01:00
    2 < context of batch 1
    2 < run 1/2.1
    ");
    insta::assert_snapshot!(s.why(1), @r"
    job 1 waits
    node1 may be any of node1.a,node1.b; write the full name
    2 hosts are not among those that the job requires
    ");
    // A host that is away may be the one that is meant.
    s.event(Event::AgentGone(SessionId(2)));
    assert_eq!(s.pull(1, 3, 2), "");
    insta::assert_snapshot!(s.pass(2), @"notice: lost the agent of node1.b with 1 job; unless it comes back, they are given up there in 0:10:10");
    insta::assert_snapshot!(s.pass(58), @"result 1.0 no_host: node1 may be any of node1.a,node1.b; \
        write the full name");
}

#[test]
fn a_job_that_waits_hears_that_its_name_has_become_ambiguous() {
    let mut s = script();
    s.agent(1, "node1.a", 2);
    s.event(Event::AgentGone(SessionId(1)));
    s.submit(1, &[(&["node1", "x"], 0, 0)]);
    insta::assert_snapshot!(s.hello(2, "node1.b", 1), @r"
    2 < welcome, engines from 2
    notice: 1 job waits for node1, which may be any of node1.a,node1.b: write the full name; they end as errors after 0:01:00
    ");
    insta::assert_snapshot!(s.pass(60), @r"
    result 1.0 no_host: none of its hosts was connected within the host timeout: x; node1 may be any of node1.a,node1.b; write the full name
    batch 1 done
    ");
}

#[test]
fn verbs_that_name_a_host_ambiguously_are_told_so_at_once() {
    let mut s = script();
    s.agent(1, "node1.a", 2);
    s.agent(2, "node1.b", 2);
    let terms = BatchTerms {
        once: true,
        host_timeout: Duration::from_secs(300),
        ..terms(1)
    };
    s.open_with("okazaki", terms);
    let job = Submission {
        hosts: Some(0),
        ..any_job(1)
    };
    s.add(1, vec![vec!["node1".into()]], vec![job]);
    insta::assert_snapshot!(s.pass(0), @"result 1.0 no_host: node1 may be any of node1.a,node1.b; \
        write the full name");
    let names = ["node1".to_owned(), "node2".to_owned(), "node1.b".to_owned()];
    let unknown = s
        .scheduler
        .drain(&names, Some("new disks"), None, s.now)
        .expect_err("two of them are nobody's");
    insta::assert_snapshot!(unknown.join("\n"), @r"
    node1 may be any of node1.a,node1.b; write the full name
    no agent of node2 has ever connected
    ");
    let drained = s
        .scheduler
        .host_status(s.now, |_| None)
        .into_iter()
        .filter(|host| host.drained.is_some());
    assert_eq!(
        drained.map(|host| host.name).collect::<Vec<_>>(),
        ["node1.b"]
    );
}

#[test]
fn a_command_for_a_host_that_was_never_seen_ends_at_once_and_one_that_is_away_is_waited_for() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.agent(2, "b.x", 2);
    s.event(Event::AgentGone(SessionId(2)));
    let terms = BatchTerms {
        once: true,
        host_timeout: Duration::from_secs(300),
        ..terms(1)
    };
    s.open_with("okazaki", terms);
    let job = |n| Submission {
        hosts: Some(n - 1),
        ..any_job(n)
    };
    let host_sets = [["nosuch"], ["b"]]
        .map(|set| set.map(String::from).to_vec())
        .to_vec();
    insta::assert_snapshot!(s.add(1, host_sets, vec![job(1), job(2)]), @r"
    accepted 2
    notice: 1 job waits for a host that is not connected: b; they end as errors after 0:05:00
    ");
    insta::assert_snapshot!(s.pass(0), @"result 1.0 no_host: no host of this name has ever \
        connected: nosuch (`coordinator hosts` lists the known hosts)");
}

#[test]
fn what_waits_for_a_name_starts_when_the_name_gets_an_owner() {
    let mut s = script();
    s.agent(1, "node1.a", 2);
    s.agent(2, "node1.b", 2);
    s.submit(1, &[(&["node1"], 0, 0)]);
    // A name that an admin has admitted outranks first labels.
    insta::assert_snapshot!(s.admit(&[("node1.b", &["node1", "gpu"])]), @r"
    2 < context of batch 1
    2 < run 1/1.1
    ");
    insta::assert_snapshot!(s.admit(&[]), @"");
    s.submit(2, &[(&["node1"], 0, 0)]);
    s.event(Event::AgentGone(SessionId(2)));
    s.scheduler
        .confirm_dead("node1.b", s.now)
        .expect("it is gone");
    s.trace();
    s.scheduler
        .forget_host("node1.b", s.now)
        .expect("nothing is there");
    insta::assert_snapshot!(s.trace(), @r"
    1 < context of batch 1
    1 < run 1/1.2
    1 < context of batch 2
    1 < run 2/1.1
    ");
}

#[test]
fn a_name_that_goes_from_one_idle_host_to_another_takes_its_jobs_along() {
    let mut s = script();
    s.admit(&[("a", &["gpu"])]);
    s.agent(1, "a", 0);
    s.agent(2, "b", 2);
    insta::assert_snapshot!(s.submit(1, &[(&["gpu"], 0, 0)]), @"accepted 1");
    insta::assert_snapshot!(s.admit(&[("b", &["gpu"])]), @r"
    2 < context of batch 1
    2 < run 1/1.1
    ");
}

#[test]
fn a_full_name_is_its_hosts_whatever_else_is_called_so() {
    let mut s = script();
    s.admit(&[("c", &["node1"])]);
    for (session, name) in [(1, "node1.a"), (2, "c"), (3, "node1")] {
        s.agent(session, name, 2);
    }
    insta::assert_snapshot!(s.submit(1, &[(&["node1"], 0, 0)]), @r"
    accepted 1
    3 < context of batch 1
    3 < run 1/1.1
    ");
}

#[test]
fn an_alias_is_given_to_one_host_only() {
    let two = |one: &str, other: &str| {
        let hosts =
            [("a", one), ("b", other)].map(|(host, name)| (host.to_owned(), vec![name.to_owned()]));
        Aliases::try_from(BTreeMap::from(hosts))
    };
    insta::assert_snapshot!(two("gpu", "GPU.").expect_err("the same name"), @"the alias gpu is \
        given to a and to b; a name can belong to one host only");
    assert!(
        two("gpu", "-x")
            .expect_err("no name")
            .contains("begins with '-'")
    );
    assert!(two("gpu1", "gpu2").is_ok());
}
