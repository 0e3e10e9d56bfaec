//! Ended batches that are run again.

use crate::exit::chain;
use crate::jobs::too_large;
use crate::scheduler::Event;
use crate::service::enrol::Enrolment;
use crate::service::found::{Again, Found, Retry};
use crate::service::peers::{Asker, ClientId};
use crate::service::permit::FORGOTTEN;
use crate::service::reading::RESULT_BYTES;
use crate::service::state::Service;
use crate::store::{Described, Reader, StoreError};
use mezcal_common::message::client::{Submission, ToClient};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::identity::Role;
use mezcal_common::model::ids::{BatchId, BatchSerial, JobNumber};
use std::collections::{BTreeMap, HashMap};

impl Service {
    /// Opens a new batch with jobs of an ended one, as its owner's, also if an admin asks for it.
    pub(super) fn wants_again(&mut self, id: ClientId, request: u64, batch: &str, failed: bool) {
        let Some(by) = self.asker(id, request) else {
            return;
        };
        match self.find_batch(&by.user, batch) {
            Ok(batch) => self.run_again(by, batch, failed),
            Err(why) => self.not_again(by, why),
        }
    }

    fn run_again(&mut self, by: Asker, batch: BatchId, failed: bool) {
        let may = self.may_run_again(batch);
        let (serial, owner, reads) = match may.and_then(|(s, o)| Ok((s, o, self.reads()?))) {
            Ok(may) => may,
            Err(why) => return self.not_again(by, why),
        };
        let enrolment = self.enrolment.clone().filter(|_| owner != by.user);
        let asked = Retry {
            by,
            batch,
            failed,
            revocations: self.revocations.done(),
        };
        self.find(async move {
            let read = move |reader: &Reader| {
                enrolment.map_or(Ok(()), |list| is_still_a_user(&list, &owner))?;
                read_again(reader, serial, failed)
            };
            let again = reads.read_whole(read).await;
            Found::Again(asked, again.and_then(|again| again))
        });
    }

    /// Whether that batch can be run again at present, with its number and its owner.
    fn may_run_again(&self, batch: BatchId) -> Result<(BatchSerial, String), String> {
        let known = self.batches.get(batch).ok_or(FORGOTTEN)?;
        if !known.is_done() {
            return Err("that batch has not ended; wait for it, or cancel it first".into());
        }
        match self.no_room().or_else(|| self.too_many(known.owner())) {
            Some(why) => Err(why),
            None => Ok((known.serial(), known.owner().to_owned())),
        }
    }

    /// The jobs have been read: opens the new batch, if that can still be done.
    pub(in crate::service) fn again_found(
        &mut self,
        asked: Retry,
        again: Result<Again, String>,
        now: BootInstant,
    ) {
        let Retry {
            by, batch, failed, ..
        } = asked;
        // A batch that was forgotten meanwhile could not be read, which is not the store's fault.
        let found = self.may_run_again(batch).and_then(|of| Ok((again?, of)));
        let (again, (_, owner)) = match found {
            Ok(found) => found,
            Err(why) => return self.not_again(by, why),
        };
        if owner != by.user {
            // The owner may have been revoked meanwhile.
            if asked.revocations != self.revocations.done() {
                return self.run_again(by, batch, failed);
            }
            tracing::info!(by = by.user, owner, %batch, "batch {batch} of {owner} is retried by {}, an admin", by.user);
        }
        let jobs = again.jobs.len() as u64;
        match self.open_again(again, owner, now) {
            // The client gets the answer when the batch is safe.
            Ok(new) => drop(self.retried.insert(new, (by.client, by.request, jobs))),
            Err(why) => self.not_again(by, why),
        }
    }

    fn open_again(
        &mut self,
        again: Again,
        owner: String,
        now: BootInstant,
    ) -> Result<BatchId, String> {
        let Again {
            terms,
            host_sets,
            jobs,
        } = again;
        let batch = terms.context.batch;
        self.begin(owner, terms, now)?;
        let submit = Event::Submit {
            batch,
            host_sets,
            jobs,
        };
        self.scheduler.handle(submit, now);
        self.scheduler.handle(Event::Close { batch }, now);
        Ok(batch)
    }

    fn not_again(&mut self, by: Asker, why: String) {
        let (request, batch) = (by.request, Err(why));
        self.answer(by, [ToClient::Retried { request, batch }]);
    }

    /// Tells the client that wanted an ended batch to run again whether the new one is safe.
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

/// No batch begins in the name of an owner who could not begin it.
fn is_still_a_user(list: &Enrolment, owner: &str) -> Result<(), String> {
    match list.registry.is_member(Role::User, owner) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!(
            "that batch belongs to {owner}, who has no valid certificate any more, so nothing is \
             started in that name; `coordinator results` gives its jobs, for another user to run"
        )),
        Err(e) => Err(chain(&e)),
    }
}

/// Reads an ended batch as a new one: all of its jobs, or those that did not succeed.
fn read_again(reader: &Reader, serial: BatchSerial, failed: bool) -> Result<Again, String> {
    let in_words = |e: StoreError| chain(&e);
    let mut terms = reader.terms(serial).map_err(in_words)?;
    terms.context.batch = BatchId::random();
    terms.detached = true;
    if let Some(why) = too_large(&terms.context) {
        return Err(why);
    }
    let mut all = Jobs::default();
    if failed {
        let mut after = 0;
        loop {
            let jobs = reader.ended(serial, after, true, RESULT_BYTES);
            let jobs = jobs.map_err(in_words)?;
            let Some(last) = jobs.last().and_then(|job| job.ended.as_ref()) else {
                break;
            };
            after = last.0;
            all.add(jobs);
        }
    } else {
        let mut after = JobNumber(0);
        loop {
            let jobs = reader.jobs(serial, after, RESULT_BYTES).map_err(in_words)?;
            let Some(last) = jobs.last() else { break };
            after = last.submission.job;
            all.add(jobs);
        }
    }
    let (host_sets, jobs) = all.finish();
    if jobs.is_empty() {
        return Err("every job of that batch has succeeded".into());
    }
    Ok(Again {
        terms,
        host_sets,
        jobs,
    })
}

/// Jobs of one batch that are to be submitted to another.
#[derive(Default)]
struct Jobs {
    jobs: BTreeMap<JobNumber, Described>,
}

impl Jobs {
    fn add(&mut self, jobs: Vec<Described>) {
        self.jobs
            .extend(jobs.into_iter().map(|job| (job.submission.job, job)));
    }

    /// Numbers them anew, in their old order. A job that came after one that is not among them does
    /// not wait: that one has succeeded.
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
