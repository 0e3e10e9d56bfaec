//! Why a job does not run, in words: first the reasons of the job itself, then those of each host.

use super::queues::QueueKey;
use super::{Host, Job, JobState, Scheduler};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, BatchId, JobKey, attempt_count};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Most hosts that are named one by one.
const MOST: usize = 100;

/// Why a host's other slots cannot be used, to be appended; empty: all can.
fn failing(host: &Host) -> String {
    host.trouble()
        .map_or(String::new(), |why| format!(" ({why})"))
}

impl Scheduler {
    /// Why job `name` of a batch does not run, or that it does.
    ///
    /// # Errors
    /// There is no such job.
    pub fn why(&self, batch: BatchId, name: &str, now: BootInstant) -> Result<Vec<String>, String> {
        let serial = self.serial(batch)?;
        let key = JobKey {
            batch: serial,
            job: self.job_number(serial, name)?,
        };
        let (job, batch) = self
            .batches
            .job(key)
            .zip(self.batches.get(&serial))
            .ok_or("that batch has ended")?;
        let mut lines = match job.state {
            JobState::Done => vec![format!("job {name} has ended")],
            JobState::Placed => vec![self.why_placed(key, job, name)],
            JobState::Waiting => self.why_waiting(key, name, now),
            JobState::Queued => vec![format!("job {name} waits")],
        };
        if batch.is_given_up() {
            lines.push("its batch is cancelled or halted".into());
        }
        if job.attempt > 0 && job.state != JobState::Done && job.state != JobState::Placed {
            lines.push(format!(
                "it has been tried {} times, {} of them lost with their hosts",
                attempt_count(job.attempt),
                job.losses()
            ));
        }
        if job.state == JobState::Queued {
            lines.extend(self.why_hosts(key, now));
        }
        Ok(lines)
    }

    fn why_placed(&self, key: JobKey, job: &Job, name: &str) -> String {
        let Some(host) = self.hosts.at(job.host) else {
            return format!("job {name} is on a host that is gone");
        };
        let at = &host.name;
        let mut there = host.attempts.iter().filter(|_| host.session.is_some());
        let Some((AttemptId { attempt, .. }, on)) = there.find(|(a, _)| a.key == key) else {
            return format!(
                "job {name} is on {at}, which is out of reach: it is given up there when its lease is surely over"
            );
        };
        match (on.engine, on.started) {
            (Some(engine), _) => {
                format!("job {name} runs on {at} in slot {engine}, attempt {attempt}")
            }
            (None, true) => format!("job {name} runs on {at}, attempt {attempt}"),
            (None, false) => format!(
                "job {name} is on {at}, attempt {attempt}: it has just started, or is next there"
            ),
        }
    }

    fn why_waiting(&self, key: JobKey, name: &str, now: BootInstant) -> Vec<String> {
        if let Some(at) = self.pending.delayed_until(key) {
            let left = at.since(now).as_secs() + 1;
            return vec![match self.held_until(key.batch) {
                Some(_) => format!(
                    "job {name} waits for {left} s: the coordinator's store was restored from a \
                     copy, and jobs that its original placed may run until then (`coordinator \
                     serve --nothing-runs` confirms that none do)"
                ),
                None => format!("job {name} is tried again in {left} s (retry_delay)"),
            }];
        }
        if self
            .batches
            .get(&key.batch)
            .is_some_and(|batch| batch.is_held() && !batch.order.has(key.job))
        {
            return vec![format!(
                "job {name} waits for the rest of its batch, which is detached and has not been handed over whole"
            )];
        }
        let before = self
            .batches
            .get(&key.batch)
            .map(|batch| batch.order.before(key.job))
            .unwrap_or_default();
        let names: Vec<String> = before.iter().take(MOST).map(ToString::to_string).collect();
        vec![format!(
            "job {name} comes after {} jobs that have not ended: {}",
            before.len(),
            names.join(", ")
        )]
    }

