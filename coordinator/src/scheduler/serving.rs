//! Giving hosts the jobs that they have asked for, in the order of service.

use super::queues::QueueKey;
use super::{Effect, Placing, Record, Scheduler};
use mezcal_common::message::agent::ToAgent;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, JobKey, JobNumber, SessionId};
use mezcal_common::model::outcome::Place;
use std::sync::Arc;
use std::time::Duration;

/// Limits of one message of placements, by count and by bytes, so that a frame holds it.
const RUN_COUNT: usize = 256;
const RUN_BYTES: usize = 512 * 1024;

/// The placements that go to an agent in one message.
#[derive(Default)]
struct Run {
    placings: Vec<Placing>,
    bytes: usize,
}

impl Run {
    /// Whether a frame would not hold it with so many more bytes.
    fn is_full_with(&self, bytes: usize) -> bool {
        self.placings.len() == RUN_COUNT || self.bytes + bytes > RUN_BYTES
    }
}

impl Scheduler {
    /// Carries out everything that follows from an event.
    pub(super) fn settle(&mut self, now: BootInstant) {
        self.settle_order(now);
        // Notices come before placements, so that a waiting job is announced first.
        self.look_at_changed(now);
        for name in self.hosts.take_roomier() {
            self.serve(&name, usize::MAX, now);
        }
        while std::mem::take(&mut self.unserved) {
            self.serve_all(now);
            self.look_at_changed(now);
        }
    }

    /// A job waits for a host from now on.
    pub(super) fn enqueue(&mut self, key: JobKey) {
        if self.is_held_back(key) {
            return;
        }
        let Some(queue) = self.batches.job(key).map(|job| job.queue) else {
            return;
        };
        let (required, prefer) = (self.batches.set_of(queue), self.batches.preferred_by(queue));
        self.queues.push(queue, key.job, required, prefer);
        if !self.is_served(queue.user) {
            self.queues.look_at(queue);
        }
        self.unserved = true;
    }

    /// Gives a host jobs for its credit, at most `most` of them. True if it got any.
    pub(super) fn serve(&mut self, name: &Arc<str>, most: usize, now: BootInstant) -> bool {
        let Some(host) = self.hosts.get(name) else {
            return false;
        };
        let Some(session) = host.session.filter(|_| host.is_willing()) else {
            return false;
        };
        let names = self.names_of(host);
        let (mut run, mut given) = (Run::default(), 0);
        while given < most {
            let Some(next) = self.next_queue(name, &names, now) else {
                break;
            };
            if next.elsewhere && self.serve_nearer(next.key, now) {
                // The job that was given there may have been the last one.
                continue;
            }
            let Some(job) = self.queues.pop(next.key) else {
                break;
            };
            let placed = self.place_job(name, session, next.key, job, &mut run);
            given += usize::from(placed);
            if placed && next.key.slots() > 1 {
                self.wide_is_placed(name, next.key);
            }
        }
        self.send_run(name, session, run.placings);
        if given > 0 {
            self.reindex(name);
        }
        given > 0
    }

    /// Places a job on a host, in the next message to its agent. False if there is no such job.
    fn place_job(
        &mut self,
        name: &Arc<str>,
        session: SessionId,
        queue: QueueKey,
        number: JobNumber,
        run: &mut Run,
    ) -> bool {
        let batch = self.batches.get_mut(&queue.batch);
        let (Some(batch), Some(host)) = (batch, self.hosts.get_mut(name)) else {
            return false;
        };
        let Some(job) = batch.place(number, host.index, self.generation) else {
            return false;
        };
        let (attempt, text) = (job.attempt, job.text.clone());
        let (slots, length) = (queue.slots(), job.spec_length as usize);
        let context = host.tell_of(queue.batch).then(|| {
            let user = self.users.name(batch.user).clone();
            (batch.context.clone(), user)
        });
        let key = JobKey {
            batch: queue.batch,
            job: number,
        };
        let attempt = AttemptId {
            epoch: self.epoch,
            key,
            attempt,
        };
        self.users.take(queue.user, slots);
        host.attempts.add(attempt, queue.user, slots, Some(session));
        host.credit.spend(slots);
        if run.is_full_with(length) || context.is_some() {
            let full = std::mem::take(run);
            self.send_run(name, session, full.placings);
        }
        if let Some((context, user)) = context {
            let context = ToAgent::Context {
                batch: queue.batch,
                context,
                user,
            };
            self.effects.push_back(Effect::ToAgent(session, context));
        }
        run.bytes += length;
        run.placings.push(Placing {
            attempt,
            text,
            slots,
        });
        true
    }

    fn send_run(&mut self, name: &Arc<str>, session: SessionId, run: Vec<Placing>) {
        if run.is_empty() {
            return;
        }
        let lease = self.lease;
        self.persist(|| Record::Placed {
            host: name.clone(),
            lease,
            attempts: run.iter().map(|p| p.attempt).collect(),
        });
        self.effects.push_back(Effect::Place(session, run));
    }

    /// Spreads the waiting jobs: first over the idle slots of all hosts, one at a time in turn,
    /// then over the rest of their credit.
    pub(super) fn serve_all(&mut self, now: BootInstant) {
        if self.queues.is_empty() {
            return;
        }
        let names: Vec<Arc<str>> = self.hosts.wanting().collect();
        self.fill_idle(&names, now);
        for name in &names {
            self.serve(name, usize::MAX, now);
        }
    }

    /// Gives these hosts jobs for their idle slots, one at a time in turn.
    fn fill_idle(&mut self, names: &[Arc<str>], now: BootInstant) {
        let mut again = true;
        while again {
            again = false;
            for name in names {
                if self.hosts.get(name).is_some_and(|h| h.credit.idle() > 0) {
                    again |= self.serve(name, 1, now);
                }
            }
        }
    }

    /// When the next slot has been idle for the locality wait. Slots that were checked already
    /// get jobs as these come.
    pub(super) fn patience_ends(&self) -> Option<BootInstant> {
        let (since, _) = self
            .patient()
            .next()
            .filter(|_| self.queues.any_elsewhere())?;
        Some(*since + self.locality_wait)
    }

    /// Hosts whose slots have not been checked since their locality wait ended, by the longest idle
    /// slot.
    fn patient(&self) -> impl Iterator<Item = &(BootInstant, u32)> {
        let looked_at = self.looked_at.0.checked_sub(self.locality_wait);
        self.hosts.idle_after(looked_at.map(BootInstant))
    }

    /// Gives jobs that prefer other hosts to slots that have been idle for the locality wait.
    pub(super) fn serve_impatient(&mut self, now: BootInstant) {
        if self.patience_ends().is_none_or(|at| at > now) {
            return;
        }
        let over = self
            .patient()
            .take_while(|(since, _)| *since + self.locality_wait <= now);
        let names: Vec<Arc<str>> = over
            .filter_map(|(_, index)| self.hosts.name_at(*index))
            .collect();
        self.looked_at = now;
        self.fill_idle(&names, now);
    }

    /// Whether a job ran where it prefers to; none: it has no preference, or did not run.
    pub(super) fn is_local(&self, key: QueueKey, place: Option<&Place>) -> Option<bool> {
        let (preferred, place) = (self.batches.preferred_by(key)?, place?);
        let host = self.hosts.get(&place.host)?;
        Some(self.is_among(host, &preferred))
    }

    /// How long a slot has to be idle from now on before it gets a job that prefers another host.
    pub fn set_locality_wait(&mut self, wait: Duration) {
        self.locality_wait = wait;
    }
}
