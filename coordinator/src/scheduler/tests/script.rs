//! Short methods for events, and the trace of their effects.

use super::*;

impl Script {
    pub(super) fn event(&mut self, event: Event) -> String {
        self.scheduler.handle(event, self.now);
        self.trace()
    }

    pub(super) fn pass(&mut self, seconds: u64) -> String {
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
    pub(super) fn agent(&mut self, session: u64, name: &str, credit: u64) -> String {
        self.hello(session, name, 1);
        self.inventory(session, &[]);
        self.pull(session, credit, credit as u16)
    }

    pub(super) fn hello(&mut self, session: u64, name: &str, boot: u8) -> String {
        self.hello_for(session, name, boot, None)
    }

    pub(super) fn hello_for(
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

    pub(super) fn inventory(&mut self, session: u64, running: &[AttemptId]) -> String {
        let inventory = ToCoordinator::Inventory {
            queued: vec![],
            running: running.to_vec(),
            unacknowledged: vec![],
            containment: Containment::Subreaper,
            clock_offset: None,
        };
        self.event(Event::Agent(SessionId(session), inventory))
    }

    pub(super) fn pull(&mut self, session: u64, credit: u64, idle: u16) -> String {
        self.event(Event::Agent(
            SessionId(session),
            ToCoordinator::Pull { credit, idle },
        ))
    }

    pub(super) fn report(&mut self, session: u64, attempt: AttemptId, outcome: Outcome) -> String {
        let (engine, outcome) = (Some(EngineIndex(0)), Box::new(outcome));
        self.says_of(session, attempt, Report::Finished { engine, outcome })
    }

    pub(super) fn started(&mut self, session: u64, attempt: AttemptId, engine: u16) -> String {
        let engine = EngineIndex(engine);
        self.says_of(session, attempt, Report::Started { engine })
    }

    fn says_of(&mut self, session: u64, attempt: AttemptId, report: Report) -> String {
        self.seq += 1;
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

    pub(super) fn open(&mut self, n: u128) {
        self.open_with("okazaki", terms(n));
    }

    pub(super) fn open_with(&mut self, user: &str, terms: BatchTerms) -> String {
        self.event(Event::Open {
            user: user.into(),
            terms: Box::new(terms),
        })
    }

    /// Adds jobs to a batch, which stays open.
    pub(super) fn add(
        &mut self,
        n: u128,
        host_sets: Vec<Vec<String>>,
        jobs: Vec<Submission>,
    ) -> String {
        self.event(Event::Submit {
            batch: batch(n),
            host_sets,
            jobs,
        })
    }

    /// Adds jobs to an open batch, and closes it.
    pub(super) fn submit_jobs(
        &mut self,
        n: u128,
        host_sets: Vec<Vec<String>>,
        jobs: Vec<Submission>,
    ) -> String {
        let submitted = Event::Submit {
            batch: batch(n),
            host_sets,
            jobs,
        };
        self.scheduler.handle(submitted, self.now);
        self.event(Event::Close { batch: batch(n) })
    }

    /// Opens batch 1 with jobs of which each comes after these others, and closes it.
    pub(super) fn submit_ordered(&mut self, after: &[&[u32]]) -> String {
        self.open(1);
        self.submit_jobs(1, vec![], ordered(after))
    }

    /// Gives a scheduler the records of an earlier life.
    pub(super) fn replay(&mut self, records: impl IntoIterator<Item = Record>) {
        for record in records {
            self.scheduler.replay(record, self.now);
        }
    }

    /// Gives a scheduler all records of an earlier life, and lets it go on.
    pub(super) fn restore(&mut self, records: impl IntoIterator<Item = Record>) -> String {
        self.replay(records);
        self.scheduler.restored(self.now);
        self.trace()
    }

    /// Submits jobs, each given by its hosts, priority and retries, and closes the batch.
    pub(super) fn submit(&mut self, n: u128, jobs: &[(&[&str], i32, u32)]) -> String {
        self.open(n);
        let (mut host_sets, mut submissions) = (Vec::new(), Vec::new());
        for (i, (set, priority, retries)) in jobs.iter().enumerate() {
            let hosts = (!set.is_empty()).then(|| {
                host_sets.push(set.iter().map(|h| h.to_string()).collect());
                host_sets.len() as u32 - 1
            });
            submissions.push(Submission {
                hosts,
                priority: *priority,
                retries: *retries,
                ..any_job(i as u32 + 1)
            });
        }
        self.submit_jobs(n, host_sets, submissions)
    }

    /// The effects so far, one line each. One arm for each of them, however many there are.
    pub(super) fn trace(&mut self) -> String {
        let mut lines = Vec::new();
        while let Some(effect) = self.scheduler.poll_effect() {
            let line = match effect {
                Effect::Persist(record) => format!("persist {record:?}"),
                Effect::Welcome(s, Welcome { first_engine, .. }) => {
                    format!("{s} < welcome, engines from {first_engine}")
                }
                Effect::ToAgent(s, ToAgent::Context { batch, .. }) => {
                    format!("{s} < context of batch {batch}")
                }
                Effect::Place(s, run) => {
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
                Effect::HeartbeatSeen { session, .. } => format!("{session} < heartbeat seen"),
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
                Effect::ToAgent(s, ToAgent::Generation { generation }) => {
                    format!("{s} < {generation}")
                }
                Effect::ToAgent(s, ToAgent::Known { user, attempts }) => {
                    let ids: Vec<String> = attempts
                        .iter()
                        .map(|(attempt, slots)| format!(" {attempt} takes {slots}"))
                        .collect();
                    format!("{s} < known of {user}:{}", ids.join(""))
                }
                Effect::ToAgent(
                    s,
                    message @ (ToAgent::Welcome { .. }
                    | ToAgent::HeartbeatSeen { .. }
                    | ToAgent::Run(_)
                    | ToAgent::Logs { .. }
                    | ToAgent::Renewed { .. }),
                ) => panic!("the driver makes this message, not the core: {s} < {message:?}"),
                Effect::AskForLogs {
                    session,
                    request,
                    attempt,
                    ..
                } => format!("{session} < logs of {attempt}, request {request}"),
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
}

impl Script {
    /// A host with two slots that serves these users; its agent asks for two jobs.
    pub(super) fn host_of(&mut self, session: u64, name: &str, users: &[&str]) {
        self.hello_for(
            session,
            name,
            1,
            Some(users.iter().map(|user| user.to_string()).collect()),
        );
        self.served(session, users, &[]);
        self.pull(session, 2, 2);
    }

    pub(super) fn served(&mut self, session: u64, users: &[&str], unheard: &[&str]) -> String {
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

    pub(super) fn has(
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

    pub(super) fn report_of(
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
