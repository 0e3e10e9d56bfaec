//! The jobs of a run, and how their batch may be given up.

use super::plan::CALM;
use super::steps::Step;
use super::world::World;
use mezcal_common::message::client::{BatchTerms, Halt, HaltCount, HaltWhy, Submission};
use mezcal_common::model::ids::JobNumber;
use std::time::Duration;

impl World {
    /// Many narrow jobs that are long, and a wide one that comes when they are well under way.
    pub(super) fn crowd(&mut self, jobs: &mut Vec<Submission>) {
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

    /// Ways in which the batch may be given up, and jobs that are on their way from one place to
    /// another when that happens.
    pub(super) fn give_up(&mut self, terms: &mut BatchTerms, jobs: &mut [Submission]) {
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
}
