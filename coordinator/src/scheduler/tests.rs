//! Scripts of the scheduler: each line of a trace is one effect. Reading them shows what it does.

mod failing;
mod hold;
mod names;
mod near;
mod returns;
mod shortage;
mod stops;
mod suspicion;
mod wide;

use super::*;
use bytes::Bytes;
use mezcal_common::message::agent::{
    Hello, Load, LogWish, NumberedReport, Report, ToAgent, ToCoordinator,
};
use mezcal_common::message::client::{
    BatchTerms, CancelWait, Halt, HaltCount, HaltWhy, RetryOn, Submission,
};
use mezcal_common::model::hosts;
use mezcal_common::model::ids::{AttemptId, EngineId, EngineIndex};
use mezcal_common::model::job::{BatchContext, Stop};
use mezcal_common::model::outcome::{Containment, WaitStatus};

/// A scheduler with a clock and short words for events.
struct Script {
    scheduler: Scheduler,
    now: BootInstant,
    seq: u64,
}

const LEASE: Duration = Duration::from_secs(600);
/// The locality wait.
const WAIT: Duration = Duration::from_secs(3);
const NOWHERE: &[&str] = &[];

/// A cancel of batch 1, or of some of its jobs, with nobody or somebody waiting for it.
fn cancel(request: Option<u64>, grace: Duration) -> Event {
    cancel_jobs(request, grace, &[])
}

fn cancel_jobs(request: Option<u64>, grace: Duration, jobs: &[&str]) -> Event {
    let what = match jobs {
        [] => vec![Wanted {
            batch: batch(1),
            job: None,
        }],
        jobs => jobs
            .iter()
            .map(|job| Wanted {
                batch: batch(1),
                job: Some(WantedJob::Named((*job).to_owned())),
            })
            .collect(),
    };
    Event::Cancel {
        request,
        what,
        stop: Stop::after(grace),
        why: None,
    }
}

fn script() -> Script {
    script_with(Some(LEASE))
}

fn script_with(lease: Option<Duration>) -> Script {
    Script {
        scheduler: Scheduler::new(Epoch(7), StoreId(1), lease, WAIT),
        now: BootInstant(Duration::from_secs(1000)),
        seq: 0,
    }
}

fn batch(n: u128) -> BatchId {
    BatchId(uuid::Uuid::from_u128(n))
}

fn attempt(batch: u32, job: u32, attempt: u32) -> AttemptId {
    AttemptId {
        epoch: Epoch(7),
        key: JobKey {
            batch: BatchSerial(batch),
            job: JobNumber(job),
        },
        attempt,
    }
}

fn exited(code: i32) -> Outcome {
    Outcome {
        status: Some(WaitStatus::Exited(code)),
        ..Outcome::never_ran(Ended::Exited, None)
    }
}

impl Script {
    fn event(&mut self, event: Event) -> String {
        self.scheduler.handle(event, self.now);
        self.trace()
    }

    fn pass(&mut self, seconds: u64) -> String {
        self.now = self.now + Duration::from_secs(seconds);
        while self
            .scheduler
            .poll_timeout()
            .is_some_and(|at| at <= self.now)
        {
            let due = self.scheduler.poll_timeout();
            self.scheduler.handle_timeout(self.now);
            assert!(
                self.scheduler.poll_timeout() != due || due.is_none_or(|at| at > self.now),
                "a deadline that stays in the past spins"
            );
        }
        self.trace()
    }

    /// An agent that says hello, sends an empty inventory and asks for `credit`.
    fn agent(&mut self, session: u64, name: &str, credit: u64) -> String {
        self.hello(session, name, 1);
        self.inventory(session, &[]);
        self.pull(session, credit, credit as u16)
    }

    fn hello(&mut self, session: u64, name: &str, boot: u8) -> String {
        self.hello_for(session, name, boot, None)
    }

    fn hello_for(
        &mut self,
        session: u64,
        name: &str,
        boot: u8,
        users: Option<Vec<String>>,
    ) -> String {
        let hello = Hello {
            versions: (1, 1),
            program: "test".into(),
            keeper: u64::from(boot),
            boot_id: [boot; 16],
            slots: 2,
            aliases: vec![hosts::short(name).unwrap_or(name).to_owned()],
            cpus: 2,
            memory: 0,
            users,
        };
        self.event(Event::AgentHello {
            session: SessionId(session),
            name: name.into(),
            hello,
        })
    }

    fn inventory(&mut self, session: u64, running: &[AttemptId]) -> String {
        let inventory = ToCoordinator::Inventory {
            queued: vec![],
            running: running.to_vec(),
            unacknowledged: vec![],
            containment: Containment::Subreaper,
            clock_offset: None,
        };
        self.event(Event::Agent(SessionId(session), inventory))
    }

    fn pull(&mut self, session: u64, credit: u64, idle: u16) -> String {
        self.event(Event::Agent(
            SessionId(session),
            ToCoordinator::Pull { credit, idle },
        ))
    }

    fn report(&mut self, session: u64, attempt: AttemptId, outcome: Outcome) -> String {
        self.seq += 1;
        let report = Report::Finished {
            engine: Some(EngineIndex(0)),
            outcome: Box::new(outcome),
        };
        let reports = vec![NumberedReport {
            seq: self.seq,
            attempt,
            report,
        }];
        self.event(Event::Agent(
            SessionId(session),
            ToCoordinator::Reports(reports),
        ))
    }

    fn open(&mut self, n: u128) {
        let context = BatchContext::new(batch(n), "/".into(), 0o22);
        self.event(Event::Open {
            user: "okazaki".into(),
            terms: Box::new(BatchTerms::new(context, Duration::from_secs(60))),
        });
    }

    /// Submits jobs, each given by its hosts, priority and retries, and closes the batch.
    fn submit(&mut self, n: u128, jobs: &[(&[&str], i32, u32)]) -> String {
        self.open(n);
        let (mut host_sets, mut submissions) = (Vec::new(), Vec::new());
        for (i, (set, priority, retries)) in jobs.iter().enumerate() {
            let hosts = (!set.is_empty()).then(|| {
                host_sets.push(set.iter().map(|h| h.to_string()).collect());
                host_sets.len() as u32 - 1
            });
            let spec = Bytes::from_static(b"x");
            let job = JobNumber(i as u32 + 1);
            submissions.push(Submission {
                hosts,
                priority: *priority,
                retries: *retries,
                ..Submission::new(job, spec)
            });
        }
        self.scheduler.handle(
            Event::Submit {
                batch: batch(n),
                host_sets,
                jobs: submissions,
            },
            self.now,
        );
        self.scheduler
            .handle(Event::Close { batch: batch(n) }, self.now);
        self.trace()
    }

