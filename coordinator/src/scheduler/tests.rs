//! Scripts of the scheduler: each line of a trace is one effect. Reading them shows what it does.

mod asking;
mod batches;
mod cancelling;
mod draining;
mod failing;
mod halting;
mod hold;
mod losing;
mod names;
mod near;
mod ordering;
mod placing;
mod retrying;
mod returns;
mod sanity;
mod script;
mod shortage;
mod stops;
mod suspicion;
mod users;
mod wide;

use super::*;
use bytes::Bytes;
use mezcal_common::message::agent::{
    Hello, Load, LogWish, NumberedReport, Report, ToAgent, ToCoordinator,
};
use mezcal_common::message::client::{
    BatchTerms, CancelWait, Halt, HaltCount, HaltWhy, RetryOn, Submission,
};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::hosts;
use mezcal_common::model::ids::{
    AttemptId, BatchId, BatchSerial, EngineId, EngineIndex, Epoch, Generation, JobKey, JobNumber,
    SessionId, StoreId,
};
use mezcal_common::model::job::{BatchContext, Stop};
use mezcal_common::model::outcome::{Containment, Ended, Outcome, WaitStatus};
use std::collections::BTreeSet;
use std::time::Duration;

/// A scheduler with a clock and short methods for events.
struct Script {
    scheduler: Scheduler,
    now: BootInstant,
    seq: u64,
}

const LEASE: Duration = Duration::from_secs(600);

/// The locality wait of these scripts.
const WAIT: Duration = Duration::from_secs(3);

const NOWHERE: &[&str] = &[];

/// A cancel of batch 1, or of some of its jobs; with a `request` a client waits for it.
fn cancel(request: Option<u64>, grace: Duration) -> Event {
    cancel_jobs(request, grace, &[])
}

fn cancel_jobs(request: Option<u64>, grace: Duration, jobs: &[&str]) -> Event {
    let what = match jobs {
        [] => vec![Wanted {
            batch: batch(1),
            job: None,
        }],
        jobs => jobs
            .iter()
            .map(|job| Wanted {
                batch: batch(1),
                job: Some(WantedJob::Named((*job).to_owned())),
            })
            .collect(),
    };
    Event::Cancel {
        request,
        what,
        stop: Stop::after(grace),
        why: None,
    }
}

fn script() -> Script {
    script_with(Some(LEASE))
}

fn script_with(lease: Option<Duration>) -> Script {
    Script {
        scheduler: Scheduler::new(Epoch(7), StoreId(1), lease, WAIT),
        now: BootInstant(Duration::from_secs(1000)),
        seq: 0,
    }
}

fn batch(n: u128) -> BatchId {
    BatchId(uuid::Uuid::from_u128(n))
}

fn attempt(batch: u32, job: u32, attempt: u32) -> AttemptId {
    AttemptId {
        epoch: Epoch(7),
        key: JobKey {
            batch: BatchSerial(batch),
            job: JobNumber(job),
        },
        attempt,
    }
}

/// The terms of batch `n`, whose jobs wait for a minute for a host.
fn terms(n: u128) -> BatchTerms {
    let context = BatchContext::new(batch(n), "/".into(), 0o22);
    BatchTerms::new(context, Duration::from_secs(60))
}

/// A job of one slot that any host may run.
fn any_job(number: u32) -> Submission {
    Submission::new(JobNumber(number), Bytes::from_static(b"x"))
}

/// The records of batch 1, opened `age` seconds ago, and of its jobs.
fn stored(terms: BatchTerms, age: u64, jobs: Vec<Submission>) -> [Record; 2] {
    let (batch, user) = (BatchSerial(1), "okazaki".to_owned());
    let opened = Record::Opened {
        batch,
        user,
        terms: Box::new(terms),
        age: Duration::from_secs(age),
    };
    [opened, Record::Submitted { batch, jobs }]
}

fn exited(code: i32) -> Outcome {
    Outcome {
        status: Some(WaitStatus::Exited(code)),
        ..Outcome::never_ran(Ended::Exited, None)
    }
}

fn halt(s: &mut Script, now: bool, why: HaltWhy, count: HaltCount) {
    halt_batch(s, 1, now, why, count);
}

fn halt_batch(s: &mut Script, number: u128, now: bool, why: HaltWhy, count: HaltCount) {
    let halt = Some(Halt { now, why, count });
    let terms = BatchTerms {
        halt,
        ..terms(number)
    };
    s.open_with("okazaki", terms);
}

/// Submits jobs that prefer these hosts, best first, as batch 1.
fn choosy(s: &mut Script, jobs: &[&[&str]]) -> String {
    s.open(1);
    let (mut host_sets, mut submissions) = (Vec::new(), Vec::new());
    for (i, set) in jobs.iter().enumerate() {
        let prefer = (!set.is_empty()).then(|| {
            host_sets.push(set.iter().map(|h| h.to_string()).collect());
            host_sets.len() as u32 - 1
        });
        submissions.push(Submission {
            prefer,
            ..any_job(i as u32 + 1)
        });
    }
    s.submit_jobs(1, host_sets, submissions)
}

/// Jobs from number 1 on, of which each comes after these others.
fn ordered(after: &[&[u32]]) -> Vec<Submission> {
    let job = |(number, after): (u32, &&[u32])| Submission {
        after: after.iter().copied().map(JobNumber).collect(),
        ..any_job(number)
    };
    (1..).zip(after).map(job).collect()
}

/// Opens batch `n` of a user with so many jobs of one priority, and closes it.
fn of_user(s: &mut Script, n: u128, user: &str, jobs: u32, priority: i32) -> String {
    s.open_with(user, terms(n));
    let jobs = (1..=jobs)
        .map(|n| Submission {
            priority,
            ..any_job(n)
        })
        .collect();
    s.submit_jobs(n, vec![], jobs)
}
