//! A scheduler with hosts and jobs, without drivers, for benchmarks.

use bytes::Bytes;
use mezcal_common::message::agent::{Hello, NumberedReport, Report, ToCoordinator};
use mezcal_common::message::client::{BatchTerms, Submission};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{
    AttemptId, BatchId, EngineIndex, Epoch, JobNumber, SessionId, StoreId,
};
use mezcal_common::model::job::BatchContext;
use mezcal_common::model::outcome::{Containment, Ended, Outcome, WaitStatus};
use mezcal_coordinator::scheduler::{Effect, Event, Scheduler};
use std::time::Duration;

const SLOTS: u16 = 4;
/// Jobs in one submit message, as a client sends them.
const SUBMITTED: usize = 4096;
const NOW: BootInstant = BootInstant(Duration::from_secs(1000));

/// The first message of the agent of a host with `slots` slots.
pub fn hello(slots: u16) -> Hello {
    let (program, aliases) = (String::new(), vec![]);
    Hello {
        versions: (1, 1),
        program,
        keeper: 1,
        boot_id: [0; 16],
        slots,
        aliases,
        cpus: 1,
        memory: 0,
        users: None,
    }
}

/// Hosts with four slots each that report results, ask for jobs and get jobs of one batch.
pub struct Placing {
    scheduler: Scheduler,
    batch: BatchId,
    submitted: usize,
    random: u64,
    hosts: Vec<Host>,
    /// The index of the host whose turn it is.
    turn: usize,
    local: u32,
    ended: u32,
}

#[derive(Clone, Default)]
struct Host {
    running: Vec<AttemptId>,
    credit: u64,
    seq: u64,
}

impl Placing {
    /// An open batch, and `hosts` connected hosts.
    pub fn new(hosts: usize) -> Self {
        let mut scheduler = Scheduler::new(
            Epoch(1),
            StoreId(1),
            Some(Duration::from_secs(600)),
            Duration::from_secs(3),
        );
        let batch = BatchId(uuid::Uuid::from_u128(1));
        let terms = BatchTerms::new(
            BatchContext::new(batch, "/".into(), 0o22),
            Duration::from_secs(60),
        );
        scheduler.handle(
            Event::Open {
                user: "okazaki".into(),
                terms: Box::new(terms),
            },
            NOW,
        );
        for host in 0..hosts {
            let session = SessionId(host as u64);
            scheduler.handle(
                Event::AgentHello {
                    session,
                    name: format!("h{host}"),
                    hello: hello(SLOTS),
                },
                NOW,
            );
            let (queued, running, unacknowledged) = (vec![], vec![], vec![]);
            let inventory = ToCoordinator::Inventory {
                queued,
                running,
                unacknowledged,
                containment: Containment::Cgroup2,
                clock_offset: None,
            };
            scheduler.handle(Event::Agent(session, inventory), NOW);
        }
        let hosts = vec![Host::default(); hosts];
        let mut me = Self {
            scheduler,
            batch,
            submitted: 0,
            random: 1,
            hosts,
            turn: 0,
            local: 0,
            ended: 0,
        };
        me.perform();
        me
    }

    fn random(&mut self, below: usize) -> usize {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % below
    }

    /// Submits more jobs; each prefers three hosts if the jobs are `near` their data.
    pub fn submit(&mut self, count: usize, near: bool) {
        let spec = Bytes::from_static(b"x");
        let end = self.submitted + count;
        while self.submitted < end {
            let mut host_sets = Vec::new();
            let numbers = self.submitted..end.min(self.submitted + SUBMITTED);
            self.submitted = numbers.end;
            let jobs = numbers.map(|job| {
                let prefer = near.then(|| {
                    host_sets.push(
                        (0..3)
                            .map(|_| format!("h{}", self.random(self.hosts.len())))
                            .collect(),
                    );
                    job as u32
                });
                Submission {
                    prefer,
                    ..Submission::new(JobNumber(job as u32 + 1), spec.clone())
                }
            });
            let (jobs, batch) = (jobs.collect(), self.batch);
            self.scheduler.handle(
                Event::Submit {
                    batch,
                    host_sets,
                    jobs,
                },
                NOW,
            );
        }
        self.perform();
    }

    /// Makes every host ask for as many jobs as it has slots.
    pub fn begin(&mut self) {
        for host in 0..self.hosts.len() {
            self.hosts[host].credit = u64::from(SLOTS);
            self.pull(host, SLOTS);
        }
        self.perform();
    }

    /// Ends `count` jobs: each host in turn reports one and asks for another.
    pub fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            let host = self.turn * 7919 % self.hosts.len();
            self.turn += 1;
            let Some(attempt) = self.hosts[host].running.pop() else {
                continue;
            };
            self.hosts[host].seq += 1;
            self.hosts[host].credit += 1;
            let outcome = Box::new(Outcome {
                status: Some(WaitStatus::Exited(0)),
                ..Outcome::never_ran(Ended::Exited, None)
            });
            let report = Report::Finished {
                engine: Some(EngineIndex(0)),
                outcome,
            };
            let reports = vec![NumberedReport {
                seq: self.hosts[host].seq,
                attempt,
                report,
            }];
            self.scheduler.handle(
                Event::Agent(SessionId(host as u64), ToCoordinator::Reports(reports)),
                NOW,
            );
            self.pull(host, 1);
            std::hint::black_box(self.scheduler.poll_timeout());
            self.perform();
        }
    }

    /// The share of the ended jobs that ran on a host that they preferred.
    pub fn local_share(&self) -> f64 {
        f64::from(self.local) / f64::from(self.ended.max(1))
    }

    /// The number of jobs that have ended.
    pub fn ended(&self) -> u32 {
        self.ended
    }

    fn pull(&mut self, host: usize, idle: u16) {
        let pull = ToCoordinator::Pull {
            credit: self.hosts[host].credit,
            idle,
        };
        self.scheduler
            .handle(Event::Agent(SessionId(host as u64), pull), NOW);
    }

    fn perform(&mut self) {
        while let Some(effect) = self.scheduler.poll_effect() {
            match effect {
                Effect::Place(SessionId(host), run) => {
                    self.hosts[host as usize]
                        .running
                        .extend(run.iter().map(|p| p.attempt));
                }
                Effect::Result { result, .. } => {
                    self.ended += 1;
                    self.local += u32::from(result.local == Some(true));
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Placing;

    #[test]
    fn every_round_ends_a_job_where_it_wanted_to_be() {
        let mut placing = Placing::new(10);
        placing.submit(20_000, true);
        placing.begin();
        placing.rounds(1000);
        assert_eq!(placing.ended(), 1000);
        assert!(placing.local_share() > 0.9, "{}", placing.local_share());
    }
}