    fn trace(&mut self) -> String {
        let mut lines = Vec::new();
        while let Some(effect) = self.scheduler.poll_effect() {
            let line = match effect {
                Effect::Persist(record) => format!("persist {record:?}"),
                Effect::ToAgent(s, ToAgent::Welcome { first_engine, .. })
                | Effect::Greet(s, ToAgent::Welcome { first_engine, .. }) => {
                    format!("{s} < welcome, engines from {first_engine}")
                }
                Effect::ToAgent(s, ToAgent::Context { batch, .. }) => {
                    format!("{s} < context of batch {batch}")
                }
                Effect::ToAgent(s, ToAgent::Run(run)) => {
                    let ids: Vec<String> = run
                        .iter()
                        .map(|p| format!("{}/{}", p.attempt.key.batch, p.attempt))
                        .collect();
                    format!("{s} < run {}", ids.join(" "))
                }
                Effect::ToAgent(s, ToAgent::Cancel { attempts, stop }) => {
                    let ids: Vec<String> = attempts.iter().map(ToString::to_string).collect();
                    format!("{s} < cancel {} with grace {:?}", ids.join(" "), stop.grace)
                }
                Effect::ToAgent(s, ToAgent::Acknowledge { through }) => {
                    format!("{s} < acknowledge {through}")
                }
                Effect::ToAgent(s, ToAgent::HeartbeatSeen { .. }) => {
                    format!("{s} < heartbeat seen")
                }
                Effect::ToAgent(s, ToAgent::Forget { batch }) => {
                    format!("{s} < forget batch {batch}")
                }
                Effect::ToAgent(s, ToAgent::OutputTaken { bytes, .. }) => {
                    format!("{s} < output taken {bytes}")
                }
                Effect::CloseSession {
                    session,
                    refused,
                    reason,
                } => format!("close {session} (refused: {refused}): {reason}"),
                Effect::Result { job, result, .. } => {
                    let local = result
                        .local
                        .map_or("", |local| if local { ", local" } else { ", elsewhere" });
                    let on = result
                        .place
                        .map_or(String::new(), |p| format!(" on {}{local}", p.host));
                    let error = result
                        .outcome
                        .error
                        .map_or(String::new(), |e| format!(": {e}"));
                    format!(
                        "result {job}.{} {}{on}{error}",
                        result.attempt,
                        result.outcome.ended.as_str()
                    )
                }
                Effect::Accepted { closed: true, .. } => continue,
                Effect::Accepted { jobs, .. } => format!("accepted {jobs}"),
                Effect::Refused { reason, .. } => format!("refused: {reason}"),
                Effect::BatchDone { batch } => format!("batch {} done", batch.0.as_u128()),
                Effect::Notice { notice, .. } => {
                    format!("notice: {}", crate::report::notice::describe(&notice))
                }
                Effect::ToAgent(s, ToAgent::Retract { attempts }) => {
                    let ids: Vec<String> = attempts.iter().map(ToString::to_string).collect();
                    format!("{s} < retract {}", ids.join(" "))
                }
                Effect::ToAgent(s, ToAgent::Evict { attempts, .. }) => {
                    let ids: Vec<String> = attempts.iter().map(ToString::to_string).collect();
                    format!("{s} < evict {}", ids.join(" "))
                }
                Effect::ToAgent(s, ToAgent::Generation { generation })
                | Effect::Greet(s, ToAgent::Generation { generation }) => {
                    format!("{s} < {generation}")
                }
                Effect::ToAgent(s, ToAgent::Known { user, attempts }) => {
                    let ids: Vec<String> = attempts
                        .iter()
                        .map(|(attempt, slots)| format!(" {attempt} takes {slots}"))
                        .collect();
                    format!("{s} < known of {user}:{}", ids.join(""))
                }
                Effect::Greet(s, message) => panic!("{s} is greeted with {message:?}"),
                Effect::ToAgent(s, ToAgent::Renewed { .. }) => {
                    panic!("the scheduler renews nothing for {s}")
                }
                Effect::ToAgent(
                    s,
                    ToAgent::Logs {
                        request, attempt, ..
                    },
                ) => format!("{s} < logs of {attempt}, request {request}"),
                Effect::Cancelled {
                    request,
                    result: Ok(done),
                } => format!(
                    "request {request} done: {} jobs, {} killed, {} alive, {} out of reach for {:?}",
                    done.jobs, done.killed, done.survivors, done.unreachable, done.fenced_for
                ),
                Effect::Cancelled {
                    request,
                    result: Err(why),
                } => format!("request {request} refused: {why}"),
                Effect::LogsAnswer { request, streams } => format!("logs {request}: {streams:?}"),
                Effect::Output { job, data, .. } => {
                    format!("output of {job}: {} bytes", data.len())
                }
                Effect::Fleet { agents, engines } => {
                    format!("fleet {agents} agents, {engines} engines")
                }
            };
            lines.push(line);
        }
        self.sanity();
        lines.join("\n")
    }

    /// Re-derives what the indices claim: every job is in exactly one place.
    fn sanity(&self) {
        self.scheduler.queues.check();
        for host in self.scheduler.hosts.values() {
            let there = host.known && host.session.is_some();
            assert_eq!(
                self.scheduler.wanting.contains(&host.index),
                there && host.credit > host.sent,
                "{}",
                host.name
            );
            assert_eq!(
                host.taken,
                host.attempts
                    .values()
                    .map(|on| u64::from(on.slots))
                    .sum::<u64>(),
                "{}",
                host.name
            );
            let full = there && host.taken > u64::from(host.slots());
            assert_eq!(
                self.scheduler.overfull.contains(&host.index),
                full,
                "{}",
                host.name
            );
            let idle = host.idle_since.front().filter(|_| there);
            let indexed = self
                .scheduler
                .idle
                .iter()
                .find(|(_, index)| *index == host.index)
                .map(|(since, _)| since);
            assert_eq!(indexed, idle, "{}", host.name);
            let fence = self.scheduler.fence(host);
            let users = host.fenced.values().min().copied();
            assert!(
                users.is_none() || self.scheduler.look_at_leases <= users,
                "users' leases on {} are, too",
                host.name
            );
            assert!(
                fence.is_none() || self.scheduler.look_at_leases <= fence,
                "the lease of {} is looked at in time",
                host.name
            );
        }
        for (key, hosts) in &self.scheduler.keeping.hosts {
            let keeping = self
                .scheduler
                .hosts
                .values()
                .filter(|h| h.kept.is_some_and(|kept| kept.key == *key));
            assert_eq!(*hosts, keeping.map(|h| h.index).collect::<BTreeSet<_>>());
            assert!(self.scheduler.queues.len_of(*key) >= hosts.len(), "{key:?}");
        }
        assert_eq!(
            self.scheduler.keeping.until.len(),
            self.scheduler
                .hosts
                .values()
                .filter(|h| h.kept.is_some())
                .count(),
            "what is kept is given up in time"
        );
        let ready = self
            .scheduler
            .hosts
            .values()
            .filter(|h| h.known && h.slots() > 0);
        let fleet = ready.fold((0, 0), |(agents, slots), h| {
            (agents + 1, slots + u32::from(h.slots()))
        });
        assert_eq!(self.scheduler.fleet(), fleet);
        let placed: Vec<AttemptId> = self
            .scheduler
            .hosts
            .values()
            .flat_map(|h| h.attempts.keys().copied())
            .collect();
        for user in 0..self.scheduler.users.len() as u32 {
            let jobs = self
                .scheduler
                .batches
                .values()
                .filter(|b| b.user == user)
                .flat_map(|b| &b.jobs);
            let slots = jobs
                .filter(|j| j.state == JobState::Placed)
                .map(|j| u64::from(j.queue.slots()))
                .sum::<u64>();
            assert_eq!(self.scheduler.running[user as usize], slots);
        }
        for (serial, batch) in &self.scheduler.batches {
            let queued: usize = self
                .scheduler
                .queues
                .of_batch(*serial)
                .iter()
                .map(|k| self.scheduler.queues.len_of(*k))
                .sum();
            let count = |state| batch.jobs.iter().filter(|j| j.state == state).count();
            assert_eq!(queued, count(JobState::Queued));
            assert_eq!(batch.done, count(JobState::Done));
            assert_eq!(batch.placed, count(JobState::Placed) as u64);
            if batch.halted || batch.cancelled.is_some() {
                assert_eq!(
                    count(JobState::Queued) + count(JobState::Waiting),
                    0,
                    "nothing of what is given up can start"
                );
            }
            for (i, job) in batch.jobs.iter().enumerate() {
                let key = JobKey {
                    batch: *serial,
                    job: JobNumber(i as u32 + 1),
                };
                let live = placed
                    .iter()
                    .filter(|a| a.key == key && a.attempt == job.attempt)
                    .count();
                assert_eq!(live, usize::from(job.state == JobState::Placed), "{key:?}");
            }
        }
    }
}