    /// For each host that the job may use, why it does not run there; then further remarks on
    /// hosts.
    fn why_hosts(&self, key: JobKey, now: BootInstant) -> Vec<String> {
        let Some(job) = self.batches.job(key) else {
            return Vec::new();
        };
        let required = self.batches.set_of(job.queue);
        let preferred = self.batches.preferred_by(job.queue).unwrap_or_default();
        let (mut lines, mut unsuitable) = (Vec::new(), 0);
        for host in self.hosts.in_order() {
            if required
                .as_ref()
                .is_some_and(|set| !self.is_among(host, set))
            {
                unsuitable += 1;
                continue;
            }
            let reason = self
                .why_unusable(host, job.queue, now)
                .unwrap_or_else(|| self.why_not_now(host, job.queue, &preferred, now));
            lines.push(format!("{}: {reason}", host.name));
        }
        let known: BTreeSet<Arc<str>> = self
            .hosts
            .values()
            .flat_map(|host| self.names_of(host))
            .collect();
        let wanted = required
            .iter()
            .chain(Some(&preferred))
            .flat_map(|set| set.iter());
        lines.extend(wanted.filter_map(|name| self.several_called(name)));
        let never = required
            .iter()
            .flat_map(|set| set.iter())
            .filter(|name| !known.contains(*name));
        let never = never.filter(|name| self.several_called(name).is_none());
        lines.extend(never.map(|name| format!("{name}: has never connected")));
        let over = lines.len().saturating_sub(MOST);
        lines.truncate(MOST);
        if over > 0 {
            lines.push(format!("and {over} more hosts"));
        }
        if unsuitable > 0 {
            lines.push(format!(
                "{unsuitable} hosts are not among those that the job requires"
            ));
        }
        if self.hosts.is_empty() {
            lines.push("no agent has ever connected".into());
        }
        lines
    }

    /// Why a host takes no job of a queue, whatever its slots do.
    fn why_unusable(&self, host: &Host, queue: QueueKey, now: BootInstant) -> Option<String> {
        let user = self.users.name(queue.user);
        let barred = self.is_barred(host, queue, now);
        Some(if host.session.is_none() {
            format!("not connected for {} s", now.since(host.since).as_secs())
        } else if let Some(until) = host.failures.until {
            format!(
                "quarantined for another {} s: {}",
                until.since(now).as_secs() + 1,
                super::quarantine::REASON
            )
        } else if let Some(until) = barred {
            let until = until.filter(|until| *until > now);
            let left = until.map_or(String::new(), |until| {
                format!(" for another {} s", until.since(now).as_secs() + 1)
            });
            format!(
                "avoided by this batch{left}: {}",
                super::quarantine::SUSPECTED
            )
        } else if let Some(reason) = host.drain.reason() {
            format!("is being drained: {reason}")
        } else if host.width == 0 {
            let trouble = host.trouble();
            let trouble = trouble.unwrap_or("it has no slots");
            format!("is failing: {trouble}")
        } else if !host.is_known() {
            "has just connected".into()
        } else if self.is_replacing(host, queue.user) {
            format!(
                "takes no jobs of {user} until those that run there have ended: the user's engines \
                 are of another version than its agent, and are replaced then"
            )
        } else if !self.serves(host, queue.user) {
            let unheard = host.unheard.iter().find(|(unheard, _)| unheard == user);
            match unheard {
                None => format!(
                    "runs no jobs of {user}: root has not enabled mezcal-engines@{user}.service \
                     there"
                ),
                Some((_, why)) => format!("runs no jobs of {user} at present: {why}"),
            }
        } else if host.slots() < queue.slots() {
            format!(
                "has {} slots, and the job takes {}{}",
                host.slots(),
                queue.slots(),
                failing(host)
            )
        } else {
            return None;
        })
    }

    /// Why a host that could take a job of a queue does not do so now.
    fn why_not_now(
        &self,
        host: &Host,
        queue: QueueKey,
        preferred: &[Arc<str>],
        now: BootInstant,
    ) -> String {
        let Some(idle) = host.credit.longest_idle().map(|since| now.since(since)) else {
            return format!("all {} slots are busy{}", host.slots(), failing(host));
        };
        let better = !preferred.is_empty()
            && !self.is_among(host, preferred)
            && self.queues.is_elsewhere(queue);
        let slots = queue.slots();
        if better && idle < self.locality_wait {
            format!(
                "has an idle slot, but the job prefers {}, for another {} s",
                super::names::fold(preferred),
                (self.locality_wait - idle).as_secs() + 1
            )
        } else if host.credit.idle() < usize::from(slots) {
            let kept = host
                .kept
                .filter(|kept| kept.key == queue)
                .map_or("", |_| "; they are kept for this job or one like it");
            format!(
                "has {} idle slots, and the job takes {slots}{kept}",
                host.credit.idle()
            )
        } else if host.kept.is_some_and(|kept| kept.key != queue) {
            self.kept_in_words(host).unwrap_or_default()
        } else if !host.credit.is_left() {
            "has an idle slot and has not asked for more".into()
        } else {
            "has an idle slot: jobs of higher priority or of older batches go first".into()
        }
    }
}
