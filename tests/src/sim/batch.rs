//! The jobs of a run, and the ways in which their batch may be given up.

use super::World;
use super::chance::Chance;
use super::plan::{BATCH, CALM, END, GIVEN_UP, Plan, USER};
use super::steps::Step;
use mezcal_common::message::client::{BatchTerms, Halt, HaltCount, HaltWhy, Submission};
use mezcal_common::model::ids::JobNumber;
use mezcal_common::model::job::{BatchContext, Stop};
use mezcal_coordinator::scheduler::{self, Wanted, WantedJob};
use std::time::Duration;

impl World {
    /// The batch is open, and its client has heard that its jobs are accepted.
    pub(super) fn accept_the_batch(&mut self) {
        let Plan {
            seed, hosts, crowd, ..
        } = self.plan;
        let context = BatchContext::new(BATCH, "/".into(), 0o22);
        let mut terms = BatchTerms::new(context, END);
        let mut jobs = self.submissions();
        if crowd {
            self.crowd(&mut jobs);
        } else if seed % GIVEN_UP == GIVEN_UP - 1 {
            self.give_up(&mut terms, &mut jobs);
        }
        self.tell_scheduler(scheduler::Event::Open {
            user: USER.into(),
            terms: Box::new(terms),
        });
        self.tell_scheduler(scheduler::Event::Submit {
            batch: BATCH,
            host_sets: (0..hosts).map(|n| vec![format!("h{n}")]).collect(),
            jobs,
        });
        if !crowd {
            self.tell_scheduler(scheduler::Event::Close { batch: BATCH });
        }
        self.take_effects();
        self.commit(u64::MAX);
    }

    /// Jobs: some prefer a host, some take all slots of one, some may run on one host only.
    fn submissions(&mut self) -> Vec<Submission> {
        let Plan {
            hosts, slots, jobs, ..
        } = self.plan;
        let submission = |n| {
            let some_host = |chance: &mut Chance, n| {
                let some = chance.one_in(n);
                some.then(|| chance.below(hosts as u64) as u32)
            };
            let prefer = some_host(&mut self.chance, 3);
            let slots = if self.chance.one_in(5) {
                slots as u16
            } else {
                1
            };
            self.slots_by_job.insert(n, slots);
            let hosts = some_host(&mut self.chance, 6);
            self.required.extend(hosts.map(|host| (n, host as usize)));
            Submission {
                prefer,
                hosts,
                slots,
                ..Submission::new(JobNumber(n), self.spec.clone())
            }
        };
        (1..=jobs).map(submission).collect()
    }

    /// Many narrow, long jobs, and a wide one that comes when they are well under way.
    fn crowd(&mut self, jobs: &mut Vec<Submission>) {
        self.longest = Duration::from_secs(70) + self.chance.millis(230_000);
        self.required.clear();
        for job in jobs.iter_mut() {
            (job.hosts, job.prefer, job.slots) = (None, None, 1);
            self.slots_by_job.insert(job.job.0, 1);
        }
        jobs.pop();
        self.slots_by_job
            .insert(self.plan.jobs, self.plan.slots as u16);
        let wait = self.longest + self.chance.millis(300_000);
        self.after(wait, Step::WideComes);
    }

    /// The wide job of a crowd, as long as it has not started.
    pub(super) fn wide_waits(&self) -> bool {
        let wide = self.key(self.plan.jobs);
        !self
            .hosts
            .iter()
            .flat_map(|host| &host.slots)
            .any(|slot| slot.alive.is_some_and(|attempt| attempt.key == wide))
    }

    /// Ways to give the batch up, and jobs that are between two places when that happens.
    fn give_up(&mut self, terms: &mut BatchTerms, jobs: &mut [Submission]) {
        for job in jobs {
            let n = job.job.0;
            if n > 1 && self.chance.one_in(2) {
                job.after = vec![JobNumber(1 + self.chance.below(u64::from(n) - 1) as u32)];
            }
            if self.chance.one_in(8) {
                self.failing.insert(n);
            } else if self.chance.one_in(2) {
                (job.retries, job.retry_delay) = (2, self.chance.millis(20_000));
            }
        }
        let moment = self.chance.millis(CALM.as_millis() as u64 / 2);
        match self.chance.below(4) {
            0 => terms.time_limit = Some(moment),
            1 => self.after(moment, Step::ClientLeaves),
            _ => {
                let why =
                    [HaltWhy::Fail, HaltWhy::Success, HaltWhy::Done][self.chance.below(3) as usize];
                let count = HaltCount::Jobs(1 + self.chance.below(4));
                terms.halt = Some(Halt {
                    now: self.chance.one_in(2),
                    why,
                    count,
                });
            }
        }
    }

    /// The wide job of a crowd comes.
    pub(super) fn wide_comes(&mut self) {
        self.wide_until = Some(self.now + scheduler::WIDE_WAIT * self.longest);
        let wide = Submission {
            slots: self.plan.slots as u16,
            ..Submission::new(JobNumber(self.plan.jobs), self.spec.clone())
        };
        self.tell_scheduler(scheduler::Event::Submit {
            batch: BATCH,
            host_sets: Vec::new(),
            jobs: vec![wide],
        });
    }

    /// A user cancels a job.
    pub(super) fn cancel(&mut self, job: u32) {
        let what = vec![Wanted {
            batch: BATCH,
            job: Some(WantedJob::Number(JobNumber(job))),
        }];
        let grace = if self.chance.one_in(2) {
            Duration::ZERO
        } else {
            Duration::from_secs(2)
        };
        self.tell_scheduler(scheduler::Event::Cancel {
            request: Some(u64::from(job)),
            what,
            stop: Stop::after(grace),
            why: None,
        });
        if self.mutants.answers_cancels_at_once() {
            self.proven.insert(job);
        }
    }
}