#[test]
fn jobs_go_where_there_is_credit_in_order_of_priority() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    insta::assert_snapshot!(s.submit(1, &[(&[], 0, 0), (&[], 5, 0), (&[], 0, 0)]), @r"
    accepted 3
    1 < context of batch 1
    1 < run 1/2.1
    1 < run 1/1.1
    ");
    insta::assert_snapshot!(s.report(1, attempt(1, 2, 1), exited(0)), @r"
    result 2.1 exited on a.x
    1 < acknowledge 1
    ");
    insta::assert_snapshot!(s.pull(1, 3, 1), @"1 < run 1/3.1");
    s.report(1, attempt(1, 1, 1), exited(0));
    insta::assert_snapshot!(s.report(1, attempt(1, 3, 1), exited(9)), @r"
    result 3.1 exited on a.x
    batch 1 done
    1 < forget batch 1
    1 < acknowledge 3
    ");
}

#[test]
fn idle_slots_of_all_hosts_come_before_prefetch_of_one() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.pull(1, 6, 2);
    s.agent(2, "b.x", 2);
    insta::assert_snapshot!(s.submit(1, &[(NOWHERE, 0, 0); 5]), @r"
    accepted 5
    1 < context of batch 1
    1 < run 1/1.1
    2 < context of batch 1
    2 < run 1/2.1
    1 < run 1/3.1
    2 < run 1/4.1
    1 < run 1/5.1
    ");
}

#[test]
fn what_was_handed_out_in_advance_does_not_run() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.pull(1, 6, 2);
    s.submit(1, &[(NOWHERE, 0, 0); 3]);
    s.submit(2, &[(NOWHERE, 0, 0); 3]);
    assert_eq!(
        s.scheduler.left_of(batch(2)),
        Some((3, 0)),
        "all are on the host, which has two slots"
    );
    assert_eq!(
        s.scheduler.running_by_batch(),
        HashMap::from([(BatchSerial(1), 2)])
    );
    let started = NumberedReport {
        seq: 1,
        attempt: attempt(2, 3, 1),
        report: Report::Started {
            engine: EngineIndex(1),
        },
    };
    s.event(Event::Agent(
        SessionId(1),
        ToCoordinator::Reports(vec![started]),
    ));
    assert_eq!(
        s.scheduler.running_by_batch(),
        HashMap::from([(BatchSerial(1), 1), (BatchSerial(2), 1)])
    );
}

#[test]
fn required_hosts_are_honoured_by_full_and_short_name() {
    let mut s = script();
    s.agent(1, "a.x", 9);
    insta::assert_snapshot!(s.submit(1, &[(&["b"], 0, 0), (&["c.x", "a.x"], 0, 0), (&["b.x"], 0, 0)]), @r"
    accepted 3
    notice: 1 job waits for a host that is not connected: b; they end as errors after 0:01:00
    notice: 1 job waits for a host that is not connected: b.x; they end as errors after 0:01:00
    1 < context of batch 1
    1 < run 1/2.1
    ");
    s.pass(59);
    insta::assert_snapshot!(s.agent(2, "b.x", 9), @r"
    2 < context of batch 1
    2 < run 1/1.1 1/3.1
    ");
    assert_eq!(s.pass(60), "", "the waits ended when the host came");
}

#[test]
fn jobs_of_a_host_that_never_comes_end_as_errors() {
    let mut s = script();
    insta::assert_snapshot!(s.submit(1, &[(&["h01", "h02"], 0, 3)]), @r"
    accepted 1
    notice: 1 job waits for a host that is not connected: h[01-02]; they end as errors after 0:01:00
    ");
    insta::assert_snapshot!(s.pass(60), @r"
    result 1.0 no_host: none of its hosts was connected within the host timeout: h[01-02]
    batch 1 done
    ");
}

#[test]
fn failures_use_up_retries_and_nothing_else_does() {
    let mut s = script();
    s.agent(1, "a.x", 9);
    s.submit(1, &[(&[], 0, 1)]);
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 1), exited(3)), @"
    1 < acknowledge 1
    1 < run 1/1.2
    ");
    let lost = Outcome::never_ran(Ended::Lost, "its engine died".to_owned());
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 2), lost), @"
    1 < acknowledge 2
    1 < run 1/1.3
    ");
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 3), exited(4)), @r"
    result 1.3 exited on a.x
    batch 1 done
    1 < forget batch 1
    1 < acknowledge 3
    ");
}

#[test]
fn a_lost_host_gives_its_jobs_back_only_after_lease_and_margin() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.submit(1, &[(&[], 0, 0)]);
    s.agent(2, "b.x", 2);
    assert_eq!(
        s.event(Event::AgentGone(SessionId(1))),
        "fleet 1 agents, 2 engines"
    );
    insta::assert_snapshot!(s.pass(2), @"notice: lost the agent of a.x with 1 job; unless it comes back, they are given up there in 0:10:10");
    let beat = |s: &mut Script| {
        let message = ToCoordinator::Heartbeat {
            sent: s.now,
            load: Load::default(),
            clock_offset: None,
        };
        s.event(Event::Agent(SessionId(2), message))
    };
    s.pass(598);
    beat(&mut s);
    assert_eq!(s.pass(11), "");
    insta::assert_snapshot!(s.pass(1), @r"
    2 < context of batch 1
    2 < run 1/1.2
    ");
}

#[test]
fn a_host_that_comes_back_keeps_what_its_inventory_holds() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.submit(1, &[(&[], 0, 0), (&[], 0, 0)]);
    s.event(Event::AgentGone(SessionId(1)));
    s.hello(3, "a.x", 1);
    insta::assert_snapshot!(s.inventory(3, &[attempt(1, 1, 1)]), @"fleet 1 agents, 2 engines");
    insta::assert_snapshot!(s.pull(3, 1, 1), @r"
    3 < context of batch 1
    3 < run 1/2.2
    ");
    insta::assert_snapshot!(s.report(3, attempt(1, 1, 1), exited(0)), @r"
    result 1.1 exited on a.x
    3 < acknowledge 1
    ");
}

#[test]
fn another_boot_proves_that_everything_on_the_host_is_dead() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.submit(1, &[(&[], 0, 0)]);
    s.event(Event::AgentGone(SessionId(1)));
    s.hello(2, "a.x", 2);
    s.inventory(2, &[]);
    insta::assert_snapshot!(s.pull(2, 2, 2), @r"
    2 < context of batch 1
    2 < run 1/1.2
    ");
}

#[test]
fn a_copied_certificate_is_refused_and_a_restarted_agent_is_not() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    insta::assert_snapshot!(s.hello(2, "a.x", 9), @"close 2 (refused: false): another agent is connected with the certificate of a.x; if a.x was restarted, it is let in when its old connection has been silent for 20 s; else stop one");
    insta::assert_snapshot!(s.hello(3, "a.x", 1), @r"
    close 1 (refused: false): the agent of this host has connected again
    fleet 0 agents, 0 engines
    3 < welcome, engines from 0
    ");
}

#[test]
fn strangers_in_an_inventory_are_killed_and_their_reports_forgotten() {
    let mut s = script();
    s.hello(1, "a.x", 1);
    let old = AttemptId {
        epoch: Epoch(6),
        ..attempt(1, 1, 1)
    };
    insta::assert_snapshot!(s.inventory(1, &[old]), @r"
    1 < cancel 1.1 with grace 0ns
    fleet 1 agents, 2 engines
    ");
    insta::assert_snapshot!(s.report(1, old, exited(0)), @"1 < acknowledge 1");
}

#[test]
fn the_fourth_loss_of_a_job_is_its_last() {
    let mut s = script_with(None);
    let trace: Vec<String> = (1..=4)
        .map(|n| {
            s.agent(n, "a.x", 2);
            if n == 1 {
                s.submit(1, &[(&[], 0, 0)]);
            }
            s.event(Event::AgentGone(SessionId(n)))
        })
        .collect();
    insta::assert_snapshot!(trace[3], @"
    fleet 0 agents, 0 engines
    result 1.4 lost: attempt 1 on a.x: its agent is gone; attempt 2 on a.x: its agent is gone; attempt 3 on a.x: its agent is gone; attempt 4 on a.x: its agent is gone
    batch 1 done
    ");
}

#[test]
fn a_cancel_drops_what_waits_and_kills_what_runs() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 9), (&[], 0, 0), (&["z"], 0, 0)]);
    insta::assert_snapshot!(s.event(cancel(None, Duration::from_secs(2))), @r"
    1 < cancel 1.1 with grace 2s
    result 2.0 cancelled
    result 3.0 cancelled
    ");
    let killed = Outcome {
        ended: Ended::Cancelled,
        status: Some(WaitStatus::Signaled(15)),
        ..exited(0)
    };
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 1), killed), @r"
    result 1.1 cancelled on a.x
    batch 1 done
    1 < forget batch 1
    1 < acknowledge 1
    ");
}

#[test]
fn a_cancel_that_cannot_reach_a_host_says_so() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 0)]);
    s.event(Event::AgentGone(SessionId(1)));
    s.pass(2);
    insta::assert_snapshot!(s.event(cancel(None, Duration::ZERO)), @r"
    result 1.1 lost: cancelled while a.x was out of reach: it may go on there until its lease ends, within 610 s
    batch 1 done
    ");
}

