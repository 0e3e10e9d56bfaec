//! Giving up a batch before all its jobs have ended: by `--halt`, as GNU Parallel has it, or by its
//! time limit.

use super::{Effect, Job, JobState, Mistake, Record, Scheduler, Timer};
use mezcal_common::message::client::{Halt, HaltCount, HaltWhy, Notice};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::duration::format_duration;
use mezcal_common::model::ids::{BatchSerial, JobKey, JobNumber};
use mezcal_common::model::job::Stop;
use mezcal_common::model::outcome::{Ended, Outcome};
use std::time::Duration;

/// The time between TERM and KILL when a batch is given up.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// How many jobs of a batch have ended by themselves. Cancelled jobs and jobs that never started do
/// not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    succeeded: u64,
    failed: u64,
}

impl Counts {
    pub(super) fn add(&mut self, outcome: &Outcome) {
        match outcome.ended {
            Ended::Cancelled | Ended::Skipped | Ended::HostShort => {}
            Ended::Exited if outcome.succeeded() => self.succeeded += 1,
            Ended::Exited
            | Ended::Signaled
            | Ended::Timeout
            | Ended::OutOfMemory
            | Ended::StartFailed
            | Ended::NoHost
            | Ended::Lost
            | Ended::Unkillable => self.failed += 1,
        }
    }

    /// How many ends count for `halt`, if enough. `total`: all jobs of the batch, once known.
    fn reached(self, halt: Halt, total: Option<u64>) -> Option<u64> {
        let count = match halt.why {
            HaltWhy::Fail => self.failed,
            HaltWhy::Success => self.succeeded,
            HaltWhy::Done => self.failed + self.succeeded,
        };
        let enough = match halt.count {
            HaltCount::Jobs(jobs) => jobs,
            // A share rounds up to at least one job.
            HaltCount::Share(hundredths) => {
                (total? * u64::from(hundredths)).div_ceil(10_000).max(1)
            }
        };
        (count >= enough).then_some(count)
    }
}

impl Scheduler {
    /// Gives up the rest of a batch if its halt has come about.
    pub(super) fn check_halt(&mut self, serial: BatchSerial, now: BootInstant) {
        let Some(batch) = self.batches.get_mut(&serial) else {
            return;
        };
        let total = (!batch.open).then_some(batch.jobs.len() as u64);
        let Some(halt) = batch.halt.filter(|_| !batch.is_given_up()) else {
            return;
        };
        let Some(count) = batch.counts.reached(halt, total) else {
            return;
        };
        let (what, verb) = match halt.why {
            HaltWhy::Fail => ("failed", "halted"),
            HaltWhy::Success => ("succeeded", "not needed any more"),
            HaltWhy::Done => ("ended", "halted"),
        };
        batch.set_halted(format!("{verb}: {count} of the batch's jobs {what} (--halt)").into());
        let (id, why) = (batch.id, batch.why.clone());
        self.persist(|| Record::Stopped {
            batch: serial,
            stop: None,
            why,
        });
        self.effects.push_back(Effect::Notice {
            batch: id,
            notice: Notice::Halted {
                why: halt.why,
                count,
            },
        });
        if halt.now {
            self.cancel_batch(serial, None, Stop::after(GRACE), now);
            return;
        }
        self.drop_queued(serial, now);
        // Jobs that wait on agents come back; jobs that run there go on.
        let hosts = self
            .hosts
            .in_order()
            .into_iter()
            .filter(|h| h.session.is_some());
        let hosts: Vec<_> = hosts.map(|h| h.name.clone()).collect();
        for name in hosts {
            let Some(host) = self.hosts.get(&name) else {
                continue;
            };
            let attempts = host
                .attempts
                .ids()
                .filter(|a| a.key.batch == serial)
                .collect();
            self.retract(&name, attempts);
        }
    }

    /// Cancels a batch whose time limit has passed.
    pub(super) fn time_is_up(&mut self, serial: BatchSerial, now: BootInstant) {
        let Some(batch) = self.batches.get_mut(&serial) else {
            return;
        };
        let limit = batch.time_limit.unwrap_or_default();
        batch.set_why(
            format!(
                "cancelled: the batch was not done within its time limit of {}",
                format_duration(limit)
            )
            .into(),
        );
        self.cancel_batch(serial, None, Stop::after(GRACE), now);
    }

    /// Ends the jobs that are not placed, found by their state and not by the queue they wait in: a
    /// job may be between two queues just now.
    pub(super) fn drop_queued(&mut self, serial: BatchSerial, now: BootInstant) -> u64 {
        let Some(batch) = self.batches.get(&serial) else {
            return 0;
        };
        let waits = |job: &Job| match job.state {
            JobState::Waiting | JobState::Queued => true,
            JobState::Placed | JobState::Done => false,
        };
        let mut left: Vec<JobNumber> = (1..)
            .map(JobNumber)
            .zip(&batch.jobs)
            .filter(|(_, job)| waits(job))
            .map(|(number, _)| number)
            .collect();
        if self.mistake == Some(Mistake::OverlooksReleased) {
            left.retain(|job| {
                !self.pending.is_released(JobKey {
                    batch: serial,
                    job: *job,
                })
            });
        }
        self.forget_delayed(serial);
        for key in self.queues.of_batch(serial) {
            self.timers.clear(Timer::Absent(key));
            self.queues.take_all(key);
        }
        for job in &left {
            self.finish(
                JobKey {
                    batch: serial,
                    job: *job,
                },
                None,
                Outcome::never_ran(Ended::Cancelled, None),
                now,
            );
        }
        left.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_all_jobs_and_at_least_one() {
        let halt = |why, count| Halt {
            now: true,
            why,
            count,
        };
        let counts = Counts {
            succeeded: 5,
            failed: 2,
        };
        assert_eq!(
            counts.reached(halt(HaltWhy::Fail, HaltCount::Jobs(2)), None),
            Some(2)
        );
        assert_eq!(
            counts.reached(halt(HaltWhy::Fail, HaltCount::Jobs(3)), None),
            None
        );
        assert_eq!(
            counts.reached(halt(HaltWhy::Success, HaltCount::Jobs(1)), None),
            Some(5)
        );
        assert_eq!(
            counts.reached(halt(HaltWhy::Done, HaltCount::Share(5000)), None),
            None,
            "how many are half is not known yet"
        );
        assert_eq!(
            counts.reached(halt(HaltWhy::Done, HaltCount::Share(5000)), Some(14)),
            Some(7)
        );
        assert_eq!(
            counts.reached(halt(HaltWhy::Done, HaltCount::Share(5000)), Some(15)),
            None
        );
        assert_eq!(
            Counts::default().reached(halt(HaltWhy::Fail, HaltCount::Share(1)), Some(10)),
            None
        );
    }
}
