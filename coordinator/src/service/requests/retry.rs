//! Ended batches that are run again.

use crate::jobs::too_large;
use crate::scheduler::Event;
use crate::service::batch::Batch;
use crate::service::peers::ClientId;
use crate::service::reading::RESULT_BYTES;
use crate::service::state::Service;
use crate::store::Described;
use mezcal_common::message::client::{Submission, ToClient};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::identity::Role;
use mezcal_common::model::ids::{BatchId, JobNumber};
use std::collections::{BTreeMap, HashMap};

impl Service {
    pub(super) fn wants_again(
        &mut self,
        id: ClientId,
        request: u64,
        batch: &str,
        failed: bool,
        now: BootInstant,
    ) {
        let Some(user) = self.clients.get(&id).map(|client| client.user.clone()) else {
            return;
        };
        match self.retry(&user, batch, failed, now) {
            // They hear of it when it is safe.
            Ok((new, jobs)) => drop(self.retried.insert(new, (id, request, jobs))),
            Err(why) => {
                let batch = Err(why);
                self.tell_client(id, ToClient::Retried { request, batch });
            }
        }
    }

    /// Opens a new batch with jobs of an ended one, as its owner's, whoever asks for it.
    fn retry(
        &mut self,
        user: &str,
        wanted: &str,
        failed: bool,
        now: BootInstant,
    ) -> Result<(BatchId, u64), String> {
        let old = self.find_batch(user, wanted)?;
        let known = self
            .batches
            .get(old)
            .filter(|batch| batch.done)
            .ok_or("that batch has not ended; wait for it, or cancel it first")?;
        let (serial, owner, reader) = (known.serial, known.owner.clone(), self.reader()?.clone());
        if let Some(why) = self.no_room().or_else(|| self.too_many(&owner)) {
            return Err(why);
        }
        if owner != user {
            self.is_still_a_user(&owner)?;
            tracing::info!(by = user, owner, batch = %old, "batch {old} of {owner} is retried by {user}, an admin");
        }
        let in_words = |e: crate::store::StoreError| crate::exit::chain(&e);
        let mut terms = reader.terms(serial).map_err(in_words)?;
        let id = BatchId::random();
        terms.context.batch = id;
        terms.detached = true;
        if let Some(why) = too_large(&terms.context) {
            return Err(why);
        }
        let name = terms.name.clone();
        let mut again = Again::default();
        if failed {
            let mut after = 0;
            loop {
                let jobs = reader
                    .ended(serial, after, true, RESULT_BYTES)
                    .map_err(in_words)?;
                let Some(last) = jobs.last().and_then(|job| job.ended.as_ref()) else {
                    break;
                };
                after = last.0;
                again.add(jobs);
            }
        } else {
            let mut after = JobNumber(0);
            loop {
                let jobs = reader.jobs(serial, after, RESULT_BYTES).map_err(in_words)?;
                let Some(last) = jobs.last() else { break };
                after = last.submission.job;
                again.add(jobs);
            }
        }
        let (host_sets, jobs) = again.finish();
        let count = jobs.len() as u64;
        if count == 0 {
            return Err("every job of that batch has succeeded".into());
        }
        self.scheduler.handle(
            Event::Open {
                user: owner.clone(),
                terms: Box::new(terms),
            },
            now,
        );
        let (serial, ..) = self
            .scheduler
            .batch_so_far(id)
            .ok_or("the new batch cannot be opened")?;
        self.batches
            .insert(id, Batch::new(serial, owner, true).named(name));
        self.scheduler.handle(
            Event::Submit {
                batch: id,
                host_sets,
                jobs,
            },
            now,
        );
        self.scheduler.handle(Event::Close { batch: id }, now);
        Ok((id, count))
    }

    /// Nothing is begun in the name of somebody who could not begin it.
    fn is_still_a_user(&self, owner: &str) -> Result<(), String> {
        let Some(enrolment) = &self.enrolment else {
            return Ok(());
        };
        match enrolment.registry.is_member(Role::User, owner) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!(
                "that batch is {owner}'s, of whom no certificate counts any more, so nothing is started in that name; `coordinator results` \
                 gives its jobs to whoever wants to run them"
            )),
            Err(e) => Err(crate::exit::chain(&e)),
        }
    }

    /// Tells whoever wanted an ended batch to run again what has become of it.
    pub(in crate::service) fn is_retried(&mut self, batch: BatchId, result: Result<(), String>) {
        if let Some((client, request, jobs)) = self.retried.remove(&batch) {
            self.tell_client(
                client,
                ToClient::Retried {
                    request,
                    batch: result.map(|()| (batch, jobs)),
                },
            );
        }
    }
}

/// Jobs of one batch as they are submitted to another.
#[derive(Default)]
struct Again {
    jobs: BTreeMap<JobNumber, Described>,
}

impl Again {
    fn add(&mut self, jobs: Vec<Described>) {
        self.jobs
            .extend(jobs.into_iter().map(|job| (job.submission.job, job)));
    }

    /// Numbers them anew, in their old order. What came after a job that is not among them does not
    /// wait: that one has succeeded.
    fn finish(self) -> (Vec<Vec<String>>, Vec<Submission>) {
        let numbers: HashMap<JobNumber, JobNumber> = self
            .jobs
            .keys()
            .copied()
            .zip((1..).map(JobNumber))
            .collect();
        let (mut sets, mut index): (Vec<Vec<String>>, HashMap<Vec<String>, u32>) =
            (Vec::new(), HashMap::new());
        let mut place = |set: Option<Vec<String>>| {
            set.map(|set| {
                *index.entry(set).or_insert_with_key(|set| {
                    sets.push(set.clone());
                    sets.len() as u32 - 1
                })
            })
        };
        let jobs = self.jobs.into_iter().map(
            |(
                number,
                Described {
                    submission, hosts, ..
                },
            )| {
                let after = submission
                    .after
                    .iter()
                    .filter_map(|before| numbers.get(before).copied())
                    .collect();
                Submission {
                    job: numbers[&number],
                    hosts: place(hosts.0),
                    prefer: place(hosts.1),
                    after,
                    ..submission
                }
            },
        );
        let jobs = jobs.collect();
        (sets, jobs)
    }
}