#[test]
fn an_agent_that_leaves_and_comes_again_at_once_alarms_nobody() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 0)]);
    assert_eq!(
        s.event(Event::AgentGone(SessionId(1))),
        "fleet 0 agents, 0 engines"
    );
    s.pass(1);
    // What is cancelled meanwhile waits for it, too, and not for long.
    assert_eq!(s.event(cancel(Some(1), Duration::ZERO)), "");
    s.hello(2, "a.x", 1);
    insta::assert_snapshot!(s.inventory(2, &[attempt(1, 1, 1)]), @"
    2 < cancel 1.1 with grace 0ns
    fleet 1 agents, 2 engines
    ");
    assert_eq!(s.pass(60), "", "it was not lost");
    insta::assert_snapshot!(s.report(2, attempt(1, 1, 1), Outcome::never_ran(Ended::Cancelled, None)), @"
    result 1.1 cancelled on a.x
    request 1 done: 1 jobs, 0 killed, 0 alive, 0 out of reach for 0ns
    batch 1 done
    2 < acknowledge 1
    ");
}

#[test]
fn a_cancel_does_not_wait_for_long_for_an_agent_that_may_come_again() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 0)]);
    s.event(Event::AgentGone(SessionId(1)));
    assert_eq!(s.event(cancel(Some(1), Duration::ZERO)), "");
    // One that comes and goes is lost when it stays away.
    s.pass(1);
    s.hello(2, "a.x", 1);
    s.event(Event::AgentGone(SessionId(2)));
    assert_eq!(s.pass(1), "");
    insta::assert_snapshot!(s.pass(1), @"
    notice: lost the agent of a.x with 1 job; unless it comes back, they are given up there in 0:10:10
    result 1.1 lost: cancelled while a.x was out of reach: it may go on there until its lease ends, within 610 s
    request 1 done: 1 jobs, 0 killed, 0 alive, 1 out of reach for 610s
    batch 1 done
    ");
}

#[test]
fn jobs_that_do_not_continue_a_batch_are_refused() {
    let mut s = script();
    s.open(1);
    let job = |n, hosts| Submission {
        hosts,
        ..Submission::new(JobNumber(n), Bytes::new())
    };
    let submit = |s: &mut Script, jobs| {
        s.event(Event::Submit {
            batch: batch(1),
            host_sets: vec![],
            jobs,
        })
    };
    insta::assert_snapshot!(submit(&mut s, vec![job(1, None), job(3, None)]), @r"
    accepted 1
    refused: job 3 does not continue the batch
    ");
    insta::assert_snapshot!(submit(&mut s, vec![job(2, Some(0))]), @r"
    accepted 1
    refused: job 2 is not acceptable
    ");
    insta::assert_snapshot!(s.event(Event::Submit { batch: batch(9), host_sets: vec![], jobs: vec![job(1, None)] }), @"refused: there is no such open batch");
}

#[test]
fn a_job_whose_lost_host_stays_away_ends_by_the_host_timeout() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&["a.x"], 0, 0)]);
    s.event(Event::AgentGone(SessionId(1)));
    insta::assert_snapshot!(s.pass(612), @"notice: 1 job waits for a host that is not connected: a.x; they end as errors after 0:01:00");
    insta::assert_snapshot!(s.pass(60), @r"
    result 1.1 no_host: none of its hosts was connected within the host timeout: a.x
    batch 1 done
    ");
}

#[test]
fn what_a_stopping_agent_gives_back_goes_elsewhere_and_is_no_loss() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.submit(1, &[(&[], 0, 0)]);
    s.pull(1, 1, 0);
    let returned = |s: &mut Script, session, n| {
        let report = NumberedReport {
            seq: 1,
            attempt: attempt(1, 1, n),
            report: Report::Returned,
        };
        s.event(Event::Agent(
            SessionId(session),
            ToCoordinator::Reports(vec![report]),
        ))
    };
    insta::assert_snapshot!(returned(&mut s, 1, 1), @"1 < acknowledge 1");
    for n in 2..9 {
        s.agent(u64::from(n), "b.x", 1);
        s.pull(u64::from(n), 1, 0);
        returned(&mut s, u64::from(n), n);
        s.event(Event::Agent(
            SessionId(u64::from(n)),
            ToCoordinator::Goodbye,
        ));
        s.event(Event::AgentGone(SessionId(u64::from(n))));
    }
    insta::assert_snapshot!(s.agent(20, "c.x", 1), @r"
    20 < context of batch 1
    20 < run 1/1.9
    ");
}

#[test]
fn a_cancel_that_was_sent_into_the_void_is_sent_again_after_the_inventory() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 0)]);
    s.hello(2, "a.x", 1);
    s.event(cancel(None, Duration::from_secs(2)));
    insta::assert_snapshot!(s.inventory(2, &[attempt(1, 1, 1)]), @r"
    2 < cancel 1.1 with grace 2s
    fleet 1 agents, 2 engines
    ");
}

#[test]
fn a_cancel_of_jobs_is_answered_when_the_last_of_them_is_over() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.agent(2, "b.x", 1);
    s.submit(1, &[(&[], 0, 9), (&[], 0, 9), (&[], 0, 0), (&[], 0, 0)]);
    insta::assert_snapshot!(s.event(cancel_jobs(Some(8), Duration::from_secs(2), &["1", "2", "4", "4"])), @r"
    result 4.0 cancelled
    1 < cancel 1.1 with grace 2s
    2 < cancel 2.1 with grace 2s
    ");
    // A second cancel of the same job shortens the grace, and both are answered.
    insta::assert_snapshot!(s.event(cancel_jobs(Some(9), Duration::ZERO, &["1"])), @"1 < cancel 1.1 with grace 0ns");
    let killed = |killed| Outcome {
        killed,
        ..Outcome::never_ran(Ended::Cancelled, None)
    };
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 1), killed(3)), @r"
    result 1.1 cancelled on a.x
    request 9 done: 1 jobs, 3 killed, 0 alive, 0 out of reach for 0ns
    1 < acknowledge 1
    ");
    // It ended by itself before the cancel arrived, and fails: retries do not go on.
    insta::assert_snapshot!(s.report(2, attempt(1, 2, 1), exited(1)), @r"
    result 2.1 exited on b.x
    request 8 done: 2 jobs, 3 killed, 0 alive, 0 out of reach for 0ns
    2 < acknowledge 2
    ");
    insta::assert_snapshot!(s.event(cancel_jobs(Some(10), Duration::ZERO, &["1"])), @"request 10 done: 0 jobs, 0 killed, 0 alive, 0 out of reach for 0ns");
    insta::assert_snapshot!(s.event(cancel_jobs(Some(11), Duration::ZERO, &["3", "x"])), @r#"request 11 refused: batch 00000000-0000-0000-0000-000000000001 has no job "x": it has 4 jobs, named by their `id` or their number"#);
}

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
    let terms = Box::new(BatchTerms::new(
        BatchContext::new(batch(1), "/".into(), 0o22),
        Duration::from_secs(60),
    ));
    let opened = Record::Opened {
        batch: BatchSerial(1),
        user: "okazaki".into(),
        terms,
        age: Duration::ZERO,
    };
    s.scheduler.replay(opened, s.now);
    let jobs = [1, 2]
        .map(|n| Submission::new(JobNumber(n), Bytes::from_static(b"x")))
        .into();
    s.scheduler.replay(
        Record::Submitted {
            batch: BatchSerial(1),
            jobs,
        },
        s.now,
    );
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
    // An agent that was started again meanwhile does not know why it ended: it is nobody's cancel.
    let cancelled = Outcome::never_ran(Ended::Cancelled, None);
    assert_eq!(s.report(1, earlier(1), cancelled), "1 < acknowledge 1");
    let said = s.agent(9, "c.x", 1);
    assert!(
        said.contains("9 < run 1/1.2"),
        "it runs again elsewhere: {said}"
    );
    // With the drain it is over.
    s.scheduler
        .drain(&["b.x".into()], None, None, s.now)
        .expect("a known host");
    assert_eq!(s.pass(3), "");
    s.hello(3, "b.x", 1);
    assert!(!s.inventory(3, &[earlier(2)]).contains("evict"));
}

#[test]
fn a_number_is_a_number_whatever_ids_look_like() {
    let mut s = script();
    s.open(1);
    let job = |n: u32| Submission {
        label: Some((n - 1).to_string()),
        ..Submission::new(JobNumber(n), Bytes::from_static(b"x"))
    };
    s.event(Event::Submit {
        batch: batch(1),
        host_sets: vec![],
        jobs: vec![job(1), job(2), job(3)],
    });
    let mut cancelled = |job| {
        let what = vec![Wanted {
            batch: batch(1),
            job: Some(job),
        }];
        s.event(Event::Cancel {
            request: None,
            what,
            stop: Stop::NOW,
            why: None,
        })
    };
    assert!(cancelled(WantedJob::Number(JobNumber(2))).starts_with("result 2.0 cancelled"));
    assert!(
        cancelled(WantedJob::Named("2".into())).starts_with("result 3.0 cancelled"),
        "it has that id"
    );
}

