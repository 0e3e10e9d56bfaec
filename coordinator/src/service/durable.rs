//! The side of a service that has a store: effects that wait until the records before them are
//! safe, and how much is on its way there.

use super::reads::Reads;
use crate::scheduler::{Effect, Record};
use crate::store::{Reader, Writer};
use bytes::Bytes;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{BatchId, JobKey};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::sync::watch;

/// Jobs on their way to the store. Beyond this, clients that submit wait.
const MAX_UNSTORED_JOBS: usize = 32_768;
/// Bytes of their texts: as much as a slow disk takes in a second.
const MAX_UNSTORED_BYTES: usize = 32 << 20;
/// After so many bytes of texts, and once all of them are safe, the memory that they used in the
/// heap is given back.
const LARGE_TEXTS: usize = 64 << 20;

/// A store that cannot be written for longer than this refuses batches that have just come and have
/// not begun; until then they wait, too.
const PASSING: Duration = Duration::from_secs(8);
/// After this, clients that wait are told why.
const SAID_AFTER: Duration = Duration::from_secs(1);

/// How long the store has been in trouble.
pub(super) struct Trouble {
    /// Long enough that clients which wait have to be told, and they have not been.
    pub(super) is_said: bool,
    /// Too long for batches that have not begun.
    pub(super) lasts: bool,
}

/// Nothing can be written at present.
struct Unwritable {
    why: String,
    since: BootInstant,
    /// Clients that wait have been told.
    told: bool,
}

/// The state that a service with a store has for it.
pub(super) struct Durable {
    writer: Writer,
    reads: Reads,
    /// Records handed to the store so far, and how many of them are safe.
    issued: u64,
    committed: u64,
    /// Records that have not been handed over yet.
    records: Vec<Record>,
    /// Effects that wait until so many records are safe.
    held: VecDeque<(u64, Effect)>,
    /// Texts of jobs that have been placed and not been sent, and how often they were placed.
    specs: HashMap<JobKey, (Bytes, u32)>,
    trouble: Option<Unwritable>,
    /// Batches of which the store has nothing yet, by the number of the record that opens them.
    opening: VecDeque<(u64, BatchId)>,
    /// Jobs that are not safe yet, by the number of their record, with the bytes of their texts;
    /// and the sums of both.
    jobs: VecDeque<(u64, usize, usize)>,
    unsafe_jobs: usize,
    unsafe_bytes: usize,
    /// Bytes of texts that have gone to the store since the heap was given back.
    passed: usize,
    behind: watch::Sender<bool>,
}

impl Durable {
    pub(super) fn new(writer: Writer, reader: Reader, behind: watch::Sender<bool>) -> Self {
        Self {
            writer,
            reads: Reads::new(reader),
            issued: 0,
            committed: 0,
            records: Vec::new(),
            held: VecDeque::new(),
            specs: HashMap::new(),
            trouble: None,
            opening: VecDeque::new(),
            jobs: VecDeque::new(),
            unsafe_jobs: 0,
            unsafe_bytes: 0,
            passed: 0,
            behind,
        }
    }

    pub(super) fn reads(&self) -> &Reads {
        &self.reads
    }

    /// Whether the store has nothing of that batch yet.
    pub(super) fn is_opening(&self, batch: BatchId) -> bool {
        self.opening.iter().any(|(_, opening)| *opening == batch)
    }

    /// Adds a record, which goes to the store with the next ones.
    pub(super) fn issue(&mut self, record: Record) {
        self.issued += 1;
        if let Record::Opened { terms, .. } = &record {
            self.opening.push_back((self.issued, terms.context.batch));
        }
        if let Record::Submitted { jobs, .. } = &record {
            let bytes = jobs.iter().map(|job| job.spec.len()).sum();
            self.jobs.push_back((self.issued, jobs.len(), bytes));
            self.unsafe_jobs += jobs.len();
            self.unsafe_bytes += bytes;
            self.behind.send_replace(self.is_behind());
        }
        self.records.push(record);
    }

    /// Hands the added records to the store.
    pub(super) fn write(&mut self) {
        if !self.records.is_empty() {
            self.writer.write(std::mem::take(&mut self.records));
        }
    }

    /// Gives an effect back that may take place now; else it waits for the records before it.
    pub(super) fn when_safe(&mut self, effect: Effect) -> Option<Effect> {
        let overtakes = effect.overtakes_the_store() && self.may_greet(&effect);
        if self.is_all_safe() || overtakes {
            return Some(effect);
        }
        self.held.push_back((self.issued, effect));
        None
    }