#[test]
fn a_cancel_of_what_cannot_be_reached_says_for_how_long() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 0)]);
    s.event(cancel(Some(1), Duration::from_secs(2)));
    s.pass(12);
    // The connection is lost before the proof has come.
    assert_eq!(
        s.event(Event::AgentGone(SessionId(1))),
        "fleet 0 agents, 0 engines"
    );
    insta::assert_snapshot!(s.pass(2), @"
    notice: lost the agent of a.x with 1 job; unless it comes back, they are given up there in 0:09:58
    result 1.1 lost: cancelled while a.x was out of reach: it may go on there until its lease ends, within 598 s
    request 1 done: 1 jobs, 0 killed, 0 alive, 1 out of reach for 598s
    batch 1 done
    ");
}

#[test]
fn a_job_may_be_named_by_its_users_id() {
    let mut s = script();
    s.open(1);
    let job = |n, label: &str| Submission {
        label: Some(label.into()),
        ..Submission::new(JobNumber(n), Bytes::new())
    };
    s.event(Event::Submit {
        batch: batch(1),
        host_sets: vec![],
        jobs: vec![job(1, "2"), job(2, "two")],
    });
    // An `id` goes before a number.
    insta::assert_snapshot!(s.event(cancel_jobs(Some(1), Duration::ZERO, &["2"])), @r"
    result 1.0 cancelled
    request 1 done: 1 jobs, 0 killed, 0 alive, 0 out of reach for 0ns
    ");
}

fn halt(s: &mut Script, now: bool, why: HaltWhy, count: HaltCount) {
    halt_batch(s, 1, now, why, count);
}

fn halt_batch(s: &mut Script, number: u128, now: bool, why: HaltWhy, count: HaltCount) {
    let context = BatchContext::new(batch(number), "/".into(), 0o22);
    let halt = Some(Halt { now, why, count });
    let terms = BatchTerms {
        halt,
        ..BatchTerms::new(context, Duration::from_secs(60))
    };
    s.event(Event::Open {
        user: "okazaki".into(),
        terms: Box::new(terms),
    });
}

#[test]
fn a_batch_that_halts_soon_lets_run_what_runs() {
    let mut s = script();
    halt(&mut s, false, HaltWhy::Fail, HaltCount::Jobs(1));
    s.agent(1, "a.x", 3);
    s.submit(1, &[(&[], 0, 0), (&[], 0, 5), (&[], 0, 0), (&[], 0, 0)]);
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 1), exited(1)), @r"
    result 1.1 exited on a.x
    notice: 1 job has failed: nothing more of the batch starts (--halt)
    result 4.0 cancelled: halted: 1 of the batch's jobs failed (--halt)
    1 < retract 2.1 3.1
    1 < acknowledge 1
    ");
    let returned = vec![NumberedReport {
        seq: 2,
        attempt: attempt(1, 3, 1),
        report: Report::Returned,
    }];
    insta::assert_snapshot!(s.event(Event::Agent(SessionId(1), ToCoordinator::Reports(returned))), @r"
    result 3.1 cancelled: halted: 1 of the batch's jobs failed (--halt)
    1 < acknowledge 2
    ");
    // It fails, too, and is not tried again.
    insta::assert_snapshot!(s.report(1, attempt(1, 2, 1), exited(1)), @r"
    result 2.1 exited on a.x
    batch 1 done
    1 < forget batch 1
    1 < acknowledge 2
    ");
}

#[test]
fn a_batch_that_halts_now_kills_what_runs() {
    let mut s = script();
    halt(&mut s, true, HaltWhy::Success, HaltCount::Share(5000));
    s.agent(1, "a.x", 3);
    s.submit(1, &[(&[], 0, 0), (&[], 0, 0), (&[], 0, 0), (&[], 0, 0)]);
    s.report(1, attempt(1, 1, 1), exited(0));
    insta::assert_snapshot!(s.report(1, attempt(1, 2, 1), exited(0)), @r"
    result 2.1 exited on a.x
    notice: 2 jobs have succeeded: nothing more of the batch starts (--halt)
    1 < cancel 3.1 with grace 2s
    result 4.0 cancelled: not needed any more: 2 of the batch's jobs succeeded (--halt)
    1 < acknowledge 2
    ");
}

#[test]
fn a_job_that_cannot_run_halts_those_behind_it() {
    let mut s = script();
    s.agent(1, "a.x", 3);
    for (number, now) in [(1, true), (2, false)] {
        halt_batch(&mut s, number, now, HaltWhy::Fail, HaltCount::Jobs(1));
        let job = |n| Submission::new(JobNumber(n), Bytes::from_static(b"x"));
        let jobs = vec![
            Submission {
                stillborn: Some("too long".into()),
                ..job(1)
            },
            job(2),
            job(3),
        ];
        let said = s.event(Event::Submit {
            batch: batch(number),
            host_sets: vec![],
            jobs,
        });
        assert!(
            !said.contains("< run") && said.contains("result 3.0 cancelled"),
            "{said}"
        );
    }
}

#[test]
fn a_batch_has_so_much_time_and_no_more() {
    let mut s = script();
    let context = BatchContext::new(batch(1), "/".into(), 0o22);
    let time_limit = Some(Duration::from_secs(30));
    let terms = BatchTerms {
        time_limit,
        ..BatchTerms::new(context, Duration::from_secs(60))
    };
    s.event(Event::Open {
        user: "okazaki".into(),
        terms: Box::new(terms),
    });
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 0), (&[], 0, 0)]);
    assert_eq!(s.pass(29), "");
    insta::assert_snapshot!(s.pass(1), @r"
    1 < cancel 1.1 with grace 2s
    result 2.0 cancelled: cancelled: the batch was not done within its time limit of 30s
    ");
}

#[test]
fn the_time_of_a_batch_goes_on_across_restarts() {
    let mut s = script();
    for (number, age) in [(1, 10), (2, 3600)] {
        let context = BatchContext::new(batch(number.into()), "/".into(), 0o22);
        let terms = BatchTerms {
            time_limit: Some(Duration::from_secs(30)),
            ..BatchTerms::new(context, Duration::from_secs(60))
        };
        let (batch, user, age) = (
            BatchSerial(number),
            "okazaki".to_owned(),
            Duration::from_secs(age),
        );
        s.scheduler.replay(
            Record::Opened {
                batch,
                user,
                terms: Box::new(terms),
                age,
            },
            s.now,
        );
    }
    s.scheduler.restored(s.now);
    assert_eq!(
        s.scheduler.poll_timeout(),
        Some(s.now),
        "one of them has no time left"
    );
    s.pass(0);
    assert_eq!(
        s.scheduler.poll_timeout(),
        Some(s.now + Duration::from_secs(20))
    );
}