    /// The next effect that the store has made safe.
    pub(super) fn next_safe(&mut self) -> Option<Effect> {
        let committed = self.committed;
        let next = self.held.pop_front_if(|(after, _)| *after <= committed);
        next.map(|(_, effect)| effect)
    }

    pub(super) fn is_all_safe(&self) -> bool {
        self.committed == self.issued
    }

    /// Why nothing can be written at present.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().map(|trouble| trouble.why.as_str())
    }

    /// The store could not write, again.
    pub(super) fn failed(&mut self, why: String, now: BootInstant) -> Trouble {
        if self.trouble() != Some(&why) {
            tracing::error!(
                why,
                "the store cannot be written; running jobs go on, and nothing new is accepted"
            );
        }
        let before = self.trouble.take();
        let (since, told) = before.map_or((now, false), |before| (before.since, before.told));
        let lasted = now.since(since);
        let is_said = lasted >= SAID_AFTER && !told;
        let told = told || is_said;
        self.trouble = Some(Unwritable { why, since, told });
        Trouble {
            is_said,
            lasts: lasted >= PASSING,
        }
    }

    /// Batches of which the store has nothing: batches on their way there, which are not counted as
    /// such any more, and batches whose first jobs are accepted when others are safe.
    pub(super) fn not_begun(&mut self) -> (Vec<BatchId>, Vec<BatchId>) {
        let opening = self.opening.drain(..).map(|(_, batch)| batch).collect();
        let accepted = self.held.iter().filter_map(|(_, held)| match held {
            Effect::Accepted {
                batch,
                closed: false,
                ..
            } => Some(*batch),
            _ => None,
        });
        (opening, accepted.collect())
    }

    fn is_behind(&self) -> bool {
        self.unsafe_jobs > MAX_UNSTORED_JOBS || self.unsafe_bytes > MAX_UNSTORED_BYTES
    }

    /// Every record up to this one is safe, and these are the texts of jobs that it places. True if
    /// clients that wait have been told that nothing could be written.
    pub(super) fn committed(&mut self, through: u64, specs: Vec<(JobKey, Bytes)>) -> bool {
        let trouble = self.trouble.take();
        if trouble.is_some() {
            tracing::info!("the store can be written again");
        }
        for (key, text) in specs {
            self.specs.entry(key).or_insert((text, 0)).1 += 1;
        }
        self.committed = through;
        while self
            .opening
            .pop_front_if(|(number, _)| *number <= through)
            .is_some()
        {}
        while let Some((_, jobs, bytes)) = self.jobs.pop_front_if(|(number, ..)| *number <= through)
        {
            self.unsafe_jobs -= jobs;
            self.unsafe_bytes -= bytes;
            self.passed += bytes;
        }
        if self.unsafe_jobs == 0 && self.passed > LARGE_TEXTS {
            self.passed = 0;
            super::memory::give_back();
        }
        let is = self.is_behind();
        self.behind
            .send_if_modified(|was| std::mem::replace(was, is) != is);
        trouble.is_some_and(|trouble| trouble.told)
    }

    /// The text of a job that is sent. A job that was placed again before it was sent once is sent
    /// as often as it was placed.
    pub(super) fn text(&mut self, key: JobKey) -> Option<Bytes> {
        let (text, times) = self.specs.get_mut(&key)?;
        *times -= 1;
        let (text, over) = (text.clone(), *times == 0);
        if over {
            self.specs.remove(&key);
        }
        Some(text)
    }

    /// False for a welcome whose engine numbers are not safe yet: an earlier welcome with them
    /// waits.
    fn may_greet(&self, effect: &Effect) -> bool {
        let numbers = |effect: &Effect| match effect {
            Effect::Welcome(_, welcome) => Some(welcome.first_engine),
            _ => None,
        };
        let own = numbers(effect);
        own.is_none() || !self.held.iter().any(|(_, held)| numbers(held) == own)
    }

    /// Number of records on their way to the store.
    pub(super) fn unsaved(&self) -> u64 {
        self.issued - self.committed
    }

    pub(super) fn forget(&self, batch: mezcal_common::model::ids::BatchSerial) {
        self.writer.forget(batch);
    }
}

/// The answer to a client that wants something stored while nothing can be.
pub(super) fn not_stored(why: &str) -> String {
    format!(
        "the coordinator's store cannot be written ({why}); running jobs go on, and nothing new is accepted until it can"
    )
}