#[test]
fn logs_are_asked_of_the_host_that_has_them() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(&[], 0, 0), (&[], 0, 0)]);
    let wish = LogWish {
        out: true,
        err: true,
        follow: false,
    };
    let logs = |job: &str| Event::Logs {
        request: 5,
        batch: batch(1),
        job: job.into(),
        wish,
    };
    insta::assert_snapshot!(s.event(logs("1")), @"1 < logs of 1.1, request 5");
    insta::assert_snapshot!(s.event(logs("2")), @r#"logs 5: Err("job 2 has not started yet")"#);
    s.report(1, attempt(1, 1, 1), exited(0));
    insta::assert_snapshot!(s.event(logs("1")), @"1 < logs of 1.1, request 5");
    s.event(Event::AgentGone(SessionId(1)));
    insta::assert_snapshot!(s.event(logs("1")), @r#"logs 5: Err("a.x, where job 1 runs or ran, is not connected")"#);
}

/// Submits jobs that prefer these hosts, in this order, as batch 1.
fn choosy(s: &mut Script, jobs: &[&[&str]]) -> String {
    s.open(1);
    let (mut host_sets, mut submissions) = (Vec::new(), Vec::new());
    for (i, set) in jobs.iter().enumerate() {
        let prefer = (!set.is_empty()).then(|| {
            host_sets.push(set.iter().map(|h| h.to_string()).collect());
            host_sets.len() as u32 - 1
        });
        let (job, spec) = (JobNumber(i as u32 + 1), Bytes::from_static(b"x"));
        submissions.push(Submission {
            prefer,
            ..Submission::new(job, spec)
        });
    }
    s.scheduler.handle(
        Event::Submit {
            batch: batch(1),
            host_sets,
            jobs: submissions,
        },
        s.now,
    );
    s.event(Event::Close { batch: batch(1) })
}

#[test]
fn jobs_go_to_the_hosts_that_they_prefer_and_then_to_whoever_is_free() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.agent(2, "b.x", 2);
    // The fourth wants a host that is not there: it does not wait for it.
    insta::assert_snapshot!(choosy(&mut s, &[&[], &["b.x"], &["b.x", "a.x"], &["z.x"]]), @r"
    accepted 4
    1 < context of batch 1
    1 < run 1/3.1
    2 < context of batch 1
    2 < run 1/2.1
    2 < run 1/1.1
    ");
    // Local before free, and the better place before the worse.
    s.report(1, attempt(1, 3, 1), exited(0));
    insta::assert_snapshot!(s.pull(1, 2, 1), @"1 < run 1/4.1");
    let results = s.report(2, attempt(1, 2, 1), exited(0));
    assert!(
        results.starts_with("result 2.1 exited on b.x, local"),
        "{results}"
    );
}

#[test]
fn an_idle_slot_waits_for_its_own_so_long_and_no_longer() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.agent(2, "b.x", 2);
    // All of them prefer the one host, as in SPARK-18886.
    insta::assert_snapshot!(choosy(&mut s, &[&["a.x"], &["a.x"], &["a.x"], &["a.x"], &["a.x"]]), @r"
    accepted 5
    1 < context of batch 1
    1 < run 1/1.1
    ");
    assert_eq!(s.pass(2), "");
    // That the other one is served meanwhile does not begin the wait anew.
    s.report(1, attempt(1, 1, 1), exited(0));
    insta::assert_snapshot!(s.pull(1, 2, 1), @"1 < run 1/2.1");
    insta::assert_snapshot!(s.pass(1), @r"
    2 < context of batch 1
    2 < run 1/3.1
    2 < run 1/4.1
    ");
    // It is counted for each slot: one that has just fallen idle waits.
    let results = s.report(2, attempt(1, 3, 1), exited(0));
    assert!(
        results.starts_with("result 3.1 exited on b.x, elsewhere"),
        "{results}"
    );
    assert_eq!(s.pull(2, 3, 1), "");
    insta::assert_snapshot!(s.pass(3), @"2 < run 1/5.1");
}

#[test]
fn a_preferred_host_that_is_lost_is_preferred_no_longer() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.agent(2, "b.x", 1);
    choosy(&mut s, &[&["a.x"], &["a.x"]]);
    insta::assert_snapshot!(s.event(Event::AgentGone(SessionId(1))), @"
    fleet 1 agents, 2 engines
    2 < context of batch 1
    2 < run 1/2.1
    ");
}

/// Submits jobs that come after others as batch 1, and closes it.
fn ordered(s: &mut Script, after: &[&[u32]]) -> String {
    s.open(1);
    let job = |i: usize, after: &[u32]| {
        let after = after.iter().map(|n| JobNumber(*n)).collect();
        Submission {
            after,
            ..Submission::new(JobNumber(i as u32 + 1), Bytes::from_static(b"x"))
        }
    };
    let jobs = after
        .iter()
        .enumerate()
        .map(|(i, after)| job(i, after))
        .collect();
    s.scheduler.handle(
        Event::Submit {
            batch: batch(1),
            host_sets: vec![],
            jobs,
        },
        s.now,
    );
    s.event(Event::Close { batch: batch(1) })
}

#[test]
fn a_job_starts_when_those_that_it_comes_after_have_succeeded() {
    let mut s = script();
    s.agent(1, "a.x", 4);
    // The first comes after the last, which is still to come.
    insta::assert_snapshot!(ordered(&mut s, &[&[3], &[], &[], &[1, 2]]), @r"
    accepted 4
    1 < context of batch 1
    1 < run 1/2.1
    1 < run 1/3.1
    ");
    s.report(1, attempt(1, 2, 1), exited(0));
    insta::assert_snapshot!(s.report(1, attempt(1, 3, 1), exited(0)), @r"
    result 3.1 exited on a.x
    1 < acknowledge 2
    1 < run 1/1.1
    ");
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 1), exited(0)), @r"
    result 1.1 exited on a.x
    1 < acknowledge 3
    1 < run 1/4.1
    ");
}

#[test]
fn what_comes_after_a_failure_is_skipped_all_the_way() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    ordered(&mut s, &[&[], &[1], &[2], &[2, 3]]);
    insta::assert_snapshot!(s.report(1, attempt(1, 1, 1), exited(1)), @r"
    result 1.1 exited on a.x
    1 < acknowledge 1
    result 2.0 skipped: job 1, which it comes after, did not succeed
    result 3.0 skipped: job 2, which it comes after, did not succeed
    result 4.0 skipped: job 2, which it comes after, did not succeed
    batch 1 done
    1 < forget batch 1
    ");
}

#[test]
fn what_comes_after_nothing_that_ever_comes_is_skipped() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    insta::assert_snapshot!(ordered(&mut s, &[&[7]]), @r"
    accepted 1
    result 1.0 skipped: job 7, which it comes after, did not succeed
    batch 1 done
    ");
}

#[test]
fn a_chain_as_long_as_a_batch_is_skipped_without_recursion() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    let after: Vec<Vec<u32>> = (0..50_000)
        .map(|n| if n == 0 { vec![] } else { vec![n] })
        .collect();
    let after: Vec<&[u32]> = after.iter().map(Vec::as_slice).collect();
    s.open(1);
    let job = |i: usize, after: &[u32]| {
        let after = after.iter().map(|n| JobNumber(*n)).collect();
        Submission {
            after,
            ..Submission::new(JobNumber(i as u32 + 1), Bytes::new())
        }
    };
    let jobs = after
        .iter()
        .enumerate()
        .map(|(i, after)| job(i, after))
        .collect();
    s.scheduler.handle(
        Event::Submit {
            batch: batch(1),
            host_sets: vec![],
            jobs,
        },
        s.now,
    );
    s.scheduler.handle(Event::Close { batch: batch(1) }, s.now);
    s.scheduler
        .handle(cancel_jobs(None, Duration::ZERO, &["2"]), s.now);
    while s.scheduler.poll_effect().is_some() {}
    assert_eq!(
        s.scheduler.batches[&BatchSerial(1)].done,
        49_999,
        "all but the one that runs"
    );
}

#[test]
fn a_waiting_job_can_be_cancelled_and_drags_its_followers_along() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    ordered(&mut s, &[&[], &[1], &[2]]);
    insta::assert_snapshot!(s.event(cancel_jobs(Some(1), Duration::ZERO, &["2"])), @r"
    result 2.0 cancelled
    request 1 done: 1 jobs, 0 killed, 0 alive, 0 out of reach for 0ns
    result 3.0 skipped: job 2, which it comes after, did not succeed
    ");
}

#[test]
fn only_failures_that_are_worth_it_are_tried_again_and_not_at_once() {
    let mut s = script();
    s.agent(1, "a.x", 2);
    s.open(1);
    let rules = vec![RetryOn::Code(75), RetryOn::Outcome(Ended::Timeout)];
    let job = |n| Submission {
        retries: 5,
        retry_on: rules.clone(),
        retry_delay: Duration::from_secs(10),
        ..Submission::new(JobNumber(n), Bytes::new())
    };
    s.event(Event::Submit {
        batch: batch(1),
        host_sets: vec![],
        jobs: vec![job(1), job(2)],
    });
    s.event(Event::Close { batch: batch(1) });
    insta::assert_snapshot!(s.report(1, attempt(1, 2, 1), exited(1)), @r"
    result 2.1 exited on a.x
    1 < acknowledge 1
    ");
    assert_eq!(
        s.report(1, attempt(1, 1, 1), exited(75)),
        "1 < acknowledge 2"
    );
    s.pull(1, 4, 2);
    assert_eq!(s.pass(9), "");
    assert_eq!(s.pass(1), "1 < run 1/1.2");
    let timeout = Outcome {
        ended: Ended::Timeout,
        ..exited(0)
    };
    s.report(1, attempt(1, 1, 2), timeout);
    assert_eq!(s.pass(19), "");
    assert_eq!(s.pass(1), "1 < run 1/1.3", "twice as long");
}

#[test]
fn why_a_job_does_not_run_is_said_host_by_host() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.agent(2, "b.x", 1);
    s.agent(3, "c.x", 1);
    s.submit(
        1,
        &[
            (&["a"], 0, 0),
            (&["a", "b", "z"], 0, 0),
            (&["a", "b", "z"], 0, 0),
            (&["c"], 0, 0),
        ],
    );
    s.event(Event::AgentGone(SessionId(3)));
    s.pass(7);
    let why = |s: &Script, job: &str| {
        s.scheduler
            .why(batch(1), job, s.now)
            .expect("a job")
            .join("\n")
    };
    insta::assert_snapshot!(why(&s, "3"), @r"
    job 3 waits
    a.x: all 2 slots are busy
    b.x: all 2 slots are busy
    z: has never been seen here
    1 hosts are not among those that it requires
    ");
    insta::assert_snapshot!(why(&s, "1"), @"job 1 is on a.x, attempt 1: it has just started, or is next there");
    insta::assert_snapshot!(why(&s, "4"), @"job 4 is on c.x, which is out of reach: it is given up there when its lease is surely over");
    insta::assert_snapshot!(s.scheduler.why(batch(1), "5", s.now).expect_err("none"), @r#"batch 00000000-0000-0000-0000-000000000001 has no job "5": it has 4 jobs, named by their `id` or their number"#);
}

#[test]
fn why_a_job_waits_for_others_or_for_better_places() {
    let mut s = script();
    s.agent(1, "a.x", 0);
    s.agent(2, "b.x", 1);
    ordered(&mut s, &[&[], &[1]]);
    insta::assert_snapshot!(s.scheduler.why(batch(1), "2", s.now).expect("a job").join("; "), @"job 2 comes after 1 jobs that have not ended: 1");
    let mut s = script();
    s.agent(1, "a.x", 0);
    s.agent(2, "b.x", 1);
    choosy(&mut s, &[&["a.x"]]);
    insta::assert_snapshot!(s.scheduler.why(batch(1), "1", s.now).expect("a job").join("\n"), @r"
    job 1 waits
    a.x: all 2 slots are busy
    b.x: has an idle slot, but the job prefers a.x, for 4 s yet
    ");
}

/// Opens batch `n` of a user with so many jobs of a priority, and closes it.
fn of_user(s: &mut Script, n: u128, user: &str, jobs: u32, priority: i32) -> String {
    let terms = BatchTerms::new(
        BatchContext::new(batch(n), "/".into(), 0o22),
        Duration::from_secs(60),
    );
    s.event(Event::Open {
        user: user.into(),
        terms: Box::new(terms),
    });
    let jobs = (1..=jobs)
        .map(|n| Submission {
            priority,
            ..Submission::new(JobNumber(n), Bytes::new())
        })
        .collect();
    s.scheduler.handle(
        Event::Submit {
            batch: batch(n),
            host_sets: vec![],
            jobs,
        },
        s.now,
    );
    s.event(Event::Close { batch: batch(n) })
}

/// Which jobs run, in order, on one slot that is asked for again and again.
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
    // Up to the limit they may, and below everybody may lower theirs.
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
    // As `exec` does it.
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
    let context = BatchContext::new(batch(2), "/".into(), 0o22);
    let terms = BatchTerms::new(context, Duration::from_secs(60));
    s.event(Event::Open {
        user: "sato".into(),
        terms: Box::new(terms),
    });
    let jobs = (1..=6)
        .map(|n| Submission {
            priority: i32::from(n == 6),
            ..Submission::new(JobNumber(n), Bytes::new())
        })
        .collect();
    s.event(Event::Submit {
        batch: batch(2),
        host_sets: vec![],
        jobs,
    });
    // Priority goes first; then whoever has less running.
    let placed = s.agent(1, "a.x", 7);
    assert!(
        placed.contains("run 2/6.1") && placed.contains("1/1.1"),
        "{placed}"
    );
    let count = |s: &Script, user: u32| s.scheduler.running[user as usize];
    assert_eq!((count(&s, 0), count(&s, 1)), (4, 3));
    // A slot that becomes free goes to whoever is behind.
    let next = s.report(1, attempt(2, 6, 1), exited(0)) + &s.pull(1, 8, 0);
    assert!(next.contains("run 2/"), "{next}");
}

#[test]
fn what_waits_on_a_full_host_goes_to_an_idle_slot_elsewhere() {
    let mut s = script();
    // Short jobs before: this agent, of two slots, has asked for three more in advance.
    s.agent(1, "a.x", 5);
    s.submit(1, &[(NOWHERE, 0, 0); 5]);
    s.agent(2, "b.x", 2);
    assert_eq!(s.pass(0), "");
    s.now = s.now + Duration::from_millis(50);
    s.scheduler.handle_timeout(s.now);
    insta::assert_snapshot!(s.trace(), @"1 < retract 5.1 4.1");
    let back = |n: u32, seq| NumberedReport {
        seq,
        attempt: attempt(1, n, 1),
        report: Report::Returned,
    };
    insta::assert_snapshot!(s.event(Event::Agent(SessionId(1), ToCoordinator::Reports(vec![back(4, 1), back(5, 2)]))), @"
    1 < acknowledge 2
    2 < context of batch 1
    2 < run 1/4.2
    2 < run 1/5.2
    ");
    assert_eq!(s.pass(10), "", "nobody is idle any more");
}

#[test]
fn what_waits_on_a_full_host_stays_there_if_no_idle_slot_may_have_it() {
    let job = |n| Submission::new(JobNumber(n), Bytes::new());
    let taken_back = "1 < retract 5.1 4.1";
    for (job, users, silent, then) in [
        (
            Submission {
                hosts: Some(0),
                ..job(1)
            },
            None,
            10,
            "",
        ),
        (job(1), Some(vec!["sato".to_owned()]), 10, ""),
        // When the slot has been idle for the locality wait it gets them.
        (
            Submission {
                prefer: Some(0),
                ..job(1)
            },
            None,
            WAIT.as_secs() - 1,
            taken_back,
        ),
        // Nobody is there who would be better for them.
        (
            Submission {
                prefer: Some(1),
                ..job(1)
            },
            None,
            0,
            taken_back,
        ),
    ] {
        let mut s = script();
        s.agent(1, "a.x", 5);
        s.open(1);
        let (host_sets, jobs) = (
            [["a"], ["z"]]
                .map(|set| set.map(str::to_owned).to_vec())
                .to_vec(),
            1..=5,
        );
        let jobs = jobs
            .map(|n| Submission {
                job: JobNumber(n),
                ..job.clone()
            })
            .collect();
        s.event(Event::Submit {
            batch: batch(1),
            host_sets,
            jobs,
        });
        s.hello_for(2, "b.x", 1, users);
        s.inventory(2, &[]);
        s.pull(2, 2, 2);
        assert_eq!(s.pass(silent), "", "{job:?}");
        assert_eq!(s.pass(1), then, "{job:?}");
    }
}

#[test]
fn only_failures_make_the_pause_before_the_next_try_longer() {
    let mut s = script();
    s.agent(1, "a.x", 9);
    s.open(1);
    let job = Submission {
        retries: 5,
        retry_delay: Duration::from_secs(10),
        ..Submission::new(JobNumber(1), Bytes::new())
    };
    s.event(Event::Submit {
        batch: batch(1),
        host_sets: vec![],
        jobs: vec![job],
    });
    for n in 1..4 {
        let back = NumberedReport {
            seq: u64::from(n),
            attempt: attempt(1, 1, n),
            report: Report::Returned,
        };
        s.event(Event::Agent(
            SessionId(1),
            ToCoordinator::Reports(vec![back]),
        ));
    }
    assert_eq!(
        s.report(1, attempt(1, 1, 4), exited(1)),
        "1 < acknowledge 1"
    );
    assert_eq!(s.pass(9), "");
    assert_eq!(s.pass(1), "1 < run 1/1.5");
}

#[test]
fn a_cancel_of_what_an_agent_that_returns_has_waits_for_the_proof() {
    let mut s = script();
    s.agent(1, "a.x", 1);
    s.submit(1, &[(NOWHERE, 0, 0)]);
    s.event(cancel(Some(1), Duration::ZERO));
    // It was restarted, and its old session has not even been missed yet.
    let said = s.hello(2, "a.x", 1);
    assert!(!said.contains("out of reach"), "{said}");
    insta::assert_snapshot!(s.inventory(2, &[attempt(1, 1, 1)]), @r"
    2 < cancel 1.1 with grace 0ns
    fleet 1 agents, 2 engines
    ");
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
    a.x: runs no jobs of okazaki: its root has not enabled mezcal-engines@okazaki.service
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
    // Nobody else's jobs are held back by what an agent says.
    say(&mut s, engines(&["okazaki", "sato"]));
    s.pull(1, 2, 2);
    assert_eq!(
        s.scheduler.host_standings()[0].engines,
        [(String::new(), 2)]
    );
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
    a.x: takes no jobs of okazaki until what runs there has ended: their engines are of another version than its agent, and are replaced then
    ");
    // Its keeper ends, and the next one comes.
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
    insta::assert_snapshot!(s.event(Event::Agent(SessionId(1), engines(&[]))), @"notice: 1 job waits for a host that runs jobs of okazaki: root enables mezcal-engines@okazaki.service there; they end as errors after 0:01:00");
}

#[test]
fn jobs_of_a_user_whom_no_host_serves_are_said_and_end_as_errors() {
    let mut s = script();
    s.hello_for(1, "a.x", 1, Some(vec!["sato".into()]));
    s.inventory(1, &[]);
    s.pull(1, 2, 2);
    insta::assert_snapshot!(s.submit(1, &[(NOWHERE, 0, 0), (&["a.x"], 0, 0)]), @"
    accepted 2
    notice: 1 job waits for a host that runs jobs of okazaki: root enables mezcal-engines@okazaki.service there; they end as errors after 0:01:00
    notice: 1 job waits for a host that runs jobs of okazaki: root enables mezcal-engines@okazaki.service there; they end as errors after 0:01:00
    ");
    // Another host that serves them takes what it may; the rest waits for its own.
    s.hello_for(2, "b.x", 1, Some(vec!["okazaki".into()]));
    s.inventory(2, &[]);
    insta::assert_snapshot!(s.pull(2, 2, 2), @"
    2 < context of batch 1
    2 < run 1/1.1
    ");
    insta::assert_snapshot!(s.pass(60), @"result 2.0 no_host: no host that was connected within the host timeout and may run it runs jobs of okazaki (root enables mezcal-engines@okazaki.service there)");
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
fn what_waits_behind_long_jobs_on_a_host_that_comes_back_goes_to_idle_slots() {
    let mut s = script();
    s.agent(1, "a.x", 4);
    // Two run and two wait, which only the host knows.
    s.submit(1, &[(NOWHERE, 0, 0); 4]);
    s.agent(2, "b.x", 2);
    s.event(Event::AgentGone(SessionId(1)));
    s.hello(3, "a.x", 1);
    let all = [1, 2, 3, 4].map(|job| attempt(1, job, 1));
    // The newest ones run, as after a restart: of what waits none is the last.
    let inventory = ToCoordinator::Inventory {
        queued: all[..2].to_vec(),
        running: all[2..].to_vec(),
        unacknowledged: vec![],
        containment: Containment::Subreaper,
        clock_offset: None,
    };
    s.event(Event::Agent(SessionId(3), inventory));
    // It has nothing to ask for, and the other host has asked long ago.
    insta::assert_snapshot!(s.pass(1), @"3 < retract 2.1 1.1");
}

impl Script {
    /// A host of these users with two slots, which takes two jobs.
    fn host_of(&mut self, session: u64, name: &str, users: &[&str]) {
        self.hello_for(
            session,
            name,
            1,
            Some(users.iter().map(|user| user.to_string()).collect()),
        );
        self.served(session, users, &[]);
        self.pull(session, 2, 2);
    }

    fn served(&mut self, session: u64, users: &[&str], unheard: &[&str]) -> String {
        let served = ToCoordinator::Served {
            users: users.iter().map(|user| user.to_string()).collect(),
            unheard: unheard
                .iter()
                .map(|user| (user.to_string(), "their keeper is silent".to_owned()))
                .collect(),
            containment: Containment::Subreaper,
            clock_offset: None,
        };
        self.event(Event::Agent(SessionId(session), served))
    }

    fn has(
        &mut self,
        session: u64,
        user: &str,
        running: &[AttemptId],
        over: &[AttemptId],
    ) -> String {
        let inventory = ToCoordinator::UserInventory {
            user: user.into(),
            queued: vec![],
            running: running.to_vec(),
            unacknowledged: over.to_vec(),
        };
        self.event(Event::Agent(SessionId(session), inventory))
    }

    fn report_of(
        &mut self,
        user: &str,
        session: u64,
        attempt: AttemptId,
        outcome: Outcome,
    ) -> String {
        self.seq += 1;
        let report = Report::Finished {
            engine: Some(EngineIndex(0)),
            outcome: Box::new(outcome),
        };
        let reports = vec![NumberedReport {
            seq: self.seq,
            attempt,
            report,
        }];
        self.event(Event::Agent(
            SessionId(session),
            ToCoordinator::ReportsOf {
                user: user.into(),
                reports,
            },
        ))
    }
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
    // They are neither sato's to have nor sato's to end, and no claim of sato's has them killed.
    assert_eq!(s.has(2, "sato", &[first], &[second]), "2 < known of sato:");
    insta::assert_snapshot!(s.served(2, &["okazaki", "sato"], &[]), @"fleet 1 agents, 2 engines");
    insta::assert_snapshot!(s.report_of("sato", 2, first, exited(0)), @"2 < acknowledge 1");
    insta::assert_snapshot!(s.report_of("okazaki", 2, first, exited(0)), @"
    result 1.1 exited on a.x
    2 < acknowledge 2
    ");
    // Nor does sato's claim keep a job of okazaki's from being missed.
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
    // The host goes on with others, and says why.
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

#[test]
fn what_was_sent_in_a_session_is_not_missed_in_an_inventory_of_the_same_one() {
    let mut s = script();
    s.host_of(1, "a.x", &["okazaki", "sato"]);
    s.submit(1, &[(NOWHERE, 0, 0)]);
    s.served(1, &["sato"], &["okazaki"]);
    // It was on its way, and the agent has not seen it when it says this.
    assert_eq!(s.has(1, "okazaki", &[], &[]), "1 < known of okazaki:");
    s.served(1, &["okazaki", "sato"], &[]);
    let result = s.report(1, attempt(1, 1, 1), exited(0));
    assert!(result.contains("result 1.1 exited"), "{result}");
}

#[test]
fn longer_leases_are_recorded_for_what_an_earlier_life_placed_before_an_agent_hears_of_them() {
    let mut s = script();
    s.scheduler = Scheduler::new(Epoch(8), StoreId(1), Some(2 * LEASE), WAIT).durable(2 * LEASE);
    s.scheduler.replay(
        Record::Engines {
            host: "a.x".into(),
            first: EngineId(0),
            slots: 2,
        },
        s.now,
    );
    let terms = Box::new(BatchTerms::new(
        BatchContext::new(batch(1), "/".into(), 0o22),
        LEASE,
    ));
    s.scheduler.replay(
        Record::Opened {
            batch: BatchSerial(1),
            user: "okazaki".into(),
            terms,
            age: Duration::ZERO,
        },
        s.now,
    );
    s.scheduler.replay(
        Record::Submitted {
            batch: BatchSerial(1),
            jobs: vec![Submission::new(JobNumber(1), Bytes::from_static(b"x"))],
        },
        s.now,
    );
    let placed = |lease| Record::Placed {
        host: "a.x".into(),
        lease: Some(lease),
        attempts: vec![attempt(1, 1, 1)],
    };
    s.scheduler.replay(placed(LEASE), s.now);
    s.scheduler.restored(s.now);
    let first = s.scheduler.poll_effect();
    assert_eq!(first, Some(Effect::Persist(placed(2 * LEASE))));
    let hello = Hello {
        versions: (1, 2),
        program: "test".into(),
        keeper: 1,
        boot_id: [1; 16],
        slots: 2,
        aliases: vec![],
        cpus: 2,
        memory: 0,
        users: None,
    };
    s.scheduler.handle(
        Event::AgentHello {
            session: SessionId(1),
            name: "a.x".into(),
            hello,
        },
        s.now,
    );
    let welcome = std::iter::from_fn(|| s.scheduler.poll_effect()).find(|e| {
        matches!(
            e,
            Effect::Greet(_, ToAgent::Welcome { .. }) | Effect::ToAgent(_, ToAgent::Welcome { .. })
        )
    });
    assert!(
        !welcome.expect("a welcome").overtakes_the_store(),
        "it waits for the store"
    );
    // The next life, with a shorter one, has to wait for the longest.
    let mut next = Scheduler::new(Epoch(9), StoreId(1), Some(LEASE / 2), WAIT).durable(LEASE);
    let terms = Box::new(BatchTerms::new(
        BatchContext::new(batch(1), "/".into(), 0o22),
        LEASE,
    ));
    next.replay(
        Record::Opened {
            batch: BatchSerial(1),
            user: "okazaki".into(),
            terms,
            age: Duration::ZERO,
        },
        s.now,
    );
    next.replay(
        Record::Submitted {
            batch: BatchSerial(1),
            jobs: vec![Submission::new(JobNumber(1), Bytes::from_static(b"x"))],
        },
        s.now,
    );
    next.replay(placed(LEASE), s.now);
    next.replay(placed(2 * LEASE), s.now);
    next.restored(s.now);
    assert_eq!(next.lease, Some(2 * LEASE));
}
